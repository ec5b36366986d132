//! The text and JSON of the admin server.
//!
//! The config dump loads the descriptors of the whole API, some MiB that stay: it is for people, not for scrapers.

use crate::tls::CredentialStore;
use crate::xds::state::Raw;
use crate::xds::{Connection, Kind, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn stamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

/// The parts of Envoy's dump for a kind: the section's type, its list, and the field of the resource.
fn section(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        // Told by `/runtime`.
        Kind::Runtime => ("RuntimeConfigDump", "dynamic_runtime_layers", "layer"),
        Kind::Cluster => ("ClustersConfigDump", "dynamic_active_clusters", "cluster"),
        Kind::Endpoints => ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config"),
        Kind::Secret => ("SecretsConfigDump", "dynamic_active_secrets", "secret"),
        Kind::Listener => ("ListenersConfigDump", "dynamic_listeners", "listener"),
        Kind::Routes => ("RoutesConfigDump", "dynamic_route_configs", "route_config"),
        Kind::Extension => ("EcdsConfigDump", "ecds_filters", "ecds_filter"),
    }
}

/// Every resource in force, and every one whose newest form was refused; lists of which nothing is there are left out.
pub(super) fn config(state: &State) -> Value {
    let mut sections: Vec<Value> = bootstrap(state).into_iter().collect();
    for kind in ORDER {
        let (name, list, field) = section(kind);
        if kind == Kind::Routes {
            sections.push(json!({"@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump"}));
        }
        let (written, sent): (Vec<_>, Vec<_>) = state.raws(kind).partition(|(name, _)| state.is_fixed(kind, name));
        let entry = |name: &str, raw: &Raw| {
            let mut entry = resource(field, raw);
            if kind == Kind::Secret {
                entry["name"] = json!(name);
            }
            if let Some(refusal) = refused(state, kind, name) {
                entry["error_state"] = refusal;
            }
            entry
        };
        let mut section = json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{name}")});
        if let Some(version) = state.accepted(kind).filter(|_| !kind.by_name()) {
            section["version_info"] = json!(version);
        }
        let mut warming = Vec::new();
        let entries: Vec<Value> = match kind {
            Kind::Listener => listener_entries(state),
            Kind::Cluster => {
                let all = state.forms(kind).into_iter().filter(|(name, ..)| !state.is_fixed(kind, name));
                let (mut active, mut waits) = (Vec::new(), Vec::new());
                for (name, in_force, waiting) in all {
                    active.extend(in_force.map(|raw| entry(name, raw)));
                    waits.extend(waiting.map(|raw| resource(field, raw)));
                }
                warming = waits;
                active
            }
            _ => sent.into_iter().map(|(name, raw)| entry(name, raw)).collect(),
        };
        if kind == Kind::Extension && entries.is_empty() {
            continue;
        }
        let mut add = |list: &str, entries: Vec<Value>| {
            if !entries.is_empty() {
                section[list] = Value::Array(entries);
            }
        };
        add(list, entries);
        add("dynamic_warming_clusters", warming);
        if let Some(list) = written_list(kind) {
            let entry = |(name, raw)| written_entry(kind, field, name, raw);
            add(list, written.into_iter().map(entry).collect());
        }
        match kind {
            Kind::Routes => add("static_route_configs", written_routes(state)),
            Kind::Endpoints => add("static_endpoint_configs", written_endpoints(state)),
            _ => {}
        }
        sections.push(section);
    }
    let mut dump = json!({"configs": sections});
    redact(&mut dump);
    dump
}

/// The order of the sections, as in Envoy.
const ORDER: [Kind; 6] = [Kind::Cluster, Kind::Endpoints, Kind::Extension, Kind::Listener, Kind::Routes, Kind::Secret];

/// Why the newest form of a resource was refused, if it was.
fn refused(state: &State, kind: Kind, name: &str) -> Option<Value> {
    let refusal = state.refusals().get(&(kind, name.to_owned()))?;
    Some(json!({
        "version_info": refusal.version,
        "last_update_attempt": stamp(refusal.since),
        "details": refusal.reason.to_string(),
    }))
}

