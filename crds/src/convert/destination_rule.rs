//! DestinationRules as destination policies.

use std::collections::BTreeSet;

use leno_core::policy::{DestinationPolicy, Subset};
use leno_core::{HostPattern, Reason};

use super::Converted;
use super::policy::ported_policy;
use super::report::Report;
use crate::istio::destination_rule as istio;

/// The longest name of a subset, in bytes.
const MAX_NAME: usize = 62;

/// Converts a DestinationRule. `domain` is the DNS domain of the cluster's services.
pub fn destination_rule(object: &istio::DestinationRule, domain: &str) -> Converted<DestinationPolicy> {
    let istio::DestinationRule { metadata, spec, status: _ } = object;
    let istio::DestinationRuleSpec { host, traffic_policy, subsets, export_to, workload_selector } = spec;
    let mut report = Report::new("DestinationRule", metadata, domain);
    report.selective = spec.chooses_workloads();

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
        // It becomes a label of a server name, with one more character.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        if name.len() > MAX_NAME || !name.bytes().all(fits) || !ends(bytes.first()) || !ends(bytes.last()) {
            let message = format!("a subset needs a name of at most {MAX_NAME} letters, digits and dashes");
            report.refuse(Reason::InvalidValue, &format!("{field}.name"), message);
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
