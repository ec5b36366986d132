//! Traffic policies of DestinationRules.

use leno_core::Reason;
use leno_core::policy::{
    Algorithm, Balancing, ConnectionLimits, HashKey, HashTable, Keepalive, OutlierDetection, PortedPolicy,
    ProxyProtocol, RetryBudget, TrafficPolicy, Tunnel, Warmup,
};

use super::client_tls::client_tls;
use super::locality::{by_locality, by_zone};
use super::report::Report;
use crate::istio::destination_rule as istio;
use crate::istio::virtual_service::PortSelector;

/// A policy with its exceptions for single ports.
pub(super) fn ported_policy(
    report: &mut Report<'_>,
    policy: Option<&istio::TrafficPolicy>,
    field: &str,
) -> PortedPolicy {
    let Some(policy) = policy else { return PortedPolicy::default() };
    let istio::TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;
    let mut all = one_policy(report, load_balancer, connection_pool, outlier_detection, tls, field);
    all.retry_budget = retry_budget.as_ref().map(|budget| {
        let istio::RetryBudget { percent, min_retry_concurrency, budget_interval } = budget;
        let interval = report.duration_or_zero(budget_interval.clone(), &format!("{field}.retryBudget.budgetInterval"));
        let percent = percent.unwrap_or(20.0);
        report.share(percent, &format!("{field}.retryBudget.percent"));
        let interval = interval.filter(|interval| !interval.is_zero());
        RetryBudget { percent, min_concurrency: min_retry_concurrency.unwrap_or(3), interval }
    });
    if tunnel.is_some() && proxy_protocol.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "only one of tunnel and proxyProtocol can be given");
    }
    all.tunnel = tunnel.as_ref().and_then(|tunnel| tunnelled(report, tunnel, &format!("{field}.tunnel")));
    all.proxy_protocol = proxy_protocol.as_ref().map(|istio::ProxyProtocol { version }| match version {
        None | Some(istio::ProxyProtocolVersion::V1) => ProxyProtocol::V1,
        Some(istio::ProxyProtocolVersion::V2) => ProxyProtocol::V2,
    });
    let mut converted = PortedPolicy { all, ..PortedPolicy::default() };
    for (index, entry) in port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        let istio::PortTrafficPolicy { port, load_balancer, connection_pool, outlier_detection, tls } = entry;
        let number = port.as_ref().and_then(|PortSelector { number }| *number);
        let policy = one_policy(report, load_balancer, connection_pool, outlier_detection, tls, &field);
        match report.port(number, &format!("{field}.port.number")) {
            Some(number) if converted.ports.contains_key(&number) => {
                let message = format!("port {number} stands above already, and that counts; take one of them out");
                report.remark(Reason::NoEffect, &format!("{field}.port.number"), message);
            }
            Some(number) => {
                converted.ports.insert(number, policy);
            }
            None => report.refuse(Reason::InvalidValue, &format!("{field}.port"), "name the service's port by number"),
        }
    }
    converted
}

fn tunnelled(report: &mut Report<'_>, tunnel: &istio::TunnelSettings, field: &str) -> Option<Tunnel> {
    let istio::TunnelSettings { protocol, target_host, target_port } = tunnel;
    let by_post = match protocol.as_deref().map(str::to_ascii_uppercase).as_deref() {
        None | Some("" | "CONNECT") => false,
        Some("POST") => true,
        Some(other) => {
            let message = format!("\"{other}\" opens no tunnel; use CONNECT or POST");
            report.refuse(Reason::InvalidValue, &format!("{field}.protocol"), message);
            false
        }
    };
    let host = report.host(target_host, &format!("{field}.targetHost"));
    let port = report.port(Some(*target_port), &format!("{field}.targetPort"));
    if port.is_none() {
        report.refuse(Reason::InvalidValue, &format!("{field}.targetPort"), "a tunnel needs a port at its end");
    }
    host.zip(port).map(|(_, port)| Tunnel { by_post, host: target_host.to_ascii_lowercase(), port })
}

fn one_policy(
    report: &mut Report<'_>,
    balancing: &Option<istio::LoadBalancerSettings>,
    connections: &Option<istio::ConnectionPoolSettings>,
    outliers: &Option<istio::OutlierDetection>,
    tls: &Option<istio::ClientTlsSettings>,
    field: &str,
) -> TrafficPolicy {
    TrafficPolicy {
        balancing: balancing.as_ref().map(|settings| balanced(report, settings, &format!("{field}.loadBalancer"))),
        connections: connections.as_ref().map(|pool| limits(report, pool, &format!("{field}.connectionPool"))),
        outliers: outliers.as_ref().map(|outliers| ejected(report, outliers, &format!("{field}.outlierDetection"))),
        tls: tls.as_ref().and_then(|tls| client_tls(report, tls, &format!("{field}.tls"))),
        // For the service or subset as a whole only.
        retry_budget: None,
        tunnel: None,
        proxy_protocol: None,
    }
}

