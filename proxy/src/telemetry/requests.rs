//! Requests that are counted together because a configuration says so: those of a virtual cluster, or of a route with a prefix of
//! its own.

use super::ResponseFlags;
use super::counters::{Counters, Label, Number, Scope};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Different statuses that are counted apart; further ones are only in their class.
const MAX_CODES: usize = 64;

/// Their numbers, under Envoy's names.
#[derive(Debug)]
pub struct RequestGroup {
    name: Box<str>,
    /// It is of requests that fit nothing else.
    rest: bool,
    counters: Counters,
    host: Box<str>,
    kind: (&'static str, &'static str),
    total: Arc<Number>,
    retry: Arc<Number>,
    retry_success: Arc<Number>,
    retry_limit_exceeded: Arc<Number>,
    retry_overflow: Arc<Number>,
    timeout: Arc<Number>,
    /// By status, with that of its class; and all of them. Made when the first comes.
    codes: Mutex<BTreeMap<u16, [Arc<Number>; 3]>>,
}

impl RequestGroup {
    /// Those of a virtual cluster of this virtual host.
    pub fn virtual_cluster(counters: &Counters, host: &str, name: &str) -> Self {
        Self::new(counters, host, ("vcluster.", "envoy_virtual_cluster"), name)
    }

    /// Those that fit no virtual cluster of this virtual host.
    pub fn others(counters: &Counters, host: &str) -> Self {
        Self { rest: true, ..Self::virtual_cluster(counters, host, "other") }
    }

    /// The name, for lines of logs; those that fit nothing have none.
    pub fn name(&self) -> Option<&str> {
        (!self.rest).then_some(&*self.name)
    }

    /// Those of routes of this virtual host with that prefix.
    pub fn route(counters: &Counters, host: &str, prefix: &str) -> Self {
        Self::new(counters, host, ("route.", "envoy_route"), prefix)
    }

    fn new(counters: &Counters, host: &str, kind: (&'static str, &'static str), name: &str) -> Self {
        let scopes = scopes(host, kind, name);
        let of = |stat: &str| counters.counter(&scopes, stat);
        Self {
            name: name.into(),
            rest: false,
            counters: counters.clone(),
            host: host.into(),
            kind,
            total: of("upstream_rq_total"),
            retry: of("upstream_rq_retry"),
            retry_success: of("upstream_rq_retry_success"),
            retry_limit_exceeded: of("upstream_rq_retry_limit_exceeded"),
            retry_overflow: of("upstream_rq_retry_overflow"),
            timeout: of("upstream_rq_timeout"),
            codes: Mutex::default(),
        }
    }

    /// A request that has ended, whose status counts where that is `told`; of its `attempts` so many got no connection. `late` where
    /// it ended for the route's limit.
    pub fn count(
        &self,
        (code, told): (u16, bool),
        flags: ResponseFlags,
        (attempts, unconnected): (u16, u16),
        late: bool,
    ) {
        self.total.add(u64::from(attempts.saturating_sub(unconnected)));
        if attempts > 1 {
            self.retry.add(u64::from(attempts) - 1);
            if flags.is_empty() && code < 500 {
                self.retry_success.add(1);
            }
        }
        if flags.contains(ResponseFlags::RETRY_LIMIT) {
            self.retry_limit_exceeded.add(1);
        }
        if late {
            self.timeout.add(1);
        }
        if told && code > 0 && (attempts > 0 || flags.intersects(ResponseFlags::of_clusters())) {
            self.count_code(code);
        }
    }

    /// Attempts of a request that has become another one.
    pub fn count_redirected(&self, attempts: u16) {
        self.total.add(attempts.into());
    }

    /// An attempt that was not allowed.
    pub fn count_overflow(&self) {
        self.retry_overflow.add(1);
    }

    fn count_code(&self, code: u16) {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if !codes.contains_key(&code) && codes.len() < MAX_CODES {
            let scopes = scopes(&self.host, self.kind, &self.name);
            let labelled = |suffix: String, family: &'static str, label: &'static str, value: String| {
                let label = Label { family, name: label, value };
                self.counters.labelled(&scopes, &format!("upstream_rq_{suffix}"), label)
            };
            let class = (code / 100).to_string();
            let numbers = [
                labelled(code.to_string(), "upstream_rq", "envoy_response_code", code.to_string()),
                labelled(format!("{class}xx"), "upstream_rq_xx", "envoy_response_code_class", class),
                self.counters.counter(&scopes, "upstream_rq_completed"),
            ];
            codes.insert(code, numbers);
        }
        for number in codes.get(&code).into_iter().flatten() {
            number.add(1);
        }
    }
}

fn scopes<'a>(host: &'a str, (kind, label): (&'static str, &'static str), name: &'a str) -> [Scope<'a>; 2] {
    [Scope { kind: "vhost.", label: "envoy_virtual_host", value: host }, Scope { kind, label, value: name }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_virtual_cluster_when_counted_then_envoys_names_tell_of_them() {
        let counters = Counters::default();
        let group = RequestGroup::virtual_cluster(&counters, "edge", "orders");
        group.count((200, true), ResponseFlags::none(), (2, 0), false);
        group.count((503, true), ResponseFlags::NO_HEALTHY_UPSTREAM, (0, 0), false);
        // What a filter answered is none of its requests.
        group.count((403, true), ResponseFlags::none(), (0, 0), false);
        let told: BTreeMap<String, u64> = counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
        for (stat, value) in [("total", 2), ("retry", 1), ("retry_success", 1), ("200", 1), ("2xx", 1), ("503", 1)] {
            assert_eq!(
                told.get(&format!("vhost.edge.vcluster.orders.upstream_rq_{stat}")),
                Some(&value),
                "{stat}: {told:?}"
            );
        }
        assert_eq!(told["vhost.edge.vcluster.orders.upstream_rq_completed"], 2);
        assert!(!told.keys().any(|name| name.ends_with("403")));
    }
}
