//! What has no effect, or only for some, is said: a person who wrote it expects one. Nothing here is a mistake that stops an
//! object; all of it is remarks.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_core::policy::{Algorithm, DestinationPolicy, ExportTo, LocalityBalancing, Nearest, TrafficPolicy};
use leno_core::route::{ClientMatch, RouteRules};
use leno_core::service::{Addressing, Service};
use leno_core::{Condition, Finding, HostPattern, Protocol, Reason, Severity, Snapshot};

use super::findings::{Named, Object};

/// How many ports are named at most.
const MAX_NAMED: usize = 8;

/// The services that a pattern means.
fn services<'a>(snapshot: &'a Snapshot, pattern: &'a HostPattern) -> Vec<&'a Arc<Service>> {
    match pattern {
        HostPattern::Exact(host) => snapshot.services.get(host).into_iter().collect(),
        pattern => snapshot.services.values().filter(|service| pattern.matches(&service.host)).collect(),
    }
}

/// Who is left out of what an object says about a host: it shapes the traffic of its own namespace, and of others only to its
/// own services. Objects of the mesh's own namespace are for everybody, but for those that
/// choose their clients.
pub(super) fn reach(
    snapshot: &Snapshot,
    object: &dyn Object,
    export_to: &ExportTo,
    pattern: &HostPattern,
    field: &str,
    for_all_clients: bool,
) -> Option<Finding> {
    let own = &object.origin().namespace;
    let meant = services(snapshot, pattern);
    let suffix = format!(".svc.{}", snapshot.mesh.domain);
    let unknown = matches!(pattern, HostPattern::Exact(host) if host.as_str().ends_with(&suffix));
    if meant.is_empty() && (unknown || object.origin().kind == "DestinationRule") {
        // There is another finding.
        return None;
    }
    let is_mesh = for_all_clients && *own == snapshot.mesh.system_namespace;
    if !meant.is_empty() && (is_mesh || meant.iter().all(|service| service.key.namespace == *own)) {
        return None;
    }
    let foreign = match (pattern, meant.first()) {
        (HostPattern::Exact(host), Some(service)) => {
            format!("{host} is a service of namespace {}", service.key.namespace)
        }
        (_, Some(_)) => format!("{pattern} means services of other namespaces"),
        (_, None) => format!("{pattern} is no service of namespace {own}"),
    };
    let remedy = match (pattern, meant.first()) {
        (HostPattern::Exact(_), Some(service)) => {
            format!("to shape its traffic for everyone, put the object into {}", service.key.namespace)
        }
        _ => "for clients of another namespace, put such an object there".to_owned(),
    };
    let (reason, message) = match export_to {
        ExportTo::Only(seen) if !seen.contains(own) => {
            let message = format!(
                "{foreign}, where this could hold for clients in {own} only, and it is not exported to them: it holds for \
                 nobody. Export it to \".\"; {remedy}"
            );
            (Reason::NoEffect, message)
        }
        // Nobody else was meant, and the host is nobody's.
        ExportTo::Only(seen) if seen.len() == 1 && meant.is_empty() => return None,
        ExportTo::All | ExportTo::Only(_) => {
            (Reason::NotPermitted, format!("{foreign}: this holds for clients in {own} only; {remedy}"))
        }
    };
    Some(object.finding(Condition::Accepted, Severity::Remark, reason, field, message))
}

/// A kind of rules, and the ports that it is for.
#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tls,
    Tcp,
}

impl Kind {
    fn is_for(self, service: &Service, protocol: Protocol) -> bool {
        // What has no address of its own is reached by host alone, which only HTTP names.
        let listens = !matches!(service.addressing, Addressing::Alias(_));
        match self {
            Self::Http => !protocol.is_opaque(),
            Self::Tls => listens && protocol == Protocol::Tls,
            Self::Tcp => listens && matches!(protocol, Protocol::Tcp | Protocol::Auto),
        }
    }

    fn ports(self) -> &'static str {
        match self {
            Self::Http => {
                "http rules are for ports with HTTP (appProtocol http, or a port's name that begins with http)"
            }
            Self::Tls => "tls rules are for ports with TLS (appProtocol tls or https, or a port's name that begins so)",
            Self::Tcp => "tcp rules are for ports with TCP (appProtocol tcp, or a port's name that begins with tcp)",
        }
    }
}

