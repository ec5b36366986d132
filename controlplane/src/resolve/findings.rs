//! Everything that there is to say about configuration objects, whether or not any proxy uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::route::{RouteRules, TlsMatch};
use leno_core::{Condition, Finding, HostPattern, ObjectRef, Reason, Severity, Snapshot};

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

/// What the rules name and is not there.
fn references(index: &Index<'_>, rules: &Arc<RouteRules>) -> BTreeSet<Finding> {
    let client = ClientScope::of_namespace(&rules.origin.namespace);
    let mut ports: BTreeSet<u16> = BTreeSet::new();
    for service in index.snapshot.services.values() {
        if rules.hosts.iter().any(|pattern| pattern.matches(&service.host)) {
            ports.extend(service.ports.keys());
        }
    }
    // For a host that is no service: the port does not matter, unless the destination has several.
    if ports.is_empty() {
        ports.insert(80);
    }
    let mut resolver = Resolver { index, client: &client, findings: BTreeSet::new() };
    // Whatever client a match is for, what it leads to has to exist.
    let mut for_everyone = RouteRules::clone(rules);
    for rule in &mut for_everyone.http {
        rule.matches = None;
    }
    for rule in &mut for_everyone.tcp {
        rule.matches = None;
    }
    for rule in &mut for_everyone.tls {
        rule.matches = vec![TlsMatch::default()];
    }
    let tcp = std::mem::take(&mut for_everyone.tcp);
    let tls = std::mem::take(&mut for_everyone.tls);
    for port in ports {
        resolver.http(&for_everyone, port);
        // One at a time, since nothing is looked at after the first that takes everything.
        for rule in &tcp {
            for_everyone.tcp = vec![rule.clone()];
            resolver.tcp(&for_everyone, port);
        }
        for rule in &tls {
            for_everyone.tls = vec![rule.clone()];
            resolver.tls(&for_everyone, port);
        }
    }
    resolver.findings
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

/// Objects of one namespace that claim the same host for rules of one kind: the first given wins.
fn conflicts(all: &[Arc<RouteRules>]) -> Vec<Finding> {
    let mut winners: BTreeMap<(&str, String, &str), &RouteRules> = BTreeMap::new();
    let mut found = Vec::new();
    for rules in all {
        let kinds = kinds(rules);
        for (number, pattern) in rules.hosts.iter().enumerate() {
            let mut lost: Vec<&str> = Vec::new();
            let mut winner = None;
            for kind in &kinds {
                let key = (rules.origin.namespace.as_str(), pattern.to_string(), *kind);
                let first = *winners.entry(key).or_insert(rules);
                if first.origin != rules.origin {
                    lost.push(kind);
                    winner.get_or_insert(first);
                }
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
