//! Statistics under Envoy's names, as text, as JSON and for Prometheus.

use super::clusters;
use super::histogram::Counter;
use super::histogram::{Histogram, Summed};
use super::render::{Exposition, Telemetry};
use super::secured::{self, TlsStats};
use super::stats::{ClusterStats, Gauge, HttpStats, ListenerHttpStats, ListenerStats, PublishedCluster};
use regex::Regex;
use std::borrow::Cow;
use std::collections::BTreeMap;
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
    pub(super) all: Vec<Arc<PublishedCluster>>,
}

/// The numbers of an endpoint, all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct HostNumbers {
    pub cx_active: u64,
    pub cx_connect_fail: u64,
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

    /// One that has no labels, and only grows.
    pub fn counter(name: &str, value: u64) -> Self {
        Self { gauge: false, ..Self::gauge(name, value) }
    }
}

/// Tells which of all statistics were ever written: those that are not zero, and what goes up and down where it is known to have been
/// there, though nothing of it is left.
pub fn used(all: &[Stat]) -> impl Fn(&Stat) -> bool + use<> {
    let named = |stat: &&Stat| !stat.gauge && stat.value > 0 && stat.name.ends_with("_total");
    let totals: std::collections::HashSet<String> = all.iter().filter(named).map(|stat| stat.name.clone()).collect();
    move |stat| {
        if stat.value > 0 || !stat.gauge {
            return stat.value > 0;
        }
        let name = stat.name.as_str();
        if let Some(counted) = name.strip_suffix("_active") {
            return totals.contains(&format!("{counted}_total"));
        }
        // They are there only where they are asked for.
        if name.contains(".circuit_breakers.") && name.contains(".remaining_") {
            return true;
        }
        if let Some((cluster, what)) = name.split_once(".circuit_breakers.default.") {
            let asked = || totals.contains(&format!("{cluster}.upstream_rq_total"));
            return what.ends_with("_open") && what != "rq_retry_open" && asked();
        }
        let told = name.starts_with("server.")
            || name.contains("_manager.")
                && ["_clusters", "_listeners_active", "_listeners_warming"].iter().any(|end| name.ends_with(end));
        told || name.starts_with("cluster.") && name.contains(".membership_")
    }
}

impl ClusterView {
    /// A number of all workers together.
    pub(super) fn sum(&self, of: impl Fn(&ClusterStats) -> u64) -> u64 {
        self.all.iter().map(|one| of(&one.stats)).fold(0, u64::wrapping_add)
    }

    /// Of handshakes, of each worker that had one.
    pub(super) fn tls(&self) -> impl Iterator<Item = &TlsStats> + Clone {
        self.all.iter().filter_map(|one| one.stats.tls.get().map(|tls| &**tls))
    }

