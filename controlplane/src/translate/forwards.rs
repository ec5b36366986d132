//! What a route says of requests that are forwarded: where to, changed how, repeated when, hashed by what.

use std::time::Duration;

use leno_core::policy::HashKey;
use leno_core::re2;
use leno_core::route::{HeaderChange, HeaderChanges, HttpMatch, PathRewrite, Retry, Rewrite, TextMatch};
use leno_xds::any;
use leno_xds::envoy::config::core::v3::RuntimeFractionalPercent;
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use leno_xds::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy, hash_policy,
};
use leno_xds::envoy::config::route::v3::weighted_cluster::{ClusterWeight, cluster_weight};
use leno_xds::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use leno_xds::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use leno_xds::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

use super::Clusters;
use super::clusters::{BLACK_HOLE, hash_key};
use super::routes::NOT_SENT_HEADER;
use super::values::{ZERO, duration, headers, regex};
use crate::resolve::{ClusterName, Forward};

/// A condition on which our proxy repeats at once, and which a stock Envoy passes over: the endpoint had closed a pooled
/// connection, and a repeat does no harm.
pub(super) const STALE_CONNECTION: &str = "leno-stale-connection";
/// Retries where nobody asked for any: only where the service cannot have seen the request, or a repeat does no harm.
const SAFE_RETRIES: (&str, u32) =
    ("connect-failure,refused-stream,reset-before-request,retriable-headers,leno-stale-connection", 2);
