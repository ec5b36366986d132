//! Which rules and which policy hold for a service, as a client sees it.
//!
//! A namespace shapes its own outbound traffic and its own services, not another's: only objects of the client's namespace
//! and of the service's count, and those of the mesh's own, whose objects are for everybody. The client's come first, then the
//! service's, then the mesh's. Among those of one namespace the more specific host wins, then the oldest, then namespace and name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::policy::{DestinationPolicy, Subset};
use leno_core::route::{Destination, RouteRules};
use leno_core::service::{Service, selects};
use leno_core::{Host, HostPattern, Reason, Snapshot};

use super::ir::ClusterName;
use super::scope::ClientScope;

/// Rules and policies by the hosts that they are for.
pub(super) struct Index<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Whether any object has rules for TLS, and for TCP: most meshes have none.
    pub(super) has_tls: bool,
    pub(super) has_tcp: bool,
    routes: Hosts<'a, RouteRules>,
    pub(super) policies: Hosts<'a, DestinationPolicy>,
}

/// Objects of one kind by host: single hosts looked up, patterns tried.
pub(super) struct Hosts<'a, T> {
    exact: BTreeMap<&'a Host, Vec<&'a Arc<T>>>,
    patterns: Vec<(&'a HostPattern, &'a Arc<T>)>,
}

impl<'a, T> Hosts<'a, T> {
    fn new<H: Iterator<Item = &'a HostPattern>>(objects: &'a [Arc<T>], hosts: impl Fn(&'a T) -> H) -> Self {
        let mut index = Self { exact: BTreeMap::new(), patterns: Vec::new() };
        for object in objects {
            for pattern in hosts(object) {
                match pattern {
                    HostPattern::Exact(host) => index.exact.entry(host).or_default().push(object),
                    pattern => index.patterns.push((pattern, object)),
                }
            }
        }
        index
    }

    /// Objects for a host with how specific they are (less is more), in the order given.
    pub(super) fn of(&self, host: &'a Host) -> impl Iterator<Item = (usize, &'a Arc<T>)> {
        let exact = self.exact.get(host).into_iter().flatten().map(|object| (0, *object));
        let patterns = self.patterns.iter().filter(move |(pattern, _)| pattern.matches(host));
        exact.chain(patterns.map(|(pattern, object)| (pattern.rank(), *object)))
    }
}