/// Listeners that were sent: in force, waiting, and refused, also where nothing but a refused form has come.
fn listener_entries(state: &State) -> Vec<Value> {
    let field = "listener";
    let mut entries: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, active, warming) in state.forms(Kind::Listener) {
        if state.is_fixed(Kind::Listener, name) {
            continue;
        }
        let mut entry = json!({"name": name});
        for (list, raw) in [("active_state", active), ("warming_state", warming)] {
            if let Some(raw) = raw {
                entry[list] = resource(field, raw);
            }
        }
        entries.insert(name, entry);
    }
    for (kind, name) in state.refusals().keys().filter(|(kind, _)| *kind == Kind::Listener) {
        if let Some(refusal) = refused(state, *kind, name) {
            entries.entry(name).or_insert_with(|| json!({"name": name}))["error_state"] = refusal;
        }
    }
    entries.into_values().collect()
}

/// The bootstrap with the resources that are written in it.
fn bootstrap(state: &State) -> Option<Value> {
    let raw = state.bootstrap()?;
    let body = |raw: &Raw| {
        let mut body = leno_xds::json::any_to_value(&raw.body).unwrap_or_default();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("@type");
        }
        body
    };
    let mut whole = body(raw);
    for (kind, list) in [(Kind::Listener, "listeners"), (Kind::Cluster, "clusters"), (Kind::Secret, "secrets")] {
        let written = state.raws(kind).filter(|(name, _)| state.is_fixed(kind, name));
        let all: Vec<Value> = written.map(|(_, raw)| body(raw)).collect();
        if !all.is_empty() {
            whole["static_resources"][list] = Value::Array(all);
        }
    }
    Some(json!({
        "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
        "bootstrap": whole, "last_updated": stamp(raw.since),
    }))
}

