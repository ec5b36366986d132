//! Route configurations.

use super::common::{header_ops, inline, maybe_duration};
use super::{Context, Converted, Refused, Within as _, matcher, refuse, retry};
use crate::config::{
    Action, DirectResponse, Forward, HeaderOps, HostRewrite, PathMatch, PathRewrite, Redirect, RetryPolicy, Route,
    RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};
use leno_xds::envoy::config::core::v3::{Metadata, RuntimeFractionalPercent};
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::{
    redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
    route_action::{ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration},
    route_match::PathSpecifier,
    weighted_cluster::{ClusterWeight, cluster_weight},
};
use leno_xds::envoy::extensions::filters::http::{cors::v3::CorsPolicy, fault::v3::HttpFault};
use leno_xds::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost::Name as _;
use prost_types::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's limit for a request when a route says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's limit for the body of a direct response, in bytes.
const MAX_DIRECT_BODY: usize = 4096;

/// A route configuration.
pub fn table(context: &mut Context, value: xds::RouteConfiguration) -> Converted<RouteTable> {
    let xds::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        // A route to a cluster that is not there answers 503, now and when it goes later.
        validate_clusters: _,
        max_direct_response_body_size_bytes: _,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = value;
    refuse!(
        vhds,
        internal_only_headers,
        most_specific_header_mutations_wins,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        route_specifiers
    );
    let headers = HeaderOps {
        request: header_ops(request_headers_to_add, request_headers_to_remove, "request_headers")?,
        response: header_ops(response_headers_to_add, response_headers_to_remove, "response_headers")?,
    };
    let mut hosts = Vec::with_capacity(virtual_hosts.len());
    for (index, host) in virtual_hosts.into_iter().enumerate() {
        hosts.push(virtual_host(context, host).within(format_args!("virtual_hosts[{index}]"))?);
    }
    RouteTable::new(name, hosts, headers).map_err(|error| Refused::new("virtual_hosts", error.to_string()))
}

