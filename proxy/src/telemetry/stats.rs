//! Envoy's statistics of clusters, endpoints, connection managers and listeners: counters of one writer each, as the others here.

use super::histogram::{Counter, Histogram};
use super::secured::TlsStats;
use super::tracked::{ConnectionEnd, TrackedStats, ZoneStats};
use super::{ResponseFlags, Wire};
use crate::balance::TableSize;
use crate::config::{Cluster, Endpoint, Priority};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Different status codes that a cluster counts apart; further ones are only in their class.
pub const MAX_CODES: usize = 16;

/// A number that goes up and down, with one writer.
#[derive(Debug, Default)]
pub struct Gauge(Counter);

impl Gauge {
    /// One more.
    pub fn up(&self) {
        self.0.add(1);
    }

    /// One less.
    pub fn down(&self) {
        self.0.add(u64::MAX);
    }

    /// The number, from any thread.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Statuses by class and by code.
#[derive(Debug, Default)]
pub struct Statuses {
    /// 1xx to 5xx.
    pub classes: [Counter; 5],
    codes: [(AtomicU16, Counter); MAX_CODES],
}

impl Statuses {
    /// Counts one.
    pub fn count(&self, code: u16) {
        if let Some(class) = usize::from(code / 100).checked_sub(1).and_then(|class| self.classes.get(class)) {
            class.add(1);
        }
        for (known, counter) in &self.codes {
            match known.load(Relaxed) {
                0 => known.store(code, Relaxed),
                other if other != code => continue,
                _ => {}
            }
            return counter.add(1);
        }
    }

    /// Codes with their counts.
    pub fn codes(&self) -> impl Iterator<Item = (u16, u64)> {
        let known = self.codes.iter().map(|(code, count)| (code.load(Relaxed), count.get()));
        known.filter(|(code, _)| *code != 0)
    }
}

/// What the circuit breakers of a priority count.
#[derive(Debug, Default)]
pub struct Breakers {
    /// Connections.
    pub connections: Gauge,
    /// Requests that wait for one.
    pub pending: Gauge,
    /// Requests.
    pub requests: Gauge,
    /// Repeats under way.
    pub retries: Gauge,
}

/// Numbers of one cluster, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct ClusterStats {
    pub breakers: [Breakers; 2],
    /// Of requests from outside, and of those from inside.
    pub statuses: [Statuses; 2],
    /// Of answers that were given up for another attempt.
    pub retried: Statuses,
    /// Of handshakes, once there was one.
    pub tls: OnceLock<Box<TlsStats>>,
    pub cx_connect_fail: Counter,
    pub cx_connect_timeout: Counter,
    pub cx_http1_total: Counter,
    pub cx_http2_total: Counter,
    pub rq_total: Counter,
    pub rq_completed: Counter,
    pub rq_retry: Counter,
    pub rq_retry_success: Counter,
    pub rq_retry_limit_exceeded: Counter,
    pub rq_retry_overflow: Counter,
    pub rq_timeout: Counter,
    pub rq_rx_reset: Counter,
    pub rq_pending_overflow: Counter,
    pub rq_active_overflow: Counter,
    pub rq_pending_total: Counter,
    pub rq_drop_overload: Counter,
    /// Of requests from outside, and of those from inside.
    pub rq_time: [Histogram; 2],
    pub rq_cancelled: Counter,
    pub lb_healthy_panic: Counter,
    pub lb_subsets_created: Counter,
    pub lb_subsets_removed: Counter,
    pub lb_subsets_selected: Counter,
    pub lb_subsets_fallback: Counter,
    pub lb_subsets_fallback_panic: Counter,
    pub internal_redirect_succeeded: Counter,
    pub internal_redirect_failed: Counter,
    pub membership_change: Counter,
    pub cx_none_healthy: Counter,
    pub cx_protocol_error: Counter,
    pub cx_close_notify: Counter,
    pub rq_tx_reset: Counter,
    pub rq_pending_failure_eject: Counter,
    pub rq_per_try_timeout: Counter,
    pub rq_per_try_idle_timeout: Counter,
    pub rq_max_duration_reached: Counter,
    pub rq_backoff_limited: Counter,
    pub cx_total: Counter,
    pub cx_destroy: Counter,
    /// By this side, and by the endpoint.
    pub cx_destroy_by: [Counter; 2],
    /// The same while a request was under way.
    pub cx_destroy_with_active_rq: [Counter; 2],
    pub cx_max_requests: Counter,
    pub cx_idle_timeout: Counter,
    pub cx_max_duration_reached: Counter,
    pub cx_connect_attempts_exceeded: Counter,
    pub rq_per_cx: Histogram,
    /// What is counted only where a configuration wants it.
    pub tracked: OnceLock<Box<TrackedStats>>,
    /// What is counted only where the proxy knows a cluster of its own.
    pub zones: OnceLock<Box<ZoneStats>>,
    pub cx_overflow: Counter,
    pub cx_connect_ms: Histogram,
    pub cx_length_ms: Histogram,
    pub cx_rx_bytes_total: Counter,
    pub cx_tx_bytes_total: Counter,
}