/// Rules for ports on which nothing of their kind is routed.
pub(super) fn rules(snapshot: &Snapshot, rules: &RouteRules) -> Vec<Finding> {
    if rules.http.is_empty() && rules.tls.is_empty() && rules.tcp.is_empty() {
        return Vec::new();
    }
    let meant: Vec<&Arc<Service>> = rules.hosts.iter().flat_map(|pattern| services(snapshot, pattern)).collect();
    let outside = rules.hosts.iter().any(|pattern| match pattern {
        HostPattern::Exact(host) => !snapshot.services.contains_key(host),
        HostPattern::Suffix(_) | HostPattern::Any => true,
    });
    let suffix = format!(".svc.{}", snapshot.mesh.domain);
    let missing =
        |pattern: &HostPattern| matches!(pattern, HostPattern::Exact(host) if host.as_str().ends_with(&suffix));
    if meant.is_empty() && rules.hosts.iter().all(missing) {
        // There is another finding.
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut look = |kind: Kind, field: &str, clients: Vec<&ClientMatch>| {
        // By host, HTTP is routed on every port that some service has HTTP on.
        if matches!(kind, Kind::Http) && outside {
            return;
        }
        let served: BTreeSet<u16> = meant
            .iter()
            .flat_map(|service| service.ports.values().filter(|port| kind.is_for(service, port.protocol)))
            .map(|port| port.number)
            .collect();
        let asked = |client: &&ClientMatch| match client.port {
            Some(port) => served.contains(&port),
            None => !served.is_empty(),
        };
        if clients.iter().any(asked) || clients.is_empty() && !served.is_empty() {
            return;
        }
        let why = if meant.is_empty() {
            "no service has this host, and only HTTP is routed by host: connections are told apart by the address of a \
             service"
                .to_owned()
        } else if meant.iter().all(|service| matches!(service.addressing, Addressing::Alias(_)))
            && !matches!(kind, Kind::Http)
        {
            "a service of type ExternalName has no address that connections could be told apart by, and only HTTP is routed \
             by host"
                .to_owned()
        } else {
            let ports: Vec<String> = meant
                .iter()
                .flat_map(|service| service.ports.values())
                .map(|port| format!("{} ({})", port.number, port.protocol))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .take(MAX_NAMED)
                .collect();
            format!("{}; the hosts have {}", kind.ports(), ports.join(", "))
        };
        let asked: BTreeSet<u16> = clients.iter().filter_map(|client| client.port).collect();
        let asked: Vec<String> = asked.iter().take(MAX_NAMED).map(u16::to_string).collect();
        let what = match clients.iter().all(|client| client.port.is_some()) && !clients.is_empty() {
            true => format!("this rule, which is for port {}, has no effect", asked.join(", ")),
            false => "this rule has no effect".to_owned(),
        };
        let message = format!("{what}: {why}");
        found.push(rules.finding(Condition::Accepted, Severity::Remark, Reason::NoEffect, field, message));
    };
    // Rules that were taken over are another object's.
    for rule in rules.http.iter().filter(|rule| rule.taken_from.is_none()) {
        look(Kind::Http, &rule.field, rule.matches.iter().flatten().map(|entry| &entry.client).collect());
    }
    for rule in &rules.tls {
        look(Kind::Tls, &rule.field, rule.matches.iter().map(|entry| &entry.client).collect());
    }
    for rule in &rules.tcp {
        look(Kind::Tcp, &rule.field, rule.matches.iter().flatten().map(|entry| &entry.client).collect());
    }
    found
}

/// Parts of a policy that have no effect on its service.
pub(super) fn policy(snapshot: &Snapshot, policy: &DestinationPolicy) -> Vec<Finding> {
    if !policy.others.is_empty() {
        // Which of the objects says which part is not known any more.
        return Vec::new();
    }
    let object = Named { origin: &policy.origin, generation: policy.generation };
    let mut found = Vec::new();
    let mut say = |field: &str, message: String| {
        found.push(object.finding(Condition::Accepted, Severity::Remark, Reason::NoEffect, field, message));
    };
    let service = match &policy.host {
        HostPattern::Exact(host) => snapshot.services.get(host),
        HostPattern::Suffix(_) | HostPattern::Any => None,
    };
    let headless = service.filter(|service| service.addressing == Addressing::Headless);
    let subsets = policy.subsets.iter().enumerate();
    let subsets = subsets.map(|(at, subset)| (format!("spec.subsets[{at}].trafficPolicy"), &subset.policy));
    for (field, ported) in std::iter::once(("spec.trafficPolicy".to_owned(), &policy.policy)).chain(subsets) {
        let inherited = policy.policy.all.outliers.is_some();
        if fails_over(&ported.all) && ported.all.outliers.is_none() && !inherited {
            say(&format!("{field}.loadBalancer"), WITHOUT_OUTLIERS.to_owned());
        }
        if ported.ports.values().any(|held| fails_over(held) && held.outliers.is_none()) {
            say(&format!("{field}.portLevelSettings"), WITHOUT_OUTLIERS.to_owned());
        }
        let Some(service) = service else { continue };
        let host = &service.host;
        for port in ported.ports.keys().filter(|port| !service.ports.contains_key(port)) {
            let known: Vec<String> = service.ports.keys().map(u16::to_string).collect();
            let message = format!("the service {host} has no TCP port {port}; it has {}", known.join(", "));
            say(&format!("{field}.portLevelSettings"), message);
        }
        let chooses = |held: &TrafficPolicy| {
            held.balancing.as_ref().is_some_and(|balancing| balancing.algorithm != Algorithm::Passthrough)
        };
        if headless.is_some() && ported.policies().any(chooses) {
            let message =
                format!("clients of the headless service {host} choose the endpoint themselves, by its address");
            say(&format!("{field}.loadBalancer"), message);
        }
    }
    if let Some(service) = headless.filter(|_| !policy.subsets.is_empty()) {
        let message = format!(
            "clients of the headless service {} choose the endpoint themselves, by its address: the labels of subsets choose \
             none",
            service.host
        );
        say("spec.subsets", message);
    }
    found
}

/// What is said of failing over where nothing ever fails.
const WITHOUT_OUTLIERS: &str = "without outlierDetection no endpoint counts as failed, so nothing takes over from what is near \
                                and all localities are treated alike; add outlierDetection";

/// Whether the policy says who takes over from what is near.
fn fails_over(policy: &TrafficPolicy) -> bool {
    match policy.balancing.as_ref().and_then(|balancing| balancing.locality.as_ref()) {
        Some(LocalityBalancing::Nearest(Nearest { labels, regions, always, zone_aware: _ })) => {
            !always && (!labels.is_empty() || !regions.is_empty())
        }
        Some(LocalityBalancing::Off | LocalityBalancing::Shares(_)) | None => false,
    }
}