fn balanced(report: &mut Report<'_>, settings: &istio::LoadBalancerSettings, field: &str) -> Balancing {
    let istio::LoadBalancerSettings {
        simple,
        consistent_hash,
        locality_lb_setting,
        zone_aware_lb_setting,
        warmup_duration_secs,
        warmup,
    } = settings;
    if simple.is_some() && consistent_hash.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "only one of simple and consistentHash can be given");
    }
    if locality_lb_setting.is_some() && zone_aware_lb_setting.is_some() {
        let message = "only one of localityLbSetting and zoneAwareLbSetting can be given";
        report.refuse(Reason::NotExactlyOne, field, message);
    }
    let locality = match (locality_lb_setting, zone_aware_lb_setting) {
        (Some(setting), _) => by_locality(report, setting, &format!("{field}.localityLbSetting")),
        (None, Some(setting)) => Some(by_zone(report, setting, &format!("{field}.zoneAwareLbSetting"))),
        (None, None) => None,
    };
    let mut slow_start = report
        .duration(warmup_duration_secs.clone(), &format!("{field}.warmupDurationSecs"))
        .map(|duration| Warmup { duration, minimum_percent: 10.0, aggression: 1.0 });
    if let Some(istio::WarmupConfiguration { duration, minimum_percent, aggression }) = warmup {
        slow_start = report.duration(Some(duration.clone()), &format!("{field}.warmup.duration")).map(|duration| {
            let minimum_percent = minimum_percent.unwrap_or(10.0);
            Warmup { duration, minimum_percent, aggression: aggression.unwrap_or(1.0) }
        });
        let percent = minimum_percent.unwrap_or(10.0);
        report.share(percent, &format!("{field}.warmup.minimumPercent"));
        if aggression.is_some_and(|aggression| !aggression.is_finite() || aggression < 1.0) {
            let message = "the aggression must be a number of 1 or more";
            report.refuse(Reason::InvalidValue, &format!("{field}.warmup.aggression"), message);
        }
    }
    let algorithm = match (simple, consistent_hash) {
        (_, Some(hash)) => hashed(report, hash, &format!("{field}.consistentHash")),
        (Some(istio::SimpleLb::RoundRobin), None) => Algorithm::RoundRobin,
        (Some(istio::SimpleLb::Random), None) => Algorithm::Random,
        (Some(istio::SimpleLb::Passthrough), None) => Algorithm::Passthrough,
        (
            Some(istio::SimpleLb::Unspecified | istio::SimpleLb::LeastConn | istio::SimpleLb::LeastRequest) | None,
            None,
        ) => Algorithm::LeastRequest,
    };
    if slow_start.is_some() && !matches!(algorithm, Algorithm::LeastRequest | Algorithm::RoundRobin) {
        let message = "only LEAST_REQUEST and ROUND_ROBIN start slowly; with another algorithm this has no effect";
        report.remark(Reason::NoEffect, &format!("{field}.warmup"), message);
    }
    Balancing { algorithm, warmup: slow_start, locality }
}

