//! Statistics under Envoy's names, as text, as JSON and for Prometheus.

use super::histogram::Summed;
use super::render::{Exposition, Telemetry};
use super::stats::{Breakers, ClusterStats, Gauge, PublishedCluster};
use crate::config::{Health, Limits};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// One statistic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Envoy's name, `cluster.reviews.upstream_rq_total`.
    pub name: String,
    /// The number.
    pub value: u64,
    /// It goes up and down.
    pub gauge: bool,
    /// The name without what became labels, `envoy_cluster_upstream_rq_total`.
    family: String,
    labels: Vec<(&'static str, String)>,
}

/// A cluster of all workers together.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// One worker's, for its configuration; all have the same.
    pub first: Arc<PublishedCluster>,
    all: Vec<Arc<PublishedCluster>>,
}

/// The numbers of an endpoint, all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct HostNumbers {
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_connect_timeout: u64,
    pub cx_http1_total: u64,
    pub cx_http2_total: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
}

impl Stat {
    /// One with labels.
    pub(super) fn new(
        name: &str,
        value: u64,
        gauge: bool,
        family: String,
        labels: Vec<(&'static str, String)>,
    ) -> Self {
        Self { name: name.to_owned(), value, gauge, family, labels }
    }

    /// One that has no labels.
    pub fn gauge(name: &str, value: u64) -> Self {
        let family = format!("envoy_{}", name.replace('.', "_"));
        Self { name: name.to_owned(), value, gauge: true, family, labels: Vec::new() }
    }
}

impl ClusterView {
    fn sum(&self, of: impl Fn(&ClusterStats) -> u64) -> u64 {
        self.all.iter().map(|one| of(&one.stats)).fold(0, u64::wrapping_add)
    }

    /// Endpoints by address with their numbers.
    pub fn hosts(&self) -> BTreeMap<SocketAddr, HostNumbers> {
        let mut hosts: BTreeMap<SocketAddr, HostNumbers> = BTreeMap::new();
        for (endpoint, stats) in self.all.iter().flat_map(|one| &one.hosts) {
            let sum = hosts.entry(endpoint.address).or_default();
            let add = |to: &mut u64, more: u64| *to = to.wrapping_add(more);
            add(&mut sum.cx_active, stats.cx_active.get());
            add(&mut sum.cx_connect_fail, stats.cx_connect_fail.get());
            add(&mut sum.cx_connect_timeout, stats.cx_connect_timeout.get());
            add(&mut sum.cx_http1_total, stats.cx_http1_total.get());
            add(&mut sum.cx_http2_total, stats.cx_http2_total.get());
            add(&mut sum.cx_total, stats.cx_total.get());
            add(&mut sum.rq_active, stats.rq_active.get());
            add(&mut sum.rq_error, stats.rq_error.get());
            add(&mut sum.rq_success, stats.rq_success.get());
            add(&mut sum.rq_timeout, stats.rq_timeout.get());
            add(&mut sum.rq_total, stats.rq_total.get());
        }
        hosts
    }
}

impl Telemetry {
    /// Clusters in force, by name.
    pub fn clusters(&self) -> BTreeMap<Arc<str>, ClusterView> {
        let mut clusters: BTreeMap<Arc<str>, ClusterView> = BTreeMap::new();
        for worker in self.workers() {
            for one in worker.clusters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let view = clusters.entry(one.config.name.clone());
                view.or_insert_with(|| ClusterView { first: one.clone(), all: Vec::new() }).all.push(one.clone());
            }
        }
        clusters
    }

    /// Every statistic, sorted by name.
    pub fn stats(&self) -> Vec<Stat> {
        let mut stats = Vec::new();
        for (name, view) in self.clusters() {
            cluster(&name, &view, &mut stats);
        }
        self.managers(&mut stats);
        stats.extend(self.counters().stats());
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }

    fn managers(&self, stats: &mut Vec<Stat>) {
        let mut prefixes: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        let mut listeners: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        for worker in self.workers() {
            let named = worker.named.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, one) in &named.http {
                prefixes.entry(name.clone()).or_default().push(one.clone());
            }
            for (name, one) in &named.listeners {
                listeners.entry(name.clone()).or_default().push(one.clone());
            }
        }
        for (prefix, all) in prefixes {
            let mut out = Scope::new("http", "envoy_http_conn_manager_prefix", &prefix, stats);
            macro_rules! counters {
                ($($name:literal = $field:ident),* $(,)?) => {
                    $(out.add($name, all.iter().map(|one| one.$field.get()).sum(), false);)*
                };
            }
            counters!(
                "downstream_rq_total" = rq_total,
                "downstream_rq_completed" = rq_completed,
                "downstream_rq_rx_reset" = rq_rx_reset,
                "downstream_rq_idle_timeout" = rq_idle_timeout,
                "downstream_rq_max_duration_reached" = rq_max_duration_reached,
                "downstream_rq_too_large" = rq_too_large,
                "downstream_rq_http1_total" = rq_http1_total,
                "downstream_rq_http2_total" = rq_http2_total,
                "downstream_cx_protocol_error" = cx_protocol_error,
                "downstream_cx_http1_total" = cx_http1_total,
                "downstream_cx_http2_total" = cx_http2_total,
                "no_route" = no_route,
                "no_cluster" = no_cluster,
                "downstream_cx_total" = cx_total,
                "downstream_cx_ssl_total" = cx_ssl_total,
            );
            let active = sum(all.iter().map(|one| &one.cx_active));
            out.add("downstream_cx_active", active, true);
            out.add("downstream_cx_http1_active", sum(all.iter().map(|one| &one.cx_http1_active)), true);
            out.add("downstream_cx_http2_active", sum(all.iter().map(|one| &one.cx_http2_active)), true);
            let total: u64 = all.iter().map(|one| one.cx_total.get()).sum();
            out.add("downstream_cx_destroy", total.saturating_sub(active), false);
            for class in 0..5 {
                let count = all.iter().map(|one| one.statuses.classes[class].get()).sum();
                out.class("downstream_rq", class + 1, count);
            }
        }
        for (name, all) in listeners {
            let mut out = Scope::new("listener", "envoy_listener_address", &name, stats);
            let (total, active) =
                (all.iter().map(|one| one.cx_total.get()).sum::<u64>(), sum(all.iter().map(|one| &one.cx_active)));
            out.add("downstream_cx_total", total, false);
            out.add("downstream_cx_active", active, true);
            out.add("downstream_cx_destroy", total.saturating_sub(active), false);
            out.add("no_filter_chain_match", all.iter().map(|one| one.no_filter_chain_match.get()).sum(), false);
        }
    }

    /// Appends Envoy's statistics in Prometheus' format; with `used` only those that are not zero.
    pub fn write_stats(&self, out: &mut Exposition, used: bool, more: Vec<Stat>) {
        let mut families: BTreeMap<&str, Vec<&Stat>> = BTreeMap::new();
        let mut stats = self.stats();
        stats.extend(more);
        for stat in stats.iter().filter(|stat| !used || stat.value > 0) {
            families.entry(&stat.family).or_default().push(stat);
        }
        for (family, stats) in families {
            out.kind(family, if stats.first().is_some_and(|stat| stat.gauge) { "gauge" } else { "counter" });
            for stat in stats {
                let labels: Vec<(&str, &str)> = stat.labels.iter().map(|(name, value)| (*name, &**value)).collect();
                out.sample(family, &labels, stat.value);
            }
        }
        self.write_times(out, used);
    }

    /// How long requests took, by manager and by cluster.
    fn write_times(&self, out: &mut Exposition, used: bool) {
        let mut managers: BTreeMap<Arc<str>, Summed> = BTreeMap::new();
        for worker in self.workers() {
            for (name, one) in &worker.named.lock().unwrap_or_else(PoisonError::into_inner).http {
                managers.entry(name.clone()).or_default().add(&one.rq_time);
            }
        }
        let clusters = self.clusters().into_iter().map(|(name, view)| {
            let mut sum = Summed::default();
            view.all.iter().for_each(|one| sum.add(&one.stats.rq_time));
            (name, sum)
        });
        let mut write = |family: &str, label: &str, all: Vec<(Arc<str>, Summed)>| {
            let told: Vec<_> =
                all.into_iter().filter(|(_, sum)| !used || sum.buckets.iter().any(|count| *count > 0)).collect();
            if !told.is_empty() {
                out.kind(family, "histogram");
            }
            for (name, sum) in told {
                out.histogram_of(family, &[(label, &name)], &sum);
            }
        };
        write("envoy_http_downstream_rq_time", "envoy_http_conn_manager_prefix", managers.into_iter().collect());
        write("envoy_cluster_upstream_rq_time", "envoy_cluster_name", clusters.collect());
    }
}

fn sum<'g>(gauges: impl Iterator<Item = &'g Gauge>) -> u64 {
    gauges.map(Gauge::get).fold(0, u64::wrapping_add)
}

/// Names under one prefix.
struct Scope<'s> {
    kind: &'static str,
    label: &'static str,
    name: &'s str,
    stats: &'s mut Vec<Stat>,
}

impl<'s> Scope<'s> {
    fn new(kind: &'static str, label: &'static str, name: &'s str, stats: &'s mut Vec<Stat>) -> Self {
        Self { kind, label, name, stats }
    }

    fn add(&mut self, stat: &str, value: u64, gauge: bool) {
        let family = format!("envoy_{}_{}", self.kind, stat.replace('.', "_"));
        self.put(stat, family, value, gauge, None);
    }

    fn class(&mut self, stat: &str, class: usize, value: u64) {
        let family = format!("envoy_{}_{stat}_xx", self.kind);
        let label = ("envoy_response_code_class", class.to_string());
        self.put(&format!("{stat}_{class}xx"), family, value, false, Some(label));
    }