    /// Endpoints by address with their numbers.
    pub fn hosts(&self) -> BTreeMap<SocketAddr, HostNumbers> {
        let mut hosts: BTreeMap<SocketAddr, HostNumbers> = BTreeMap::new();
        for (endpoint, stats) in self.all.iter().flat_map(|one| &one.hosts) {
            let sum = hosts.entry(endpoint.address).or_default();
            let add = |to: &mut u64, more: u64| *to = to.wrapping_add(more);
            add(&mut sum.cx_active, stats.cx_active.get());
            add(&mut sum.cx_connect_fail, stats.cx_connect_fail.get());
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

    /// Every statistic that is shown, these among them, sorted by name. Those of one name are one.
    pub fn stats(&self, more: Vec<Stat>) -> Vec<Stat> {
        let mut stats = more;
        for (_, view) in self.clusters() {
            clusters::cluster(&view, &mut stats);
        }
        self.managers(&mut stats);
        stats.extend(self.counters().stats());
        stats.retain(|stat| self.display().shows(&stat.name));
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats.dedup_by(|next, kept| {
            let same = next.name == kept.name;
            if same {
                kept.value = kept.value.wrapping_add(next.value);
            }
            same
        });
        stats
    }

    fn managers(&self, stats: &mut Vec<Stat>) {
        let mut prefixes: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        let mut listeners: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        let mut of_listeners: BTreeMap<(Arc<str>, Arc<str>), Vec<Arc<ListenerHttpStats>>> = BTreeMap::new();
        for (index, worker) in self.workers().iter().enumerate() {
            let named = worker.named.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, one) in &named.http {
                prefixes.entry(name.clone()).or_default().push(one.clone());
            }
            for (name, one) in &named.listeners {
                listeners.entry(name.clone()).or_default().push((index, one.clone()));
            }
            for (key, one) in &named.listener_http {
                of_listeners.entry(key.clone()).or_default().push(one.clone());
            }
        }
        for ((name, prefix), all) in of_listeners {
            listener_http(&name, &prefix, &all, stats);
        }
        codecs(prefixes.values().flatten(), stats);
        for (prefix, all) in prefixes {
            manager(&prefix, &all, stats);
        }
        for (name, all) in listeners {
            listener(&name, &all, stats);
        }
    }

    /// Appends Envoy's statistics in Prometheus' format; with `used` only those that were ever written.
    pub fn write_stats(&self, out: &mut Exposition, used: bool, more: Vec<Stat>, filter: Option<&Regex>) {
        let mut families: BTreeMap<String, (bool, Vec<(Labels, u64)>)> = BTreeMap::new();
        let wanted = |name: &str| filter.is_none_or(|filter| filter.is_match(name));
        let all = self.stats(more);
        let is_used = used.then(|| self::used(&all));
        let touched = |stat: &Stat| is_used.as_ref().is_none_or(|is_used| is_used(stat));
        for stat in all.iter().filter(|stat| wanted(&stat.name) && touched(stat)) {
            let (family, labels) = self.display().split(&stat.name, &stat.family, &stat.labels);
            families.entry(family).or_insert((stat.gauge, Vec::new())).1.push((labels, stat.value));
        }
        for (family, (gauge, samples)) in families {
            out.kind(&family, if gauge { "gauge" } else { "counter" });
            for (labels, value) in samples {
                out.sample(&family, &pairs(&labels), value);
            }
        }
        self.write_times(out, used, &wanted);
    }

    /// How long requests and connections took, by manager, by listener and by cluster.
    pub fn times(&self) -> Vec<Times> {
        let mut times: BTreeMap<String, Times> = BTreeMap::new();
        let mut add = |(kind, label): (&'static str, &'static str), name: &Arc<str>, stat: &str, one: &Histogram| {
            let name = as_part(name);
            let full = format!("{kind}.{name}.{stat}");
            if !self.display().shows(&full) {
                return;
            }
            let entry = times.entry(full).or_insert_with_key(|full| Times {
                name: full.clone(),
                family: format!("envoy_{kind}_{}", stat.replace('.', "_")),
                label: (label, name.into()),
                sum: Summed::default(),
            });
            entry.sum.add(one);
        };
        for worker in self.workers() {
            let named = worker.named.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, one) in &named.http {
                add(HTTP, name, "downstream_rq_time", &one.rq_time);
                add(HTTP, name, "downstream_cx_length_ms", &one.cx_length_ms);
            }
            for (name, one) in &named.listeners {
                add(LISTENER, name, "downstream_cx_length_ms", &one.cx_length_ms);
            }
        }
        for (_, view) in self.clusters() {
            let name = &view.first.config.observability_name;
            for one in &view.all {
                for (part, time) in
                    ["external.upstream_rq_time", "internal.upstream_rq_time"].iter().zip(&one.stats.rq_time)
                {
                    add(CLUSTER, name, "upstream_rq_time", time);
                    // Told once there are some.
                    if !time.is_empty() {
                        add(CLUSTER, name, part, time);
                    }
                }
                add(CLUSTER, name, "upstream_rq_per_cx", &one.stats.rq_per_cx);
                if let Some(tracked) = one.stats.tracked.get() {
                    for (stat, histogram) in tracked.told(one.config.track) {
                        add(CLUSTER, name, stat, histogram);
                    }
                }
                add(CLUSTER, name, "upstream_cx_connect_ms", &one.stats.cx_connect_ms);
                add(CLUSTER, name, "upstream_cx_length_ms", &one.stats.cx_length_ms);
            }
        }
        times.into_values().collect()
    }

    /// The same for Prometheus.
    fn write_times(&self, out: &mut Exposition, used: bool, wanted: &dyn Fn(&str) -> bool) {
        let mut families: BTreeMap<String, Vec<(Labels, Times)>> = BTreeMap::new();
        for one in self.times().into_iter().filter(|one| (!used || one.sum.count() > 0) && wanted(&one.name)) {
            let (label, value) = &one.label;
            let (family, labels) = self.display().split(&one.name, &one.family, &[(*label, value.to_string())]);
            families.entry(family).or_default().push((labels, one));
        }
        for (family, all) in families {
            out.kind(&family, "histogram");
            for (labels, Times { name, sum, .. }) in all {
                let buckets = self.display().buckets(&name, &sum);
                out.histogram_of(&family, &pairs(&labels), buckets, sum.sum_thousandths);
            }
        }
    }
}

