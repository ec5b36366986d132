//! Everything that the control plane's golden cases contain is taken by this proxy: both sides of the contract, without a
//! socket between them.

use leno_proxy::xds::{Kind, State};
use leno_xds::envoy::config::{
    cluster::v3::Cluster, core::v3::TypedExtensionConfig, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::Secret;
use leno_xds::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use leno_xds::envoy::service::runtime::v3::Runtime;
use prost_types::Any;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Instant, SystemTime};

type Sections = BTreeMap<String, BTreeMap<String, Value>>;

fn packed(kind: Kind, value: &Value) -> Any {
    match kind {
        Kind::Runtime => leno_xds::any(&leno_xds::json::from_value::<Runtime>(value).unwrap()),
        Kind::Cluster => leno_xds::any(&leno_xds::json::from_value::<Cluster>(value).unwrap()),
        Kind::Endpoints => leno_xds::any(&leno_xds::json::from_value::<ClusterLoadAssignment>(value).unwrap()),
        Kind::Secret => leno_xds::any(&leno_xds::json::from_value::<Secret>(value).unwrap()),
        Kind::Listener => leno_xds::any(&leno_xds::json::from_value::<Listener>(value).unwrap()),
        Kind::Routes => leno_xds::any(&leno_xds::json::from_value::<RouteConfiguration>(value).unwrap()),
        Kind::Extension => leno_xds::any(&leno_xds::json::from_value::<TypedExtensionConfig>(value).unwrap()),
    }
}

fn section(kind: Kind) -> &'static str {
    match kind {
        Kind::Runtime => "layers",
        Kind::Cluster => "clusters",
        Kind::Endpoints => "endpoints",
        Kind::Secret => "secrets",
        Kind::Listener => "listeners",
        Kind::Routes => "routes",
        Kind::Extension => "extensions",
    }
}

#[test]
fn proxy_when_given_any_golden_case_takes_all_of_it() {
    let cases = Path::new("../controlplane/tests/golden");
    let (mut scopes, mut refused) = (0, Vec::new());
    for case in std::fs::read_dir(cases).unwrap() {
        let path = case.unwrap().path().join("xds.yaml");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        // What only Envoy is sent: a log stream to its agent.
        if text.contains("als-grpc") {
            continue;
        }
        let by_scope: BTreeMap<String, Sections> = serde_yaml::from_str(&text).unwrap();
        for (scope, sections) in by_scope {
            let mut state = State::new("cluster.local");
            for kind in Kind::ALL {
                let empty = BTreeMap::new();
                let resources = sections.get(section(kind)).unwrap_or(&empty).iter().map(|(name, value)| Resource {
                    name: name.clone(),
                    version: "1".to_owned(),
                    resource: Some(packed(kind, value)),
                    ..Default::default()
                });
                let response = DeltaDiscoveryResponse { resources: resources.collect(), ..Default::default() };
                let applied = state.apply(kind, response, Instant::now(), SystemTime::now());
                let told = applied.refused.unwrap_or_default();
                refused.extend(told.lines().map(|line| format!("{} {scope}: {line}", path.display())));
            }
            scopes += 1;
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(scopes > 0, "there are golden cases in {}", cases.display());
}
