//! Clusters with their endpoints, as workers have them: found by name, taken out, asked whether they are well.

use crate::config::{ClientTls, Cluster, Endpoint, Failed, Health, LabelValue, Limits, pipe::Shown};
use crate::telemetry::Telemetry;
use crate::telemetry::envoy::{ClusterView, HostNumbers};
use crate::xds::{Kind, State};
use regex::Regex;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Why an endpoint gets no requests, as Envoy names it; `healthy` otherwise.
fn flags(cluster: &Cluster, endpoint: &Endpoint) -> String {
    match endpoint.health {
        Health::Healthy => return "healthy".to_owned(),
        Health::Degraded => return "/degraded_eds_health".to_owned(),
        Health::Draining => return "/eds_status_draining".to_owned(),
        Health::Unhealthy => {}
    }
    let Failed { check, outlier, told } = endpoint.failed;
    // What was never checked counts as not well.
    let unchecked = !outlier && !told && !cluster.checks.is_empty();
    let all =
        [("/failed_active_hc", check || unchecked), ("/failed_outlier_check", outlier), ("/failed_eds_health", told)];
    let flags: String = all.iter().filter(|(_, holds)| *holds).map(|(flag, _)| *flag).collect();
    if flags.is_empty() { "/failed_eds_health".to_owned() } else { flags }
}

fn views(telemetry: &Telemetry, filter: Option<&Regex>) -> Vec<ClusterView> {
    let all = telemetry.clusters().into_iter();
    all.filter(|(name, _)| filter.is_none_or(|filter| filter.is_match(name))).map(|(_, view)| view).collect()
}

/// The lines of every cluster whose name has a match.
pub(super) fn text(telemetry: &Telemetry, state: &State, filter: Option<&Regex>) -> String {
    let mut out = String::new();
    for view in views(telemetry, filter) {
        let cluster = &view.first.config;
        let name = &cluster.name;
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(out, "{name}::{text}").unwrap_or_default();
        line(format_args!("observability_name::{}", cluster.observability_name));
        for (priority, limits) in [("default", &cluster.limits), ("high", &cluster.high_limits)] {
            let Limits { connections, pending, requests, retries, retry_budget: _, tell_remaining: _, per_host: _ } =
                limits;
            line(format_args!("{priority}_priority::max_connections::{connections}"));
            line(format_args!("{priority}_priority::max_pending_requests::{pending}"));
            line(format_args!("{priority}_priority::max_requests::{requests}"));
            line(format_args!("{priority}_priority::max_retries::{retries}"));
        }
        line(format_args!("added_via_api::{}", !state.is_fixed(Kind::Cluster, name)));
        let numbers = view.hosts();
        for endpoint in &cluster.endpoints {
            let at = Shown(endpoint.address);
            let host = numbers.get(&endpoint.address).copied().unwrap_or_default();
            for (stat, value) in stats(&host) {
                line(format_args!("{at}::{stat}::{value}"));
            }
            line(format_args!("{at}::hostname::{}", endpoint.hostname.as_deref().unwrap_or_default()));
            line(format_args!("{at}::health_flags::{}", flags(cluster, endpoint)));
            line(format_args!("{at}::weight::{}", endpoint.weight));
            line(format_args!("{at}::region::{}", endpoint.locality.region));
            line(format_args!("{at}::zone::{}", endpoint.locality.zone));
            line(format_args!("{at}::sub_zone::{}", endpoint.locality.sub_zone));
            line(format_args!("{at}::canary::{}", is_canary(endpoint)));
            line(format_args!("{at}::priority::{}", endpoint.priority));
            line(format_args!("{at}::success_rate::-1"));
            line(format_args!("{at}::local_origin_success_rate::-1"));
            line(format_args!("{at}::tls::{}", transport(endpoint)));
        }
    }
    out
}

/// Whether it says that it is one of those that are tried out.
fn is_canary(endpoint: &Endpoint) -> bool {
    endpoint.labels.get("canary") == Some(&LabelValue::Bool(true))
}