/// Labels with their values.
type Labels = Vec<(Box<str>, String)>;

fn pairs(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(label, value)| (&**label, &**value)).collect()
}

/// The kind of a name, and the label that tells it.
const HTTP: (&str, &str) = ("http", "envoy_http_conn_manager_prefix");
pub(super) const LISTENER: (&str, &str) = ("listener", "envoy_listener_address");
pub(super) const CLUSTER: (&str, &str) = ("cluster", "envoy_cluster_name");

/// Times in milliseconds.
#[derive(Debug, Clone)]
pub struct Times {
    /// Envoy's name.
    pub name: String,
    family: String,
    label: (&'static str, Arc<str>),
    /// All workers together.
    pub sum: Summed,
}

/// Gauges of all workers together.
pub(super) fn sum<'g>(gauges: impl Iterator<Item = &'g Gauge>) -> u64 {
    gauges.map(Gauge::get).fold(0, u64::wrapping_add)
}

/// A name as part of names of statistics: colons have a meaning elsewhere.
pub(super) fn as_part(name: &str) -> Cow<'_, str> {
    if !name.contains(':') {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.replace("://", "_").replace(":/", "_").replace(':', "_"))
}

/// Names under one prefix.
pub(super) struct Scope<'s> {
    kind: &'static str,
    label: &'static str,
    name: Cow<'s, str>,
    stats: &'s mut Vec<Stat>,
}

impl<'s> Scope<'s> {
    pub(super) fn new(kind: &'static str, label: &'static str, name: &'s str, stats: &'s mut Vec<Stat>) -> Self {
        Self { kind, label, name: as_part(name), stats }
    }

    pub(super) fn add(&mut self, stat: &str, value: u64, gauge: bool) {
        let family = format!("envoy_{}_{}", self.kind, stat.replace('.', "_"));
        self.put(stat, family, value, gauge, None);
    }

    pub(super) fn class(&mut self, stat: &str, class: usize, value: u64) {
        let family = format!("envoy_{}_{}_xx", self.kind, stat.replace('.', "_"));
        let label = ("envoy_response_code_class", class.to_string());
        self.put(&format!("{stat}_{class}xx"), family, value, false, Some(label));
    }

    /// Statuses and their classes under a prefix, as far as there were any; together they are the completed ones.
    pub(super) fn codes(&mut self, prefix: &str, codes: &BTreeMap<u16, u64>) {
        let stat = format!("{prefix}upstream_rq");
        let family = format!("envoy_{}_{}", self.kind, stat.replace('.', "_"));
        let mut classes: BTreeMap<u16, u64> = BTreeMap::new();
        for (code, count) in codes {
            *classes.entry(code / 100).or_default() += count;
            let label = ("envoy_response_code", code.to_string());
            self.put(&format!("{stat}_{code}"), family.clone(), *count, false, Some(label));
        }
        for (class, count) in &classes {
            self.class(&stat, usize::from(*class), *count);
        }
        if !prefix.is_empty() && !codes.is_empty() {
            self.add(&format!("{stat}_completed"), codes.values().sum(), false);
        }
    }

