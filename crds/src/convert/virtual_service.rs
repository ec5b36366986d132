//! VirtualServices as routing rules.

use std::net::IpAddr;

use ipnet::IpNet;
use leno_core::route::{ClientMatch, Destination, RouteRules, TcpRule};
use leno_core::service::Labels;
use leno_core::{HostPattern, Reason};

use super::Converted;
use super::http::http_rule;
use super::not_yet::Feature;
use super::report::Report;
use crate::istio::virtual_service as istio;

/// The reserved gateway that means all sidecars.
const MESH: &str = "mesh";

/// Converts a VirtualService. `domain` is the DNS domain of the cluster's services.
pub fn virtual_service(object: &istio::VirtualService, domain: &str) -> Converted<RouteRules> {
    let istio::VirtualService { metadata, spec, status: _ } = object;
    let istio::VirtualServiceSpec { hosts, gateways, http, tls, tcp, export_to } = spec;
    let mut report = Report::new("VirtualService", metadata, domain);

    let mut patterns = Vec::new();
    for (index, text) in hosts.iter().enumerate() {
        match HostPattern::resolve(text, report.namespace(), domain) {
            Ok(pattern) => {
                // Harmless. It is kept, since findings name hosts by their position.
                if let Some(first) = patterns.iter().position(|known| *known == pattern) {
                    let message = format!("{pattern} is named by spec.hosts[{first}] already; name it once");
                    report.remark(Reason::Conflict, &format!("spec.hosts[{index}]"), message);
                }
                patterns.push(pattern);
            }
            Err(error) => report.refuse(Reason::InvalidValue, &format!("spec.hosts[{index}]"), error.to_string()),
        }
    }
    if hosts.is_empty() {
        report.needs(Feature::Delegate, "spec.hosts");
    }
    let for_sidecars = applies_to_sidecars(gateways);
    if gateways.iter().any(|gateway| gateway != MESH) {
        if for_sidecars {
            report.uses(Feature::Gateways, "spec.gateways");
        } else {
            report.needs(Feature::Gateways, "spec.gateways");
        }
    }
    if for_sidecars && patterns.contains(&HostPattern::Any) {
        let message = "the host * is for gateways only; name the services, or the gateways";
        report.refuse(Reason::InvalidValue, "spec.hosts", message);
    }
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        report.refuse(Reason::NotExactlyOne, "spec", "there is no rule; give at least one of http, tls or tcp");
    }
    if !tls.is_empty() {
        report.needs(Feature::TlsRoutes, "spec.tls");
        for (index, route) in tls.iter().enumerate() {
            check_tls_route(&mut report, route, &format!("spec.tls[{index}]"));
        }
    }

    // Every rule is converted, so that mistakes are found, whether or not it applies to sidecars.
    let http: Vec<_> = http
        .iter()
        .enumerate()
        .filter_map(|(index, route)| http_rule(&mut report, route, gateways, &format!("spec.http[{index}]")))
        .collect();
    let tcp: Vec<_> = tcp
        .iter()
        .enumerate()
        .filter_map(|(index, route)| tcp_rule(&mut report, route, gateways, &format!("spec.tcp[{index}]")))
        .collect();
    let rules = RouteRules {
        origin: report.object.clone(),
        generation: report.generation,
        created: report.created,
        hosts: patterns,
        export_to: report.export_to(export_to),
        http,
        tcp,
    };
    report.finish(rules)
}

