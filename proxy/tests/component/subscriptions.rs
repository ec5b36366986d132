//! What is asked for by name, who gets it, and how long it is waited for.

use leno_proxy::config::{Action, HttpManager, Network, Root};
use leno_proxy::xds::source::{FETCH_TIMEOUT, SourceId};
use leno_proxy::xds::state::{Kind, State, Update, WARMING_LIMIT};
use leno_xds::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration,
};
use leno_xds::envoy::service::discovery::v3::Resource;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

fn packed<M: prost::Message + prost::Name>(name: &str, message: &M) -> Resource {
    Resource { name: name.to_owned(), resource: Some(leno_xds::any(message)), ..Default::default() }
}

/// A cluster whose endpoints are those of `service`, or of its own name; `over` is laid over where they come from.
fn cluster(name: &str, service: &str, over: Value) -> Resource {
    let mut source = json!({"ads": {}});
    for (field, value) in over.as_object().unwrap() {
        source[field] = value.clone();
    }
    let config = json!({"eds_config": source, "service_name": service});
    let value = json!({"name": name, "type": "EDS", "eds_cluster_config": config});
    packed(name, &leno_xds::json::from_value::<Cluster>(&value).unwrap())
}

fn endpoints(name: &str, port: u16) -> Resource {
    let at = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let value = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}]});
    packed(name, &leno_xds::json::from_value::<ClusterLoadAssignment>(&value).unwrap())
}