impl ClusterStats {
    /// Of handshakes.
    pub fn tls(&self) -> &TlsStats {
        self.tls.get_or_init(Box::default)
    }

    /// A connection that has ended.
    pub fn ended(&self, end: ConnectionEnd) {
        let by = usize::from(end.remote);
        self.cx_destroy.add(1);
        self.cx_destroy_by[by].add(1);
        if end.active {
            self.cx_destroy_with_active_rq[by].add(1);
        }
        if end.served > 0 {
            self.rq_per_cx.record(end.served);
        }
    }

    /// Bytes that have come from an endpoint and gone to it.
    pub fn moved(&self, wire: Wire) {
        self.cx_rx_bytes_total.add(wire.received);
        self.cx_tx_bytes_total.add(wire.sent);
    }

    /// What the circuit breakers of a priority count.
    pub fn breakers(&self, priority: Priority) -> &Breakers {
        match priority {
            Priority::Default => &self.breakers[0],
            Priority::High => &self.breakers[1],
        }
    }

    /// A request that has ended, after so many attempts and microseconds; its status counts where that is `told`. Those that got a
    /// connection are counted already.
    pub fn count(&self, (code, told): (u16, bool), flags: ResponseFlags, attempts: u16, micros: u64, internal: bool) {
        if told && attempts > 0 && code > 0 {
            self.rq_time[usize::from(internal)].record_thousandths(micros);
        }
        // Answers of filters are none of the cluster's.
        if told && code > 0 && (attempts > 0 || flags.intersects(ResponseFlags::of_clusters())) {
            self.rq_completed.add(1);
            self.statuses[usize::from(internal)].count(code);
        }
        if attempts > 1 {
            self.rq_retry.add(u64::from(attempts) - 1);
            if flags.is_empty() && code < 500 {
                self.rq_retry_success.add(1);
            }
        }
        if flags.is_empty() {
            return;
        }
        let one = |flag: ResponseFlags, counter: &Counter| {
            if flags.contains(flag) {
                counter.add(1);
            }
        };
        one(ResponseFlags::RETRY_LIMIT, &self.rq_retry_limit_exceeded);
        one(ResponseFlags::DROP_OVERLOAD, &self.rq_drop_overload);
        one(ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD, &self.rq_drop_overload);
        one(ResponseFlags::NO_HEALTHY_UPSTREAM, &self.cx_none_healthy);
        one(ResponseFlags::UPSTREAM_REMOTE_RESET, &self.rq_rx_reset);
    }
}

/// Numbers of one endpoint, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct HostStats {
    pub rq_active: Gauge,
    pub rq_total: Counter,
    pub rq_success: Counter,
    pub rq_error: Counter,
    pub rq_timeout: Counter,
    pub cx_active: Gauge,
    pub cx_total: Counter,
    pub cx_connect_fail: Counter,
}

/// What breaks a connection or is taken out of requests where bytes become messages, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct CodecStats {
    /// Of HTTP/1, and of HTTP/2.
    pub underscores_rejected: [Counter; 2],
    pub underscores_dropped: [Counter; 2],
    pub keepalive_timeout: Counter,
    pub empty_frames_flood: Counter,
    pub priority_frames_flood: Counter,
    pub window_update_frames_flood: Counter,
    pub outbound_control_flood: Counter,
    pub rx_reset: Counter,
    pub tx_reset: Counter,
    pub rx_messaging_error: Counter,
    pub header_overflow: Counter,
    pub goaway_sent: Counter,
}