/// How often another endpoint is drawn when the one drawn has failed the request already.
const HOST_ATTEMPTS: i64 = 5;
/// After how many tries of one priority the next is drawn.
const PRIORITY_UPDATES: i32 = 2;
/// What becomes of a request that is forwarded. Changes of headers that destinations make are taken out of `changes`, or put
/// into them.
#[allow(deprecated)] // What is meant to replace `max_grpc_timeout` bounds all attempts together, and ends them in another way.
pub(super) fn forwarded(
    forward: &Forward,
    matching: Option<&HttpMatch>,
    changes: &mut HeaderChanges,
    clusters: &Clusters<'_>,
) -> xds::RouteAction {
    let Forward { targets, rewrite, timeout, retry, mirrors } = forward;
    let mut host_rewrite = changes.authority.take();
    let rewrite = rewrite.clone().unwrap_or(Rewrite { path: None, authority: None });
    host_rewrite = rewrite.authority.or(host_rewrite);
    let (prefix_rewrite, regex_rewrite) = match rewrite.path {
        None => (String::new(), None),
        Some(PathRewrite::Regex(pattern, replacement)) => (String::new(), Some((pattern, replacement))),
        Some(PathRewrite::Prefix(prefix)) => match without_prefix(&prefix, matching) {
            Some(pattern) => (String::new(), Some((pattern, r"/\2".to_owned()))),
            None => (prefix, None),
        },
    };
    let cluster = |cluster: &Option<ClusterName>| match cluster {
        Some(name) => name.to_string(),
        None => BLACK_HOLE.to_owned(),
    };
    let used: Vec<_> = targets.iter().filter(|target| target.weight > 0).collect();
    let specifier = match used.as_slice() {
        [] => ClusterSpecifier::Cluster(BLACK_HOLE.to_owned()),
        [only] => {
            let HeaderChanges { authority, request, response } = &only.headers;
            changes.request = merged(&changes.request, request);
            changes.response = merged(&changes.response, response);
            // As where there are several: what the rule says goes before what its destination does.
            host_rewrite = host_rewrite.or(authority.clone());
            ClusterSpecifier::Cluster(cluster(&only.cluster))
        }
        several => {
            // Where a destination has changes of its own, it says the rule's as well: those of the route would be applied
            // after them.
            let none = HeaderChange::default();
            let (mut of_rule, mut of_rule_back) = (none.clone(), none.clone());
            if several.iter().any(|target| target.headers.request != none) {
                of_rule = std::mem::take(&mut changes.request);
            }
            if several.iter().any(|target| target.headers.response != none) {
                of_rule_back = std::mem::take(&mut changes.response);
            }
            let weights = several.iter().map(|target| {
                let HeaderChanges { authority, request, response } = &target.headers;
                let (request_headers_to_add, request_headers_to_remove) = headers(&merged(&of_rule, request));
                let (response_headers_to_add, response_headers_to_remove) = headers(&merged(&of_rule_back, response));
                ClusterWeight {
                    name: cluster(&target.cluster),
                    weight: Some(target.weight),
                    request_headers_to_add,
                    request_headers_to_remove,
                    response_headers_to_add,
                    response_headers_to_remove,
                    host_rewrite_specifier: authority
                        .clone()
                        .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                    ..Default::default()
                }
            });
            ClusterSpecifier::WeightedClusters(xds::WeightedCluster {
                clusters: weights.collect(),
                ..Default::default()
            })
        }
    };
    // Each cluster has one key; where they differ, all of them together are the key of the route, as in Istio.
    let mut keys: Vec<&HashKey> = Vec::new();
    for key in used.iter().filter_map(|target| hash_key(clusters.get(target.cluster.as_ref()?)?)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    xds::RouteAction {
        prefix_rewrite,
        regex_rewrite: regex_rewrite.map(|(pattern, replacement)| RegexMatchAndSubstitute {
            pattern: Some(regex(&pattern)),
            substitution: replacement,
        }),
        timeout: Some(timeout.map_or(ZERO, duration)),
        // A call of gRPC has as long as its client says, but no longer than that.
        max_grpc_timeout: Some(timeout.map_or(ZERO, duration)),
        retry_policy: retries(retry.as_ref(), !keys.is_empty()),
        request_mirror_policies: mirrors
            .iter()
            .map(|(name, share)| RequestMirrorPolicy {
                cluster: name.to_string(),
                runtime_fraction: Some(RuntimeFractionalPercent {
                    default_value: Some(fraction(*share)),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect(),
        hash_policy: keys.into_iter().map(hash_policy_of).collect(),
        cluster_specifier: Some(specifier),
        host_rewrite_specifier: host_rewrite.map(HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    }
}

/// The expression that takes the matched prefix off, where it is replaced by `/` alone: `/api` to `/` must not make `//x` of
/// `/api/x`. `None` where replacing the prefix does, or the expression would be longer than proxies read.
fn without_prefix(replacement: &str, matching: Option<&HttpMatch>) -> Option<String> {
    let HttpMatch { path: Some(TextMatch::Prefix(matched)), ignore_path_case, .. } = matching? else { return None };
    let flags = if *ignore_path_case { "(?i)" } else { "" };
    let pattern = format!("{flags}^{}(/?)(.*)", quoted(matched));
    (replacement == "/" && !matched.ends_with('/') && pattern.len() <= re2::MAX_LEN).then_some(pattern)
}

/// What a rule changes and then its destination, which has the last word.
fn merged(rule: &HeaderChange, own: &HeaderChange) -> HeaderChange {
    let mut merged = rule.clone();
    merged.add.retain(|(header, _)| !own.set.contains_key(header));
    merged.set.extend(own.set.clone());
    merged.add.extend(own.add.clone());
    merged.remove.extend(own.remove.iter().cloned());
    merged
}

/// A text as an RE2 expression that matches it literally.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_ascii() && !char.is_ascii_alphanumeric() && char != '_' && char != '/' {
            out.push('\\');
        }
        out.push(char);
    }
    out
}

/// What is repeated. Where the route is `hashed`, a repeat that somebody asked for stays where the hash leads, as in Istio, unless
/// the rule says otherwise.
fn retries(retry: Option<&Retry>, hashed: bool) -> Option<xds::RetryPolicy> {
    use xds::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    let previous_hosts = || RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
    };
    let not_sent = xds::HeaderMatcher {
        name: NOT_SENT_HEADER.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    };
    let Some(retry) = retry else {
        let (on, attempts) = SAFE_RETRIES;
        return Some(xds::RetryPolicy {
            retry_on: on.to_owned(),
            num_retries: Some(attempts),
            retry_host_predicate: vec![previous_hosts()],
            retriable_headers: vec![not_sent],
            host_selection_retry_max_attempts: HOST_ATTEMPTS,
            ..Default::default()
        });
    };
    let Retry { attempts, per_try_timeout, on, statuses, remote_localities, avoid_previous, backoff } = retry;
    if *attempts == 0 {
        // Not a retry of what the endpoint has seen.
        return Some(xds::RetryPolicy {
            retry_on: STALE_CONNECTION.to_owned(),
            num_retries: Some(0),
            ..Default::default()
        });
    }
    let mut on = on.clone();
    on.push(STALE_CONNECTION.to_owned());
    if !statuses.is_empty() && !on.iter().any(|condition| condition == "retriable-status-codes") {
        on.push("retriable-status-codes".to_owned());
    }
    // Whatever was asked for: a repeat of what was never sent does no harm.
    if !on.iter().any(|condition| condition == "retriable-headers") {
        on.push("retriable-headers".to_owned());
    }
    Some(xds::RetryPolicy {
        retry_on: on.join(","),
        num_retries: Some(*attempts),
        per_try_timeout: per_try_timeout.map(duration),
        retry_host_predicate: avoid_previous.unwrap_or(!hashed).then(previous_hosts).into_iter().collect(),
        host_selection_retry_max_attempts: HOST_ATTEMPTS,
        retriable_status_codes: statuses.iter().map(|status| u32::from(*status)).collect(),
        retriable_headers: vec![not_sent],
        retry_priority: remote_localities.then(previous_priorities),
        retry_back_off: backoff
            .filter(|backoff| *backoff > Duration::ZERO)
            .map(|backoff| RetryBackOff { base_interval: Some(duration(backoff)), ..Default::default() }),
        ..Default::default()
    })
}

/// Lets retries go to other localities, once those of a priority have been tried.
fn previous_priorities() -> xds::retry_policy::RetryPriority {
    xds::retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(xds::retry_policy::retry_priority::ConfigType::TypedConfig(any(&PreviousPrioritiesConfig {
            update_frequency: PRIORITY_UPDATES,
        }))),
    }
}

/// What a route hashes for the clusters that go by it.
pub(super) fn hash_policy_of(key: &HashKey) -> HashPolicy {
    use hash_policy::{ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter};
    let specifier = match key {
        HashKey::Header(name) => PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() }),
        HashKey::Cookie { name, path, ttl, attributes } => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            ttl: ttl.map(duration),
            path: path.clone(),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute { name: name.clone(), value: value.clone() })
                .collect(),
        }),
        HashKey::SourceAddress => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashKey::QueryParameter(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }),
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}

/// A share in millionths.
pub(super) fn fraction(share: u32) -> FractionalPercent {
    FractionalPercent { numerator: share, denominator: DenominatorType::Million.into() }
}
