//! Numbers under Envoy's names that any thread adds to: of filters, of checks of endpoints, of what management servers send.
//!
//! They are made when configuration arrives and live as long as some of it counts them: a change of configuration does not lose
//! what was counted, and what is removed is no longer told. What every request counts is not here but in the workers' own [`super::stats`].

use super::envoy::{Stat, as_part};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers that are kept by name at most, about 200 bytes each; further ones count where nobody sees them. Enough for the 21 numbers of
/// outlier detection of ten thousand clusters.
pub const MAX_COUNTERS: usize = 262_144;

/// Below so many nothing is looked for that could go.
const FEW: usize = 1024;

/// One number.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Counts.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// One less.
    pub fn down(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// It is this now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A part of a name that is the value of a label where labels are told: `http.` `ingress` `.`.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// What stands before it, with its dot.
    pub kind: &'a str,
    /// The label.
    pub label: &'static str,
    /// Its value.
    pub value: &'a str,
}

impl<'a> Scope<'a> {
    /// A connection manager.
    pub fn http(prefix: &'a str) -> Self {
        Self { kind: "http.", label: "envoy_http_conn_manager_prefix", value: prefix }
    }

    /// A cluster.
    pub fn cluster(name: &'a str) -> Self {
        Self { kind: "cluster.", label: "envoy_cluster_name", value: name }
    }

    /// Rules of access control of a connection manager; `prefix` is their own.
    pub fn rbac(prefix: &'a str) -> Self {
        Self { kind: "rbac.", label: "envoy_rbac_http_prefix", value: prefix.trim_end_matches('.') }
    }

    /// A TCP proxy.
    pub fn tcp(prefix: &'a str) -> Self {
        Self { kind: "tcp.", label: "envoy_tcp_prefix", value: prefix }
    }

    /// A part of names that tells nothing apart; with its dot.
    pub fn part(kind: &'a str) -> Self {
        Self { kind, label: "", value: "" }
    }

    /// A name that begins with the value itself, whose dot at the end counts for nothing.
    pub fn bare(label: &'static str, value: &'a str) -> Self {
        Self { kind: "", label, value: value.trim_end_matches('.') }
    }
}

/// What tells a number apart from others of its family.
#[derive(Debug)]
pub struct Label {
    /// The family, in place of the name.
    pub family: &'static str,
    /// The label.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

#[derive(Debug)]
struct Entry {
    number: Arc<Number>,
    gauge: bool,
    family: String,
    labels: Vec<(&'static str, String)>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Mutex<Numbers>>);

#[derive(Debug)]
struct Numbers {
    by_name: BTreeMap<String, Entry>,
    /// How many there may be before it is looked for those that nobody counts any more: twice as many as were left then.
    look_at: usize,
    /// It was said that there are too many.
    told: bool,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), look_at: FEW, told: false }
    }
}

impl Numbers {
    /// What no configuration counts any more goes, as in Envoy.
    fn forget(&mut self) {
        self.by_name.retain(|_, entry| Arc::strong_count(&entry.number) > 1);
        self.look_at = (self.by_name.len() * 2).clamp(FEW, MAX_COUNTERS);
    }
}

