//! Several DestinationRules of one namespace for one host, put together as Istio does: subsets add up, and the first policy
//! for all traffic is used. They must be for the same clients and namespaces.

use std::sync::Arc;

use leno_core::policy::{DestinationPolicy, PortedPolicy};
use leno_core::{Condition, Finding, Reason, Severity};

/// The policies put together, in the order of the first of each; what is left out of the others is said.
pub(super) fn put_together(
    policies: Vec<Arc<DestinationPolicy>>,
    findings: &mut Vec<Finding>,
) -> Vec<Arc<DestinationPolicy>> {
    let mut merged: Vec<Arc<DestinationPolicy>> = Vec::new();
    let mut first: std::collections::BTreeMap<(String, String, String), usize> = std::collections::BTreeMap::new();
    for policy in policies {
        let clients = policy.clients.as_ref().map(|labels| format!("{labels:?}")).unwrap_or_default();
        let key =
            (policy.origin.namespace.clone(), policy.host.to_string(), format!("{clients} {:?}", policy.export_to));
        match first.get(&key).and_then(|at| merged.get_mut(*at)) {
            Some(known) => add(Arc::make_mut(known), &policy, findings),
            None => {
                first.insert(key, merged.len());
                merged.push(policy);
            }
        }
    }
    merged
}

fn add(known: &mut DestinationPolicy, policy: &DestinationPolicy, findings: &mut Vec<Finding>) {
    let mut left_out = |field: String, what: String| {
        findings.push(Finding {
            object: policy.origin.clone(),
            generation: policy.generation,
            condition: Condition::Accepted,
            severity: Severity::Failing,
            reason: Reason::Conflict,
            field,
            message: format!(
                "{} is for {} already and comes first (the oldest does, then by name): {what}",
                known.origin, policy.host
            ),
        });
    };
    let says_something = policy.policy != PortedPolicy::default();
    let taken = known.policy != PortedPolicy::default();
    if says_something && taken {
        left_out(
            "spec.trafficPolicy".to_owned(),
            "there is a trafficPolicy already, and this one has no effect; keep one".to_owned(),
        );
    }
    for (index, subset) in policy.subsets.iter().enumerate() {
        if known.subsets.iter().any(|other| other.name == subset.name) {
            let what = format!("its subset \"{}\" holds, not this one; rename it, or delete one", subset.name);
            left_out(format!("spec.subsets[{index}].name"), what);
        }
    }
    if says_something && !taken {
        known.policy = policy.policy.clone();
    }
    for subset in &policy.subsets {
        if !known.subsets.iter().any(|other| other.name == subset.name) {
            known.subsets.push(subset.clone());
        }
    }
    known.others.push((policy.origin.clone(), policy.generation));
}
