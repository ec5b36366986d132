//! What a policy says about a cluster, in Envoy's words: load balancing, limits, HTTP options, outlier detection.

use std::collections::BTreeMap;
use std::time::Duration;

use leno_core::Protocol;
use leno_core::policy::{
    Algorithm, Balancing, ClientTls, ConnectionLimits, HashTable, Keepalive, OutlierDetection, RetryBudget,
    TrafficPolicy, Warmup,
};
use leno_xds::any;
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use leno_xds::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
    SlowStartConfig,
};
use leno_xds::envoy::config::common::matcher::v3::{HttpHeadersMatch, MatchPredicate, match_predicate};
use leno_xds::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttp, KeepaliveSettings, RuntimeDouble,
    TcpKeepalive, UpstreamHttpProtocolOptions,
};
use leno_xds::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use leno_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, OutlierDetection as HttpOutliers, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use leno_xds::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use leno_xds::envoy::r#type::v3::Percent;

use super::values::{duration, regex};
use crate::resolve::{Spread, SpreadBy};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Retries under way in percent of the requests under way, and as many are always allowed.
const RETRY_BUDGET: RetryBudget = RetryBudget { percent: 20.0, min_concurrency: 3, interval: None };

/// How endpoints are chosen.
pub(super) fn load_balancing(balancing: Option<&Balancing>) -> (LbPolicy, Option<LbConfig>) {
    let Some(Balancing { algorithm, warmup, locality: _ }) = balancing else { return (LbPolicy::LeastRequest, None) };
    let slow_start_config = warmup.map(|Warmup { duration: window, minimum_percent, aggression }| SlowStartConfig {
        slow_start_window: Some(duration(window)),
        aggression: Some(RuntimeDouble { default_value: aggression, runtime_key: "warmup".to_owned() }),
        min_weight_percent: Some(Percent { value: minimum_percent }),
    });
    match algorithm {
        Algorithm::LeastRequest | Algorithm::Passthrough => {
            let config = LeastRequestLbConfig { slow_start_config, ..Default::default() };
            let config = config.slow_start_config.is_some().then_some(LbConfig::LeastRequestLbConfig(config));
            (LbPolicy::LeastRequest, config)
        }
        Algorithm::RoundRobin => {
            let config = RoundRobinLbConfig { slow_start_config };
            let config = config.slow_start_config.is_some().then_some(LbConfig::RoundRobinLbConfig(config));
            (LbPolicy::RoundRobin, config)
        }
        Algorithm::Random => (LbPolicy::Random, None),
        Algorithm::Hash(_, HashTable::Ring(size)) => {
            let config = RingHashLbConfig { minimum_ring_size: Some(*size), ..Default::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        Algorithm::Hash(_, HashTable::Maglev(size)) => {
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(*size) })))
        }
    }
}

/// What places change, and how many endpoints must be healthy. Where endpoints are taken out, those that are left get all
/// traffic, however few: there is no panic unless a share is asked for, as in Istio.
pub(super) fn common_lb_config(policy: &TrafficPolicy, spread: &Spread) -> Option<CommonLbConfig> {
    let panic = policy.outliers.as_ref().map(|outliers| outliers.min_health_percent.unwrap_or_default());
    let Spread { weighted, by } = spread;
    let zone_aware = match by {
        SpreadBy::Nearest(nearest) => nearest.zone_aware,
        SpreadBy::Nothing | SpreadBy::Shares(_) => None,
    };
    let locality = match zone_aware {
        Some(size) => Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
            min_cluster_size: Some(size),
            ..Default::default()
        })),
        None => weighted.then_some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})),
    };
    (panic.is_some() || locality.is_some()).then(|| CommonLbConfig {
        healthy_panic_threshold: panic.map(|percent| Percent { value: f64::from(percent) }),
        locality_config_specifier: locality,
        ..Default::default()
    })
}