/// Whether rules with these gateways apply to sidecars.
pub(super) fn applies_to_sidecars(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

/// A destination of a rule.
pub(super) fn destination(
    report: &mut Report<'_>,
    destination: &istio::Destination,
    field: &str,
) -> Option<Destination> {
    let istio::Destination { host, subset, port } = destination;
    let number = port.as_ref().and_then(|port| {
        let istio::PortSelector { number } = port;
        *number
    });
    let port = report.port(number, &format!("{field}.port.number"));
    Some(Destination {
        host: report.host(host, &format!("{field}.host"))?,
        subset: subset.clone().filter(|subset| !subset.is_empty()),
        port,
        field: field.to_owned(),
    })
}

/// Conditions on the client and the port.
pub(super) fn client_match(
    report: &mut Report<'_>,
    port: Option<u32>,
    labels: &Labels,
    namespace: Option<&String>,
    field: &str,
) -> ClientMatch {
    ClientMatch {
        port: report.port(port, &format!("{field}.port")),
        labels: labels.clone(),
        namespace: namespace.filter(|namespace| !namespace.is_empty()).cloned(),
    }
}

fn tcp_rule(report: &mut Report<'_>, route: &istio::TcpRoute, gateways: &[String], field: &str) -> Option<TcpRule> {
    let istio::TcpRoute { matches, route } = route;
    let mut served = true;
    let mut converted = Vec::new();
    for (index, entry) in matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        let istio::L4MatchAttributes {
            destination_subnets,
            port,
            source_subnet,
            source_labels,
            gateways: own,
            source_namespace,
        } = entry;
        if !destination_subnets.is_empty() {
            report.needs(Feature::TcpDestinationSubnets, &format!("{field}.destinationSubnets"));
            served = false;
        }
        let source_subnet = source_subnet.as_ref().filter(|subnet| !subnet.is_empty());
        if source_subnet.is_some() {
            report.needs(Feature::TcpSourceSubnet, &format!("{field}.sourceSubnet"));
            served = false;
        }
        for (index, text) in destination_subnets.iter().enumerate() {
            check_subnet(report, text, &format!("{field}.destinationSubnets[{index}]"));
        }
        if let Some(text) = source_subnet {
            check_subnet(report, text, &format!("{field}.sourceSubnet"));
        }
        let client = client_match(report, *port, source_labels, source_namespace.as_ref(), &field);
        if applies_to_sidecars(if own.is_empty() { gateways } else { own }) {
            converted.push(client);
        }
    }
    let destinations = tcp_destinations(report, route, field)?;
    let applies = if matches.is_empty() { applies_to_sidecars(gateways) } else { !converted.is_empty() };
    let matches = (!matches.is_empty()).then_some(converted);
    (served && applies).then(|| TcpRule { field: field.to_owned(), matches, destinations })
}

fn tcp_destinations(
    report: &mut Report<'_>,
    route: &[istio::RouteDestination],
    field: &str,
) -> Option<Vec<(Destination, u32)>> {
    let field = format!("{field}.route");
    if route.is_empty() {
        report.refuse(Reason::NotExactlyOne, &field, "a rule needs a destination");
        return None;
    }
    let mut weights = Vec::new();
    let mut found = Vec::new();
    for (index, entry) in route.iter().enumerate() {
        let istio::RouteDestination { destination: to, weight } = entry;
        weights.push(*weight);
        found.extend(destination(report, to, &format!("{field}[{index}].destination")));
    }
    let weights = report.weights(&weights, &field);
    (found.len() == weights.len()).then(|| found.into_iter().zip(weights).collect())
}

/// TLS routes are not served; their mistakes are reported all the same.
fn check_tls_route(report: &mut Report<'_>, route: &istio::TlsRoute, field: &str) {
    let istio::TlsRoute { matches, route } = route;
    for (index, entry) in matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        let istio::TlsMatchAttributes {
            sni_hosts,
            destination_subnets,
            port,
            source_labels,
            gateways: _,
            source_namespace,
        } = entry;
        if sni_hosts.is_empty() {
            report.refuse(Reason::InvalidValue, &format!("{field}.sniHosts"), "name at least one server name");
        }
        for (index, text) in destination_subnets.iter().enumerate() {
            check_subnet(report, text, &format!("{field}.destinationSubnets[{index}]"));
        }
        client_match(report, *port, source_labels, source_namespace.as_ref(), &field);
    }
    tcp_destinations(report, route, field);
}

/// A subnet, or an address.
fn check_subnet(report: &mut Report<'_>, text: &str, field: &str) {
    if text.parse::<IpNet>().is_err() && text.parse::<IpAddr>().is_err() {
        let message = format!("\"{text}\" is no subnet; write for example 10.0.0.0/8");
        report.refuse(Reason::InvalidValue, field, message);
    }
}
