//! The network filters of a filter chain: gates that connections must pass, and at the end what serves them.

use super::access_log::access_logs;
use super::common::{
    duration, filter_metadata, header_ops, header_text, log_interval, maybe_duration, optional, unknown_type,
};
use super::filter::enabled;
use super::http::{Tables, manager};
use super::listener::Found;
use super::{Context, Converted, Refused, Within as _, rbac, refuse, secret};
use crate::config::{
    Bucket, ConnectionLimit, Direction, Gate, LABELS, Labels, Network, NetworkRateLimit, NetworkRbac, TcpProxy,
    TcpTarget, TcpTunnel,
};
use crate::rbac::Decider;
use crate::telemetry::counters::{ConnectionLimitStats, ConnectionRateStats, RbacStats, Scope, ShadowStats, TcpStats};
use leno_xds::envoy::config::core::v3::{BackoffStrategy, Metadata};
use leno_xds::envoy::config::listener::v3::{Filter, filter};
use leno_xds::envoy::extensions::filters::network::{
    connection_limit::v3::ConnectionLimit as LimitMessage, direct_response::v3::Config as DirectMessage,
    echo::v3::Echo, http_connection_manager::v3::HttpConnectionManager, local_ratelimit::v3::LocalRateLimit,
    rbac::v3 as rbac_filter, sni_cluster::v3::SniCluster, tcp_proxy::v3 as tcp,
};
use leno_xds::envoy::r#type::v3::{HashPolicy, Percent, TokenBucket, hash_policy};
use prost_types::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Filters before the one that serves at most.
const MAX_GATES: usize = 16;

/// What a filter chain belongs to.
pub struct Around<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Which way its traffic goes.
    pub direction: Direction,
    /// Whether the listener says that its traffic goes out.
    pub egress: bool,
    /// Connections end because of a change of the listener, and not because health checks are to fail.
    pub only_changes: bool,
    /// The listener's connections and requests are taken however little memory there is.
    pub bypasses_overload: bool,
    /// Bytes of a request's body that may be kept for another attempt where its route does not say.
    pub buffer_limit: usize,
    /// Route tables by name.
    pub tables: Tables<'a>,
}

/// The filters of a chain.
pub(super) fn network(
    context: &mut Context,
    filters: Vec<Filter>,
    around: &Around<'_>,
    chain: &str,
    found: &mut Found,
) -> Converted<(Vec<Gate>, Network)> {
    let count = filters.len();
    if count > MAX_GATES + 1 {
        return Err(Refused::new("filters", format!("are more than {}", MAX_GATES + 1)));
    }
    if count == 0 {
        // Connections are closed, and nothing is said.
        return Ok((Vec::new(), Network::Direct(Arc::from([]))));
    }
    let mut gates = Vec::new();
    let mut by_server_name = false;
    for (index, Filter { name, config_type }) in filters.into_iter().enumerate() {
        let any = match config_type {
            Some(filter::ConfigType::TypedConfig(any)) => any,
            Some(filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(Refused::new(
                    format!("filters[{index}].config_discovery"),
                    "is not supported by this proxy",
                ));
            }
            None => {
                return Err(Refused::new(format!("filters[{index}].typed_config"), format!("of `{name}` is missing")));
            }
        };
        let within = format!("filters[{index}].typed_config");
        if let Some(SniCluster {}) = optional(&any).within(&within)? {
            by_server_name = true;
        } else if let Some(gate) = gate(context, &any, around, chain).within(&within)? {
            gates.extend(gate);
        } else {
            let served = terminal(context, &any, around, by_server_name, found).within(&within)?;
            if index + 1 < count {
                let reason = format!("comes after `{name}`, which ends the chain");
                return Err(Refused::new(format!("filters[{}]", index + 1), reason));
            }
            return Ok((gates, served));
        }
    }
    Err(Refused::new("filters", "has none that serves connections"))
}