    pub(super) fn put(
        &mut self,
        stat: &str,
        family: String,
        value: u64,
        gauge: bool,
        label: Option<(&'static str, String)>,
    ) {
        let name = format!("{}.{}.{stat}", self.kind, self.name);
        let labels = label.into_iter().chain([(self.label, self.name.to_string())]).collect();
        self.stats.push(Stat { name, value, gauge, family, labels });
    }
}

/// What never happens to connection managers here: there is no HTTP/3, and redirects of routes count as direct answers, as in Envoy.
const NEVER_OF_MANAGERS: [&str; 3] = ["downstream_cx_http3_total", "downstream_rq_http3_total", "rq_redirect"];
/// The numbers of connection managers of one prefix.
fn manager(prefix: &str, all: &[Arc<HttpStats>], stats: &mut Vec<Stat>) {
    let mut out = Scope::new(HTTP.0, HTTP.1, prefix, stats);
    macro_rules! counters {
        ($($name:literal = $field:ident),* $(,)?) => {
            $(out.add($name, all.iter().map(|one| one.$field.get()).sum(), false);)*
        };
    }
    counters!(
        "downstream_rq_total" = rq_total,
        "downstream_rq_completed" = rq_completed,
        "downstream_rq_rx_reset" = rq_rx_reset,
        "downstream_rq_tx_reset" = rq_tx_reset,
        "downstream_rq_idle_timeout" = rq_idle_timeout,
        "downstream_rq_timeout" = rq_timeout,
        "downstream_rq_header_timeout" = rq_header_timeout,
        "downstream_rq_max_duration_reached" = rq_max_duration_reached,
        "downstream_rq_too_large" = rq_too_large,
        "downstream_rq_ws_on_non_ws_route" = rq_ws_on_non_ws_route,
        "downstream_rq_failed_path_normalization" = rq_failed_path_normalization,
        "downstream_rq_redirected_with_normalized_path" = rq_redirected_with_normalized_path,
        "downstream_rq_overload_close" = rq_overload_close,
        "downstream_rq_non_relative_path" = rq_non_relative_path,
        "downstream_rq_http1_total" = rq_http1_total,
        "downstream_rq_http2_total" = rq_http2_total,
        "downstream_cx_protocol_error" = cx_protocol_error,
        "downstream_cx_drain_close" = cx_drain_close,
        "downstream_cx_idle_timeout" = cx_idle_timeout,
        "downstream_cx_max_duration_reached" = cx_max_duration_reached,
        "downstream_cx_max_requests_reached" = cx_max_requests_reached,
        "downstream_cx_delayed_close_timeout" = cx_delayed_close_timeout,
        "downstream_cx_upgrades_total" = cx_upgrades_total,
        "downstream_rq_response_before_rq_complete" = rq_response_before_rq_complete,
        "downstream_rq_too_many_premature_resets" = rq_too_many_premature_resets,
        "downstream_cx_http1_total" = cx_http1_total,
        "downstream_cx_http2_total" = cx_http2_total,
        "downstream_cx_rx_bytes_total" = cx_rx_bytes_total,
        "downstream_cx_tx_bytes_total" = cx_tx_bytes_total,
        "no_route" = no_route,
        "no_cluster" = no_cluster,
        "rq_total" = router_total,
        "rq_direct_response" = router_direct_response,
        "downstream_cx_total" = cx_total,
        "downstream_cx_ssl_total" = cx_ssl_total,
    );
    let active = sum(all.iter().map(|one| &one.cx_active));
    out.add("downstream_cx_active", active, true);
    out.add("downstream_rq_active", sum(all.iter().map(|one| &one.rq_active)), true);
    out.add("downstream_cx_ssl_active", sum(all.iter().map(|one| &one.cx_ssl_active)), true);
    out.add("downstream_cx_upgrades_active", sum(all.iter().map(|one| &one.cx_upgrades_active)), true);
    out.add("downstream_cx_http1_active", sum(all.iter().map(|one| &one.cx_http1_active)), true);
    out.add("downstream_cx_http2_active", sum(all.iter().map(|one| &one.cx_http2_active)), true);
    for (index, name) in
        ["client_enabled", "service_forced", "random_sampling", "not_traceable", "health_check"].iter().enumerate()
    {
        let count = all.iter().map(|one| one.tracing[index].get()).sum();
        out.add(&format!("tracing.{name}"), count, false);
    }
    let total: u64 = all.iter().map(|one| one.cx_total.get()).sum();
    let destroyed = total.saturating_sub(active);
    let local: u64 = all.iter().map(|one| one.cx_destroy_local.get()).sum();
    let [by_us, by_them] = [0, 1].map(|by: usize| all.iter().map(|one| one.cx_destroy_active[by].get()).sum::<u64>());
    for (name, count) in [
        ("downstream_cx_destroy", destroyed),
        ("downstream_cx_destroy_local", local),
        ("downstream_cx_destroy_remote", destroyed.saturating_sub(local)),
        ("downstream_cx_destroy_active_rq", by_us + by_them),
        ("downstream_cx_destroy_local_active_rq", by_us),
        ("downstream_cx_destroy_remote_active_rq", by_them),
    ] {
        out.add(name, count, false);
    }
    for (index, name) in
        ["bad_location", "unsafe_scheme", "too_many_redirects", "no_route", "predicate"].iter().enumerate()
    {
        let count = all.iter().map(|one| one.redirects_passed[index].get()).sum();
        out.add(&format!("passthrough_internal_redirect_{name}"), count, false);
    }
    for name in NEVER_OF_MANAGERS {
        out.add(name, 0, false);
    }
    for class in 0..5 {
        let count = all.iter().map(|one| one.statuses.classes[class].get()).sum();
        out.class("downstream_rq", class + 1, count);
    }
}

/// What happened where bytes of clients become messages: of all connection managers together.
fn codecs<'h>(all: impl Iterator<Item = &'h Arc<HttpStats>>, stats: &mut Vec<Stat>) {
    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    for one in all.map(|one| &one.codecs) {
        for (name, counter) in [
            ("http1.requests_rejected_with_underscores_in_headers", &one.underscores_rejected[0]),
            ("http2.requests_rejected_with_underscores_in_headers", &one.underscores_rejected[1]),
            ("http1.dropped_headers_with_underscores", &one.underscores_dropped[0]),
            ("http2.dropped_headers_with_underscores", &one.underscores_dropped[1]),
            ("http2.keepalive_timeout", &one.keepalive_timeout),
            ("http2.inbound_empty_frames_flood", &one.empty_frames_flood),
            ("http2.inbound_priority_frames_flood", &one.priority_frames_flood),
            ("http2.inbound_window_update_frames_flood", &one.window_update_frames_flood),
            ("http2.outbound_control_flood", &one.outbound_control_flood),
            ("http2.rx_reset", &one.rx_reset),
            ("http2.tx_reset", &one.tx_reset),
            ("http2.rx_messaging_error", &one.rx_messaging_error),
            ("http2.header_overflow", &one.header_overflow),
            ("http2.goaway_sent", &one.goaway_sent),
        ] {
            *told.entry(name).or_default() += counter.get();
        }
    }
    stats.extend(told.into_iter().map(|(name, value)| Stat::counter(name, value)));
}

