//! Responses that are damaged, or say of a resource what it is not.

use super::{Kind, State, Update};
use crate::config::{Action, Network, Root};
use leno_xds::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment};
use leno_xds::envoy::config::{listener::v3::Listener, route::v3::RouteConfiguration};
use leno_xds::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use prost_types::Any;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

fn cluster(name: &str) -> Any {
    let value = json!({"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}});
    leno_xds::any(&leno_xds::json::from_value::<Cluster>(&value).unwrap())
}

/// Endpoints that say they are those of `own`, one at each of these ports.
fn endpoints(own: &str, ports: &[u16]) -> Any {
    let one =
        |port: &u16| json!({"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": port}}}});
    let all: Vec<Value> = ports.iter().map(one).collect();
    let value =
        json!({"cluster_name": own, "endpoints": [{"lb_endpoints": all}, {"priority": 1, "lb_endpoints": all}]});
    leno_xds::any(&leno_xds::json::from_value::<ClusterLoadAssignment>(&value).unwrap())
}

/// A response of state of the world.
fn whole(resources: Vec<Any>) -> Update {
    DiscoveryResponse { version_info: "2".into(), resources, ..Default::default() }.into()
}

fn named(name: &str, body: Any) -> Update {
    vec![Resource { name: name.into(), version: "1".into(), resource: Some(body), ..Default::default() }].into()
}

struct Fixture(State, Option<Arc<Root>>);

impl Fixture {
    fn take(&mut self, kind: Kind, update: Update) -> Option<String> {
        let refused = self.0.apply(kind, update, Instant::now(), SystemTime::now()).refused;
        self.0.settle(Instant::now());
        self.1 = self.0.root().or(self.1.take());
        refused
    }

    /// Ports of the endpoints of each cluster in force, with their priorities.
    fn in_force(&self) -> Vec<(String, Vec<(u16, u32)>)> {
        let clusters = self.1.iter().flat_map(|root| root.clusters.iter().flatten());
        let places = |cluster: &Arc<crate::config::Cluster>| {
            cluster.endpoints.iter().map(|endpoint| (endpoint.address.port(), endpoint.priority)).collect()
        };
        clusters.map(|cluster| (cluster.name.to_string(), places(cluster))).collect()
    }
}

/// A cluster `a` with an endpoint is in force.
fn fixture() -> Fixture {
    let mut it = Fixture(State::new("").expecting([]), None);
    assert_eq!(it.take(Kind::Cluster, whole(vec![cluster("a")])), None);
    assert_eq!(it.take(Kind::Endpoints, whole(vec![endpoints("a", &[1])])), None);
    assert_eq!(it.in_force(), [("a".to_owned(), vec![(1, 0)])]);
    it
}

#[test]
fn response_when_it_is_asked_for_by_name_and_holds_another_kind_then_it_is_refused() {
    let mut it = fixture();
    for bad in [cluster("a"), cluster("b")] {
        let refused = it.take(Kind::Endpoints, whole(vec![endpoints("a", &[2]), bad.clone()])).unwrap();
        assert!(refused.contains("nothing of this response is taken"), "{refused}");
        assert!(it.take(Kind::Endpoints, named("b", bad)).is_some(), "as a change too");
        assert_eq!(it.in_force(), [("a".to_owned(), vec![(1, 0)])]);
    }
}