/// A gate, if it is one (`Some(None)` where it is switched off).
fn gate(context: &mut Context, any: &Any, around: &Around<'_>, chain: &str) -> Converted<Option<Option<Gate>>> {
    if let Some(value) = optional::<rbac_filter::Rbac>(any)? {
        return Ok(Some(Some(Gate::Rbac(Arc::new(network_rbac(context, value)?)))));
    }
    if let Some(value) = optional::<LimitMessage>(any)? {
        let LimitMessage { stat_prefix, max_connections, delay, runtime_enabled } = value;
        if !enabled(context, runtime_enabled) {
            return Ok(Some(None));
        }
        let max = max_connections.filter(|max| *max > 0);
        let max = max.ok_or_else(|| Refused::new("max_connections", "is missing or zero"))?;
        let key = format!("{}/{chain}/{stat_prefix}", around.listener);
        let scope = Scope { kind: "connection_limit.", label: "envoy_connection_limit_prefix", value: &stat_prefix };
        return Ok(Some(Some(Gate::ConnectionLimit(Arc::new(ConnectionLimit {
            stats: ConnectionLimitStats::new(&context.counters, &[scope]),
            stat_prefix: stat_prefix.into(),
            max: u32::try_from(max).unwrap_or(u32::MAX),
            delay: maybe_duration(delay, "delay")?.unwrap_or_default(),
            open: context.limits.count(&key, AtomicU32::default),
        })))));
    }
    if let Some(value) = optional::<LocalRateLimit>(any)? {
        let LocalRateLimit { stat_prefix, token_bucket, runtime_enabled, share_key } = value;
        if !enabled(context, runtime_enabled) {
            return Ok(Some(None));
        }
        let Some(bucket) = token_bucket else { return Err(Refused::new("token_bucket", "is missing")) };
        let (max, fill, interval) = token_bucket_of(bucket).within("token_bucket")?;
        let place = if share_key.is_empty() {
            format!("{}/{chain}/{stat_prefix}", around.listener)
        } else {
            format!("shared/{share_key}")
        };
        let key = format!("{place}/{max}/{fill}/{interval:?}");
        let bucket = context.limits.bucket(&key, || Bucket::new(max, fill, interval));
        let scope = Scope { kind: "local_rate_limit.", label: "envoy_local_ratelimit_prefix", value: &stat_prefix };
        let stats = ConnectionRateStats::new(&context.counters, &[scope]);
        let limit = NetworkRateLimit { stats, stat_prefix: stat_prefix.into(), bucket };
        return Ok(Some(Some(Gate::RateLimit(Arc::new(limit)))));
    }
    Ok(None)
}

/// Tokens at most, tokens a time, and the time.
fn token_bucket_of(value: TokenBucket) -> Converted<(u32, u32, Duration)> {
    let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = value;
    if max_tokens == 0 {
        return Err(Refused::new("max_tokens", "is zero"));
    }
    let interval = fill_interval.ok_or_else(|| Refused::new("fill_interval", "is missing"))?;
    let interval = duration(interval, "fill_interval")?;
    if interval < Duration::from_millis(50) {
        return Err(Refused::new("fill_interval", "is shorter than 50 ms"));
    }
    Ok((max_tokens, tokens_per_fill.unwrap_or(1).max(1), interval))
}

fn network_rbac(context: &Context, value: rbac_filter::Rbac) -> Converted<NetworkRbac> {
    let rbac_filter::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        // What is decided at the beginning of a connection does not change later: nothing that it depends on does.
        enforcement_type: _,
        delay_deny,
    } = value;
    let rules = rbac::decider(rules, matcher, ["rules", "matcher"])?;
    let shadow = rbac::decider(shadow_rules, shadow_matcher, ["shadow_rules", "shadow_matcher"])?;
    for (decider, field) in [(&rules, "matcher"), (&shadow, "shadow_matcher")] {
        if matches!(decider, Some(Decider::Matching(tree)) if tree.is_of_requests()) {
            return Err(Refused::new(field, "looks at headers, which a connection has none of"));
        }
    }
    for (decider, field) in [(&rules, "rules"), (&shadow, "shadow_rules")] {
        if matches!(decider, Some(Decider::Rules(rules)) if rules.look_at_headers()) {
            return Err(Refused::new(field, "has a `header`, which a connection has none of; leave it out"));
        }
    }
    let scopes = [Scope::bare("envoy_rbac_prefix", &stat_prefix), Scope { kind: "rbac.", label: "", value: "" }];
    let prefix = Scope { kind: "rbac.", label: "envoy_rbac_shadow_prefix", value: &shadow_rules_stat_prefix };
    let stats = (RbacStats::new(&context.counters, &scopes), ShadowStats::new(&context.counters, &[scopes[0], prefix]));
    Ok(NetworkRbac {
        stats,
        stat_prefix: stat_prefix.into(),
        rules,
        shadow,
        shadow_prefix: shadow_rules_stat_prefix.as_str().into(),
        delay: maybe_duration(delay_deny, "delay_deny")?.unwrap_or_default(),
    })
}

