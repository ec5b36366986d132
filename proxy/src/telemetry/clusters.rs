//! Statistics of clusters and their endpoints under Envoy's names.

use super::envoy::{CLUSTER, ClusterView, HostNumbers, Scope, Stat, as_part, sum};
use super::histogram::Counter;
use super::secured;
use super::stats::{Breakers, ClusterStats, Gauge, PublishedCluster, Statuses};
use super::tracked::ZoneStats;
use crate::balance::TableSize;
use crate::config::{Cluster, Health, LbPolicy, Limits, pipe::Shown};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// What never happens to clusters here: there is no HTTP/3 and no early data, and connections are made when they are needed.
const NEVER_OF_CLUSTERS: [&str; 6] = [
    "upstream_cx_connect_with_0_rtt",
    "upstream_cx_http3_total",
    "upstream_cx_pool_overflow",
    "upstream_cx_preconnect_skipped",
    "upstream_rq_0rtt",
    "upstream_rq_maintenance_mode",
];

/// The numbers of a cluster.
pub(super) fn cluster(view: &ClusterView, stats: &mut Vec<Stat>) {
    let config = &view.first.config;
    let mut out = Scope::new(CLUSTER.0, CLUSTER.1, &config.observability_name, stats);
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
        "upstream_rq_per_try_timeout" = rq_per_try_timeout,
        "upstream_rq_per_try_idle_timeout" = rq_per_try_idle_timeout,
        "upstream_rq_max_duration_reached" = rq_max_duration_reached,
        "upstream_rq_rx_reset" = rq_rx_reset,
        "upstream_rq_pending_overflow" = rq_pending_overflow,
        "upstream_rq_active_overflow" = rq_active_overflow,
        "upstream_rq_pending_total" = rq_pending_total,
        "upstream_cx_none_healthy" = cx_none_healthy,
        "upstream_cx_protocol_error" = cx_protocol_error,
        "upstream_cx_close_notify" = cx_close_notify,
        "upstream_rq_tx_reset" = rq_tx_reset,
        "upstream_rq_pending_failure_eject" = rq_pending_failure_eject,
        "upstream_cx_total" = cx_total,
        "upstream_cx_connect_fail" = cx_connect_fail,
        "upstream_cx_connect_timeout" = cx_connect_timeout,
        "upstream_cx_http1_total" = cx_http1_total,
        "upstream_cx_http2_total" = cx_http2_total,
        "upstream_cx_destroy" = cx_destroy,
        "upstream_cx_max_requests" = cx_max_requests,
        "upstream_cx_idle_timeout" = cx_idle_timeout,
        "upstream_cx_max_duration_reached" = cx_max_duration_reached,
        "upstream_cx_connect_attempts_exceeded" = cx_connect_attempts_exceeded,
        "upstream_rq_cancelled" = rq_cancelled,
        "upstream_internal_redirect_succeeded_total" = internal_redirect_succeeded,
        "upstream_internal_redirect_failed_total" = internal_redirect_failed,
        "lb_healthy_panic" = lb_healthy_panic,
        "lb_subsets_selected" = lb_subsets_selected,
        "lb_subsets_fallback" = lb_subsets_fallback,
        "lb_subsets_fallback_panic" = lb_subsets_fallback_panic,
        "upstream_cx_overflow" = cx_overflow,
        "upstream_cx_rx_bytes_total" = cx_rx_bytes_total,
        "upstream_cx_tx_bytes_total" = cx_tx_bytes_total,
    );
    let zones: [(&str, fn(&ZoneStats) -> &Counter); 7] = [
        ("lb_recalculate_zone_structures", |zones| &zones.recalculated),
        ("lb_local_cluster_not_ok", |zones| &zones.local_cluster_not_ok),
        ("lb_zone_cluster_too_small", |zones| &zones.cluster_too_small),
        ("lb_zone_no_capacity_left", |zones| &zones.no_capacity_left),
        ("lb_zone_routing_all_directly", |zones| &zones.routing_all_directly),
        ("lb_zone_routing_cross_zone", |zones| &zones.routing_cross_zone),
        ("lb_zone_routing_sampled", |zones| &zones.routing_sampled),
    ];
    for (name, of) in zones {
        out.add(name, view.sum(|one| one.zones.get().map_or(0, |zones| of(zones).get())), false);
    }
    for name in NEVER_OF_CLUSTERS {
        out.add(name, 0, false);
    }
    for (index, by) in ["local", "remote"].into_iter().enumerate() {
        let (ended, active) = (
            view.sum(|one| one.cx_destroy_by[index].get()),
            view.sum(|one| one.cx_destroy_with_active_rq[index].get()),
        );
        out.add(&format!("upstream_cx_destroy_{by}"), ended, false);
        out.add(&format!("upstream_cx_destroy_{by}_with_active_rq"), active, false);
    }
    let active = view.sum(|one| one.cx_destroy_with_active_rq.iter().map(Counter::get).sum());
    out.add("upstream_cx_destroy_with_active_rq", active, false);
    // Every worker has them, as in Envoy, whose main thread has them as well.
    let (first, workers) = (&view.first, view.all.len() as u64 + 1);
    out.add("lb_subsets_created", workers * first.stats.lb_subsets_created.get(), false);
    out.add("lb_subsets_removed", workers * first.stats.lb_subsets_removed.get(), false);
    out.add("lb_subsets_active", workers * first.subsets, true);
    tables(&mut out, first);
    // Every worker sees every change.
    out.add("membership_change", view.first.stats.membership_change.get(), false);
    let (retries, limited) = (view.sum(|one| one.rq_retry.get()), view.sum(|one| one.rq_backoff_limited.get()));
    out.add("upstream_rq_retry_backoff_exponential", retries.saturating_sub(limited), false);
    out.add("upstream_rq_retry_backoff_ratelimited", limited, false);
    let dropped = view.sum(|one| one.rq_drop_overload.get());
    if dropped > 0 {
        out.add("upstream_rq_drop_overload", dropped, false);
    }
    let codes = |of: &dyn Fn(&ClusterStats) -> Vec<(u16, u64)>| {
        let mut codes: BTreeMap<u16, u64> = BTreeMap::new();
        for (code, count) in view.all.iter().flat_map(|one| of(&one.stats)) {
            *codes.entry(code).or_default() += count;
        }
        codes
    };
    out.codes("", &codes(&|one| one.statuses.iter().flat_map(Statuses::codes).collect()));
    out.codes("external.", &codes(&|one| one.statuses[0].codes().collect()));
    out.codes("internal.", &codes(&|one| one.statuses[1].codes().collect()));
    out.codes("retry.", &codes(&|one| one.retried.codes().collect()));
    if view.first.hosts.iter().any(|(endpoint, _)| endpoint.tls.is_some()) || view.tls().next().is_some() {
        secured::tell(&mut out, "envoy_cluster", view.tls());
    }
    let hosts = view.hosts();
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
        let left = |of: fn(&Breakers) -> &Gauge, limit: u32| {
            let used = view.all.iter().filter_map(|one| one.stats.breakers.get(index)).map(|one| of(one).get());
            u64::from(limit).saturating_sub(used.fold(0, u64::wrapping_add))
        };
        let mut breaker = |stat: &str, value| out.add(&format!("circuit_breakers.{name}.{stat}"), value, true);
        breaker("cx_open", open(|breakers| &breakers.connections, |limits| limits.connections));
        breaker("rq_open", open(|breakers| &breakers.requests, |limits| limits.requests));
        breaker("rq_pending_open", open(|breakers| &breakers.pending, |limits| limits.pending));
        if limits.retry_budget.is_none() {
            breaker("rq_retry_open", open(|breakers| &breakers.retries, |limits| limits.retries));
        }
        if limits.tell_remaining {
            breaker("remaining_cx", left(|breakers| &breakers.connections, limits.connections));
            breaker("remaining_pending", left(|breakers| &breakers.pending, limits.pending));
            breaker("remaining_rq", left(|breakers| &breakers.requests, limits.requests));
            breaker("remaining_retries", left(|breakers| &breakers.retries, limits.retries));
        }
    }
    if config.track.endpoints {
        endpoints(&mut out, config, &hosts);
    }
    let distinct: HashSet<SocketAddr> = config.endpoints.iter().map(|endpoint| endpoint.address).collect();
    let with = |health: Health| config.endpoints.iter().filter(|endpoint| endpoint.health == health).count() as u64;
    out.add("membership_total", distinct.len() as u64, true);
    out.add("membership_healthy", with(Health::Healthy), true);
    out.add("membership_degraded", with(Health::Degraded), true);
    out.add(
        "membership_excluded",
        config.endpoints.iter().filter(|endpoint| endpoint.is_excluded()).count() as u64,
        true,
    );
}