#[test]
fn listener_when_its_own_routes_name_no_cluster_then_it_is_refused_and_the_last_good_form_stays() {
    let listener = |cluster: &str, validates: Value| {
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]);
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "h",
            "http_filters": [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            "route_config": {"validate_clusters": validates, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        });
        let value = json!({
            "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
            "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
        });
        leno_xds::any(&leno_xds::json::from_value::<Listener>(&value).unwrap())
    };
    let mut it = fixture();
    assert_eq!(it.take(Kind::Listener, whole(vec![listener("a", Value::Null)])), None);
    let refused = it.take(Kind::Listener, whole(vec![listener("b", Value::Null)])).unwrap();
    let field = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster";
    assert!(refused.contains(field) && refused.contains("`b` is no cluster"), "{refused}");
    let routes = |it: &Fixture| -> Vec<String> {
        let listener = it.1.as_ref().unwrap().listeners.all()[0].clone();
        let Network::Http(manager) = &listener.chains.all()[0].network else { panic!("HTTP") };
        let Action::Forward(forward) = &manager.routes.hosts()[0].routes[0].action else { panic!("it forwards") };
        forward.targets.iter().map(|target| it.0.context.cluster_name(target.cluster).unwrap().to_string()).collect()
    };
    assert_eq!(routes(&it), ["a"], "the last good one stays");
    assert_eq!(it.take(Kind::Cluster, whole(vec![cluster("a"), cluster("b")])), None);
    assert_eq!(it.take(Kind::Endpoints, whole(vec![endpoints("b", &[1])])), None);
    assert_eq!(routes(&it), ["b"], "the cluster is there now");
    assert!(it.0.refusals().is_empty());
    assert_eq!(it.take(Kind::Listener, whole(vec![listener("c", json!(false))])), None, "where nobody is to look");
    // What its server means no more does not come back with the cluster.
    assert!(it.take(Kind::Listener, whole(vec![listener("d", Value::Null)])).is_some());
    assert_eq!(it.take(Kind::Listener, whole(vec![listener("c", json!(false))])), None, "back to what is in force");
    let more = || whole(vec![cluster("a"), cluster("b"), cluster("d")]);
    assert_eq!(it.take(Kind::Cluster, more()), None);
    assert_eq!(it.take(Kind::Endpoints, whole(vec![endpoints("d", &[1])])), None);
    assert_eq!(routes(&it), ["c"]);
    assert!(it.take(Kind::Listener, whole(vec![listener("e", Value::Null)])).is_some());
    assert_eq!(it.take(Kind::Listener, whole(vec![])), None, "it is gone");
    assert_eq!(it.take(Kind::Cluster, whole(vec![cluster("a"), cluster("e")])), None);
    assert_eq!((it.0.listeners().count(), it.0.refusals().len()), (0, 0));
    let mut early = Fixture(State::new("").expecting([(Kind::Cluster, None)]), None);
    assert_eq!(early.take(Kind::Listener, whole(vec![listener("b", Value::Null)])), None, "clusters are still to come");
}

#[test]
fn response_when_a_resource_of_it_is_damaged_or_of_another_kind_then_nothing_of_it_is_taken() {
    let damaged = Any { type_url: Kind::Cluster.type_url().into(), value: b"\x0a\xff\xff".to_vec() };
    for bad in [damaged, endpoints("b", &[1])] {
        let mut it = fixture();
        for resources in [vec![bad.clone()], vec![cluster("b"), bad.clone()]] {
            let refused = it.take(Kind::Cluster, whole(resources)).unwrap();
            assert!(refused.contains("nothing of this response is taken"), "{refused}");
            assert_eq!(it.in_force(), [("a".to_owned(), vec![(1, 0)])]);
        }
        assert_eq!(it.take(Kind::Cluster, whole(vec![])), None, "what is whole is taken again");
        assert_eq!(it.in_force(), []);
    }
}

#[test]
fn resource_when_it_says_that_it_is_another_then_it_is_refused() {
    let mut it = fixture();
    let refused = it.take(Kind::Endpoints, named("a", endpoints("other", &[2]))).unwrap();
    assert!(refused.contains("is `other`, but the resource was sent as `a`"), "{refused}");
    assert_eq!(it.in_force(), [("a".to_owned(), vec![(1, 0)])]);
}

#[test]
fn endpoint_when_it_is_named_more_than_once_then_it_counts_where_it_is_named_first() {
    let mut it = fixture();
    assert_eq!(it.take(Kind::Endpoints, named("a", endpoints("a", &[2, 3, 2]))), None);
    assert_eq!(it.in_force(), [("a".to_owned(), vec![(2, 0), (3, 0)])]);
}

