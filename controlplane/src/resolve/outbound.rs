//! What a client can reach: services with the routes and policies that hold for this client.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_core::policy::DestinationPolicy;
use leno_core::route::{self, ClientMatch, HttpAction, RouteRules};
use leno_core::service::{Addressing, Service, ServicePort, selects};
use leno_core::{Condition, Finding, HostPattern, ObjectRef, Protocol, Severity};

use super::clusters;
use super::index::{Index, Missing};
use super::ir::{
    Action, ClusterName, ConnectionRoute, Forward, HttpRoute, Outbound, OutboundHost, OutboundPort, OutboundService,
    Target, TcpTarget,
};
use super::scope::ClientScope;

/// Everything that the client can reach, and what was found missing on the way.
pub(super) fn outbound(index: &Index<'_>, client: &ClientScope) -> (Outbound, Vec<Finding>) {
    let mut resolver = Resolver { index, client, findings: BTreeSet::new() };
    let snapshot = index.snapshot;
    let services: Vec<OutboundService> = snapshot.services.values().map(|service| resolver.service(service)).collect();
    let ports: BTreeSet<u16> = snapshot
        .services
        .values()
        .flat_map(|service| service.ports.values().filter(|port| port.protocol.is_http()).map(|port| port.number))
        .collect();
    let mut hosts: Vec<OutboundHost> = snapshot
        .routes
        .iter()
        .filter(|rules| rules.origin.namespace == client.namespace && rules.export_to.includes(&client.namespace))
        .flat_map(|rules| rules.hosts.iter().map(move |host| (host, rules)))
        .filter(|(pattern, rules)| match pattern {
            HostPattern::Exact(host) => !rules.http.is_empty() && !snapshot.services.contains_key(host),
            HostPattern::Suffix(_) | HostPattern::Any => !rules.http.is_empty(),
        })
        .map(|(pattern, rules)| OutboundHost {
            host: pattern.clone(),
            rules: rules.origin.clone(),
            routes: ports.iter().map(|port| (*port, resolver.http(rules, *port))).collect(),
        })
        .collect();
    // Stable: among equals the oldest stays first.
    hosts.sort_by_key(|host| host.host.rank());
    let mut seen: Vec<HostPattern> = Vec::new();
    hosts.retain(|host| {
        let fresh = !seen.contains(&host.host);
        if fresh {
            seen.push(host.host.clone());
        }
        fresh
    });
    let outbound = Outbound { namespace: client.namespace.clone(), services, hosts };
    (outbound, resolver.findings.into_iter().collect())
}

/// The rules that hold for a service, of each kind: they may be of different objects.
#[derive(Clone, Copy)]
struct OfService<'a> {
    http: Option<&'a Arc<RouteRules>>,
    tls: Option<&'a Arc<RouteRules>>,
    tcp: Option<&'a Arc<RouteRules>>,
}

/// Resolves for one client, collecting what is missing.
pub(super) struct Resolver<'a, 'b> {
    pub(super) index: &'b Index<'a>,
    pub(super) client: &'b ClientScope,
    pub(super) findings: BTreeSet<Finding>,
}