fn hashed(report: &mut Report<'_>, hash: &istio::ConsistentHashLb, field: &str) -> Algorithm {
    let istio::ConsistentHashLb {
        http_header_name,
        http_cookie,
        use_source_ip,
        http_query_parameter_name,
        ring_hash,
        maglev,
        minimum_ring_size,
    } = hash;
    let mut keys = Vec::new();
    if let Some(name) = http_header_name {
        report.header_name(name.strip_prefix(':').unwrap_or(name), &format!("{field}.httpHeaderName"));
        keys.push(HashKey::Header(name.clone()));
    }
    keys.extend(http_cookie.as_ref().map(|cookie| cookie_key(report, cookie, &format!("{field}.httpCookie"))));
    keys.extend(use_source_ip.filter(|used| *used).map(|_| HashKey::SourceAddress));
    if let Some(name) = http_query_parameter_name {
        if name.is_empty() {
            let message = "name the query parameter whose value is the key";
            report.refuse(Reason::InvalidValue, &format!("{field}.httpQueryParameterName"), message);
        }
        keys.push(HashKey::QueryParameter(name.clone()));
    }
    // 0 is not said, as in Istio.
    let said = |size: &u64| *size != 0;
    let table = match (maglev, ring_hash) {
        (Some(istio::MagLev { table_size }), None) => {
            let size = table_size.filter(said).unwrap_or(65_537);
            if !is_maglev_size(size) {
                let message = "the size of a Maglev table is a prime number of at most 5000011";
                report.refuse(Reason::InvalidValue, &format!("{field}.maglev.tableSize"), message);
            }
            HashTable::Maglev(size)
        }
        (None, ring) => {
            let size = ring.as_ref().and_then(|istio::RingHash { minimum_ring_size }| *minimum_ring_size);
            let size = size.filter(said).or(minimum_ring_size.filter(said)).unwrap_or(1024);
            if size > 8_388_608 {
                let message = "a ring has at most 8388608 places";
                report.refuse(Reason::InvalidValue, &format!("{field}.ringHash.minimumRingSize"), message);
            }
            HashTable::Ring(size)
        }
        (Some(_), Some(_)) => {
            report.refuse(Reason::NotExactlyOne, field, "only one of ringHash and maglev can be given");
            HashTable::Ring(1024)
        }
    };
    match <[HashKey; 1]>::try_from(keys) {
        Ok([key]) => Algorithm::Hash(key, table),
        Err(_) => {
            let message = "give exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
            report.refuse(Reason::NotExactlyOne, field, message);
            Algorithm::LeastRequest
        }
    }
}

/// A cookie as the key: the one that a client has, or one that it is given.
fn cookie_key(report: &mut Report<'_>, cookie: &istio::HttpCookie, field: &str) -> HashKey {
    let istio::HttpCookie { name, path, ttl, attributes } = cookie;
    report.token(name, "cookie", &format!("{field}.name"));
    let path = path.clone().unwrap_or_default();
    report.header_value(&path, &format!("{field}.path"));
    let mut converted = Vec::new();
    for (index, istio::HttpCookieAttribute { name, value }) in attributes.iter().enumerate() {
        let value = value.clone().unwrap_or_default();
        report.token(name, "cookie's attribute", &format!("{field}.attributes[{index}].name"));
        report.header_value(&value, &format!("{field}.attributes[{index}].value"));
        converted.push((name.clone(), value));
    }
    let ttl = report.duration_or_zero(ttl.clone(), &format!("{field}.ttl"));
    HashKey::Cookie { name: name.clone(), path, ttl, attributes: converted }
}

/// What Envoy accepts: a prime number of at most 5000011.
fn is_maglev_size(size: u64) -> bool {
    (2..=5_000_011).contains(&size)
        && (2..).take_while(|divisor| divisor * divisor <= size).all(|divisor| !size.is_multiple_of(divisor))
}

