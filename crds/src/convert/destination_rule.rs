//! DestinationRules as destination policies.

use std::collections::BTreeSet;

use leno_core::policy::{DestinationPolicy, Subset};
use leno_core::{HostPattern, Reason};

use super::Converted;
use super::policy::ported_policy;
use super::report::Report;
use crate::istio::destination_rule as istio;

/// Converts a DestinationRule. `domain` is the DNS domain of the cluster's services.
pub fn destination_rule(object: &istio::DestinationRule, domain: &str) -> Converted<DestinationPolicy> {
    let istio::DestinationRule { metadata, spec, status: _ } = object;
    let istio::DestinationRuleSpec { host, traffic_policy, subsets, export_to, workload_selector } = spec;
    let mut report = Report::new("DestinationRule", metadata, domain);

    let pattern = HostPattern::resolve(host, report.namespace(), domain).unwrap_or_else(|error| {
        report.refuse(Reason::InvalidValue, "spec.host", error.to_string());
        HostPattern::Any
    });
    let policy = ported_policy(&mut report, traffic_policy.as_ref(), "spec.trafficPolicy");
    let mut names = BTreeSet::new();
    let mut converted = Vec::new();
    for (index, subset) in subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        let istio::Subset { name, labels, traffic_policy } = subset;
        if name.is_empty() || name.contains('|') {
            report.refuse(Reason::InvalidValue, &format!("{field}.name"), "a subset needs a name, without |");
        }
        if !names.insert(name.as_str()) {
            let message = format!("there is a subset \"{name}\" already; give each its own name");
            report.refuse(Reason::InvalidValue, &format!("{field}.name"), message);
        }
        let policy = ported_policy(&mut report, traffic_policy.as_ref(), &format!("{field}.trafficPolicy"));
        converted.push(Subset { name: name.clone(), labels: labels.clone(), policy });
    }
    let clients = workload_selector.as_ref().map(|selector| {
        let istio::WorkloadSelector { match_labels } = selector;
        match_labels.clone()
    });
    let value = DestinationPolicy {
        origin: report.object.clone(),
        generation: report.generation,
        created: report.created,
        host: pattern,
        export_to: report.export_to(export_to),
        clients,
        others: Vec::new(),
        policy,
        subsets: converted,
    };
    report.finish(value)
}
