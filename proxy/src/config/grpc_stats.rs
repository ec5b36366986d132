//! Statistics of gRPC calls by cluster, service and method.

use crate::telemetry::counters::{Counters, Number, Scope};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Methods, each of one cluster, that one filter counts apart; calls of further ones are counted without their names. Clients choose
/// the names where all are counted.
pub const MAX_METHODS: usize = 512;

/// Which methods are counted by name.
#[derive(Debug)]
pub enum CountedMethods {
    /// None: calls are counted by cluster alone.
    None,
    /// Those that come.
    All,
    /// These, by service and method; others are counted by cluster alone.
    These(Vec<(Box<str>, Box<str>)>),
}

/// What the filter counts.
#[derive(Debug)]
pub struct GrpcStats {
    methods: CountedMethods,
    /// Dots in the names of services become `_`.
    plain_names: bool,
    counters: Counters,
    known: Mutex<HashMap<Key, Arc<Call>>>,
}

/// Cluster, service and method; the latter two empty where they are not told.
type Key = (Arc<str>, Box<str>, Box<str>);

#[derive(Debug)]
struct Call {
    success: Arc<Number>,
    failure: Arc<Number>,
    total: Arc<Number>,
    /// By status; the last is for those that are none.
    codes: [std::sync::OnceLock<Arc<Number>>; 18],
}

impl GrpcStats {
    /// Nothing counted yet.
    pub fn new(methods: CountedMethods, plain_names: bool, counters: Counters) -> Self {
        Self { methods, plain_names, counters, known: Mutex::default() }
    }

    /// A call of the cluster that has ended.
    pub fn count(&self, cluster: &Arc<str>, path: &[u8], status: Option<u16>) {
        let (service, method) = self.names(path).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key: Key = (cluster.clone(), service, method);
        if !known.contains_key(&key) && known.len() >= MAX_METHODS {
            (key.1, key.2) = <_>::default();
        }
        let call = known.entry(key.clone()).or_insert_with(|| Arc::new(self.call(&key))).clone();
        drop(known);
        call.total.add(1);
        if status == Some(0) { &call.success } else { &call.failure }.add(1);
        let Some(status) = status else { return };
        let place = usize::from(status).min(17);
        let name = if place == 17 { "-1".to_owned() } else { place.to_string() };
        if let Some(slot) = call.codes.get(place) {
            slot.get_or_init(|| self.counters.counter(&scopes(&key), &name)).add(1);
        }
    }

    fn call(&self, key: &Key) -> Call {
        let counter = |name: &str| self.counters.counter(&scopes(key), name);
        Call {
            success: counter("success"),
            failure: counter("failure"),
            total: counter("total"),
            codes: [const { std::sync::OnceLock::new() }; 18],
        }
    }

    /// Service and method, where they are told.
    fn names(&self, path: &[u8]) -> Option<(Box<str>, Box<str>)> {
        let (service, method) = std::str::from_utf8(path).ok()?.strip_prefix('/')?.split_once('/')?;
        let told = !service.is_empty() && !method.is_empty() && !method.contains('/');
        let told = told
            && match &self.methods {
                CountedMethods::None => false,
                CountedMethods::All => true,
                CountedMethods::These(these) => these.iter().any(|(a, b)| **a == *service && **b == *method),
            };
        let service = if self.plain_names { service.replace('.', "_") } else { service.to_owned() };
        told.then(|| (service.into(), method.into()))
    }
}

fn scopes(key: &Key) -> [Scope<'_>; 3] {
    [
        Scope::cluster(&key.0),
        Scope { kind: "grpc.", label: "envoy_grpc_bridge_service", value: &key.1 },
        Scope { kind: "", label: "envoy_grpc_bridge_method", value: &key.2 },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_when_they_end_then_they_are_counted_by_status_and_by_name_where_that_is_wanted() {
        let counters = Counters::default();
        let these = CountedMethods::These(vec![("a.B".into(), "C".into())]);
        let stats = GrpcStats::new(these, false, counters.clone());
        let cluster: Arc<str> = "x".into();
        for (path, status) in [("/a.B/C", Some(0)), ("/a.B/C", Some(14)), ("/a.B/Other", Some(0)), ("/a.B/C", None)] {
            stats.count(&cluster, path.as_bytes(), status);
        }
        let told: std::collections::BTreeMap<String, u64> =
            counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
        for (name, value) in [
            ("cluster.x.grpc.a.B.C.total", 3),
            ("cluster.x.grpc.a.B.C.success", 1),
            ("cluster.x.grpc.a.B.C.failure", 2),
            ("cluster.x.grpc.a.B.C.14", 1),
            ("cluster.x.grpc.total", 1),
        ] {
            assert_eq!(told.get(name), Some(&value), "{name} in {told:?}");
        }
    }

    #[test]
    fn calls_when_clients_make_up_names_then_no_more_than_the_most_are_kept() {
        let counters = Counters::default();
        let stats = GrpcStats::new(CountedMethods::All, true, counters.clone());
        for n in 0..2 * MAX_METHODS {
            stats.count(&"x".into(), format!("/a.b/m{n}").as_bytes(), Some(0));
        }
        assert!(stats.known.lock().unwrap().len() <= MAX_METHODS + 1);
        assert!(counters.stats().iter().any(|stat| stat.name == "cluster.x.grpc.a_b.m0.total"));
    }
}