/// How connections to it are protected; Envoy has no such line.
fn transport(endpoint: &Endpoint) -> String {
    match endpoint.tls.as_deref() {
        Some(ClientTls::Mesh(mesh)) => mesh.expected.join("|"),
        Some(ClientTls::Own(_)) => "tls".to_owned(),
        Some(ClientTls::Proxied(_)) => "proxy-protocol".to_owned(),
        None => "plain".to_owned(),
    }
}

fn stats(host: &HostNumbers) -> [(&'static str, u64); 8] {
    [
        ("cx_active", host.cx_active),
        ("cx_connect_fail", host.cx_connect_fail),
        ("cx_total", host.cx_total),
        ("rq_active", host.rq_active),
        ("rq_error", host.rq_error),
        ("rq_success", host.rq_success),
        ("rq_timeout", host.rq_timeout),
        ("rq_total", host.rq_total),
    ]
}

fn thresholds(limits: &Limits) -> Value {
    let Limits { connections, pending, requests, retries, retry_budget: _, tell_remaining: _, per_host: _ } = limits;
    json!({
        "max_connections": connections, "max_pending_requests": pending,
        "max_requests": requests, "max_retries": retries,
    })
}

/// The same as JSON (`envoy.admin.v3.Clusters`): what is nothing is left out.
pub(super) fn json(telemetry: &Telemetry, state: &State, filter: Option<&Regex>) -> Value {
    let status = |view: &ClusterView| {
        let cluster = &view.first.config;
        let numbers = view.hosts();
        let hosts: Vec<Value> = cluster
            .endpoints
            .iter()
            .map(|endpoint| {
                let host = numbers.get(&endpoint.address).copied().unwrap_or_default();
                let stats: Vec<Value> = stats(&host)
                    .into_iter()
                    .map(|(name, value)| {
                        let mut stat = json!({"name": name});
                        if value > 0 {
                            stat["value"] = json!(value.to_string());
                        }
                        if name.ends_with("_active") {
                            stat["type"] = json!("GAUGE");
                        }
                        stat
                    })
                    .collect();
                let mut health = json!({"eds_health_status": "HEALTHY"});
                for flag in flags(cluster, endpoint).split('/').filter(|flag| !flag.is_empty()) {
                    match flag {
                        "healthy" => {}
                        "failed_eds_health" => health["eds_health_status"] = json!("UNHEALTHY"),
                        "degraded_eds_health" => health["eds_health_status"] = json!("DEGRADED"),
                        "eds_status_draining" => health["eds_health_status"] = json!("DRAINING"),
                        "failed_active_hc" => health["failed_active_health_check"] = json!(true),
                        other => health[other] = json!(true),
                    }
                }
                let (at, place) = (endpoint.address, &endpoint.locality);
                let address = match &endpoint.pipe {
                    Some(path) => json!({"pipe": {"path": path}}),
                    None => json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}}),
                };
                let mut host = json!({
                    "address": address,
                    "stats": stats, "health_status": health, "weight": endpoint.weight, "locality": {},
                });
                for (name, value) in [("region", &place.region), ("zone", &place.zone), ("sub_zone", &place.sub_zone)] {
                    if !value.is_empty() {
                        host["locality"][name] = json!(value);
                    }
                }
                if endpoint.priority > 0 {
                    host["priority"] = json!(endpoint.priority);
                }
                if let Some(name) = endpoint.hostname.as_deref().filter(|name| !name.is_empty()) {
                    host["hostname"] = json!(name);
                }
                host
            })
            .collect();
        let name = &*cluster.name;
        let mut high = thresholds(&cluster.high_limits);
        high["priority"] = json!("HIGH");
        let mut status = json!({
            "name": name, "observability_name": &*cluster.observability_name,
            "circuit_breakers": {"thresholds": [thresholds(&cluster.limits), high]},
        });
        if !hosts.is_empty() {
            status["host_statuses"] = Value::Array(hosts);
        }
        if !state.is_fixed(Kind::Cluster, name) {
            status["added_via_api"] = json!(true);
        }
        status
    };
    json!({"cluster_statuses": views(telemetry, filter).iter().map(status).collect::<Vec<_>>()})
}
