//! Configurations of filters that come by name.

use super::{Kind, State, Update};
use crate::config::{HttpFilter, HttpManager, Network, Root};
use crate::xds::source::SourceId;
use leno_xds::envoy::config::{core::v3::TypedExtensionConfig, listener::v3::Listener};
use leno_xds::envoy::service::discovery::v3::Resource;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const BUFFER: &str = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer";
const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

fn buffer(bytes: u32) -> Value {
    json!({"@type": BUFFER, "max_request_bytes": bytes})
}

/// A listener whose first filter is asked for by name; its discovery is laid over the usual one.
fn listener(name: &str, port: u16, over: Value) -> Resource {
    let mut discovery = json!({"config_source": {"ads": {}}, "type_urls": [BUFFER]});
    for (field, value) in over.as_object().unwrap() {
        discovery[field] = value.clone();
    }
    let value = json!({"name": name,
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
    "filter_chains": [{"filters": [{"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h", "route_config": {"name": "r"},
        "http_filters": [{"name": "limit", "config_discovery": discovery},
            {"name": "router", "typed_config": {"@type": ROUTER}}],
    }}]}]});
    packed(name, "l", &leno_xds::json::from_value::<Listener>(&value).unwrap())
}

fn extension(name: &str, version: &str, config: Value) -> Resource {
    let value = json!({"name": name, "typed_config": config});
    packed(name, version, &leno_xds::json::from_value::<TypedExtensionConfig>(&value).unwrap())
}

fn packed<M: prost::Message + prost::Name>(name: &str, version: &str, message: &M) -> Resource {
    let (name, version) = (name.to_owned(), version.to_owned());
    Resource { name, version, resource: Some(leno_xds::any(message)), ..Default::default() }
}

/// A state, and the time that it is told.
struct Fixture {
    state: State,
    now: Instant,
    root: Option<Arc<Root>>,
}

impl Fixture {
    /// With these listeners.
    fn new(listeners: Vec<Resource>) -> Self {
        let mut it = Self { state: State::new("").expecting([]), now: Instant::now(), root: None };
        assert_eq!(it.take(Kind::Listener, listeners, &[]), None);
        it
    }

    fn take(&mut self, kind: Kind, resources: Vec<Resource>, removed: &[&str]) -> Option<String> {
        let removed = removed.iter().map(|&name| name.to_owned()).collect();
        let update = Update { resources, removed, ..Update::default() };
        let refused = self.state.apply(kind, update, self.now, SystemTime::now()).refused;
        self.settle();
        refused
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn settle(&mut self) {
        self.state.settle(self.now);
        if let Some(root) = self.state.root() {
            self.root = Some(root);
        }
    }

    /// The limit of the listener's first filter; none where the filter has no configuration.
    fn limit(&self, listener: usize) -> Option<u64> {
        let root = self.root.as_ref().expect("something in force");
        match &manager(root, listener).filters[0].filter {
            HttpFilter::Buffer(limit) => Some(*limit),
            HttpFilter::Missing => None,
            other => panic!("{other:?}"),
        }
    }
}

fn manager(root: &Root, index: usize) -> &HttpManager {
    match &root.listeners.all()[index].chains.all()[0].network {
        Network::Http(manager) => manager,
        other => panic!("{other:?}"),
    }
}

#[test]
fn listener_when_a_filters_configuration_has_not_come_waits_for_it() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({}))]);
    assert!(it.state.wanted_from(Kind::Extension, SourceId::ADS).contains("limit"));
    assert!(it.root.is_none(), "nothing is in force without it");
    assert_eq!(it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]), None);
    assert_eq!(it.limit(0), Some(5));
    assert_eq!(it.take(Kind::Extension, vec![extension("limit", "2", buffer(6))], &[]), None);
    assert_eq!(it.limit(0), Some(6), "an update is in force at once");
    assert_eq!(it.state.versions(Kind::Extension, SourceId::ADS)["limit"], "2");
}

#[test]
fn listener_when_a_filters_configuration_never_comes_serves_without_after_a_while() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({}))]);
    it.later(crate::xds::source::FETCH_TIMEOUT);
    assert_eq!(it.limit(0), None, "requests are answered 500 in its place");
    let mut it = Fixture::new(vec![listener("l", 80, json!({"default_config": buffer(1)}))]);
    assert!(it.root.is_none(), "a default is for when nothing comes");
    it.later(crate::xds::source::FETCH_TIMEOUT);
    assert_eq!(it.limit(0), Some(1));
}

#[test]
fn listener_when_the_default_needs_no_warming_serves_with_it_at_once() {
    let at_once = json!({"default_config": buffer(1), "apply_default_config_without_warming": true});
    let mut it = Fixture::new(vec![listener("l", 80, at_once)]);
    assert_eq!(it.limit(0), Some(1));
    assert_eq!(it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]), None);
    assert_eq!(it.limit(0), Some(5));
}