/// Why an answer that redirects was not followed, as [`HttpStats::redirects_passed`] counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFollowed {
    /// It says no place, or none that can be gone to.
    BadLocation,
    /// From clear text to TLS or back.
    UnsafeScheme,
    /// As many were followed as may be.
    TooMany,
    /// There is no route for it.
    NoRoute,
    /// A predicate does not hold.
    Predicate,
}

/// Numbers of one connection manager, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct HttpStats {
    pub statuses: Statuses,
    pub rq_total: Counter,
    pub rq_completed: Counter,
    pub rq_rx_reset: Counter,
    pub rq_idle_timeout: Counter,
    pub rq_max_duration_reached: Counter,
    pub rq_too_large: Counter,
    pub rq_http1_total: Counter,
    pub rq_http2_total: Counter,
    pub cx_protocol_error: Counter,
    pub cx_drain_close: Counter,
    pub cx_idle_timeout: Counter,
    pub cx_max_duration_reached: Counter,
    pub cx_max_requests_reached: Counter,
    pub cx_delayed_close_timeout: Counter,
    pub cx_upgrades_total: Counter,
    pub cx_upgrades_active: Gauge,
    pub rq_response_before_rq_complete: Counter,
    pub rq_too_many_premature_resets: Counter,
    pub cx_http1_total: Counter,
    pub cx_http2_total: Counter,
    pub cx_http1_active: Gauge,
    pub cx_http2_active: Gauge,
    pub rq_time: Histogram,
    pub no_route: Counter,
    pub no_cluster: Counter,
    pub rq_active: Gauge,
    pub rq_timeout: Counter,
    pub rq_header_timeout: Counter,
    pub rq_tx_reset: Counter,
    pub rq_ws_on_non_ws_route: Counter,
    pub rq_failed_path_normalization: Counter,
    pub rq_redirected_with_normalized_path: Counter,
    pub rq_overload_close: Counter,
    pub rq_non_relative_path: Counter,
    /// By [`NotFollowed`].
    pub redirects_passed: [Counter; 5],
    pub codecs: CodecStats,
    /// Connections that ended by this side.
    pub cx_destroy_local: Counter,
    /// The same with a request under way, by this side and by the client.
    pub cx_destroy_active: [Counter; 2],
    /// By client, by force, at random, not at all, and of health checks.
    pub tracing: [Counter; 5],
    pub router_total: Counter,
    pub router_direct_response: Counter,
    pub cx_total: Counter,
    pub cx_ssl_total: Counter,
    pub cx_ssl_active: Gauge,
    pub cx_active: Gauge,
    pub cx_length_ms: Histogram,
    pub cx_rx_bytes_total: Counter,
    pub cx_tx_bytes_total: Counter,
}

/// Answers of the connection managers of one prefix to clients of one listener, written by one worker.
#[derive(Debug, Default)]
pub struct ListenerHttpStats {
    /// 1xx to 5xx.
    pub classes: [Counter; 5],
    /// All of them.
    pub completed: Counter,
}

impl ListenerHttpStats {
    /// Counts an answer; 0 is none.
    pub fn count(&self, code: u16) {
        if let Some(class) = usize::from(code / 100).checked_sub(1).and_then(|class| self.classes.get(class)) {
            class.add(1);
            self.completed.add(1);
        }
    }
}

/// Counts a request among those under way, until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest<'a>(&'a HttpStats);

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.rq_active.down();
    }
}

/// Counts an upgrade among those under way, until it is dropped.
#[derive(Debug)]
pub struct ActiveUpgrade<'a>(&'a HttpStats);

impl Drop for ActiveUpgrade<'_> {
    fn drop(&mut self) {
        self.0.cx_upgrades_active.down();
    }
}

