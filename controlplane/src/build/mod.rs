//! Stores to snapshot: everything that was read becomes plain data of the mesh. Pure, but for what it remembers: forms of
//! objects that were valid once, so that a later mistake in one of them does not take its traffic rules away.

mod endpoints;
mod services;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::policy::DestinationPolicy;
use leno_core::route::RouteRules;
use leno_core::{Condition, Finding, ObjectKey, Reason, Severity, Snapshot};
use leno_crds::convert::{self, Converted};
use leno_crds::istio::destination_rule::DestinationRule;
use leno_crds::istio::virtual_service::VirtualService;

use crate::stores::Stores;

/// Builds snapshots one after the other. It holds one converted form of each VirtualService and DestinationRule and the
/// last valid one, and nothing of objects that are gone.
#[derive(Debug, Default)]
pub struct Builder {
    domain: String,
    routes: BTreeMap<ObjectKey, Remembered<VirtualService, RouteRules>>,
    policies: BTreeMap<ObjectKey, Remembered<DestinationRule, DestinationPolicy>>,
}

/// A converted object, what it was converted from, and its last valid form.
#[derive(Debug)]
struct Remembered<S, T> {
    source: Arc<S>,
    findings: Vec<Finding>,
    in_force: Option<Arc<T>>,
}

/// A snapshot of stores that nothing is remembered of.
pub fn build(stores: &Stores) -> Arc<Snapshot> {
    Builder::default().build(stores)
}

impl Builder {
    /// The snapshot of these stores.
    pub fn build(&mut self, stores: &Stores) -> Arc<Snapshot> {
        let Stores {
            services: service_objects,
            endpoint_slices,
            pods,
            namespaces,
            nodes,
            virtual_services,
            destination_rules,
            mesh,
            malformed,
        } = stores;
        if self.domain != mesh.domain {
            // What a short name means depends on it, for all objects.
            *self = Self { domain: mesh.domain.clone(), ..Self::default() };
        }
        let mut findings = Vec::new();
        let domain = mesh.domain.as_str();
        remember(&mut self.routes, virtual_services, |object| convert::virtual_service(object, domain), &mut findings);
        remember(
            &mut self.policies,
            destination_rules,
            |object| convert::destination_rule(object, domain),
            &mut findings,
        );

        for (object, message) in malformed {
            findings.push(Finding {
                object: object.clone(),
                generation: 0,
                condition: Condition::Accepted,
                severity: Severity::Failing,
                reason: Reason::Malformed,
                field: String::new(),
                message: format!("the object could not be read and is left out: {message}"),
            });
        }

        let mut routes: Vec<_> = self.routes.values().filter_map(|entry| entry.in_force.clone()).collect();
        routes.sort_by(|a, b| (a.created, &a.origin).cmp(&(b.created, &b.origin)));
        let mut policies: Vec<_> = self.policies.values().filter_map(|entry| entry.in_force.clone()).collect();
        policies.sort_by(|a, b| (a.created, &a.origin).cmp(&(b.created, &b.origin)));

        let (services, unsupported) = services::services(service_objects, domain);
        let workloads = workloads::workloads(pods, nodes, service_objects, &services, mesh);
        let found = endpoints::endpoints(endpoint_slices, nodes, &services, &workloads, domain);
        let members = endpoints::members(service_objects, &services, &workloads, &found, domain);
        findings.sort();
        let client_labels = client_labels(&routes, &policies);
        Arc::new(Snapshot {
            client_labels,
            mesh: mesh.clone(),
            services,
            unsupported,
            members,
            endpoints: found.endpoints,
            workloads,
            routes,
            policies,
            namespaces: namespaces.keys().map(|key| key.name.clone()).collect(),
            findings,
        })
    }
}

/// Converts what is new or changed, forgets what is gone, and collects the findings of all.
fn remember<S, T>(
    remembered: &mut BTreeMap<ObjectKey, Remembered<S, T>>,
    objects: &BTreeMap<ObjectKey, Arc<S>>,
    convert: impl Fn(&S) -> Converted<T>,
    findings: &mut Vec<Finding>,
) {
    remembered.retain(|key, _| objects.contains_key(key));
    for (key, source) in objects {
        let known = remembered.get(key);
        if !known.is_some_and(|known| Arc::ptr_eq(&known.source, source)) {
            let Converted { value, mut findings } = convert(source);
            let in_force = match (value, known.and_then(|known| known.in_force.clone())) {
                (Some(value), _) => Some(Arc::new(value)),
                (None, last) => {
                    let consequence = match last {
                        Some(_) => "the last valid form of this object stays in force",
                        None => "this object is left out until it is valid",
                    };
                    for finding in findings.iter_mut().filter(|finding| finding.failing()) {
                        finding.message = format!("{}; {consequence}", finding.message);
                    }
                    last
                }
            };
            remembered.insert(key.clone(), Remembered { source: Arc::clone(source), findings, in_force });
        }
        if let Some(known) = remembered.get(key) {
            findings.extend(known.findings.iter().cloned());
        }
    }
}

/// Names of the pod labels that rules ask of their clients.
fn client_labels(routes: &[Arc<RouteRules>], policies: &[Arc<DestinationPolicy>]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rules in routes {
        let http = rules.http.iter().flat_map(|rule| rule.matches.iter().flatten()).map(|entry| &entry.client);
        let tcp = rules.tcp.iter().flat_map(|rule| rule.matches.iter().flatten());
        names.extend(http.chain(tcp).flat_map(|client| client.labels.keys().cloned()));
    }
    for policy in policies {
        names.extend(policy.clients.iter().flat_map(|labels| labels.keys().cloned()));
    }
    names
}
