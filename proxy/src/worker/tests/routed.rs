//! Workers that serve what a control plane would send, written as JSON.

use super::*;
use crate::xds::convert::{Context, filter, route};
use serde_json::{Value, json};

/// Types of settings.
pub(super) const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// A filter of the chain.
pub(super) fn entry(name: &str, mut config: Value, kind: &str) -> Value {
    config["@type"] = json!(format!("{HTTP}.{kind}"));
    json!({"name": name, "typed_config": config})
}

/// A setting of a filter, by its name.
pub(super) fn setting(mut config: Value, kind: &str) -> Value {
    config["@type"] = json!(format!("{HTTP}.{kind}"));
    config
}

/// What a filter chain has: the route table's fields, the filters, and the clusters `a`, `b`, ... by their endpoints.
pub(super) fn network(mut table: Value, filters: Value, names: usize) -> Network {
    let mut context = Context::new("cluster.local");
    for name in ["a", "b", "c"].iter().take(names) {
        context.cluster(name).unwrap();
    }
    table["name"] = json!("t");
    let routes = route::table(&mut context, leno_xds::json::from_value(&table).unwrap()).unwrap();
    let mut all = filters.as_array().cloned().unwrap_or_default();
    all.push(entry("router", json!({}), "router.v3.Router"));
    let all = all.iter().map(|filter| leno_xds::json::from_value(filter).unwrap()).collect();
    let (filters, router) = filter::chain(&mut context, "h", ("http_filters", all), &mut Vec::new()).unwrap();
    let edge = Edge { internal: vec!["10.0.0.0/8".parse().unwrap()], ..Edge::default() };
    let edge = Some(Box::new(edge));
    Network::Http(Arc::new(HttpManager { routes: Arc::new(routes), filters, router, edge, ..HttpManager::default() }))
}

/// One virtual host for everything.
pub(super) fn table(routes: Value) -> Value {
    json!({"virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}]})
}

/// A worker with that configuration.
pub(super) fn proxy(table: Value, filters: Value, backends: &[SocketAddr]) -> Proxy {
    let clusters = backends.iter().enumerate().map(|(index, &address)| Cluster {
        id: ClusterId(index as u32),
        name: ["a", "b", "c"][index].into(),
        observability_name: ["a", "b", "c"][index].into(),
        ..cluster(&[address])
    });
    Proxy::start(1, network(table, filters, backends.len()), clusters.collect())
}

/// What makes a request internal, so that it may tell the proxy what to do.
pub(super) const INTERNAL: (&str, &str) = ("x-forwarded-for", "10.0.0.1");

/// A request with these headers.
pub(super) fn with(path: &str, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n{lines}\r\n")
}
