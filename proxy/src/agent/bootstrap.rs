//! What Envoy is started with: who it is, and that everything else comes from the agent's socket.
//!
//! It holds no secret, so it may stand on a command line.

use super::Paths;
use leno_xds::envoy::config::core::v3::Node;
use prost_types::value::Kind;
use serde_json::{Value, json};
use std::path::Path;

/// The cluster of the discovery service.
const DISCOVERY: &str = "leno-agent";
/// The cluster of the secrets, by the name that the control plane's resources use.
const SECRETS: &str = "sds-grpc";
/// The cluster of the log, by the name that the control plane's resources use.
const LOG: &str = "als-grpc";

/// How large a compiled regular expression may be. By default Envoy refuses those above 100, and with one all routes of a port;
/// the control plane takes none that would need more memory than RE2 gives it.
const REGEX_SIZE: (&str, u32) = ("re2.max_program_size.error_level", 1_000_000);

/// Envoy's bootstrap (envoy.config.bootstrap.v3.Bootstrap) as JSON.
pub fn bootstrap(node: &Node, paths: &Paths) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let clusters = [DISCOVERY, SECRETS, LOG].map(|name| cluster(name, &paths.agent));
    json!({
        "node": {
            "id": node.id,
            "cluster": node.cluster,
            "metadata": metadata(node),
        },
        "admin": {"address": {"pipe": {"path": paths.admin, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                // The stream ends when a control plane replica does: the next is asked soon.
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": DISCOVERY,
                    "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "3s"}},
                }}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {"clusters": clusters},
        "layered_runtime": {"layers": [{"name": "leno", "static_layer": {(REGEX_SIZE.0): REGEX_SIZE.1}}]},
    })
}

fn cluster(name: &str, agent: &Path) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"pipe": {"path": agent}}}},
        ]}]},
    })
}

fn metadata(node: &Node) -> Value {
    let fields = node.metadata.iter().flat_map(|metadata| &metadata.fields);
    let text = |value: &prost_types::Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(json!(text)),
        _ => None,
    };
    Value::Object(fields.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Folder;

    #[test]
    fn bootstrap_when_made_then_is_envoys_and_names_only_the_agent() {
        let node = crate::agent::engine_node("reviews-1", "shop");
        let made = bootstrap(&node, &Paths::of(&Folder::new("/run/leno"), 1));
        let read: Result<leno_xds::envoy::config::bootstrap::v3::Bootstrap, _> = leno_xds::json::from_value(&made);
        let read = read.unwrap();
        assert_eq!(read.node.as_ref().unwrap().id, "leno~reviews-1.shop");
        assert_eq!(made["node"]["metadata"]["ENGINE"], "envoy");
        let clusters = read.static_resources.unwrap().clusters;
        assert_eq!(clusters.iter().map(|cluster| cluster.name.as_str()).collect::<Vec<_>>(), [DISCOVERY, SECRETS, LOG]);
        assert_eq!(made["layered_runtime"]["layers"][0]["static_layer"][REGEX_SIZE.0], REGEX_SIZE.1);
        assert!(!made.to_string().contains("socket_address"), "everything is a Unix socket: {made}");
    }
}
