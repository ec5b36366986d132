//! Statistics of gRPC calls by cluster, service and method.

use crate::telemetry::{
    NOT_A_STATUS,
    counters::{Counters, Number, Scope},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Methods, each of one cluster, that one filter counts apart; calls of further ones are counted without their names. Clients choose
/// the names where all are counted.
pub const MAX_METHODS: usize = 512;
/// Numbers that are no status, of which calls of one method are counted apart. Endpoints choose them.
const MAX_OTHERS: usize = 16;

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
    known: Mutex<HashMap<Key, Arc<GrpcCalls>>>,
}

/// Cluster, service and method; the latter two empty where they are not told.
type Key = (Arc<str>, Box<str>, Box<str>);

impl GrpcStats {
    /// Nothing counted yet.
    pub fn new(methods: CountedMethods, plain_names: bool, counters: Counters) -> Self {
        Self { methods, plain_names, counters, known: Mutex::default() }
    }

    /// The numbers of the calls of this path to the cluster; none where the path does not name a service and a method.
    pub fn calls(&self, cluster: &Arc<str>, path: &[u8]) -> Option<Arc<GrpcCalls>> {
        let (service, method) = self.names(path)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key: Key = (cluster.clone(), service, method);
        if !known.contains_key(&key) && known.len() >= MAX_METHODS {
            (key.1, key.2) = <_>::default();
        }
        let calls = known.entry(key.clone());
        Some(calls.or_insert_with(|| Arc::new(GrpcCalls::new(key, self.counters.clone()))).clone())
    }

    /// Service and method, empty where they are not told.
    fn names(&self, path: &[u8]) -> Option<(Box<str>, Box<str>)> {
        let mut parts = std::str::from_utf8(path).ok()?.split('/').filter(|part| !part.is_empty());
        let (Some(service), Some(method), None) = (parts.next(), parts.next(), parts.next()) else { return None };
        let told = match &self.methods {
            CountedMethods::None => false,
            CountedMethods::All => true,
            CountedMethods::These(these) => these.iter().any(|(a, b)| **a == *service && **b == *method),
        };
        let service = if self.plain_names { service.replace('.', "_") } else { service.to_owned() };
        Some(if told { (service.into(), method.into()) } else { <_>::default() })
    }
}

/// A number that is made when it is first counted.
type Slot = OnceLock<Arc<Number>>;

/// The numbers of the calls of one method, or of a cluster's calls whose methods are not told.
#[derive(Debug)]
pub struct GrpcCalls {
    key: Key,
    counters: Counters,
    success: Slot,
    failure: Slot,
    total: Slot,
    /// Messages of requests and of answers.
    messages: [Slot; 2],
    /// By status.
    codes: [Slot; 17],
    /// By numbers that are no status, at most [`MAX_OTHERS`].
    others: Mutex<BTreeMap<u16, Arc<Number>>>,
}

impl GrpcCalls {
    fn new(key: Key, counters: Counters) -> Self {
        Self {
            key,
            counters,
            success: Slot::new(),
            failure: Slot::new(),
            total: Slot::new(),
            messages: [const { Slot::new() }; 2],
            codes: [const { Slot::new() }; 17],
            others: Mutex::default(),
        }
    }

    fn add(&self, slot: &Slot, name: &str, more: u64) {
        slot.get_or_init(|| self.counter(name)).add(more);
    }

    fn counter(&self, name: &str) -> Arc<Number> {
        let scopes = [
            Scope::cluster(&self.key.0),
            Scope { kind: "grpc.", label: "envoy_grpc_bridge_service", value: &self.key.1 },
            Scope { kind: "", label: "envoy_grpc_bridge_method", value: &self.key.2 },
        ];
        self.counters.counter(&scopes, name)
    }

    /// A call that has ended with this status.
    pub fn ended(&self, status: u16) {
        self.add(&self.total, "total", 1);
        match status {
            0 => self.add(&self.success, "success", 1),
            _ => self.add(&self.failure, "failure", 1),
        }
        if let Some(slot) = self.codes.get(usize::from(status)) {
            return self.add(slot, &status.to_string(), 1);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if !others.contains_key(&status) && others.len() >= MAX_OTHERS {
            return;
        }
        let name = if status == NOT_A_STATUS { "-1".to_owned() } else { status.to_string() };
        others.entry(status).or_insert_with(|| self.counter(&name)).add(1);
    }
}

/// Whose messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessagesOf {
    /// The client's.
    Request,
    /// The endpoint's.
    Answer,
}