fn terminal(
    context: &mut Context,
    any: &Any,
    around: &Around<'_>,
    by_server_name: bool,
    found: &mut Found,
) -> Converted<Network> {
    if let Some(value) = optional::<HttpConnectionManager>(any)? {
        let mut manager = manager(context, value, (around.direction, around.egress), around.tables, found)?;
        manager.ends_on_changes_only = around.only_changes;
        manager.bypasses_overload = around.bypasses_overload;
        manager.buffer_limit = around.buffer_limit;
        return Ok(Network::Http(Arc::new(manager)));
    }
    if let Some(value) = optional::<tcp::TcpProxy>(any)? {
        let proxy = tcp_proxy(context, value, around.direction, found)?;
        return Ok(Network::Tcp(Arc::new(TcpProxy { by_server_name, ..proxy })));
    }
    if let Some(DirectMessage { response }) = optional(any)? {
        let mut unused = crate::tls::facts::Hasher::default();
        let bytes = secret::data(response, &mut unused).within("response")?;
        return Ok(Network::Direct(bytes.unwrap_or_default().into()));
    }
    if let Some(Echo {}) = optional(any)? {
        return Ok(Network::Echo);
    }
    Err(unknown_type(any))
}

fn tcp_proxy(
    context: &mut Context,
    value: tcp::TcpProxy,
    direction: Direction,
    found: &mut Found,
) -> Converted<TcpProxy> {
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log: logs,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode,
        // Only for other modes of connecting.
        max_early_data_bytes: _,
        check_drain_close: _,
        cluster_specifier,
    } = value;
    refuse!(on_demand, downstream_idle_timeout, upstream_idle_timeout, proxy_protocol_tlvs, upstream_connect_mode);
    let (log_starts, log_connected, every) = log_when(access_log_options).within("access_log_options")?;
    // What a target asks for goes before what the filter does.
    let common = filter_metadata(metadata_match.as_ref(), LABELS).map(Labels::of);
    let wanted = |own: Option<&Metadata>| {
        let own = filter_metadata(own, LABELS).map(Labels::of);
        match (&common, own) {
            (Some(common), Some(own)) => Some(Arc::new(common.with(&own))),
            (Some(common), None) => Some(Arc::new(common.clone())),
            (None, own) => own.map(Arc::new),
        }
    };
    let mut hash_source_ip = false;
    for (index, HashPolicy { policy_specifier }) in hash_policy.into_iter().enumerate() {
        match policy_specifier {
            Some(hash_policy::PolicySpecifier::SourceIp(_)) => hash_source_ip = true,
            _ => return Err(Refused::new(format!("hash_policy[{index}]"), "is not `source_ip`")),
        }
    }
    let targets = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            // Where none is named, the server name names it, or nothing does.
            match name.is_empty() {
                true => Vec::new(),
                false => {
                    let cluster = context.cluster(&name).within("cluster")?;
                    vec![TcpTarget { labels: wanted(None), ..TcpTarget::all(cluster) }]
                }
            }
        }
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(value)) => {
            let tcp::tcp_proxy::WeightedCluster { clusters } = value;
            let mut targets = Vec::with_capacity(clusters.len());
            for (index, cluster) in clusters.into_iter().enumerate() {
                let within = format!("weighted_clusters.clusters[{index}]");
                let tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = cluster;
                if weight > 0 {
                    let cluster = context.cluster(&name).within(within)?;
                    targets.push(TcpTarget { cluster, weight, labels: wanted(metadata_match.as_ref()) });
                }
            }
            if targets.is_empty() {
                return Err(Refused::new("weighted_clusters.clusters", "has no weight above zero"));
            }
            targets
        }
        None => return Err(Refused::new("cluster_specifier", "is missing")),
    };
    found.clusters.extend(targets.iter().map(|target| target.cluster));
    let max_duration = maybe_duration(max_downstream_connection_duration, "max_downstream_connection_duration")?;
    let jitter = max_downstream_connection_duration_jitter_percentage.map_or(0.0, |Percent { value }| value);
    if !(0.0..=100.0).contains(&jitter) {
        return Err(Refused::new("max_downstream_connection_duration_jitter_percentage", "is not between 0 and 100"));
    }
    Ok(TcpProxy {
        stats: TcpStats::new(&context.counters, &[Scope::tcp(&stat_prefix)]),
        stat_prefix: stat_prefix.into(),
        direction,
        idle_timeout: maybe_duration(idle_timeout, "idle_timeout")?.unwrap_or(Duration::from_secs(3600)),
        max_duration: max_duration.map(|limit| (limit, limit.mul_f64(jitter / 100.0))),
        connect_attempts: max_connect_attempts.unwrap_or(1).max(1),
        hash_source_ip,
        tunnel: tunneling_config.map(|value| tunnel(context, value)).transpose().within("tunneling_config")?,
        backoff: backoff_options.map(backoff).transpose().within("backoff_options")?,
        access_logs: access_logs(context, logs)?,
        log_starts,
        log_connected: log_connected || flush_access_log_on_connected,
        log_every: every.or(log_interval(access_log_flush_interval)?),
        ..TcpProxy::new(targets)
    })
}