impl<'a> Index<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            has_tls: snapshot.routes.iter().any(|rules| !rules.tls.is_empty()),
            has_tcp: snapshot.routes.iter().any(|rules| !rules.tcp.is_empty()),
            routes: Hosts::new(&snapshot.routes, |rules| rules.hosts.iter()),
            policies: Hosts::new(&snapshot.policies, |policy| std::iter::once(&policy.host)),
        }
    }

    /// The rules for a service that have some of a kind, as the client sees it.
    pub(super) fn rules(
        &self,
        service: &'a Service,
        client: &ClientScope,
        have_some: impl Fn(&RouteRules) -> bool,
    ) -> Option<&'a Arc<RouteRules>> {
        self.routes
            .of(&service.host)
            .filter(|(_, rules)| rules.export_to.includes(&client.namespace))
            .filter(|(_, rules)| have_some(rules))
            .filter_map(|(rank, rules)| {
                let side = self.side(&rules.origin.namespace, client, service)?;
                Some(((side, rank, rules.created, &rules.origin), rules))
            })
            .min_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, rules)| rules)
    }

    /// The policy for a service, as the client sees it.
    pub(super) fn policy(&self, service: &'a Service, client: &ClientScope) -> Option<&'a Arc<DestinationPolicy>> {
        self.policies
            .of(&service.host)
            .filter(|(_, policy)| policy.export_to.includes(&client.namespace))
            .filter_map(|(rank, policy)| {
                let side = self.side(&policy.origin.namespace, client, service)?;
                // One for certain clients comes before one for all, and is for clients of its own namespace only.
                let chosen = match &policy.clients {
                    None => 1,
                    Some(labels) if side == 0 && selects(labels, &client.labels) => 0,
                    Some(_) => return None,
                };
                Some(((side, chosen, rank, policy.created, &policy.origin), policy))
            })
            .min_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, policy)| policy)
    }

    /// The group of endpoints that a destination means, or why there is none. `port` is what the client addresses, if known.
    pub(super) fn target(
        &self,
        destination: &Destination,
        port: Option<u16>,
        client: &ClientScope,
    ) -> Result<ClusterName, Missing> {
        let Destination { host, subset, port: wanted, field } = destination;
        let Some(service) = self.snapshot.services.get(host) else {
            let message = match self.snapshot.unsupported.get(host) {
                Some(reason) => format!("the service {host} cannot be routed to: {reason}"),
                None => format!("no service {host} exists; {}", self.hint(host)),
            };
            return Err(Missing { reason: Reason::HostNotFound, field: format!("{field}.host"), message });
        };
        let mut numbers = service.ports.keys().copied();
        let number = match (wanted, numbers.next(), numbers.next()) {
            (Some(wanted), _, _) => service.ports.contains_key(wanted).then_some(*wanted),
            (None, only, None) => only,
            (None, _, Some(_)) => port.filter(|port| service.ports.contains_key(port)),
        };
        let Some(number) = number else {
            let known: Vec<String> = service.ports.keys().map(u16::to_string).collect();
            let known = known.join(", ");
            let message = match wanted {
                Some(wanted) => format!("the service {host} has no TCP port {wanted}; it has {known}"),
                None => format!("the service {host} has several ports ({known}); say which"),
            };
            return Err(Missing { reason: Reason::PortNotFound, field: format!("{field}.port"), message });
        };
        if let Some(subset) = subset {
            let policy = self.policy(service, client);
            if !policy.is_some_and(|policy| policy.subsets.iter().any(|known| known.name == *subset)) {
                let message = match policy {
                    Some(policy) => format!("{} has no subset \"{subset}\" of {host}", policy.origin),
                    None => format!("there is no DestinationRule for {host} that could have the subset \"{subset}\""),
                };
                return Err(Missing { reason: Reason::SubsetNotFound, field: format!("{field}.subset"), message });
            }
        }
        Ok(ClusterName { port: number, subset: subset.clone().unwrap_or_default(), host: host.clone() })
    }

    /// 0 for an object of the client's namespace, 1 for one of the service's, 2 for one of the mesh's, `None` for others.
    fn side(&self, namespace: &str, client: &ClientScope, service: &Service) -> Option<u8> {
        let own = [&client.namespace, &service.key.namespace, &self.snapshot.mesh.system_namespace];
        own.iter().position(|own| *own == namespace).map(|at| at as u8)
    }

    /// What a person may have meant.
    fn hint(&self, host: &Host) -> String {
        let domain = &self.snapshot.mesh.domain;
        let mut labels = host.as_str().split('.');
        if let (Some(name), Some(namespace), None | Some("svc")) = (labels.next(), labels.next(), labels.next()) {
            let full = Host::of_service(name, namespace, domain);
            if self.snapshot.services.contains_key(&full) {
                return format!("did you mean {full}?");
            }
        }
        let name = host.as_str().split('.').next().unwrap_or_default();
        let elsewhere: BTreeSet<&str> = self
            .snapshot
            .services
            .values()
            .filter(|service| service.key.name == name)
            .map(|service| service.host.as_str())
            .take(3)
            .collect();
        if elsewhere.is_empty() {
            "create it or correct the name".to_owned()
        } else {
            format!("did you mean {}?", elsewhere.into_iter().collect::<Vec<_>>().join(" or "))
        }
    }
}

/// Why a destination has no endpoints to go to.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub(super) reason: Reason,
    pub(super) field: String,
    pub(super) message: String,
}

/// The subsets that a policy gives a service.
pub(super) fn subsets(policy: Option<&Arc<DestinationPolicy>>) -> &[Subset] {
    policy.map_or(&[], |policy| &policy.subsets)
}