impl<'a> Resolver<'a, '_> {
    fn service(&mut self, service: &'a Arc<Service>) -> OutboundService {
        let (index, client) = (self.index, self.client);
        let rules = OfService {
            http: index.rules(service, client, |rules| !rules.http.is_empty()),
            tls: index.has_tls.then(|| index.rules(service, client, |rules| !rules.tls.is_empty())).flatten(),
            tcp: index.has_tcp.then(|| index.rules(service, client, |rules| !rules.tcp.is_empty())).flatten(),
        };
        let policy = self.index.policy(service, self.client);
        let ports = service.ports.values().map(|port| self.port(service, port, rules, policy)).collect();
        OutboundService { service: Arc::clone(service), ports }
    }

    fn port(
        &mut self,
        service: &Service,
        port: &ServicePort,
        rules: OfService<'_>,
        policy: Option<&Arc<DestinationPolicy>>,
    ) -> OutboundPort {
        let own = ClusterName { port: port.number, subset: String::new(), host: service.host.clone() };
        let mut http = rules.http.map(|rules| self.http(rules, port.number)).unwrap_or_default();
        if http.is_empty() {
            // Rules that have nothing for this client and port leave the service as it is.
            http.push(direct(&own));
        }
        let plain = TcpTarget { targets: vec![(Some(own.clone()), 1)], origin: None };
        let (connections, tcp) = match (port.protocol, rules.tls, rules.tcp) {
            (Protocol::Tls, Some(rules), _) => self.tls(rules, port.number),
            (Protocol::Tls, None, _) | (_, _, None) => (Vec::new(), None),
            (_, _, Some(rules)) => self.tcp(rules, port.number),
        };
        // Who routes by server name says where TLS goes; all else leaves the service as it is.
        let tcp = if port.protocol == Protocol::Tls && !connections.is_empty() { tcp } else { tcp.or(Some(plain)) };
        let addresses = match &service.addressing {
            Addressing::Virtual(_) | Addressing::Alias(_) => Vec::new(),
            Addressing::Headless => self
                .index
                .snapshot
                .endpoints_of(&service.host, port.number)
                .iter()
                .map(|endpoint| (endpoint.address, endpoint.port))
                .collect(),
        };
        OutboundPort {
            number: port.number,
            protocol: port.protocol,
            clusters: clusters::of_port(self.index.snapshot, self.client, service, port, policy),
            http,
            connections,
            tcp,
            addresses,
            rules: rules.http.map(|rules| rules.origin.clone()),
        }
    }

    /// The routes of the rules for requests to this port, as far as they are for this client.
    pub(super) fn http(&mut self, rules: &RouteRules, port: u16) -> Vec<HttpRoute> {
        let mut routes = Vec::new();
        for rule in &rules.http {
            let matches: Vec<Option<&route::HttpMatch>> = match &rule.matches {
                None => vec![None],
                Some(matches) => matches.iter().filter(|entry| self.is_for(&entry.client, port)).map(Some).collect(),
            };
            if matches.is_empty() {
                continue;
            }
            let action = match &rule.action {
                HttpAction::Forward(forward) => {
                    let said_by = rule.taken_from.as_ref().map_or((&rules.origin, rules.generation), |(o, g)| (o, *g));
                    Action::Forward(Box::new(self.forward(said_by, forward, port)))
                }
                HttpAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
                HttpAction::Answer(answer) => Action::Answer(answer.clone()),
                // Taken over when the snapshot was built.
                HttpAction::Delegate(_) => continue,
            };
            for matching in matches {
                let name = match matching.map(|matching| matching.name.as_str()) {
                    Some(name) if !name.is_empty() && !rule.name.is_empty() => format!("{}.{name}", rule.name),
                    Some(name) if !name.is_empty() => name.to_owned(),
                    _ => rule.name.clone(),
                };
                routes.push(HttpRoute {
                    name,
                    matching: matching.cloned().map(|matching| route::HttpMatch {
                        // Decided just now; what is sent must not depend on more than the scope says.
                        client: ClientMatch::default(),
                        ..matching
                    }),
                    action: action.clone(),
                    headers: rule.headers.clone(),
                    fault: rule.fault.clone(),
                    cors: rule.cors.clone(),
                    origin: Some(rules.origin.clone()),
                    taken_from: rule.taken_from.as_ref().map(|(origin, _)| origin.clone()),
                });
            }
        }
        routes
    }

    fn forward(&mut self, said_by: (&ObjectRef, i64), forward: &route::Forward, port: u16) -> Forward {
        let route::Forward { destinations, rewrite, timeout, retry, mirrors } = forward;
        let targets = destinations
            .iter()
            .map(|entry| {
                let route::WeightedDestination { destination, weight, headers } = entry;
                let cluster = self.target(said_by, destination, port, NOT_SERVED);
                Target { cluster, weight: *weight, headers: headers.clone() }
            })
            .collect();
        let mirrors = mirrors
            .iter()
            .filter_map(|mirror| {
                let route::Mirror { destination, share } = mirror;
                Some((self.target(said_by, destination, port, NOT_COPIED)?, *share))
            })
            .collect();
        Forward { targets, rewrite: rewrite.clone(), timeout: *timeout, retry: retry.clone(), mirrors }
    }

    /// The TCP rules that are for this client and port, up to the first that takes everything.
    pub(super) fn tcp(&mut self, rules: &RouteRules, port: u16) -> (Vec<ConnectionRoute>, Option<TcpTarget>) {
        let mut connections = Vec::new();
        for rule in &rules.tcp {
            let route::TcpRule { field: _, matches, destinations } = rule;
            let Some(matches) = matches else {
                return (connections, Some(self.connected(rules, destinations, port)));
            };
            for route::TcpMatch { client: _, destinations: subnets, source } in
                matches.iter().filter(|entry| self.is_for(&entry.client, port)).collect::<Vec<_>>()
            {
                let target = self.connected(rules, destinations, port);
                if subnets.is_empty() && source.is_none() {
                    return (connections, Some(target));
                }
                connections.push(ConnectionRoute {
                    server_names: Vec::new(),
                    destinations: subnets.clone(),
                    source: *source,
                    target,
                });
            }
        }
        (connections, None)
    }

    /// The TLS rules that are for this client and port, up to the first that takes everything.
    pub(super) fn tls(&mut self, rules: &RouteRules, port: u16) -> (Vec<ConnectionRoute>, Option<TcpTarget>) {
        let mut connections = Vec::new();
        for rule in &rules.tls {
            let route::TlsRule { field: _, matches, destinations } = rule;
            for route::TlsMatch { client: _, server_names, destinations: subnets } in
                matches.iter().filter(|entry| self.is_for(&entry.client, port)).collect::<Vec<_>>()
            {
                let target = self.connected(rules, destinations, port);
                if subnets.is_empty() && server_names.is_empty() {
                    return (connections, Some(target));
                }
                connections.push(ConnectionRoute {
                    server_names: server_names.clone(),
                    destinations: subnets.clone(),
                    source: None,
                    target,
                });
            }
        }
        (connections, None)
    }

    fn connected(&mut self, rules: &RouteRules, destinations: &[(route::Destination, u32)], port: u16) -> TcpTarget {
        let said_by = (&rules.origin, rules.generation);
        let targets = destinations
            .iter()
            .map(|(destination, weight)| (self.target(said_by, destination, port, NOT_SERVED), *weight))
            .collect();
        TcpTarget { targets, origin: Some(rules.origin.clone()) }
    }

    fn is_for(&self, wanted: &ClientMatch, addressed: u16) -> bool {
        let ClientMatch { port, labels, namespace } = wanted;
        port.is_none_or(|port| port == addressed)
            && selects(labels, &self.client.labels)
            && namespace.as_ref().is_none_or(|namespace| *namespace == self.client.namespace)
    }

    fn target(
        &mut self,
        said_by: (&ObjectRef, i64),
        destination: &route::Destination,
        port: u16,
        until: &str,
    ) -> Option<ClusterName> {
        match self.index.target(destination, Some(port), self.client) {
            Ok(cluster) => Some(cluster),
            Err(Missing { reason, field, message }) => {
                self.findings.insert(Finding {
                    object: said_by.0.clone(),
                    generation: said_by.1,
                    condition: Condition::ResolvedRefs,
                    severity: Severity::Failing,
                    reason,
                    field,
                    message: format!("{message}; {until} until then"),
                });
                None
            }
        }
    }
}

/// What becomes of requests to a destination that is not there.
const NOT_SERVED: &str = "its share of the traffic is answered with 503";
/// What becomes of copies for one.
const NOT_COPIED: &str = "no copies are sent there";

/// The route to the service itself, where no rules say otherwise.
fn direct(cluster: &ClusterName) -> HttpRoute {
    let target = Target { cluster: Some(cluster.clone()), weight: 1, headers: Default::default() };
    HttpRoute {
        name: "default".to_owned(),
        matching: None,
        action: Action::Forward(Box::new(Forward { targets: vec![target], ..Forward::default() })),
        headers: Default::default(),
        fault: None,
        cors: None,
        origin: None,
        taken_from: None,
    }
}