/// Limits. A budget and a plain limit on retries exclude each other in Envoy: the budget that was written comes first,
/// then the limit, then the mesh's own budget.
pub(super) fn circuit_breakers(limits: &ConnectionLimits, budget: Option<RetryBudget>) -> xds::CircuitBreakers {
    use xds::circuit_breakers::{Thresholds, thresholds};
    let ConnectionLimits { max_connections, max_pending, max_requests, max_retries, .. } = limits;
    let max_retries = max_retries.filter(|_| budget.is_none());
    let budget = budget.or_else(|| max_retries.is_none().then_some(RETRY_BUDGET));
    let retry_budget = budget.map(|RetryBudget { percent, min_concurrency, interval }| thresholds::RetryBudget {
        budget_percent: Some(Percent { value: percent }),
        min_retry_concurrency: Some(min_concurrency),
        budget_interval: interval.map(duration),
    });
    xds::CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(max_connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(max_pending.unwrap_or(u32::MAX)),
            max_requests: Some(max_requests.unwrap_or(u32::MAX)),
            max_retries,
            retry_budget,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// How HTTP is spoken; nothing where it is not.
pub(super) fn http_options(protocol: Protocol, policy: &TrafficPolicy) -> BTreeMap<String, prost_types::Any> {
    let none = ConnectionLimits::default();
    let limits = policy.connections.as_ref().unwrap_or(&none);
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: limits.max_concurrent_streams,
        connection_keepalive: limits.http2_keepalive.map(|(interval, timeout)| KeepaliveSettings {
            interval: Some(duration(interval)),
            timeout: Some(duration(timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let http1 = Http1ProtocolOptions { enable_trailers: true, ..Default::default() };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let options = if protocol.is_opaque() {
        return BTreeMap::new();
    } else if protocol == Protocol::Auto || limits.use_client_protocol {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(http1),
            http2_protocol_options: Some(http2),
            ..Default::default()
        })
    } else if protocol.is_http2() {
        explicit(ProtocolConfig::Http2ProtocolOptions(http2))
    } else {
        explicit(ProtocolConfig::HttpProtocolOptions(http1))
    };
    let idle = limits.http_idle_timeout.or(limits.tcp_idle_timeout);
    let common =
        (idle.is_some() || limits.max_requests_per_connection.is_some() || limits.max_connection_duration.is_some())
            .then(|| CommonHttp {
                idle_timeout: idle.map(duration),
                max_requests_per_connection: limits.max_requests_per_connection,
                max_connection_duration: limits.max_connection_duration.map(duration),
                ..Default::default()
            });
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_http_protocol_options: server_names(policy.tls.as_ref()),
        upstream_protocol_options: Some(options),
        outlier_detection: policy.outliers.as_ref().and_then(failures),
        ..Default::default()
    };
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

/// The server name, and the name that the certificate must have, from the request, where nobody said which.
fn server_names(tls: Option<&ClientTls>) -> Option<UpstreamHttpProtocolOptions> {
    let Some(ClientTls::Simple(settings)) = tls else { return None };
    settings.server_name.is_none().then(|| UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: settings.names.is_empty() && !settings.unverified,
        ..Default::default()
    })
}

/// Which answers count as failures, where it is not 5xx: these and no others.
fn failures(outliers: &OutlierDetection) -> Option<HttpOutliers> {
    if outliers.statuses.is_empty() {
        return None;
    }
    let statuses: Vec<String> = outliers.statuses.iter().map(u16::to_string).collect();
    let pattern = MatchPattern::SafeRegex(regex(&statuses.join("|")));
    let header = HeaderMatcher {
        name: ":status".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..Default::default()
        })),
        ..Default::default()
    };
    Some(HttpOutliers {
        error_matcher: Some(MatchPredicate {
            rule: Some(match_predicate::Rule::HttpResponseHeadersMatch(HttpHeadersMatch { headers: vec![header] })),
        }),
    })
}

/// Taking endpoints out that keep failing.
pub(super) fn outlier_detection(outliers: &OutlierDetection) -> xds::OutlierDetection {
    let OutlierDetection {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local,
        split_local,
        interval,
        base_ejection,
        max_ejection_percent,
        // Of the load balancer, and of HTTP.
        min_health_percent: _,
        statuses: _,
    } = outliers;
    let enforcing = |count: &Option<u32>| count.map(|count| if count > 0 { 100 } else { 0 });
    xds::OutlierDetection {
        consecutive_5xx: consecutive_5xx.filter(|count| *count > 0),
        enforcing_consecutive_5xx: enforcing(consecutive_5xx),
        consecutive_gateway_failure: consecutive_gateway.filter(|count| *count > 0),
        enforcing_consecutive_gateway_failure: enforcing(consecutive_gateway),
        consecutive_local_origin_failure: consecutive_local.filter(|count| *split_local && *count > 0),
        enforcing_consecutive_local_origin_failure: enforcing(&consecutive_local.filter(|_| *split_local)),
        split_external_local_origin_errors: *split_local,
        interval: interval.map(duration),
        base_ejection_time: base_ejection.map(duration),
        max_ejection_percent: max_ejection_percent.filter(|percent| *percent > 0),
        // Success rates are not what was asked for.
        enforcing_success_rate: Some(0),
        enforcing_local_origin_success_rate: split_local.then_some(0),
        ..Default::default()
    }
}

/// Probes of the kernel.
pub(super) fn keepalive(keepalive: Keepalive) -> xds::UpstreamConnectionOptions {
    let Keepalive { probes, time, interval } = keepalive;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs().max(1)).unwrap_or(u32::MAX);
    xds::UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_probes: probes,
            keepalive_time: time.map(seconds),
            keepalive_interval: interval.map(seconds),
        }),
        ..Default::default()
    }
}