fn routes(name: &str, status: u32) -> Resource {
    let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": status}});
    let value = json!({"name": name, "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]});
    packed(name, &leno_xds::json::from_value::<RouteConfiguration>(&value).unwrap())
}

fn listener(table: &str) -> Resource {
    let rds = json!({"config_source": {"ads": {}}, "route_config_name": table});
    let value = json!({"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
    "filter_chains": [{"filters": [{"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h", "rds": rds, "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }}]}]});
    packed("l", &leno_xds::json::from_value::<Listener>(&value).unwrap())
}

/// A state, and the time that it is told.
struct Fixture {
    state: State,
    now: Instant,
    root: Option<Arc<Root>>,
}

impl Fixture {
    fn new() -> Self {
        Self { state: State::new("").expecting([]), now: Instant::now(), root: None }
    }

    fn take(&mut self, kind: Kind, resources: Vec<Resource>) -> Option<String> {
        self.apply(kind, Update { resources, ..Update::default() })
    }

    /// As a response of state of the world.
    fn take_whole(&mut self, kind: Kind, resources: Vec<Resource>) -> Option<String> {
        self.apply(kind, Update { resources, whole: true, ..Update::default() })
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        let removed = vec![name.to_owned()];
        assert_eq!(self.apply(kind, Update { removed, ..Update::default() }), None);
    }

    fn apply(&mut self, kind: Kind, update: Update) -> Option<String> {
        let refused = self.state.apply(kind, update, self.now, SystemTime::now()).refused;
        self.later(Duration::ZERO);
        refused
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
        self.state.settle(self.now);
        if let Some(root) = self.state.root() {
            self.root = Some(root);
        }
    }

    /// The port of a cluster's first endpoint; none where it has no endpoints or is not in force.
    fn port(&self, cluster: &str) -> Option<u16> {
        let root = self.root.as_ref()?;
        let found = root.clusters.iter().flatten().find(|found| &*found.name == cluster)?;
        Some(found.endpoints.first()?.address.port())
    }

    /// The status that the listener answers with; none where it has no routes.
    fn status(&self) -> Option<u16> {
        let Network::Http(manager) = &self.root.as_ref()?.listeners.all().first()?.chains.all().first()?.network else {
            return None;
        };
        let manager: &HttpManager = manager;
        match &manager.routes.hosts().first()?.routes.first()?.action {
            Action::Direct(direct) => Some(direct.code),
            _ => None,
        }
    }

    fn wanted(&self, kind: Kind) -> Vec<String> {
        self.state.wanted_from(kind, SourceId::ADS).into_iter().collect()
    }
}

#[test]
fn endpoints_when_several_clusters_use_them_then_each_gets_them_and_every_update() {
    let mut it = Fixture::new();
    it.take(Kind::Cluster, vec![cluster("svc", "", json!({})), cluster("other", "svc", json!({}))]);
    assert_eq!(it.wanted(Kind::Endpoints), ["svc"]);
    for port in [1, 2] {
        assert_eq!(it.take(Kind::Endpoints, vec![endpoints("svc", port)]), None);
        assert_eq!((it.port("svc"), it.port("other")), (Some(port), Some(port)));
    }
    it.remove(Kind::Cluster, "svc");
    assert_eq!(it.wanted(Kind::Endpoints), ["svc"], "the other one still uses them");
    it.take(Kind::Endpoints, vec![endpoints("svc", 3)]);
    assert_eq!(it.port("other"), Some(3));
    it.remove(Kind::Cluster, "other");
    assert!(it.wanted(Kind::Endpoints).is_empty());
}

#[test]
fn cluster_while_its_new_form_waits_follows_its_own_endpoints() {
    let mut it = Fixture::new();
    it.take(Kind::Cluster, vec![cluster("c", "old", json!({}))]);
    it.take(Kind::Endpoints, vec![endpoints("old", 1)]);
    it.take(Kind::Cluster, vec![cluster("c", "new", json!({}))]);
    assert_eq!(it.wanted(Kind::Endpoints), ["new", "old"]);
    it.take(Kind::Endpoints, vec![endpoints("old", 2)]);
    assert_eq!(it.port("c"), Some(2), "the form in force is updated");
    it.take(Kind::Endpoints, vec![endpoints("new", 3)]);
    assert_eq!(it.port("c"), Some(3));
    assert_eq!(it.wanted(Kind::Endpoints), ["new"]);
}

#[test]
fn listener_while_its_new_form_waits_follows_its_own_routes() {
    let mut it = Fixture::new();
    it.take(Kind::Listener, vec![listener("old")]);
    it.take(Kind::Routes, vec![routes("old", 201)]);
    assert_eq!(it.status(), Some(201));
    it.take(Kind::Listener, vec![listener("new")]);
    assert_eq!(it.wanted(Kind::Routes), ["new", "old"]);
    it.take(Kind::Routes, vec![routes("old", 202)]);
    assert_eq!(it.status(), Some(202), "the form in force is updated");
    it.take(Kind::Routes, vec![routes("new", 203)]);
    assert_eq!(it.status(), Some(203));
    assert_eq!(it.wanted(Kind::Routes), ["new"]);
}

#[test]
fn form_when_what_it_needs_never_comes_then_it_goes_into_force_without_after_its_own_time() {
    let mut it = Fixture::new();
    it.take(Kind::Listener, vec![listener("r")]);
    it.take(Kind::Routes, vec![routes("r", 201)]);
    it.take(Kind::Listener, vec![listener("never")]);
    it.later(WARMING_LIMIT);
    assert_eq!(it.status(), Some(201), "it is still waited for");
    it.later(FETCH_TIMEOUT - WARMING_LIMIT);
    assert_eq!(it.status(), None, "and then nothing is served");
    let short = cluster("short", "", json!({"initial_fetch_timeout": "1s"}));
    let endless = cluster("endless", "", json!({"initial_fetch_timeout": "0s"}));
    it.take(Kind::Cluster, vec![short, endless]);
    let due = it.state.deadline().map(|due| due - it.now);
    assert_eq!(due, Some(Duration::from_secs(1)));
    it.later(Duration::from_secs(1));
    let in_force = |it: &Fixture| it.state.clusters().map(|cluster| cluster.name.to_string()).collect::<Vec<_>>();
    assert_eq!(in_force(&it), ["short"]);
    assert_eq!(it.state.deadline(), None, "nothing else will be over");
    it.later(Duration::from_secs(3600));
    assert_eq!(in_force(&it), ["short"]);
}

#[test]
fn resources_when_nobody_asked_for_them_then_they_are_passed_over() {
    let mut it = Fixture::new();
    it.take(Kind::Listener, vec![listener("r")]);
    assert_eq!(it.take(Kind::Routes, vec![routes("r", 201), routes("stray", 202)]), None);
    assert_eq!(it.take_whole(Kind::Endpoints, vec![endpoints("stray", 1)]), None);
    let held = |kind| it.state.raws(kind).map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(held(Kind::Routes), ["r"]);
    assert!(held(Kind::Endpoints).is_empty());
}

#[test]
fn resources_when_one_is_there_twice_then_the_first_counts_and_where_all_are_wanted_it_is_refused() {
    let mut it = Fixture::new();
    let same = || vec![cluster("c", "a", json!({})), cluster("c", "b", json!({}))];
    let refused = it.take_whole(Kind::Cluster, same()).expect("a refusal");
    assert!(refused.contains("cluster c:") && refused.contains("more than once"), "{refused}");
    assert_eq!(it.wanted(Kind::Endpoints), ["a"]);
    assert_eq!(it.take_whole(Kind::Endpoints, vec![endpoints("a", 1), endpoints("a", 2)]), None);
    assert_eq!(it.port("c"), Some(1));
    assert!(it.take(Kind::Endpoints, vec![endpoints("a", 3), endpoints("a", 4)]).is_some(), "not among changes");
    assert_eq!(it.port("c"), Some(1));
}