/// Whether lines are written when a connection has begun and when it has reached its endpoint, and how often after that.
fn log_when(value: Option<tcp::tcp_proxy::TcpAccessLogOptions>) -> Converted<(bool, bool, Option<Duration>)> {
    let tcp::tcp_proxy::TcpAccessLogOptions {
        access_log_flush_interval,
        flush_access_log_on_connected,
        flush_access_log_on_start,
    } = value.unwrap_or_default();
    Ok((flush_access_log_on_start, flush_access_log_on_connected, log_interval(access_log_flush_interval)?))
}

fn tunnel(context: &mut Context, value: tcp::tcp_proxy::TunnelingConfig) -> Converted<Box<TcpTunnel>> {
    let tcp::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        propagate_response_headers,
        post_path,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters,
    } = value;
    refuse!(
        propagate_response_headers,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters
    );
    if hostname.is_empty() {
        return Err(Refused::new("hostname", "is missing"));
    }
    let post = match (use_post, post_path.as_str()) {
        (false, "") => None,
        (false, _) => return Err(Refused::new("post_path", "is only for use_post")),
        (true, "") => Some("/".into()),
        (true, path) if path.starts_with('/') => Some(path.into()),
        (true, _) => return Err(Refused::new("post_path", "does not begin with a slash")),
    };
    let host = header_text(context, &hostname, false).within("hostname")?;
    let headers = header_ops(context, headers_to_add, Vec::new(), "headers")?;
    Ok(Box::new(TcpTunnel { host, post, headers }))
}

fn backoff(value: BackoffStrategy) -> Converted<(Duration, Duration)> {
    let BackoffStrategy { base_interval, max_interval } = value;
    let base = maybe_duration(base_interval, "base_interval")?.filter(|base| *base >= Duration::from_millis(1));
    let base = base.ok_or_else(|| Refused::new("base_interval", "is missing or shorter than a millisecond"))?;
    let max = maybe_duration(max_interval, "max_interval")?.unwrap_or(base * 10);
    if max < base {
        return Err(Refused::new("max_interval", "is shorter than base_interval"));
    }
    Ok((base, max))
}
