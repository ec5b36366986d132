//! Everything that there is to say about configuration objects, whether or not any proxy uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::route::{HttpAction, HttpRule, RouteRules, TcpRule, TlsMatch, TlsRule};
use leno_core::service::Service;
use leno_core::{Condition, Finding, Host, HostPattern, ObjectRef, Protocol, Reason, Severity, Snapshot};

use super::index::Index;
use super::outbound::Resolver;
use super::scope::ClientScope;
use super::{secrets, silence};

/// All findings, sorted, each once. They are for clients in the object's own namespace, which every object is for.
pub fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let index = Index::new(snapshot);
    let mut all: BTreeSet<Finding> = snapshot.findings.iter().cloned().collect();
    for rules in &snapshot.routes {
        all.extend(references(&index, rules));
        for (number, pattern) in rules.hosts.iter().enumerate() {
            all.extend(unknown_host(snapshot, rules.as_ref(), pattern, &format!("spec.hosts[{number}]")));
            let field = format!("spec.hosts[{number}]");
            if rules.is_empty() {
                // For gateways.
                continue;
            }
            all.extend(silence::reach(snapshot, rules.as_ref(), &rules.export_to, pattern, &field, true));
        }
        all.extend(silence::rules(snapshot, rules));
    }
    for policy in &snapshot.policies {
        for (origin, generation) in policy.origins() {
            let object = Named { origin, generation };
            all.extend(unknown_host(snapshot, &object, &policy.host, "spec.host"));
            all.extend(silence::reach(
                snapshot,
                &object,
                &policy.export_to,
                &policy.host,
                "spec.host",
                policy.clients.is_none(),
            ));
        }
        all.extend(silence::policy(snapshot, policy));
        all.extend(secrets::missing(snapshot, policy));
    }
    all.extend(conflicts(&snapshot.routes));
    all.into_iter().collect()
}

/// What rules and policies have in common.
pub(super) trait Object {
    fn origin(&self) -> &ObjectRef;
    fn generation(&self) -> i64;

    fn finding(
        &self,
        condition: Condition,
        severity: Severity,
        reason: Reason,
        field: &str,
        message: String,
    ) -> Finding {
        Finding {
            object: self.origin().clone(),
            generation: self.generation(),
            condition,
            severity,
            reason,
            field: field.to_owned(),
            message,
        }
    }
}

/// An object of which nothing but the name matters.
pub(super) struct Named<'a> {
    pub(super) origin: &'a ObjectRef,
    pub(super) generation: i64,
}

impl Object for Named<'_> {
    fn origin(&self) -> &ObjectRef {
        self.origin
    }

    fn generation(&self) -> i64 {
        self.generation
    }
}

impl Object for RouteRules {
    fn origin(&self) -> &ObjectRef {
        &self.origin
    }

    fn generation(&self) -> i64 {
        self.generation
    }
}

/// What the rules name and is not there: for clients in their own namespace, and for those for whom other policies hold, which may
/// lack a subset that these have.
fn references<'a>(index: &Index<'a>, rules: &'a RouteRules) -> BTreeSet<Finding> {
    let services = index.snapshot.services.values();
    let services: Vec<&Arc<Service>> =
        services.filter(|service| rules.hosts.iter().any(|pattern| pattern.matches(&service.host))).collect();
    let plain = ClientScope::of_namespace(&rules.origin.namespace);
    let mut found = asked_by(index, rules, &services, &plain);
    for client in other_clients(index, rules, &services) {
        let who = match client.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>() {
            none if none.is_empty() => format!("for clients in {}", client.namespace),
            labels => format!("for clients in {} with {}", client.namespace, labels.join(" and ")),
        };
        let missing = asked_by(index, rules, &services, &client);
        let missing = missing.into_iter().filter(|one| one.reason == Reason::SubsetNotFound && !found.contains(one));
        let told: Vec<Finding> =
            missing.map(|one| Finding { message: format!("{who}: {}", one.message), ..one }).collect();
        found.extend(told);
    }
    found
}

/// Clients to whom the rules apply, and for whom a policy of a host that they lead to holds and is not for all.
fn other_clients<'a>(index: &Index<'a>, rules: &'a RouteRules, services: &[&'a Arc<Service>]) -> BTreeSet<ClientScope> {
    let http = rules.http.iter().filter_map(|rule| match &rule.action {
        HttpAction::Forward(forward) => Some(forward),
        _ => None,
    });
    let of_http = http.flat_map(|forward| {
        let copies = forward.mirrors.iter().map(|mirror| &mirror.destination);
        forward.destinations.iter().map(|entry| &entry.destination).chain(copies)
    });
    let of_tcp = rules.tcp.iter().flat_map(|rule| &rule.destinations);
    let of_tls = rules.tls.iter().flat_map(|rule| &rule.destinations);
    let all = of_http.chain(of_tcp.chain(of_tls).map(|(destination, _)| destination));
    let hosts: BTreeSet<&Host> = all.filter(|to| to.subset.is_some()).map(|to| &to.host).collect();
    let policies = hosts.into_iter().flat_map(|host| index.policies.of(host)).map(|(_, policy)| policy);
    let clients = policies.map(|policy| ClientScope {
        namespace: policy.origin.namespace.clone(),
        labels: policy.clients.clone().unwrap_or_default(),
        ..ClientScope::default()
    });
    let applies = |client: &ClientScope| {
        let chosen = services.iter().filter_map(|&service| index.rules(service, client, |one| !one.is_empty()));
        chosen.into_iter().any(|chosen| chosen.origin == rules.origin)
    };
    let own = ClientScope::of_namespace(&rules.origin.namespace);
    clients.filter(|client| *client != own && applies(client)).collect()
}