#[test]
fn extension_when_it_is_bad_is_refused_by_name_and_field_and_the_last_good_form_stays() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({}))]);
    it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]);
    for (bad, field) in [
        (buffer(0), "field `typed_config.max_request_bytes`"),
        (json!({"@type": CORS}), "field `typed_config`: is a"),
        (json!({"@type": "type.googleapis.com/envoy.config.core.v3.Node"}), "field `typed_config`:"),
    ] {
        let refused = it.take(Kind::Extension, vec![extension("limit", "2", bad)], &[]).expect("a refusal");
        assert!(refused.starts_with("extension configuration limit: ") && refused.contains(field), "{refused}");
        assert_eq!(it.limit(0), Some(5));
    }
    let mut other = extension("other", "2", buffer(7));
    "limit".clone_into(&mut other.name);
    let refused = it.take(Kind::Extension, vec![other], &[]).expect("a refusal");
    assert!(refused.contains("field `name`"), "{refused}");
}

#[test]
fn listener_when_the_first_configuration_is_bad_does_not_wait_for_another() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({"default_config": buffer(1)}))]);
    assert!(it.take(Kind::Extension, vec![extension("limit", "1", buffer(0))], &[]).is_some());
    assert_eq!(it.limit(0), Some(1));
}

#[test]
fn extension_when_it_is_removed_gives_way_to_the_default_and_stays_where_there_is_none() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({"default_config": buffer(1)}))]);
    it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]);
    it.take(Kind::Extension, vec![], &["limit"]);
    assert_eq!(it.limit(0), Some(1));
    let mut it = Fixture::new(vec![listener("l", 80, json!({}))]);
    it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]);
    it.take(Kind::Extension, vec![], &["limit"]);
    assert_eq!(it.limit(0), Some(5), "the removal may overtake that of the listener");
}

#[test]
fn extension_when_two_listeners_use_it_is_in_force_on_both() {
    let mut it =
        Fixture::new(vec![listener("a", 80, json!({})), listener("b", 81, json!({"type_urls": [BUFFER, CORS]}))]);
    it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]);
    assert_eq!((it.limit(0), it.limit(1)), (Some(5), Some(5)));
    let refused = it.take(Kind::Extension, vec![extension("limit", "2", json!({"@type": CORS}))], &[]);
    assert!(refused.is_some(), "one of them does not take it");
    assert_eq!((it.limit(0), it.limit(1)), (Some(5), Some(5)));
}

#[test]
fn listener_when_its_discovery_makes_no_sense_is_refused_by_field() {
    for (over, field) in [
        (json!({"type_urls": []}), "config_discovery.type_urls`"),
        (json!({"type_urls": ["type.googleapis.com/envoy.config.core.v3.Node"]}), "config_discovery.type_urls[0]`"),
        (json!({"default_config": {"@type": CORS}}), "config_discovery.default_config`"),
        (json!({"default_config": buffer(0)}), "config_discovery.default_config.max_request_bytes`"),
        (json!({"apply_default_config_without_warming": true}), "apply_default_config_without_warming`"),
        (json!({"config_source": Value::Null}), "config_discovery.config_source`"),
    ] {
        let mut state = State::new("").expecting([]);
        let update = Update { resources: vec![listener("l", 80, over)], ..Update::default() };
        let refused = state.apply(Kind::Listener, update, Instant::now(), SystemTime::now()).refused;
        let refused = refused.expect("a refusal");
        assert!(refused.contains("http_filters[0].config_discovery.") && refused.contains(field), "{refused}");
    }
}

#[test]
fn figures_when_resources_come_are_refused_and_go_tell_how_many() {
    let mut it = Fixture::new(vec![listener("l", 80, json!({}))]);
    it.take(Kind::Extension, vec![extension("limit", "1", buffer(5))], &[]);
    assert!(it.take(Kind::Extension, vec![extension("limit", "2", buffer(0))], &[]).is_some());
    it.state.refresh_figures();
    let told: std::collections::BTreeMap<String, u64> =
        it.state.counters().stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
    for (name, value) in [
        ("listener_manager.listener_added", 1),
        ("listener_manager.lds.update_success", 1),
        ("listener_manager.lds.update_rejected", 0),
        ("listener_manager.total_listeners_active", 1),
        ("cluster_manager.active_clusters", 0),
        ("extension_config_discovery.http_filter.limit.update_success", 1),
        ("extension_config_discovery.http_filter.limit.update_rejected", 1),
    ] {
        assert_eq!(told.get(name), Some(&value), "{name} in {told:?}");
    }
    it.take(Kind::Listener, Vec::new(), &["l"]);
    it.state.refresh_figures();
    let now: Vec<u64> = ["listener_manager.listener_removed", "listener_manager.total_listeners_active"]
        .into_iter()
        .filter_map(|name| it.state.counters().stats().into_iter().find(|stat| stat.name == name))
        .map(|stat| stat.value)
        .collect();
    assert_eq!(now, [1, 0]);
}