/// The numbers of connection managers of one prefix for clients of one listener.
fn listener_http(name: &str, prefix: &str, all: &[Arc<ListenerHttpStats>], stats: &mut Vec<Stat>) {
    let out = Scope::new(LISTENER.0, LISTENER.1, name, stats);
    let prefix = as_part(prefix);
    let mut put = |stat: &str, family: &str, value: u64, class: Option<usize>| {
        let family = format!("envoy_listener_http_{family}");
        let class = class.map(|class| ("envoy_response_code_class", class.to_string()));
        let manager = (HTTP.1, prefix.to_string());
        let labels = class.into_iter().chain([manager, (LISTENER.1, out.name.to_string())]).collect();
        let name = format!("listener.{}.http.{prefix}.{stat}", out.name);
        out.stats.push(Stat { name, value, gauge: false, family, labels });
    };
    let completed = all.iter().map(|one| one.completed.get()).sum();
    put("downstream_rq_completed", "downstream_rq_completed", completed, None);
    for class in 0..5 {
        let count = all.iter().map(|one| one.classes[class].get()).sum();
        put(&format!("downstream_rq_{}xx", class + 1), "downstream_rq_xx", count, Some(class + 1));
    }
}

/// The numbers of one listener, by worker.
fn listener(name: &str, all: &[(usize, Arc<ListenerStats>)], stats: &mut Vec<Stat>) {
    let mut out = Scope::new(LISTENER.0, LISTENER.1, name, stats);
    let counter = |of: fn(&ListenerStats) -> &Counter| all.iter().map(|(_, one)| of(one).get()).sum::<u64>();
    let (total, active) = (counter(|one| &one.cx_total), sum(all.iter().map(|(_, one)| &one.cx_active)));
    out.add("downstream_cx_total", total, false);
    out.add("downstream_cx_active", active, true);
    out.add("downstream_cx_destroy", total.saturating_sub(active), false);
    out.add("downstream_cx_overflow", counter(|one| &one.cx_overflow), false);
    out.add("downstream_pre_cx_timeout", counter(|one| &one.pre_cx_timeout), false);
    out.add("no_filter_chain_match", counter(|one| &one.no_filter_chain_match), false);
    for (index, one) in all {
        let family = "envoy_listener_worker_downstream_cx";
        let label = || Some(("envoy_worker_id", index.to_string()));
        let (total, active) = (one.cx_total.get(), one.cx_active.get());
        out.put(&format!("worker_{index}.downstream_cx_total"), format!("{family}_total"), total, false, label());
        out.put(&format!("worker_{index}.downstream_cx_active"), format!("{family}_active"), active, true, label());
    }
    if !all.iter().any(|(_, one)| one.has_tls()) {
        return;
    }
    secured::tell(&mut out, "envoy_listener", all.iter().map(|(_, one)| &one.tls));
}
