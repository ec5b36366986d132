//! Makes one bootstrap of all cases: a listener a case, clusters whose names tell the case.

use super::case::{Backend, Case, Speaks};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

/// Where the listener of the first case stands; the others follow.
pub const FIRST_PORT: u16 = 20_000;
/// The admin pages.
pub const ADMIN_PORT: u16 = 19_999;

/// The fields of the access log, in order, after the request's id.
pub const LOG_FIELDS: [&str; 5] = ["code", "flags", "cluster", "route", "details"];
const LOG_FORMAT: &str = "%REQ(X-TEST-ID)% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %ROUTE_NAME% \
                          %RESPONSE_CODE_DETAILS%\n";

/// What both proxies get alike, but for their own address.
pub struct Places<'a> {
    /// The proxy's own address.
    pub own: Ipv4Addr,
    /// The folder of keys and certificates.
    pub tls: &'a Path,
}

/// A case with its place among the others.
pub struct Placed {
    /// The case.
    pub case: Case,
    /// The port of its listener.
    pub port: u16,
    /// Its back ends.
    pub backends: BTreeMap<String, SocketAddr>,
}

/// The bootstrap of some cases.
pub fn bootstrap<'a>(cases: impl IntoIterator<Item = &'a Placed>, places: &Places<'_>) -> Result<Value> {
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    let (mut runtime, mut over) = (Value::Null, Value::Null);
    for placed in cases {
        let about = || format!("case {}", placed.case.name);
        listeners.push(listener(placed, places).with_context(about)?);
        clusters.extend(self::clusters(placed, places).with_context(about)?);
        lay_over(&mut runtime, placed.case.runtime.clone());
        let mut own = placed.case.bootstrap.clone();
        fill(placed, places, &mut own).with_context(about)?;
        lay_over(&mut over, own);
    }
    let mut whole = json!({
        "node": {"id": "differential", "cluster": "differential"},
        "admin": {"address": address(places.own, ADMIN_PORT)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    if !runtime.is_null() {
        whole["layered_runtime"] = json!({"layers": [{"name": "static", "static_layer": runtime}]});
    }
    lay_over(&mut whole, over);
    Ok(whole)
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

fn listener(placed: &Placed, places: &Places<'_>) -> Result<Value> {
    let case = &placed.case;
    let mut chain = json!({"filters": case.network_filters});
    let mut manager = manager(case);
    lay_over(&mut manager, case.hcm.clone());
    if let Some(filters) = chain["filters"].as_array_mut() {
        filters.push(json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}));
    }
    if let Some(socket) = &case.transport_socket {
        chain["transport_socket"] = socket.clone();
    }
    let mut listener = json!({
        "name": case.name,
        "address": address(places.own, placed.port),
        "filter_chains": [chain],
    });
    lay_over(&mut listener, case.listener.clone());
    qualify(&case.name, &mut listener);
    fill(placed, places, &mut listener)?;
    Ok(listener)
}

/// The access log, to standard output.
fn access_log(case: &Case) -> Value {
    let mut logs = vec![json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
            "log_format": {"text_format_source": {"inline_string": LOG_FORMAT}},
        },
    })];
    for further in &case.logs {
        logs.push(json!({
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/stdout",
                "log_format": further["format"],
            },
        }));
        if let (Some(log), filter @ Value::Object(_)) = (logs.last_mut(), &further["filter"]) {
            log["filter"] = filter.clone();
        }
    }
    Value::Array(logs)
}

fn manager(case: &Case) -> Value {
    let hosts = case.virtual_hosts.clone().unwrap_or_else(|| {
        let usual = || vec![json!({"match": {"prefix": "/"}, "route": {"cluster": "a"}})];
        vec![json!({"name": "all", "domains": ["*"], "routes": case.routes.clone().unwrap_or_else(usual)})]
    });
    let mut routes = json!({"name": case.name, "virtual_hosts": hosts});
    lay_over(&mut routes, case.route_config.clone());
    let mut router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    lay_over(&mut router, case.router.clone());
    let mut filters = case.http_filters.clone();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": router}));
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": case.name,
        "route_config": routes,
        "http_filters": filters,
        "access_log": access_log(case),
    })
}

fn clusters(placed: &Placed, places: &Places<'_>) -> Result<Vec<Value>> {
    let case = &placed.case;
    let mut all: BTreeMap<&str, Value> =
        case.backends.iter().map(|(name, backend)| (name.as_str(), of_backend(name, backend))).collect();
    for over in &case.clusters {
        let name = over["name"].as_str().context("a cluster has no name")?;
        let cluster = all.entry(name).or_insert_with(|| json!({"connect_timeout": "1s"}));
        lay_over(cluster, over.clone());
    }
    let mut finished = Vec::new();
    for (name, mut cluster) in all {
        if let Some(endpoints) = cluster.as_object_mut().and_then(|cluster| cluster.remove("endpoints")) {
            let Value::Array(list) = endpoints else { bail!("cluster {name}: endpoints is not a list") };
            // Endpoints, or localities that have some.
            let localities = list.iter().any(|one| !one["endpoints"].is_null());
            let list = if localities { list } else { vec![json!({"endpoints": list})] };
            let list = list.into_iter().map(locality).collect::<Result<Vec<_>>>()?;
            cluster["load_assignment"] = json!({"endpoints": list});
        }
        let full = format!("{}/{name}", case.name);
        cluster["name"] = json!(full);
        if cluster["load_assignment"].is_object() {
            cluster["load_assignment"]["cluster_name"] = json!(full);
        }
        fill(placed, places, &mut cluster)?;
        finished.push(cluster);
    }
    Ok(finished)
}