impl Counters {
    /// The counter `stat` under these scopes, one inside of the other; the same whenever it is asked for.
    pub fn counter(&self, scopes: &[Scope<'_>], stat: &str) -> Arc<Number> {
        self.number(scopes, stat, None, false)
    }

    /// The same of one of a family, told apart by a label.
    pub fn labelled(&self, scopes: &[Scope<'_>], stat: &str, label: Label) -> Arc<Number> {
        self.number(scopes, stat, Some(label), false)
    }

    /// The same of a number that goes up and down.
    pub fn gauge(&self, scopes: &[Scope<'_>], stat: &str) -> Arc<Number> {
        self.number(scopes, stat, None, true)
    }

    fn number(&self, scopes: &[Scope<'_>], stat: &str, last: Option<Label>, gauge: bool) -> Arc<Number> {
        let (mut name, mut family, mut labels) = (String::new(), "envoy_".to_owned(), Vec::new());
        for Scope { kind, label, value } in scopes {
            name.push_str(kind);
            family.push_str(&kind.replace(['.', '-'], "_"));
            if !value.is_empty() {
                let value = as_part(value);
                name.push_str(&value);
                name.push('.');
                labels.push((*label, value.into_owned()));
            }
        }
        name.push_str(stat);
        match last {
            None => family.push_str(&stat.replace(['.', '-'], "_")),
            Some(Label { family: own, name, value }) => {
                family.push_str(own);
                labels.insert(0, (name, value));
            }
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.by_name.get(&name) {
            return known.number.clone();
        }
        let number = Arc::<Number>::default();
        // Not for each: it takes as long as there are numbers.
        if all.by_name.len() >= all.look_at && !all.told {
            all.forget();
        }
        if all.by_name.len() < MAX_COUNTERS {
            all.by_name.insert(name, Entry { number: number.clone(), gauge, family, labels });
        } else if !std::mem::replace(&mut all.told, true) {
            tracing::warn!(%name, most = MAX_COUNTERS, "too many statistics; this one and further ones are not told");
        }
        number
    }

    /// Every number, sorted by name.
    pub fn stats(&self) -> Vec<Stat> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.forget();
        all.told &= all.by_name.len() >= MAX_COUNTERS;
        let stat = |(name, entry): (&String, &Entry)| {
            Stat::new(name, entry.number.get(), entry.gauge, entry.family.clone(), entry.labels.clone())
        };
        all.by_name.iter().map(stat).collect()
    }
}

/// Numbers that belong together. What is made by `default` counts where nobody looks; all are equal, so that what holds them is
/// compared by everything else.
macro_rules! group {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $stat:literal),* $(,)? $(; $($gauge:ident = $gauge_stat:literal),*)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default)]
        #[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
        pub struct $name {
            $(pub $field: Arc<Number>,)*
            $($(pub $gauge: Arc<Number>,)*)?
        }

        impl $name {
            /// Those under these scopes.
            pub fn new(counters: &Counters, scopes: &[Scope<'_>]) -> Self {
                Self {
                    $($field: counters.counter(scopes, $stat),)*
                    $($($gauge: counters.gauge(scopes, $gauge_stat),)*)?
                }
            }
        }

        impl PartialEq for $name {
            fn eq(&self, _: &Self) -> bool {
                true
            }
        }
    };
}

group!(
    /// What the TLS inspector found.
    TlsInspectorStats {
        found = "tls_found", not_found = "tls_not_found", alpn_found = "alpn_found", alpn_not_found = "alpn_not_found",
        sni_found = "sni_found", sni_not_found = "sni_not_found", too_large = "client_hello_too_large",
    }
);
group!(
    /// What the HTTP inspector found.
    HttpInspectorStats {
        http10 = "http10_found", http11 = "http11_found", http2 = "http2_found", not_found = "http_not_found",
        parse_error = "parse_error", read_error = "read_error",
    }
);
group!(
    /// What rules of access control decided.
    RbacStats { allowed = "allowed", denied = "denied" }
);
group!(
    /// What rules that only look would have decided.
    ShadowStats { allowed = "shadow_allowed", denied = "shadow_denied" }
);
group!(
    /// Faults on purpose.
    FaultStats {
        aborts = "fault.aborts_injected",
        delays = "fault.delays_injected",
        overflow = "fault.faults_overflow",
        limited = "fault.response_rl_injected";
        active = "fault.active_faults"
    }
);
group!(
    /// Origins of cross-origin requests.
    CorsStats { valid = "cors.origin_valid", invalid = "cors.origin_invalid" }
);
group!(
    /// A limit of rates of requests.
    RateLimitStats {
        enabled = "http_local_rate_limit.enabled",
        enforced = "http_local_rate_limit.enforced",
        rate_limited = "http_local_rate_limit.rate_limited",
        ok = "http_local_rate_limit.ok",
        shadow_mode = "http_local_rate_limit.shadow_mode",
    }
);
group!(
    /// Checks of a cluster's endpoints.
    CheckStats {
        attempt = "health_check.attempt",
        success = "health_check.success",
        failure = "health_check.failure",
        network_failure = "health_check.network_failure",
        passive_failure = "health_check.passive_failure";
        healthy = "health_check.healthy",
        degraded = "health_check.degraded"
    }
);
group!(
    /// Endpoints that were taken out, and why.
    OutlierStats {
        total = "outlier_detection.ejections_total",
        enforced_total = "outlier_detection.ejections_enforced_total",
        overflow = "outlier_detection.ejections_overflow",
        consecutive_5xx = "outlier_detection.ejections_consecutive_5xx",
        detected_5xx = "outlier_detection.ejections_detected_consecutive_5xx",
        enforced_5xx = "outlier_detection.ejections_enforced_consecutive_5xx",
        detected_gateway = "outlier_detection.ejections_detected_consecutive_gateway_failure",
        enforced_gateway = "outlier_detection.ejections_enforced_consecutive_gateway_failure",
        detected_local = "outlier_detection.ejections_detected_consecutive_local_origin_failure",
        enforced_local = "outlier_detection.ejections_enforced_consecutive_local_origin_failure",
        detected_rate = "outlier_detection.ejections_detected_success_rate",
        enforced_rate = "outlier_detection.ejections_enforced_success_rate",
        detected_local_rate = "outlier_detection.ejections_detected_local_origin_success_rate",
        enforced_local_rate = "outlier_detection.ejections_enforced_local_origin_success_rate",
        detected_percentage = "outlier_detection.ejections_detected_failure_percentage",
        enforced_percentage = "outlier_detection.ejections_enforced_failure_percentage",
        detected_local_percentage = "outlier_detection.ejections_detected_local_origin_failure_percentage",
        enforced_local_percentage = "outlier_detection.ejections_enforced_local_origin_failure_percentage";
        active = "outlier_detection.ejections_active"
    }
);
group!(
    /// Connections of a TCP proxy.
    TcpStats {
        total = "downstream_cx_total",
        no_route = "downstream_cx_no_route",
        received = "downstream_cx_rx_bytes_total",
        sent = "downstream_cx_tx_bytes_total",
        idle_timeout = "idle_timeout",
        max_duration = "max_downstream_connection_duration",
    }
);
group!(
    /// Bodies of one direction that a filter has compressed or not.
    CompressorStats {
        compressed = "compressed",
        not_compressed = "not_compressed",
        uncompressed_bytes = "total_uncompressed_bytes",
        compressed_bytes = "total_compressed_bytes",
        too_small = "content_length_too_small",
    }
);
group!(
    /// What clients accept of a compressor.
    AcceptStats {
        none = "no_accept_header",
        identity = "header_identity",
        used = "header_compressor_used",
        overshadowed = "header_compressor_overshadowed",
        wildcard = "header_wildcard",
        not_valid = "header_not_valid",
        etag = "not_compressed_etag",
    }
);
group!(
    /// Bodies of one direction that a filter has decompressed or not.
    DecompressorStats {
        decompressed = "decompressed",
        not_decompressed = "not_decompressed",
        uncompressed_bytes = "total_uncompressed_bytes",
        compressed_bytes = "total_compressed_bytes",
    }
);
group!(
    /// Look-ups of a cluster's names.
    LookupStats { attempt = "update_attempt", success = "update_success", failure = "update_failure", empty = "update_empty" }
);
group!(
    /// A limit of connections.
    ConnectionLimitStats { limited = "limited_connections"; active = "active_connections" }
);
group!(
    /// A limit of rates of connections.
    ConnectionRateStats { limited = "rate_limited" }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_when_asked_for_again_then_it_goes_on_and_is_told_with_labels() {
        let counters = Counters::default();
        let scopes = [Scope::http("in")];
        let denied = counters.counter(&scopes, "rbac.denied");
        denied.add(1);
        counters.counter(&scopes, "rbac.denied").add(1);
        let allowed = counters.counter(&[Scope::bare("envoy_rbac_prefix", "tcp.")], "rbac.allowed");
        allowed.add(3);
        let told: Vec<(String, u64)> = counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
        assert_eq!(told, [("http.in.rbac.denied".to_owned(), 2), ("tcp.rbac.allowed".to_owned(), 3)]);
        drop(denied);
        assert_eq!(counters.stats().len(), 1, "what nobody counts any more is not told");
    }

    #[test]
    fn counter_when_there_are_too_many_then_further_ones_are_not_told() {
        let counters = Counters::default();
        let _all: Vec<_> = (0..=MAX_COUNTERS).map(|n| counters.counter(&[], &format!("n{n}"))).collect();
        assert_eq!(counters.stats().len(), MAX_COUNTERS);
    }
}
