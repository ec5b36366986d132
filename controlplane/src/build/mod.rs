//! Stores to snapshot: everything that was read becomes plain data of the mesh. Pure, but for what it remembers: forms of
//! objects that were valid once, so that a later mistake in one of them does not take its traffic rules away.

mod delegation;
mod endpoints;
mod merging;
mod services;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::{Resource, core::object::HasSpec};
use leno_core::policy::{DestinationPolicy, LocalityBalancing, Nearest, TrafficPolicy};
use leno_core::route::RouteRules;
use leno_core::service::{NODE, Service};
use leno_core::snapshot::Place;
use leno_core::{Condition, Finding, Host, ObjectKey, ObjectRef, Reason, Severity, Snapshot};
use leno_crds::convert::{self, Converted};
use leno_crds::istio::destination_rule::DestinationRule;
use leno_crds::istio::virtual_service::VirtualService;

use crate::stores::Stores;
use crate::translate::{self, Refusal};

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
            credentials,
            mesh,
            malformed,
        } = stores;
        if self.domain != mesh.domain {
            // What a short name means depends on it, for all objects.
            *self = Self { domain: mesh.domain.clone(), ..Self::default() };
        }
        let mut findings = Vec::new();
        let domain = mesh.domain.as_str();
        let rules = |object: &VirtualService| {
            let converted = convert::virtual_service(object, domain);
            proven(converted, |rules| (rules.origin.clone(), rules.generation), translate::refused_rules)
        };
        remember(&mut self.routes, virtual_services, rules, &mut findings);
        let policy = |object: &DestinationRule| {
            let converted = convert::destination_rule(object, domain);
            proven(converted, |policy| (policy.origin.clone(), policy.generation), translate::refused_policy)
        };
        remember(&mut self.policies, destination_rules, policy, &mut findings);

        for (object, message) in malformed {
            findings.push(Finding {
                object: object.clone(),
                generation: 0,
                condition: Condition::Accepted,
                severity: Severity::Failing,
                reason: Reason::Malformed,
                field: String::new(),
                message: format!("the object could not be read, and this form of it has no effect: {message}"),
            });
        }

        let mut routes: Vec<_> = self.routes.values().filter_map(|entry| entry.in_force.clone()).collect();
        routes.sort_by(|a, b| (a.created, &a.origin).cmp(&(b.created, &b.origin)));
        let routes = delegation::put_together(routes, &mut findings);
        let mut policies: Vec<_> = self.policies.values().filter_map(|entry| entry.in_force.clone()).collect();
        policies.sort_by(|a, b| (a.created, &a.origin).cmp(&(b.created, &b.origin)));
        let policies = merging::put_together(policies, &mut findings);

        let (services, unsupported) = services::services(service_objects, domain);
        let workloads = workloads::workloads(pods, nodes, service_objects, &services, mesh);
        let found = endpoints::endpoints(endpoint_slices, nodes, &services, &workloads, domain);
        let members = endpoints::members(service_objects, &services, &workloads, &found, domain);
        findings.sort();
        let client_labels = client_labels(&routes, &policies);
        let client_place = client_place(&services, &policies);
        Arc::new(Snapshot {
            client_labels,
            client_place,
            mesh: mesh.clone(),
            services,
            unsupported,
            members,
            endpoints: found.endpoints,
            workloads,
            routes,
            policies,
            credentials: credentials.clone(),
            namespaces: namespaces.keys().map(|key| key.name.clone()).collect(),
            findings,
        })
    }
}

/// A converted object, unless proxies would refuse what it comes to: that would take others' routes along.
fn proven<T>(
    converted: Converted<T>,
    origin: impl Fn(&T) -> (ObjectRef, i64),
    refused: impl Fn(&T) -> Option<Refusal>,
) -> Converted<T> {
    let Converted { value, mut findings } = converted;
    let found = value.as_ref().and_then(|value| Some((origin(value), refused(value)?)));
    let Some(((object, generation), Refusal { field, broken })) = found else { return Converted { value, findings } };
    findings.push(Finding {
        object,
        generation,
        condition: Condition::Accepted,
        severity: Severity::Failing,
        reason: Reason::InvalidValue,
        field,
        message: format!("proxies would refuse what this comes to: {broken}. Correct it"),
    });
    Converted { value: None, findings }
}

/// Whether an object says what it said before: a write of its status, or another look at all objects, changes nothing of that.
fn is_same<S>(before: &Arc<S>, now: &Arc<S>) -> bool
where
    S: Resource + HasSpec<Spec: PartialEq>,
{
    let said = |object: &S| {
        let meta = object.meta();
        (meta.uid.clone(), meta.generation, meta.creation_timestamp.clone())
    };
    Arc::ptr_eq(before, now) || said(before) == said(now) && before.spec() == now.spec()
}

/// Converts what is new or changed, forgets what is gone, and collects the findings of all.
fn remember<S: Resource + HasSpec<Spec: PartialEq>, T>(
    remembered: &mut BTreeMap<ObjectKey, Remembered<S, T>>,
    objects: &BTreeMap<ObjectKey, Arc<S>>,
    convert: impl Fn(&S) -> Converted<T>,
    findings: &mut Vec<Finding>,
) {
    remembered.retain(|key, _| objects.contains_key(key));
    for (key, source) in objects {
        let known = remembered.get(key);
        if !known.is_some_and(|known| is_same(&known.source, source)) {
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
        names.extend(rules.clients().flat_map(|client| client.labels.keys().cloned()));
    }
    for policy in policies {
        names.extend(policy.clients.iter().flat_map(|labels| labels.keys().cloned()));
        let nearest = traffic_policies(policy).filter_map(|policy| policy.balancing.as_ref()?.locality.as_ref());
        for locality in nearest {
            if let LocalityBalancing::Nearest(nearest) = locality {
                names.extend(nearest.labels.iter().map(|(name, _)| name.clone()));
            }
        }
    }
    names
}

/// How much of where a client is matters.
fn client_place(services: &BTreeMap<Host, Arc<Service>>, policies: &[Arc<DestinationPolicy>]) -> Place {
    let of_nearest = |nearest: &Nearest| {
        let by_node = nearest.labels.iter().any(|(label, value)| label == NODE && value.is_none());
        if by_node { Place::Node } else { Place::Locality }
    };
    let of_policy = |policy: &TrafficPolicy| match policy.balancing.as_ref().and_then(|set| set.locality.as_ref()) {
        Some(LocalityBalancing::Off) => Place::Nowhere,
        Some(LocalityBalancing::Shares(_)) => Place::Locality,
        Some(LocalityBalancing::Nearest(nearest)) => of_nearest(nearest),
        // By default what is near is preferred where endpoints that fail are taken out.
        None if policy.outliers.is_some() => Place::Locality,
        None => Place::Nowhere,
    };
    let asked = services.values().filter_map(|service| service.nearest.as_ref()).map(of_nearest);
    let ruled = policies.iter().flat_map(|policy| traffic_policies(policy)).map(of_policy);
    asked.chain(ruled).max().unwrap_or_default()
}

/// All that a destination policy says, for all of it, for ports and for subsets.
fn traffic_policies(policy: &DestinationPolicy) -> impl Iterator<Item = &TrafficPolicy> {
    policy.policy.policies().chain(policy.subsets.iter().flat_map(|subset| subset.policy.policies()))
}