    fn code(&mut self, stat: &str, code: u16, value: u64) {
        let family = format!("envoy_{}_{stat}", self.kind);
        let label = ("envoy_response_code", code.to_string());
        self.put(&format!("{stat}_{code}"), family, value, false, Some(label));
    }

    fn put(&mut self, stat: &str, family: String, value: u64, gauge: bool, label: Option<(&'static str, String)>) {
        let name = format!("{}.{}.{stat}", self.kind, self.name);
        let labels = label.into_iter().chain([(self.label, self.name.to_owned())]).collect();
        self.stats.push(Stat { name, value, gauge, family, labels });
    }
}

fn cluster(name: &str, view: &ClusterView, stats: &mut Vec<Stat>) {
    let config = &view.first.config;
    let mut out = Scope::new("cluster", "envoy_cluster_name", name, stats);
    macro_rules! counters {
        ($($name:literal = $field:ident),* $(,)?) => {
            $(out.add($name, view.sum(|one| one.$field.get()), false);)*
        };
    }
    counters!(
        "upstream_rq_total" = rq_total,
        "upstream_rq_completed" = rq_completed,
        "upstream_rq_retry" = rq_retry,
        "upstream_rq_retry_success" = rq_retry_success,
        "upstream_rq_retry_limit_exceeded" = rq_retry_limit_exceeded,
        "upstream_rq_retry_overflow" = rq_retry_overflow,
        "upstream_rq_timeout" = rq_timeout,
        "upstream_rq_rx_reset" = rq_rx_reset,
        "upstream_rq_pending_overflow" = rq_pending_overflow,
        "upstream_rq_pending_total" = rq_pending_total,
        "upstream_rq_drop_overload" = rq_drop_overload,
        "upstream_cx_none_healthy" = cx_none_healthy,
        "upstream_rq_pending_failure_eject" = rq_pending_failure_eject,
        "upstream_cx_total" = cx_total,
        "upstream_cx_destroy" = cx_destroy,
        "upstream_cx_overflow" = cx_overflow,
    );
    for class in 0..5 {
        out.class("upstream_rq", class + 1, view.sum(|one| one.statuses.classes[class].get()));
    }
    let mut codes: BTreeMap<u16, u64> = BTreeMap::new();
    for (code, count) in view.all.iter().flat_map(|one| one.stats.statuses.codes()) {
        *codes.entry(code).or_default() += count;
    }
    for (code, count) in codes {
        out.code("upstream_rq", code, count);
    }
    let hosts = view.hosts();
    let mut of_hosts = |name: &str, of: fn(&HostNumbers) -> u64| out.add(name, hosts.values().map(of).sum(), false);
    of_hosts("upstream_cx_connect_fail", |host| host.cx_connect_fail);
    of_hosts("upstream_cx_connect_timeout", |host| host.cx_connect_timeout);
    of_hosts("upstream_cx_http1_total", |host| host.cx_http1_total);
    of_hosts("upstream_cx_http2_total", |host| host.cx_http2_total);
    let gauge = |of: fn(&Breakers) -> &Gauge| sum(view.all.iter().flat_map(|one| &one.stats.breakers).map(of));
    out.add("upstream_cx_active", gauge(|breakers| &breakers.connections), true);
    out.add("upstream_rq_active", gauge(|breakers| &breakers.requests), true);
    out.add("upstream_rq_pending_active", gauge(|breakers| &breakers.pending), true);
    for (index, (name, limits)) in [("default", &config.limits), ("high", &config.high_limits)].into_iter().enumerate()
    {
        let open = |of: fn(&Breakers) -> &Gauge, limit: fn(&Limits) -> u32| {
            let full = |one: &Arc<PublishedCluster>| {
                let limit = limit(limits);
                let share = if limit == u32::MAX { limit } else { limit.div_ceil(one.workers.max(1)) };
                one.stats.breakers.get(index).is_some_and(|breakers| of(breakers).get() >= u64::from(share))
            };
            u64::from(view.all.iter().any(full))
        };
        let mut breaker = |stat: &str, value| out.add(&format!("circuit_breakers.{name}.{stat}"), value, true);
        breaker("cx_open", open(|breakers| &breakers.connections, |limits| limits.connections));
        breaker("rq_open", open(|breakers| &breakers.requests, |limits| limits.requests));
        breaker("rq_pending_open", open(|breakers| &breakers.pending, |limits| limits.pending));
        if limits.retry_budget.is_none() {
            breaker("rq_retry_open", open(|breakers| &breakers.retries, |limits| limits.retries));
        }
    }
    let distinct: HashSet<SocketAddr> = config.endpoints.iter().map(|endpoint| endpoint.address).collect();
    let with = |health: Health| config.endpoints.iter().filter(|endpoint| endpoint.health == health).count() as u64;
    out.add("membership_total", distinct.len() as u64, true);
    out.add("membership_healthy", with(Health::Healthy), true);
    out.add("membership_degraded", with(Health::Degraded), true);
    out.add("membership_excluded", config.endpoints.iter().filter(|endpoint| endpoint.excluded).count() as u64, true);
}