/// How endpoints lie in the table by which hashes decide; every worker has the same.
fn tables(out: &mut Scope<'_>, first: &PublishedCluster) {
    let Some(TableSize { places, fewest, most }) = first.table else { return };
    match first.config.policy {
        LbPolicy::Maglev { .. } => {
            out.add("maglev_lb.min_entries_per_host", fewest, true);
            out.add("maglev_lb.max_entries_per_host", most, true);
        }
        _ => {
            out.add("ring_hash_lb.size", places, true);
            out.add("ring_hash_lb.min_hashes_per_host", fewest, true);
            out.add("ring_hash_lb.max_hashes_per_host", most, true);
        }
    }
}

/// The numbers of each endpoint among those of its cluster.
fn endpoints(out: &mut Scope<'_>, config: &Cluster, hosts: &BTreeMap<SocketAddr, HostNumbers>) {
    let mut seen = HashSet::new();
    for endpoint in config.endpoints.iter().filter(|endpoint| seen.insert(endpoint.address)) {
        let at = Shown(endpoint.address).to_string();
        let numbers = hosts.get(&endpoint.address).copied().unwrap_or_default();
        let healthy = u64::from(endpoint.health == Health::Healthy);
        for (stat, value, gauge) in [
            ("cx_connect_fail", numbers.cx_connect_fail, false),
            ("cx_total", numbers.cx_total, false),
            ("rq_error", numbers.rq_error, false),
            ("rq_success", numbers.rq_success, false),
            ("rq_timeout", numbers.rq_timeout, false),
            ("rq_total", numbers.rq_total, false),
            ("cx_active", numbers.cx_active, true),
            ("rq_active", numbers.rq_active, true),
            ("healthy", healthy, true),
        ] {
            let label = Some(("envoy_endpoint_address", at.clone()));
            let family = format!("envoy_cluster_endpoint_{stat}");
            out.put(&format!("endpoint.{}.{stat}", as_part(&at)), family, value, gauge, label);
        }
    }
}