/// Route configurations that are written in connection managers.
fn written_routes(state: &State) -> Vec<Value> {
    /// Looks for them anywhere below.
    fn find(value: &Value, found: &mut Vec<Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.get("virtual_hosts") {
                        Some(_) if name == "route_config" => found.push(value.clone()),
                        _ => find(value, found),
                    }
                }
            }
            Value::Array(all) => all.iter().for_each(|value| find(value, found)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    for (_, raw) in state.raws(Kind::Listener) {
        let mut found = Vec::new();
        find(&leno_xds::json::any_to_value(&raw.body).unwrap_or_default(), &mut found);
        all.extend(found.into_iter().map(|mut table| {
            table["@type"] = json!("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
            json!({"route_config": table, "last_updated": stamp(raw.since)})
        }));
    }
    all
}

/// Endpoints that are written in clusters.
fn written_endpoints(state: &State) -> Vec<Value> {
    let of = |(_, raw): (&str, &Raw)| {
        let mut endpoints = leno_xds::json::any_to_value(&raw.body).ok()?.get_mut("load_assignment")?.take();
        endpoints["@type"] = json!("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
        let kind = "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump.StaticEndpointConfig";
        Some(json!({"@type": kind, "endpoint_config": endpoints}))
    };
    state.raws(Kind::Cluster).filter_map(of).collect()
}

/// Takes keys and passwords out, wherever they are written, as Envoy does.
fn redact(value: &mut Value) {
    /// Every text below.
    fn hide(value: &mut Value) {
        match value {
            Value::String(text) => *text = "[redacted]".to_owned(),
            Value::Object(fields) => fields.values_mut().for_each(hide),
            Value::Array(all) => all.iter_mut().for_each(hide),
            _ => {}
        }
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "private_key" | "password" | "pkcs12" | "session_ticket_keys" => hide(value),
                    _ => redact(value),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(redact),
        _ => {}
    }
}

/// The list of what is written in the bootstrap, for kinds that can be.
fn written_list(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Cluster => Some("static_clusters"),
        Kind::Listener => Some("static_listeners"),
        Kind::Secret => Some("static_secrets"),
        Kind::Runtime | Kind::Endpoints | Kind::Routes | Kind::Extension => None,
    }
}

/// A resource that is written in the bootstrap, which has no version.
fn written_entry(kind: Kind, field: &str, name: &str, raw: &Raw) -> Value {
    let mut entry = resource(field, raw);
    if let Some(fields) = entry.as_object_mut() {
        fields.remove("version_info");
        if kind == Kind::Secret {
            fields.insert("name".to_owned(), json!(name));
        }
    }
    entry
}

fn resource(field: &str, raw: &Raw) -> Value {
    let body = leno_xds::json::any_to_value(&raw.body).unwrap_or_else(|error| json!({"error": error.to_string()}));
    json!({"version_info": raw.version, "last_updated": stamp(raw.since), field: body})
}

/// One line a listener: `name::address,address`.
pub(super) fn listeners(state: &State) -> String {
    let mut lines = String::new();
    for listener in state.listeners() {
        let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
        let bound = if listener.bind { "" } else { " (virtual)" };
        writeln!(lines, "{}::{}{bound}", listener.name, addresses.join(",")).ok();
    }
    lines
}

/// The certificates that are shown to others, as Envoy tells them; in a pod also who we are, until when, and how many roots are
/// trusted. Never a key.
pub(super) fn certificates(store: &CredentialStore, state: &State) -> Value {
    let now = SystemTime::now();
    let own = state.certificates().into_iter().map(|pair| {
        let facts = pair.facts();
        let named = |kind: &str, names: &[Box<str>]| names.iter().map(|name| json!({kind: name})).collect::<Vec<_>>();
        let mut names = named("uri", &facts.uris);
        names.extend(named("dns", &facts.dns));
        names.extend(facts.ips.iter().map(|ip| json!({"ip_address": ip.to_string()})));
        let left = facts.not_after.duration_since(now).map_or(0, |left| left.as_secs() / 86_400);
        let chain = json!({
            "path": "<inline>",
            "serial_number": &*facts.serial,
            "subject_alt_names": names,
            "days_until_expiration": left.to_string(),
            "valid_from": stamp(facts.not_before),
            "expiration_time": stamp(facts.not_after),
        });
        json!({"ca_cert": [], "cert_chain": [chain]})
    });
    let mut all = json!({"certificates": own.collect::<Vec<_>>()});
    if let Some(credentials) = store.get() {
        all["certificate"] = json!({
            "identity": credentials.identity().uri(),
            "serial": credentials.serial(),
            "not_before": stamp(credentials.not_before()),
            "not_after": stamp(credentials.not_after()),
        });
        all["roots"] = json!(credentials.root_certificates().len());
    }
    all
}

/// The connection to the control plane, and what was refused.
pub(super) fn status(state: &State, connection: &Connection) -> Value {
    let refused: Vec<Value> = state
        .refusals()
        .iter()
        .map(|((kind, name), refusal)| {
            json!({
                "kind": kind.noun(),
                "name": name,
                "version": refusal.version,
                "reason": refusal.reason.to_string(),
                "since": stamp(refusal.since),
            })
        })
        .collect();
    json!({
        "control_plane": {
            "connected": connection.connected,
            "streams": connection.streams,
            "last_error": connection.last_error,
        },
        "root": state.version(),
        "refused": refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_xds::envoy::config::cluster::v3::Cluster;
    use leno_xds::envoy::service::discovery::v3::Resource;
    use std::time::Instant;

    #[test]
    fn dump_when_a_resource_is_written_in_the_bootstrap_then_it_is_among_the_static_ones() {
        let mut state = State::new("");
        let resource = |name: &str| {
            let body: Cluster = leno_xds::json::from_value(&json!({"name": name, "type": "STATIC"})).unwrap();
            Resource { name: name.to_owned(), resource: Some(leno_xds::any(&body)), ..Default::default() }
        };
        state.load(Kind::Cluster, vec![resource("written")], Instant::now(), SystemTime::now()).unwrap();
        state.apply(Kind::Cluster, vec![resource("sent")], Instant::now(), SystemTime::now());
        let dump = config(&state);
        let clusters = &dump["configs"][0];
        assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "written");
        assert_eq!(clusters["static_clusters"][0].get("version_info"), None);
        assert_eq!(clusters["dynamic_active_clusters"][0]["cluster"]["name"], "sent");
        assert_eq!(clusters["dynamic_active_clusters"].as_array().map(Vec::len), Some(1));
        assert_eq!(dump["configs"][1].get("dynamic_listeners"), None, "nothing is left out");
    }

    #[test]
    fn dump_when_keys_are_written_in_resources_then_they_are_not_shown() {
        let mut value = json!({"tls_certificates": [{
            "certificate_chain": {"inline_string": "chain"}, "private_key": {"inline_string": "secret"},
            "password": {"filename": "/p"},
        }]});
        redact(&mut value);
        let pair = &value["tls_certificates"][0];
        assert_eq!(pair["certificate_chain"]["inline_string"], "chain");
        assert_eq!(
            (&pair["private_key"]["inline_string"], &pair["password"]["filename"]),
            (&json!("[redacted]"), &json!("[redacted]"))
        );
    }
}
