//! Load balancing by locality: `localityLbSetting` and `zoneAwareLbSetting`.

use leno_core::Reason;
use leno_core::policy::{LocalityBalancing, LocalityShares, Nearest};

use super::report::Report;
use crate::istio::destination_rule as istio;

/// From how many endpoints on zones are looked at.
const MIN_CLUSTER_SIZE: u32 = 6;

/// What `localityLbSetting` says; `None` when it says nothing, so that the mesh's default holds.
pub(super) fn by_locality(
    report: &mut Report<'_>,
    setting: &istio::LocalityLoadBalancerSetting,
    field: &str,
) -> Option<LocalityBalancing> {
    let istio::LocalityLoadBalancerSetting { distribute, failover, failover_priority, enabled } = setting;
    if *enabled == Some(false) {
        return Some(LocalityBalancing::Off);
    }
    if !(distribute.is_empty() || failover.is_empty() && failover_priority.is_empty()) {
        let message = "distribute excludes failover and failoverPriority";
        report.refuse(Reason::NotExactlyOne, field, message);
    }
    if distribute.is_empty() {
        let labels = labels(report, failover_priority, &format!("{field}.failoverPriority"));
        let regions = regions(report, failover, &format!("{field}.failover"));
        return Some(LocalityBalancing::Nearest(Nearest { labels, regions, always: false, zone_aware: None }));
    }
    let mut shares: Vec<LocalityShares> = Vec::new();
    for (index, entry) in distribute.iter().enumerate() {
        let field = format!("{field}.distribute[{index}]");
        let istio::LocalityDistribute { from, to } = entry;
        let from = from.clone().unwrap_or_default();
        for place in std::iter::once(&from).chain(to.keys()) {
            let parts: Vec<&str> = place.split('/').collect();
            let wild = parts.iter().position(|part| part.contains('*'));
            let well = !place.is_empty()
                && parts.len() <= 3
                && parts.iter().all(|part| !part.is_empty() && (*part == "*" || !part.contains('*')))
                && wild.is_none_or(|at| at + 1 == parts.len());
            if !well {
                let message = format!("\"{place}\" is no locality; write region/zone/subzone, with * as the last part");
                report.refuse(Reason::InvalidValue, &field, message);
            }
        }
        if shares.iter().any(|known| known.from == from) {
            let message = format!("there are shares for {from} already; put them together");
            report.refuse(Reason::InvalidValue, &format!("{field}.from"), message);
        }
        let sum: u64 = to.values().map(|share| u64::from(*share)).sum();
        if sum != 100 || to.values().any(|share| *share == 0) {
            let message = format!("the shares must be 1 or more and add up to 100, not {sum}");
            report.refuse(Reason::InvalidWeights, &format!("{field}.to"), message);
        }
        shares.push(LocalityShares { from, to: to.clone() });
    }
    Some(LocalityBalancing::Shares(shares))
}

/// What `zoneAwareLbSetting` says.
pub(super) fn by_zone(
    report: &mut Report<'_>,
    setting: &istio::ZoneAwareLoadBalancerSetting,
    field: &str,
) -> LocalityBalancing {
    let istio::ZoneAwareLoadBalancerSetting { enabled, failover, failover_priority, min_cluster_size } = setting;
    if *enabled == Some(false) {
        return LocalityBalancing::Off;
    }
    let labels = labels(report, failover_priority, &format!("{field}.failoverPriority"));
    let regions = regions(report, failover, &format!("{field}.failover"));
    let zone_aware = Some(u64::from(min_cluster_size.unwrap_or(MIN_CLUSTER_SIZE)));
    // Regions are told apart whether or not somebody looks after endpoints.
    LocalityBalancing::Nearest(Nearest { labels, regions, always: true, zone_aware })
}

/// `label` or `label=value`.
fn labels(report: &mut Report<'_>, texts: &[String], field: &str) -> Vec<(String, Option<String>)> {
    let mut labels: Vec<(String, Option<String>)> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        if name.is_empty() || value.as_ref().is_some_and(|value| value.contains('=')) {
            let message = format!("\"{text}\" is no label; write its name, or name=value");
            report.refuse(Reason::InvalidValue, &format!("{field}[{index}]"), message);
        }
        if labels.iter().any(|(known, _)| known == name) {
            report.refuse(Reason::InvalidValue, &format!("{field}[{index}]"), format!("{name} is named already"));
        }
        labels.push((name.to_owned(), value));
    }
    labels
}

fn regions(report: &mut Report<'_>, failover: &[istio::LocalityFailover], field: &str) -> Vec<(String, String)> {
    let mut regions = Vec::new();
    for (index, entry) in failover.iter().enumerate() {
        let istio::LocalityFailover { from, to } = entry;
        let (from, to) = (from.clone().unwrap_or_default(), to.clone().unwrap_or_default());
        if from == to || [&from, &to].iter().any(|region| region.contains(['/', '*'])) {
            let message = "failover goes from one region to another, without zones and wildcards";
            report.refuse(Reason::InvalidValue, &format!("{field}[{index}]"), message);
        }
        regions.push((from, to));
    }
    regions
}