/// What the rules name and this client does not find, whatever it is that a match asks of it.
fn asked_by(
    index: &Index<'_>,
    rules: &RouteRules,
    services: &[&Arc<Service>],
    client: &ClientScope,
) -> BTreeSet<Finding> {
    let all: BTreeSet<u16> = services.iter().flat_map(|service| service.ports.keys().copied()).collect();
    // Rules of a kind are for ports that speak it. For a host that is no service the port does not matter, unless the destination has
    // several.
    let ports = |speaks: fn(Protocol) -> bool| -> BTreeSet<u16> {
        let ports = services.iter().flat_map(|service| service.ports.values());
        let some: BTreeSet<u16> = ports.filter(|port| speaks(port.protocol)).map(|port| port.number).collect();
        match (some.is_empty(), all.is_empty()) {
            (false, _) => some,
            (true, false) => all.clone(),
            (true, true) => BTreeSet::from([80]),
        }
    };
    let mut resolver = Resolver { index, client, findings: BTreeSet::new() };
    let mut one = RouteRules { http: Vec::new(), tcp: Vec::new(), tls: Vec::new(), ..RouteRules::clone(rules) };
    // One at a time, since nothing is looked at after the first that takes everything.
    let http = ports(|protocol| !protocol.is_opaque());
    for rule in &rules.http {
        let asked = rule.matches.iter().flatten().map(|matching| matching.client.port);
        one.http = vec![HttpRule { matches: None, ..rule.clone() }];
        addressed(&http, &all, asked).into_iter().for_each(|port| _ = resolver.http(&one, port));
    }
    let tcp = ports(|protocol| matches!(protocol, Protocol::Tcp | Protocol::Auto));
    for rule in &rules.tcp {
        let asked = rule.matches.iter().flatten().map(|matching| matching.client.port);
        one.tcp = vec![TcpRule { matches: None, ..rule.clone() }];
        addressed(&tcp, &all, asked).into_iter().for_each(|port| _ = resolver.tcp(&one, port));
    }
    let tls = ports(|protocol| protocol == Protocol::Tls);
    for rule in &rules.tls {
        let asked = rule.matches.iter().map(|matching| matching.client.port);
        one.tls = vec![TlsRule { matches: vec![TlsMatch::default()], ..rule.clone() }];
        addressed(&tls, &all, asked).into_iter().for_each(|port| _ = resolver.tls(&one, port));
    }
    resolver.findings
}

/// The ports that a rule is for: those that its matches name, where all of them do, as far as its hosts have them; or else all.
fn addressed(ports: &BTreeSet<u16>, all: &BTreeSet<u16>, asked: impl Iterator<Item = Option<u16>>) -> BTreeSet<u16> {
    match asked.collect::<Option<BTreeSet<u16>>>().filter(|asked| !asked.is_empty()) {
        Some(asked) => asked.into_iter().filter(|port| all.is_empty() || all.contains(port)).collect(),
        None => ports.clone(),
    }
}

/// The object is for a service that does not exist. Names outside the cluster's domain may well be hosts of the internet.
fn unknown_host(snapshot: &Snapshot, object: &dyn Object, pattern: &HostPattern, field: &str) -> Option<Finding> {
    let HostPattern::Exact(host) = pattern else { return None };
    if snapshot.services.contains_key(host) {
        return None;
    }
    let suffix = format!(".svc.{}", snapshot.mesh.domain);
    let message = match snapshot.unsupported.get(host) {
        Some(reason) => format!("the service {host} cannot be routed to: {reason}"),
        None if host.as_str().ends_with(&suffix) || object.origin().kind == "DestinationRule" => {
            format!("no service {host} exists; create it or correct the name. Until then this has no effect")
        }
        None => return None,
    };
    Some(object.finding(Condition::ResolvedRefs, Severity::Failing, Reason::HostNotFound, field, message))
}

/// The kinds of rules that an object has: each is chosen by itself.
fn kinds(rules: &RouteRules) -> Vec<&'static str> {
    let kinds = [("http", rules.http.is_empty()), ("tls", rules.tls.is_empty()), ("tcp", rules.tcp.is_empty())];
    kinds.into_iter().filter(|(_, empty)| !empty).map(|(kind, _)| kind).collect()
}

/// Objects of one namespace that claim the same host for rules of one kind, and that the same clients see: the first given wins.
fn conflicts(all: &[Arc<RouteRules>]) -> Vec<Finding> {
    let mut claims: BTreeMap<(&str, String, &str), Vec<&RouteRules>> = BTreeMap::new();
    let mut found = Vec::new();
    for rules in all {
        let kinds = kinds(rules);
        for (number, pattern) in rules.hosts.iter().enumerate() {
            let mut lost: Vec<&str> = Vec::new();
            let mut winner = None;
            for kind in &kinds {
                let key = (rules.origin.namespace.as_str(), pattern.to_string(), *kind);
                let earlier = claims.entry(key).or_default();
                let first = earlier
                    .iter()
                    .find(|first| first.origin != rules.origin && first.export_to.shares_some_with(&rules.export_to));
                if let Some(first) = first {
                    lost.push(kind);
                    winner.get_or_insert(*first);
                }
                earlier.push(rules);
            }
            let Some(winner) = winner else { continue };
            let what = match lost.len() == kinds.len() {
                true => "this object has no effect on it".to_owned(),
                false => format!("the {} rules of this object have no effect on it", lost.join(" and ")),
            };
            let message = format!(
                "{} claims {pattern} already and comes first (the oldest does, then by name); {what}. Merge the two, or \
                 delete one",
                winner.origin
            );
            let field = format!("spec.hosts[{number}]");
            found.push(rules.finding(Condition::Accepted, Severity::Failing, Reason::Conflict, &field, message));
        }
    }
    found
}
