//! Whether proxies would take what an object comes to. They refuse all routes of a port, or a whole cluster, for one value that
//! breaks a rule of Envoy's API, whoever wrote the others: so every object is translated by itself when it has changed, and
//! looked at before it is in force.

use leno_core::policy::{Algorithm, DestinationPolicy, PortedPolicy, TrafficPolicy};
use leno_core::route::{self, HttpAction, HttpRule, RouteRules};
use leno_core::service::{Addressing, Service};
use leno_core::{Host, MeshSettings, ObjectKey, Protocol};
use leno_xds::rules::{Broken, check_strictly};

use super::forwards::hash_policy_of;
use super::routes::{matched, route};
use super::{Clusters, clusters};
use crate::resolve::{Action, Cluster, ClusterName, Discovery, Forward, HttpRoute, Spread, Target};

/// What is addressed where it does not matter.
const ANY_PORT: u16 = 80;

/// A part of an object that proxies would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field of the object, as in findings.
    pub field: String,
    /// What a proxy would say.
    pub broken: Broken,
}

/// The first rule that proxies would refuse.
pub fn refused_rules(rules: &RouteRules) -> Option<Refusal> {
    rules.http.iter().find_map(|rule| {
        let broken = of_rule(rule).err()?;
        Some(Refusal { field: rule.field.clone(), broken })
    })
}

fn of_rule(rule: &HttpRule) -> Result<(), Broken> {
    let HttpRule { name, field: _, taken_from: _, matches, action, headers, fault, cors } = rule;
    let action = match action {
        HttpAction::Forward(forward) => Action::Forward(Box::new(forwarded(forward))),
        HttpAction::Delegate(delegate) => Action::Forward(Box::new(forwarded(&delegate.defaults))),
        HttpAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
        HttpAction::Answer(answer) => Action::Answer(answer.clone()),
    };
    let mut matches = matches.iter().flatten();
    let entry = HttpRoute {
        name: name.clone(),
        matching: matches.next().cloned(),
        action,
        headers: headers.clone(),
        fault: fault.clone(),
        cors: cors.clone(),
        origin: None,
        taken_from: None,
    };
    check_strictly(&route(&entry, ANY_PORT, &Clusters::new()))?;
    matches.try_for_each(|matching| check_strictly(&matched(matching)))
}

fn forwarded(forward: &route::Forward) -> Forward {
    let route::Forward { destinations, rewrite, timeout, retry, mirrors } = forward;
    let cluster = |destination: &route::Destination| ClusterName {
        port: destination.port.unwrap_or(ANY_PORT),
        subset: destination.subset.clone().unwrap_or_default(),
        host: destination.host.clone(),
    };
    let target = |entry: &route::WeightedDestination| Target {
        cluster: Some(cluster(&entry.destination)),
        weight: entry.weight,
        headers: entry.headers.clone(),
    };
    Forward {
        targets: destinations.iter().map(target).collect(),
        rewrite: rewrite.clone(),
        timeout: *timeout,
        retry: retry.clone(),
        mirrors: mirrors.iter().map(|mirror| (cluster(&mirror.destination), mirror.share)).collect(),
    }
}

/// The first part of a policy that proxies would refuse.
pub fn refused_policy(policy: &DestinationPolicy) -> Option<Refusal> {
    let subsets = policy.subsets.iter().enumerate();
    let subsets = subsets.map(|(at, subset)| (format!("spec.subsets[{at}]"), subset.name.as_str(), &subset.policy));
    std::iter::once(("spec.trafficPolicy".to_owned(), "", &policy.policy)).chain(subsets).find_map(
        |(field, subset, ported)| {
            let broken = of_ported(subset, ported).err()?;
            Some(Refusal { field, broken })
        },
    )
}

fn of_ported(subset: &str, policy: &PortedPolicy) -> Result<(), Broken> {
    policy.policies().try_for_each(|held| of_policy(subset, held))
}