#[test]
fn endpoints_when_refused_or_not_in_their_file_then_nobody_waits_for_them_and_later_ones_count() {
    let refused = |it: &mut Fixture| {
        let name = json!({"cluster_name": "b", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "a.name", "port_value": 1}}}}]}]});
        let body = leno_xds::any(&leno_xds::json::from_value::<ClusterLoadAssignment>(&name).unwrap());
        assert!(it.take(Kind::Endpoints, named("b", body)).is_some());
    };
    let missing = |it: &mut Fixture| {
        it.0.fail(Kind::Endpoints, ["b".to_owned()], "is not in the file", SystemTime::now());
        it.take(Kind::Endpoints, whole(vec![]));
    };
    for bad in [&refused as &dyn Fn(&mut Fixture), &missing] {
        let mut it = Fixture(State::new("").expecting([]), None);
        it.take(Kind::Cluster, whole(vec![cluster("a"), cluster("b")]));
        it.take(Kind::Endpoints, named("a", endpoints("a", &[1])));
        assert_eq!(it.in_force(), [], "`b` is waited for");
        bad(&mut it);
        assert_eq!(it.in_force(), [("a".to_owned(), vec![(1, 0)]), ("b".to_owned(), vec![])]);
        assert!(it.0.refusals().contains_key(&(Kind::Endpoints, "b".to_owned())), "it is told");
        it.take(Kind::Endpoints, named("b", endpoints("b", &[2])));
        assert_eq!(it.in_force()[1], ("b".to_owned(), vec![(2, 0)]));
        assert!(it.0.refusals().is_empty());
    }
}

/// A listener whose connection manager is called `name`, with a limit of rates and routes `r` from the stream.
fn limited(name: &str) -> Any {
    let limit = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "l", "token_bucket": {"max_tokens": 1, "fill_interval": "1000s"},
    });
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name, "rds": {"route_config_name": "r", "config_source": {"ads": {}}},
        "http_filters": [{"name": "l", "typed_config": limit}, {"name": "router", "typed_config": router}],
    });
    let value = json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    leno_xds::any(&leno_xds::json::from_value::<Listener>(&value).unwrap())
}

fn routes(paths: &[&str]) -> Any {
    let route = |path: &&str| json!({"match": {"prefix": path}, "direct_response": {"status": 200}});
    let all: Vec<Value> = paths.iter().map(route).collect();
    let value = json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": all}]});
    leno_xds::any(&leno_xds::json::from_value::<RouteConfiguration>(&value).unwrap())
}

#[test]
fn limit_of_rates_when_only_routes_change_then_goes_on_and_when_its_listener_does_then_begins_anew() {
    let mut it = Fixture(State::new("").expecting([]), None);
    let buckets = |it: &Fixture| {
        let root = it.1.as_ref().unwrap();
        let crate::config::Network::Http(manager) = &root.listeners.all()[0].chains.all()[0].network else {
            panic!("no HTTP")
        };
        manager.filters.iter().find_map(|entry| match &entry.filter {
            crate::config::HttpFilter::LocalRateLimit(limit) => Some(limit.buckets.clone()),
            _ => None,
        })
    };
    assert_eq!(it.take(Kind::Listener, whole(vec![limited("a")])), None);
    assert_eq!(it.take(Kind::Routes, whole(vec![routes(&["/"])])), None);
    let first = buckets(&it).unwrap();
    assert_eq!(it.take(Kind::Routes, whole(vec![routes(&["/a", "/"])])), None);
    assert!(Arc::ptr_eq(&first, &buckets(&it).unwrap()));
    assert_eq!(it.take(Kind::Listener, whole(vec![limited("b")])), None);
    assert!(!Arc::ptr_eq(&first, &buckets(&it).unwrap()));
}