fn virtual_host(context: &mut Context, value: xds::VirtualHost) -> Converted<VirtualHost> {
    let xds::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters: _,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        // Bodies are streamed; nothing is buffered that these could bound.
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = value;
    refuse!(
        matcher,
        require_tls,
        rate_limits,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        request_mirror_policies,
        route_specifiers
    );
    let retry = retry_policy.map(retry::policy).transpose().within("retry_policy")?.map(Arc::new);
    let mut converted = Vec::with_capacity(routes.len());
    for (index, value) in routes.into_iter().enumerate() {
        converted.push(Arc::new(route(context, value, retry.as_ref()).within(format_args!("routes[{index}]"))?));
    }
    Ok(VirtualHost {
        name: name.into(),
        domains: domains.into_iter().map(Into::into).collect(),
        routes: converted,
        headers: HeaderOps {
            request: header_ops(request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
    })
}

fn route(context: &mut Context, value: xds::Route, retry: Option<&Arc<RetryPolicy>>) -> Converted<Route> {
    let xds::Route {
        name,
        r#match: condition,
        metadata,
        decorator: _,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing: _,
        per_request_buffer_limit_bytes: _,
        stat_prefix: _,
        request_body_buffer_limit: _,
        route_specifiers,
        action,
    } = value;
    refuse!(route_specifiers);
    reported_filters(typed_per_filter_config)?;
    let Some(condition) = condition else { return Err(Refused::new("match", "is missing")) };
    let action = match action {
        Some(xds::route::Action::Route(value)) => {
            Action::Forward(Box::new(forward(context, value, retry).within("route")?))
        }
        Some(xds::route::Action::Redirect(value)) => Action::Redirect(Box::new(redirect(value).within("redirect")?)),
        Some(xds::route::Action::DirectResponse(value)) => Action::Direct(direct(value).within("direct_response")?),
        Some(xds::route::Action::FilterAction(_)) => {
            return Err(Refused::new("filter_action", "is not supported by this proxy"));
        }
        Some(xds::route::Action::NonForwardingAction(_)) => {
            return Err(Refused::new("non_forwarding_action", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("action", "is missing")),
    };
    Ok(Route {
        name: name.into(),
        matches: route_match(condition).within("match")?,
        action,
        headers: HeaderOps {
            request: header_ops(request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
        origin: origin(metadata.as_ref()),
    })
}

/// Refuses settings of filters, but for those that are reported in status as not in force yet.
fn reported_filters(values: BTreeMap<String, Any>) -> Converted<()> {
    for (name, any) in values {
        if any.type_url != CorsPolicy::type_url() && any.type_url != HttpFault::type_url() {
            return Err(super::common::unknown_type(&any).within(format_args!("typed_per_filter_config[{name}]")));
        }
    }
    Ok(())
}

/// The configuration object that a resource was made from.
pub fn origin(metadata: Option<&Metadata>) -> Option<Arc<str>> {
    super::common::text(super::common::filter_metadata(metadata, "istio")?, "config").map(Arc::from)
}

fn route_match(value: xds::RouteMatch) -> Converted<RouteMatch> {
    let xds::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    refuse!(cookies, grpc, tls_context, dynamic_metadata, filter_state);
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(text)) if text == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(text)) => PathMatch::Prefix(text.into()),
        Some(PathSpecifier::Path(text)) => PathMatch::Exact(text.into()),
        Some(PathSpecifier::PathSeparatedPrefix(text)) => PathMatch::SeparatedPrefix(text.into()),
        Some(PathSpecifier::SafeRegex(value)) => PathMatch::Regex(matcher::regex(value).within("safe_regex")?),
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return Err(Refused::new("connect_matcher", "is not supported by this proxy"));
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(Refused::new("path_match_policy", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("path_specifier", "is missing")),
    };
    let headers = headers
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::header(value).within(format_args!("headers[{index}]")))
        .collect::<Converted<_>>()?;
    let query = query_parameters
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::query(value).within(format_args!("query_parameters[{index}]")))
        .collect::<Converted<_>>()?;
    let case_sensitive = case_sensitive.unwrap_or(true);
    let fraction = runtime_fraction.map(fraction).transpose().within("runtime_fraction")?;
    Ok(RouteMatch { path, case_sensitive, headers, query, fraction })
}

/// A share in millionths.
fn fraction(value: RuntimeFractionalPercent) -> Converted<u32> {
    // There is no runtime to override it.
    let RuntimeFractionalPercent { default_value, runtime_key: _ } = value;
    let FractionalPercent { numerator, denominator } = default_value.unwrap_or_default();
    let factor = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return Err(Refused::new("default_value.denominator", "is not known to this proxy")),
    };
    Ok(numerator.saturating_mul(factor).min(1_000_000))
}

fn forward(
    context: &mut Context,
    value: xds::RouteAction,
    default_retry: Option<&Arc<RetryPolicy>>,
) -> Converted<Forward> {
    let xds::RouteAction {
        // Without such a cluster the answer is 503 whatever this says; only the number would differ.
        cluster_not_found_response_code: _,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout: _,
        early_data_policy: _,
        retry_policy,
        retry_policy_typed_config,
        // Reported in status: copies of requests are not sent yet.
        request_mirror_policies: _,
        // Circuit breakers have one priority here.
        priority: _,
        rate_limits,
        include_vh_rate_limits: _,
        // Reported in status: balancing does not hash yet.
        hash_policy: _,
        // Reported in status: the service answers for CORS.
        cors: _,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects: _,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    refuse!(
        metadata_match,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        retry_policy_typed_config,
        rate_limits,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        hedge_policy
    );
    let targets = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            vec![WeightedCluster::all(context.cluster(&name).within("cluster")?)]
        }
        Some(ClusterSpecifier::WeightedClusters(value)) => weighted(context, value).within("weighted_clusters")?,
        Some(ClusterSpecifier::ClusterHeader(_)) => {
            return Err(Refused::new("cluster_header", "is not supported by this proxy"));
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err(Refused::new("cluster_specifier_plugin", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("cluster_specifier", "is missing")),
    };
    let host = match host_rewrite_specifier {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text) | HostRewriteSpecifier::HostRewrite(text)) => {
            Some(HostRewrite::Literal(text.into()))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(name.to_ascii_lowercase().into()))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => {
            return Err(Refused::new("auto_host_rewrite", "is not supported by this proxy"));
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            return Err(Refused::new("host_rewrite_path_regex", "is not supported by this proxy"));
        }
    };
    let mut timeout = maybe_duration(timeout, "timeout")?.unwrap_or(DEFAULT_TIMEOUT);
    if let Some(value) = max_stream_duration {
        let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } = value;
        refuse!(grpc_timeout_header_offset);
        // Zero ("as the client's grpc-timeout says") is what a limitless timeout already means.
        let grpc = maybe_duration(grpc_timeout_header_max, "max_stream_duration.grpc_timeout_header_max")?;
        if grpc.is_some_and(|grpc| !grpc.is_zero() && grpc != timeout) {
            return Err(Refused::new(
                "max_stream_duration.grpc_timeout_header_max",
                "other than the timeout is not supported by this proxy",
            ));
        }
        let longest = maybe_duration(max_stream_duration, "max_stream_duration.max_stream_duration")?;
        if let Some(longest) = longest.filter(|longest| !longest.is_zero()) {
            timeout = if timeout.is_zero() { longest } else { timeout.min(longest) };
        }
    }
    let retry = match retry_policy {
        Some(value) => Some(Arc::new(retry::policy(value).within("retry_policy")?)),
        None => default_retry.cloned(),
    };
    Ok(Forward {
        targets,
        path: path_rewrite_of(prefix_rewrite, regex_rewrite)?,
        host,
        timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
        idle_timeout: maybe_duration(idle_timeout, "idle_timeout")?,
        retry: retry.filter(|retry| retry.attempts > 0),
    })
}