fn of_policy(subset: &str, policy: &TrafficPolicy) -> Result<(), Broken> {
    let host = Host::of_service("any", "any", "local");
    let service = Service {
        host: host.clone(),
        key: ObjectKey::new("any", "any"),
        addressing: Addressing::Virtual(Vec::new()),
        ports: Default::default(),
        nearest: None,
        publish_not_ready: false,
    };
    let cluster = Cluster {
        name: ClusterName { port: ANY_PORT, subset: subset.to_owned(), host },
        protocol: Protocol::Http,
        discovery: Discovery::Endpoints,
        labels: Default::default(),
        spread: Spread::default(),
        policy: policy.clone(),
        identities: Default::default(),
        plain: false,
        origin: None,
        others: Vec::new(),
    };
    check_strictly(&clusters::outbound(&cluster, &service, &MeshSettings::default()))?;
    match policy.balancing.as_ref().map(|balancing| &balancing.algorithm) {
        Some(Algorithm::Hash(key, _)) => check_strictly(&hash_policy_of(key)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_core::policy::{ConnectionLimits, ExportTo, Subset};
    use leno_core::route::{HttpMatch, Redirect, RedirectPath, TextMatch};
    use leno_core::{HostPattern, ObjectRef};

    use super::*;

    fn redirect(path: &str, matching: HttpMatch) -> RouteRules {
        let action = HttpAction::Redirect(Redirect {
            status: 301,
            scheme: None,
            authority: None,
            port: None,
            path: Some(RedirectPath::Full(path.to_owned())),
        });
        RouteRules {
            origin: ObjectRef::new("networking.istio.io", "VirtualService", "shop", "a"),
            generation: 1,
            created: 0,
            hosts: Vec::new(),
            export_to: ExportTo::All,
            http: vec![HttpRule {
                name: String::new(),
                field: "spec.http[0]".to_owned(),
                taken_from: None,
                matches: Some(vec![HttpMatch::default(), matching]),
                action,
                headers: Default::default(),
                fault: None,
                cors: None,
            }],
            tls: Vec::new(),
            tcp: Vec::new(),
        }
    }

    #[test]
    fn rules_when_a_proxy_would_refuse_one_then_named() {
        assert_eq!(refused_rules(&redirect("/a", HttpMatch::default())), None);
        let query = HttpMatch { query: [(String::new(), TextMatch::Present)].into(), ..HttpMatch::default() };
        for rules in
            [redirect("/a\nb", HttpMatch::default()), redirect("/a\u{1}b", HttpMatch::default()), redirect("/a", query)]
        {
            assert_eq!(refused_rules(&rules).map(|refusal| refusal.field).as_deref(), Some("spec.http[0]"));
        }
    }

    #[test]
    fn policy_when_a_proxy_would_refuse_the_cluster_then_named() {
        let limits = |time| ConnectionLimits { connect_timeout: Some(time), ..ConnectionLimits::default() };
        let held = |time| TrafficPolicy { connections: Some(limits(time)), ..TrafficPolicy::default() };
        let policy = |time| DestinationPolicy {
            origin: ObjectRef::new("networking.istio.io", "DestinationRule", "shop", "a"),
            generation: 1,
            created: 0,
            host: HostPattern::Any,
            export_to: ExportTo::All,
            clients: None,
            others: Vec::new(),
            policy: PortedPolicy::default(),
            subsets: vec![Subset {
                name: "v1".to_owned(),
                labels: Default::default(),
                policy: PortedPolicy { ports: [(80, held(time))].into(), ..PortedPolicy::default() },
            }],
        };
        assert_eq!(refused_policy(&policy(Duration::from_secs(1))), None);
        let refusal = refused_policy(&policy(Duration::ZERO)).expect("a rule is broken");
        assert_eq!(refusal.field, "spec.subsets[0]");
        assert!(refusal.broken.to_string().contains("connect_timeout"), "{}", refusal.broken);
    }
}
