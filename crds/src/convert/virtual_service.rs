//! VirtualServices as routing rules.

use leno_core::route::{ClientMatch, Destination, HttpAction, RouteRules};
use leno_core::service::Labels;
use leno_core::{HostPattern, Reason};

use super::Converted;
use super::http::http_rule;
use super::l4::{tcp_rule, tls_rule};
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
        check_delegate(&mut report, spec);
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

    // Every rule is converted, so that mistakes are found, whether or not it applies to sidecars.
    let http: Vec<_> = http
        .iter()
        .enumerate()
        .filter_map(|(index, route)| http_rule(&mut report, route, gateways, &format!("spec.http[{index}]")))
        .collect();
    if hosts.is_empty() {
        for rule in http.iter().filter(|rule| matches!(rule.action, HttpAction::Delegate(_))) {
            let message = "rules that are taken over cannot take over others in turn; give the VirtualService hosts, or \
                           the rule a route";
            report.refuse(Reason::NotPermitted, &format!("{}.delegate", rule.field), message);
        }
    }
    let tls: Vec<_> = tls
        .iter()
        .enumerate()
        .filter_map(|(index, route)| {
            let field = format!("spec.tls[{index}]");
            tls_rule(&mut report, route, hosts, &patterns, gateways, &field)
        })
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
        tls,
        tcp,
    };
    report.finish(rules)
}

/// What may not stand in a VirtualService without hosts.
fn check_delegate(report: &mut Report<'_>, spec: &istio::VirtualServiceSpec) {
    if !spec.gateways.is_empty() {
        let message = "without hosts this is for others to take over, who say where the rules apply; remove gateways";
        report.refuse(Reason::InvalidValue, "spec.gateways", message);
    }
    for (given, field) in [(!spec.tls.is_empty(), "spec.tls"), (!spec.tcp.is_empty(), "spec.tcp")] {
        if given {
            let message = "without hosts this is for others to take over, and only http rules are; give it hosts";
            report.refuse(Reason::InvalidValue, field, message);
        }
    }
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