fn path_rewrite_of(prefix: String, regex: Option<RegexMatchAndSubstitute>) -> Converted<Option<PathRewrite>> {
    match (prefix.is_empty(), regex) {
        (true, None) => Ok(None),
        (false, None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        (true, Some(regex)) => regex_rewrite(regex).within("regex_rewrite").map(Some),
        (false, Some(_)) => Err(Refused::new("regex_rewrite", "cannot stand beside prefix_rewrite")),
    }
}

fn regex_rewrite(value: RegexMatchAndSubstitute) -> Converted<PathRewrite> {
    let RegexMatchAndSubstitute { pattern, substitution } = value;
    PathRewrite::regex(&matcher::pattern(pattern.unwrap_or_default()), &substitution)
        .map_err(|error| Refused::new("pattern", error.to_string()))
}

fn weighted(context: &mut Context, value: xds::WeightedCluster) -> Converted<Vec<WeightedCluster>> {
    let xds::WeightedCluster { clusters, total_weight: _, runtime_key_prefix: _, random_value_specifier } = value;
    refuse!(random_value_specifier);
    let mut targets = Vec::with_capacity(clusters.len());
    for (index, cluster) in clusters.into_iter().enumerate() {
        let target = cluster_weight(context, cluster).within(format_args!("clusters[{index}]"))?;
        // What gets nothing is left out, so that every target that is there can be chosen.
        if target.weight > 0 {
            targets.push(target);
        }
    }
    if targets.is_empty() {
        return Err(Refused::new("clusters", "has no weight above zero"));
    }
    Ok(targets)
}

fn cluster_weight(context: &mut Context, value: ClusterWeight) -> Converted<WeightedCluster> {
    let ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = value;
    refuse!(cluster_header, metadata_match, typed_per_filter_config);
    let host = host_rewrite_specifier.map(|value| {
        let cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(text) = value;
        HostRewrite::Literal(text.into())
    });
    Ok(WeightedCluster {
        cluster: context.cluster(&name).within("name")?,
        weight: weight.unwrap_or(0),
        headers: HeaderOps {
            request: header_ops(request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
        host,
    })
}

fn redirect(value: xds::RedirectAction) -> Converted<Redirect> {
    let xds::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    let code = match response_code {
        0 => 301,
        1 => 302,
        2 => 303,
        3 => 307,
        4 => 308,
        other => return Err(Refused::new("response_code", format!("{other} is not known to this proxy"))),
    };
    let scheme = match scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.into_boxed_str()),
    };
    let (path, rewrite) = match path_rewrite_specifier {
        None => (None, None),
        Some(PathRewriteSpecifier::PathRedirect(path)) => (Some(path.into_boxed_str()), None),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => (None, Some(PathRewrite::Prefix(prefix.into()))),
        Some(PathRewriteSpecifier::RegexRewrite(value)) => (None, Some(regex_rewrite(value).within("regex_rewrite")?)),
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(Refused::new("path_rewrite", "is not supported by this proxy"));
        }
    };
    let host = (!host_redirect.is_empty()).then(|| host_redirect.into_boxed_str());
    let port = match port_redirect {
        0 => None,
        port => Some(super::common::port(port).within("port_redirect")?),
    };
    Ok(Redirect { code, scheme, host, port, path, rewrite, strip_query })
}

fn direct(value: xds::DirectResponseAction) -> Converted<DirectResponse> {
    let xds::DirectResponseAction { status, body, body_format } = value;
    refuse!(body_format);
    let code = u16::try_from(status)
        .ok()
        .filter(|code| (200..600).contains(code))
        .ok_or_else(|| Refused::new("status", format!("{status} is not a status between 200 and 599")))?;
    let body = body.map(inline).transpose().within("body")?.unwrap_or_default();
    if body.len() > MAX_DIRECT_BODY {
        return Err(Refused::new("body", format!("has more than {MAX_DIRECT_BODY} bytes")));
    }
    Ok(DirectResponse { code, body: body.into() })
}