fn limits(report: &mut Report<'_>, pool: &istio::ConnectionPoolSettings, field: &str) -> ConnectionLimits {
    let istio::ConnectionPoolSettings { tcp, http } = pool;
    let mut limits = ConnectionLimits::default();
    if let Some(tcp) = tcp {
        let field = format!("{field}.tcp");
        let istio::TcpSettings {
            max_connections,
            connect_timeout,
            tcp_keepalive,
            max_connection_duration,
            idle_timeout,
        } = tcp;
        limits.max_connections = limit(report, *max_connections, &format!("{field}.maxConnections"));
        limits.connect_timeout = report.duration(connect_timeout.clone(), &format!("{field}.connectTimeout"));
        limits.keepalive = tcp_keepalive.as_ref().map(|keepalive| {
            let field = format!("{field}.tcpKeepalive");
            let istio::TcpKeepalive { probes, time, interval } = keepalive;
            let time = report.duration(time.clone(), &format!("{field}.time"));
            Keepalive {
                // 0 is not said, as in Istio.
                probes: probes.filter(|probes| *probes != 0),
                time,
                interval: report.duration(interval.clone(), &format!("{field}.interval")),
            }
        });
        limits.max_connection_duration =
            report.duration(max_connection_duration.clone(), &format!("{field}.maxConnectionDuration"));
        limits.tcp_idle_timeout = report.duration_or_zero(idle_timeout.clone(), &format!("{field}.idleTimeout"));
    }
    if let Some(http) = http {
        let field = format!("{field}.http");
        let istio::HttpSettings {
            http1_max_pending_requests,
            http2_max_requests,
            max_requests_per_connection,
            max_retries,
            idle_timeout,
            h2_upgrade_policy,
            use_client_protocol,
            max_concurrent_streams,
            http2_keep_alive,
        } = http;
        let mut count = |number: Option<i32>, name: &str| limit(report, number, &format!("{field}.{name}"));
        limits.max_pending = count(*http1_max_pending_requests, "http1MaxPendingRequests");
        limits.max_requests = count(*http2_max_requests, "http2MaxRequests");
        limits.max_requests_per_connection = count(*max_requests_per_connection, "maxRequestsPerConnection");
        limits.max_retries = count(*max_retries, "maxRetries");
        limits.max_concurrent_streams = count(*max_concurrent_streams, "maxConcurrentStreams");
        limits.http_idle_timeout = report.duration(idle_timeout.clone(), &format!("{field}.idleTimeout"));
        limits.upgrade_to_http2 = match h2_upgrade_policy {
            None | Some(istio::H2UpgradePolicy::Default) => None,
            Some(istio::H2UpgradePolicy::DoNotUpgrade) => Some(false),
            Some(istio::H2UpgradePolicy::Upgrade) => Some(true),
        };
        limits.use_client_protocol = use_client_protocol.unwrap_or_default();
        if limits.use_client_protocol && limits.upgrade_to_http2 == Some(true) {
            let message = "useClientProtocol and h2UpgradePolicy: UPGRADE exclude each other";
            report.refuse(Reason::NotExactlyOne, &field, message);
        }
        if let Some(istio::ConnectionKeepalive { interval, timeout }) = http2_keep_alive {
            let field = format!("{field}.http2KeepAlive");
            let interval = report.duration(interval.clone(), &format!("{field}.interval"));
            let timeout = report.duration(timeout.clone(), &format!("{field}.timeout"));
            limits.http2_keepalive = interval.zip(timeout);
            if limits.http2_keepalive.is_none() {
                let message = "probes need both interval and timeout; without, none are sent";
                report.remark(Reason::NoEffect, &field, message);
            }
        }
    }
    limits
}

/// A limit; 0 is none.
fn limit(report: &mut Report<'_>, number: Option<i32>, field: &str) -> Option<u32> {
    report.count(number, field).filter(|limit| *limit != 0)
}

fn ejected(report: &mut Report<'_>, outliers: &istio::OutlierDetection, field: &str) -> OutlierDetection {
    let istio::OutlierDetection {
        consecutive_errors,
        split_external_local_origin_errors,
        consecutive_local_origin_failures,
        consecutive_gateway_errors,
        consecutive_5xx_errors,
        interval,
        base_ejection_time,
        max_ejection_percent,
        min_health_percent,
        outlier_detection_http_error_codes,
    } = outliers;
    // Istio reads the deprecated field as gateway errors when nothing newer is given.
    let deprecated = report.count(*consecutive_errors, &format!("{field}.consecutiveErrors"));
    let mut statuses = Vec::new();
    for (index, status) in outlier_detection_http_error_codes.iter().enumerate() {
        match u16::try_from(*status) {
            Ok(status @ 100..=599) => statuses.push(status),
            _ => {
                let field = format!("{field}.outlierDetectionHttpErrorCodes[{index}]");
                report.refuse(Reason::InvalidValue, &field, "a status is a number from 100 to 599");
            }
        }
    }
    if consecutive_local_origin_failures.is_some_and(|count| count > 0)
        && *split_external_local_origin_errors != Some(true)
    {
        let message = "local failures are counted apart only with splitExternalLocalOriginErrors: true";
        report.remark(Reason::NoEffect, &format!("{field}.consecutiveLocalOriginFailures"), message);
    }
    let mut percent = |value: Option<i32>, name: &str| {
        let field = format!("{field}.{name}");
        let percent = report.count(value, &field);
        if percent.is_some_and(|percent| percent > 100) {
            report.refuse(Reason::InvalidValue, &field, "a share is a number from 0 to 100");
        }
        percent
    };
    let max_ejection_percent = percent(*max_ejection_percent, "maxEjectionPercent");
    let min_health_percent = percent(*min_health_percent, "minHealthPercent");
    OutlierDetection {
        consecutive_5xx: *consecutive_5xx_errors,
        consecutive_gateway: consecutive_gateway_errors.or(deprecated),
        consecutive_local: *consecutive_local_origin_failures,
        split_local: split_external_local_origin_errors.unwrap_or_default(),
        interval: report.duration(interval.clone(), &format!("{field}.interval")),
        base_ejection: report.duration(base_ejection_time.clone(), &format!("{field}.baseEjectionTime")),
        max_ejection_percent,
        min_health_percent,
        statuses,
    }
}
