//! TLS and TCP rules of VirtualServices.

use std::net::IpAddr;

use ipnet::IpNet;
use leno_core::route::{Destination, Subnet, TcpMatch, TcpRule, TlsMatch, TlsRule};
use leno_core::{HostPattern, Reason};

use super::report::Report;
use super::virtual_service::{applies_to_sidecars, client_match, destination};
use crate::istio::virtual_service as istio;

/// Converts one TCP rule; `None` when it does not apply to sidecars or was refused.
pub(super) fn tcp_rule(
    report: &mut Report<'_>,
    route: &istio::TcpRoute,
    gateways: &[String],
    field: &str,
) -> Option<TcpRule> {
    let istio::TcpRoute { matches, route } = route;
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
        let destinations = subnets(report, destination_subnets, &format!("{field}.destinationSubnets"));
        let source = source_subnet
            .as_ref()
            .filter(|text| !text.is_empty())
            .and_then(|text| subnet(report, text, &format!("{field}.sourceSubnet")));
        let client = client_match(report, *port, source_labels, source_namespace.as_ref(), &field);
        if applies_to_sidecars(if own.is_empty() { gateways } else { own }) {
            converted.push(TcpMatch { client, destinations, source });
        }
    }
    let destinations = destinations(report, route, field)?;
    let applies = if matches.is_empty() { applies_to_sidecars(gateways) } else { !converted.is_empty() };
    let matches = (!matches.is_empty()).then_some(converted);
    applies.then(|| TcpRule { field: field.to_owned(), matches, destinations })
}

/// Converts one TLS rule of an object with these hosts; `None` when it does not apply to sidecars or was refused.
pub(super) fn tls_rule(
    report: &mut Report<'_>,
    route: &istio::TlsRoute,
    hosts: &[String],
    patterns: &[HostPattern],
    gateways: &[String],
    field: &str,
) -> Option<TlsRule> {
    let istio::TlsRoute { matches, route } = route;
    if matches.is_empty() {
        let message = "a TLS rule needs a match with the server names that it is for";
        report.refuse(Reason::InvalidValue, &format!("{field}.match"), message);
    }
    let mut converted = Vec::new();
    for (index, entry) in matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        let istio::TlsMatchAttributes {
            sni_hosts,
            destination_subnets,
            port,
            source_labels,
            gateways: own,
            source_namespace,
        } = entry;
        if sni_hosts.is_empty() {
            report.refuse(Reason::InvalidValue, &format!("{field}.sniHosts"), "name at least one server name");
        }
        let mut server_names = Vec::new();
        for (index, text) in sni_hosts.iter().enumerate() {
            server_names.extend(server_name(report, text, hosts, patterns, &format!("{field}.sniHosts[{index}]")));
        }
        if sni_hosts.iter().any(|text| text == "*") {
            server_names.clear();
        }
        let destinations = subnets(report, destination_subnets, &format!("{field}.destinationSubnets"));
        let client = client_match(report, *port, source_labels, source_namespace.as_ref(), &field);
        if applies_to_sidecars(if own.is_empty() { gateways } else { own }) {
            converted.push(TlsMatch { client, server_names, destinations });
        }
    }
    let destinations = destinations(report, route, field)?;
    (!converted.is_empty()).then(|| TlsRule { field: field.to_owned(), matches: converted, destinations })
}

/// A server name that lies within the object's hosts; in lower case, as Envoy compares them.
fn server_name(
    report: &mut Report<'_>,
    text: &str,
    hosts: &[String],
    patterns: &[HostPattern],
    field: &str,
) -> Option<String> {
    let pattern = match HostPattern::parse(text) {
        Ok(pattern) => pattern,
        Err(error) => {
            report.refuse(Reason::InvalidValue, field, error.to_string());
            return None;
        }
    };
    if matches!(&pattern, HostPattern::Suffix(suffix) if !suffix.starts_with('.')) {
        let message = format!(
            "\"{text}\" is no server name: here a wildcard is the whole of the first label, as in *.example.com"
        );
        report.refuse(Reason::InvalidValue, field, message);
    }
    // As written, or by the full name: clients of a service may ask for either.
    let within = |host: &String| HostPattern::parse(host).is_ok_and(|host| host.covers(&pattern));
    if !hosts.iter().any(within) && !patterns.iter().any(|host| host.covers(&pattern)) {
        let message = format!("\"{text}\" lies in none of the hosts of this object; add it to spec.hosts");
        report.refuse(Reason::InvalidValue, field, message);
    }
    Some(pattern.to_string())
}

fn destinations(
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

fn subnets(report: &mut Report<'_>, texts: &[String], field: &str) -> Vec<Subnet> {
    let parsed =
        texts.iter().enumerate().filter_map(|(index, text)| subnet(report, text, &format!("{field}[{index}]")));
    parsed.collect()
}

/// A subnet, or an address, which is a subnet of one.
fn subnet(report: &mut Report<'_>, text: &str, field: &str) -> Option<Subnet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    if net.is_err() {
        let message = format!("\"{text}\" is no subnet; write for example 10.0.0.0/8");
        report.refuse(Reason::InvalidValue, field, message);
    }
    net.ok().map(|net| Subnet { address: net.network(), length: net.prefix_len() })
}