/// A locality, from a map with `endpoints`.
fn locality(mut short: Value) -> Result<Value> {
    let own = short.as_object_mut().and_then(|map| map.remove("endpoints"));
    let Some(Value::Array(own)) = own else { bail!("a locality has no list of endpoints") };
    short["lb_endpoints"] = own.iter().map(endpoint).collect::<Result<_>>()?;
    Ok(short)
}

/// An endpoint, from a back end's name or from a map with `backend`, laid over with the rest of the map.
fn endpoint(short: &Value) -> Result<Value> {
    let (name, over) = match short {
        Value::String(name) => (name.clone(), Value::Null),
        Value::Object(map) => {
            let mut map = map.clone();
            let name = map.remove("backend").and_then(|name| name.as_str().map(str::to_owned));
            (name.context("an endpoint has no backend")?, Value::Object(map))
        }
        _ => bail!("an endpoint is neither a name nor a map"),
    };
    let place = json!({"address": format!("${{address:{name}}}"), "port_value": format!("${{port:{name}}}")});
    let mut endpoint = json!({"endpoint": {"address": {"socket_address": place}}});
    lay_over(&mut endpoint, over);
    Ok(endpoint)
}

fn of_backend(name: &str, backend: &Backend) -> Value {
    let mut cluster = json!({"type": "STATIC", "connect_timeout": "1s", "endpoints": [name]});
    if backend.protocol == Speaks::H2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    if backend.tls {
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "backend.example",
            "common_tls_context": {"validation_context": {"trusted_ca": {"filename": "${tls}/ca.pem"}}},
        }});
    }
    cluster
}

/// Lays a value over another: maps are merged, everything else is replaced; null removes.
pub fn lay_over(under: &mut Value, over: Value) {
    match (under, over) {
        (_, Value::Null) => {}
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match value {
                    Value::Null => {
                        under.remove(&key);
                    }
                    value => lay_over(under.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// Gives cluster names in a listener the case's own.
fn qualify(case: &str, value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| qualify(case, value)),
        Value::Object(map) => {
            if let Some(Value::String(name)) = map.get_mut("cluster") {
                *name = format!("{case}/{name}");
            }
            if let Some(list) = map.get_mut("weighted_clusters").and_then(|w| w.get_mut("clusters")) {
                for one in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                    rename(case, one);
                }
            }
            map.values_mut().for_each(|value| qualify(case, value));
        }
        _ => {}
    }
}

fn rename(case: &str, one: &mut Map<String, Value>) {
    if let Some(Value::String(name)) = one.get_mut("name") {
        *name = format!("{case}/{name}");
    }
}

/// Fills places in all strings; a string that is a port alone becomes a number.
fn fill(placed: &Placed, places: &Places<'_>, value: &mut Value) -> Result<()> {
    match value {
        Value::Array(list) => list.iter_mut().try_for_each(|value| fill(placed, places, value)),
        Value::Object(map) => map.values_mut().try_for_each(|value| fill(placed, places, value)),
        Value::String(text) if text.contains("${") => {
            let filled = fill_text(placed, places.tls, text)?;
            let port = (text.starts_with("${port:") && text.ends_with('}')).then(|| filled.parse::<u16>().ok());
            *value = port.flatten().map_or_else(|| json!(filled), |port| json!(port));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The file of a case, in the folder of all.
fn file_name(case: &str, name: &str) -> String {
    format!("{case}--{name}.json")
}

/// Writes the files of a case.
pub fn write_files(case: &Case, folder: &Path) -> Result<()> {
    for (name, content) in &case.files {
        std::fs::write(folder.join(file_name(&case.name, name)), serde_json::to_string_pretty(content)?)?;
    }
    Ok(())
}

/// Fills places in a text. What is no place of ours is left alone.
pub fn fill_text(placed: &Placed, tls: &Path, text: &str) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        filled.push_str(before);
        let (place, after) = after.split_once('}').with_context(|| format!("a place is not closed in {text}"))?;
        let backend = |name: &str| {
            placed.backends.get(name).with_context(|| format!("there is no back end {name} in {}", placed.case.name))
        };
        match place.split_once(':') {
            Some(("port", name)) => filled.push_str(&backend(name)?.port().to_string()),
            Some(("address", name)) => filled.push_str(&backend(name)?.ip().to_string()),
            Some(("cluster", name)) => filled.push_str(&format!("{}/{name}", placed.case.name)),
            Some(("long", count)) => filled.push_str(&"z".repeat(count.parse::<usize>()?.min(1 << 20))),
            Some(("many", count)) => {
                let count = count.parse::<usize>()?.min(1 << 12);
                filled.push_str(&(0..count).map(|n| format!("x-many-{n}: {n}")).collect::<Vec<_>>().join("\r\n"));
            }
            Some(("file", name)) => {
                filled.push_str(&tls.join(file_name(&placed.case.name, name)).display().to_string())
            }
            None if place == "tls" => filled.push_str(&tls.display().to_string()),
            _ => filled.push_str(&format!("${{{place}}}")),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lay_over_when_maps_meet_then_they_merge_and_null_removes() {
        let mut under = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        lay_over(&mut under, json!({"a": {"b": null, "e": 3}, "d": [2]}));
        assert_eq!(under, json!({"a": {"c": 2, "e": 3}, "d": [2]}));
    }

    #[test]
    fn qualify_when_clusters_are_named_then_the_names_tell_the_case() {
        let mut value = json!({"route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}, "cluster": "b"});
        qualify("x", &mut value);
        assert_eq!(value, json!({"route": {"weighted_clusters": {"clusters": [{"name": "x/a"}]}}, "cluster": "x/b"}));
    }
}