/// Counts the messages in a body as it passes: each begins with a flag and its length.
#[derive(Debug)]
pub struct GrpcMessages {
    calls: Arc<GrpcCalls>,
    of: MessagesOf,
    /// Bytes of the message's head that were seen.
    head: u8,
    /// Bytes of the message that are still to come; while its head is read, its length so far.
    left: u32,
}

impl GrpcMessages {
    /// At the beginning of a body.
    pub fn new(calls: Arc<GrpcCalls>, of: MessagesOf) -> Self {
        Self { calls, of, head: 0, left: 0 }
    }

    /// Takes the next bytes; a message counts as soon as it begins.
    pub fn pass(&mut self, mut data: &[u8]) {
        const HEAD: u8 = 5;
        let mut begun = 0;
        while let Some((byte, rest)) = data.split_first() {
            if self.head == HEAD {
                let length = data.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                data = &data[length..];
                self.left -= length as u32;
            } else {
                match self.head {
                    0 => (begun, self.left) = (begun + 1, 0),
                    _ => self.left = self.left << 8 | u32::from(*byte),
                }
                self.head += 1;
                data = rest;
            }
            if self.head == HEAD && self.left == 0 {
                self.head = 0;
            }
        }
        if begun > 0 {
            let (slot, name) = match self.of {
                MessagesOf::Request => (&self.calls.messages[0], "request_message_count"),
                MessagesOf::Answer => (&self.calls.messages[1], "response_message_count"),
            };
            self.calls.add(slot, name, begun);
        }
    }
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
        for (path, status) in [("/a.B/C", 0), ("/a.B/C", 14), ("/a.B/C", 99), ("/a.B/Other", 0), ("/elsewhere", 0)] {
            if let Some(calls) = stats.calls(&cluster, path.as_bytes()) {
                calls.ended(status);
            }
        }
        let told = told(&counters);
        for (name, value) in [
            ("cluster.x.grpc.a.B.C.total", 3),
            ("cluster.x.grpc.a.B.C.success", 1),
            ("cluster.x.grpc.a.B.C.failure", 2),
            ("cluster.x.grpc.a.B.C.14", 1),
            ("cluster.x.grpc.a.B.C.99", 1),
            ("cluster.x.grpc.total", 1),
        ] {
            assert_eq!(told.get(name), Some(&value), "{name} in {told:?}");
        }
    }

    fn told(counters: &Counters) -> BTreeMap<String, u64> {
        counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect()
    }

    #[test]
    fn calls_when_endpoints_make_up_statuses_then_no_more_than_the_most_are_kept() {
        let counters = Counters::default();
        let stats = GrpcStats::new(CountedMethods::None, false, counters.clone());
        let calls = stats.calls(&"x".into(), b"/a/b").unwrap();
        (20..60).for_each(|status| calls.ended(status));
        let told = told(&counters);
        assert_eq!((told["cluster.x.grpc.failure"], told.len()), (40, 2 + MAX_OTHERS));
    }

    #[test]
    fn messages_when_they_come_in_pieces_then_each_counts_as_it_begins() {
        let counters = Counters::default();
        let stats = GrpcStats::new(CountedMethods::None, false, counters.clone());
        let calls = stats.calls(&"x".into(), b"/a/b").unwrap();
        let body = b"\0\0\0\0\x03abc\0\0\0\0\0\x01\0\0\0\x01a\0";
        for size in 1..=body.len() {
            let mut messages = GrpcMessages::new(calls.clone(), MessagesOf::Answer);
            body.chunks(size).for_each(|part| messages.pass(part));
        }
        let told = told(&counters);
        assert_eq!(told["cluster.x.grpc.response_message_count"], 4 * body.len() as u64);
        assert!(!told.contains_key("cluster.x.grpc.request_message_count"), "{told:?}");
    }

    #[test]
    fn calls_when_clients_make_up_names_then_no_more_than_the_most_are_kept() {
        let counters = Counters::default();
        let stats = GrpcStats::new(CountedMethods::All, true, counters.clone());
        for n in 0..2 * MAX_METHODS {
            stats.calls(&"x".into(), format!("/a.b/m{n}").as_bytes()).unwrap().ended(0);
        }
        assert!(stats.known.lock().unwrap().len() <= MAX_METHODS + 1);
        assert!(counters.stats().iter().any(|stat| stat.name == "cluster.x.grpc.a_b.m0.total"));
    }
}