impl HttpStats {
    /// A request that wants another protocol, and may have it.
    pub fn upgrade(&self) -> ActiveUpgrade<'_> {
        self.cx_upgrades_total.add(1);
        self.cx_upgrades_active.up();
        ActiveUpgrade(self)
    }

    /// A request that begins.
    pub fn begin(&self, http2: bool) -> ActiveRequest<'_> {
        self.rq_active.up();
        self.count_begun(http2);
        ActiveRequest(self)
    }

    /// A request has come, or what was meant as one.
    pub fn count_begun(&self, http2: bool) {
        self.rq_total.add(1);
        if http2 { &self.rq_http2_total } else { &self.rq_http1_total }.add(1);
    }

    /// An answer that redirects and was not followed.
    pub fn not_followed(&self, why: NotFollowed) {
        self.redirects_passed[why as usize].add(1);
    }

    /// A request that was answered, or given up, before it was there; the stream ends for that.
    pub fn count_unfinished(&self, gone: bool) {
        self.rq_response_before_rq_complete.add(1);
        // Of a client who is gone it is counted as well.
        if !gone {
            self.rq_rx_reset.add(1);
        }
    }

    /// A request that has ended, after so many microseconds. `details` say what decided about the answer.
    pub fn count(&self, code: u16, flags: ResponseFlags, details: &str, http2: bool, micros: u64) {
        self.rq_time.record_thousandths(micros);
        // Not where an endpoint says so.
        if details == "request_payload_too_large" {
            self.rq_too_large.add(1);
        }
        if code > 0 {
            self.rq_completed.add(1);
            self.statuses.count(code);
        }
        if details != "via_upstream" {
            self.count_reason(code, details);
        }
        if flags.is_empty() {
            return;
        }
        let one = |flag: ResponseFlags, counter: &Counter| {
            if flags.intersects(flag) {
                counter.add(1);
            }
        };
        one(ResponseFlags::NO_ROUTE, &self.no_route);
        one(ResponseFlags::NO_CLUSTER, &self.no_cluster);
        one(ResponseFlags::STREAM_IDLE_TIMEOUT, &self.rq_idle_timeout);
        if !http2 {
            one(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, &self.cx_protocol_error);
        }
        let gone = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION | ResponseFlags::DOWNSTREAM_REMOTE_RESET;
        one(gone, &self.rq_rx_reset);
    }

    /// What has a number of its own.
    fn count_reason(&self, code: u16, details: &str) {
        let counter = match details {
            "request_overall_timeout" => &self.rq_timeout,
            "request_header_timeout" => &self.rq_header_timeout,
            "upgrade_failed" => &self.rq_ws_on_non_ws_route,
            "path_normalization_failed" if code == 307 => &self.rq_redirected_with_normalized_path,
            "path_normalization_failed" => &self.rq_failed_path_normalization,
            "overload" => &self.rq_overload_close,
            "absolute_path_rejected" => &self.rq_non_relative_path,
            "max_duration_timeout" => &self.rq_max_duration_reached,
            "http1.unexpected_underscore" => &self.codecs.underscores_rejected[0],
            "http2.unexpected_underscore" if code == 0 => &self.codecs.underscores_rejected[1],
            _ => return,
        };
        counter.add(1);
    }
}

/// Numbers of one listener, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct ListenerStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_overflow: Counter,
    pub cx_length_ms: Histogram,
    pub no_filter_chain_match: Counter,
    pub pre_cx_timeout: Counter,
    pub tls: TlsStats,
    /// Whether it has chains with TLS.
    pub secured: std::sync::atomic::AtomicBool,
}

impl ListenerStats {
    /// Whether there is TLS to tell of.
    pub fn has_tls(&self) -> bool {
        self.secured.load(Relaxed)
    }
}

/// A worker's cluster as others may see it.
#[derive(Debug)]
pub struct PublishedCluster {
    /// As the worker has it: with what is known of its endpoints.
    pub config: Arc<Cluster>,
    /// Its numbers.
    pub stats: Arc<ClusterStats>,
    /// Its endpoints with theirs.
    pub hosts: Vec<(Arc<Endpoint>, Arc<HostStats>)>,
    /// The table by which hashes decide, where they do.
    pub table: Option<TableSize>,
    /// Groups of its endpoints by labels.
    pub subsets: u64,
    /// How many workers share its limits.
    pub workers: u32,
}
