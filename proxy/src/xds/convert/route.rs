//! Route configurations.

use super::action::{self, Defaults, Replay, action};
use super::common::header_ops;
use super::{Context, Converted, Refused, Within as _, filter, matcher, refuse, retry};
use crate::config::{
    FilterSetting, FilterSettings, HeaderOps, PathMatch, RequireTls, Route, RouteMatch, RouteTable, TableOptions,
    VirtualCluster, VirtualHost,
};
use crate::telemetry::requests::RequestGroup;
use leno_xds::envoy::config::core::v3::Metadata;
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::{
    CorsPolicy,
    route_match::{ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier, TlsContextMatchOptions},
};
use prost_types::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name by which routes speak of the filter that answers cross-origin requests, where they do it in the older way.
const CORS: &str = "envoy.filters.http.cors";

/// A route configuration.
pub fn table(context: &mut Context, value: xds::RouteConfiguration) -> Converted<RouteTable> {
    let before = std::mem::take(&mut context.asks_dynamic);
    let table = all_of(context, value);
    let asks_dynamic = std::mem::replace(&mut context.asks_dynamic, before);
    let mut table = table?;
    table.asks_dynamic = asks_dynamic;
    Ok(table)
}

fn all_of(context: &mut Context, value: xds::RouteConfiguration) -> Converted<RouteTable> {
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
        // Looked at where the clusters are known; else a route to a cluster that is not there answers 503.
        validate_clusters: _,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = value;
    refuse!(vhds, cluster_specifier_plugins, route_specifiers);
    let headers = HeaderOps {
        request: header_ops(context, request_headers_to_add, request_headers_to_remove, "request_headers")?,
        response: header_ops(context, response_headers_to_add, response_headers_to_remove, "response_headers")?,
    };
    let mut defaults = Defaults { mirrors: request_mirror_policies, ..Defaults::default() };
    if let Some(most) = max_direct_response_body_size_bytes {
        defaults.direct_body = usize::try_from(most).unwrap_or(usize::MAX);
    }
    let mut hosts = Vec::with_capacity(virtual_hosts.len());
    for (index, host) in virtual_hosts.into_iter().enumerate() {
        hosts.push(virtual_host(context, host, &defaults).within(format_args!("virtual_hosts[{index}]"))?);
    }
    let filters = filter::settings(context, typed_per_filter_config)?;
    let table = RouteTable::new(name, hosts, headers);
    let mut table = table.map_err(|error| Refused::new("virtual_hosts", error.to_string()))?;
    let options = TableOptions {
        ignore_port: ignore_port_in_host_matching,
        host_header: Some(vhost_header).filter(|name| !name.is_empty()).map(|name| name.to_ascii_lowercase().into()),
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
        most_specific_headers_win: most_specific_header_mutations_wins,
        internal_only: internal_only_headers.into_iter().map(|name| name.to_ascii_lowercase().into()).collect(),
    };
    (table.options, table.filters) = (options, filters);
    Ok(table)
}

fn virtual_host(context: &mut Context, value: xds::VirtualHost, table: &Defaults) -> Converted<VirtualHost> {
    let xds::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
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
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata,
        route_specifiers,
    } = value;
    refuse!(matcher, retry_policy_typed_config, route_specifiers);
    if name.is_empty() {
        return Err(Refused::new("name", "must not be empty"));
    }
    if domains.is_empty() {
        return Err(Refused::new("domains", "must have an entry"));
    }
    hedge_policy.map_or(Ok(()), retry::no_hedge).within("hedge_policy")?;
    let require_tls = match require_tls {
        0 => RequireTls::Nobody,
        1 => RequireTls::External,
        2 => RequireTls::All,
        other => return Err(Refused::new("require_tls", format!("{other} is not known to this proxy"))),
    };
    let defaults = Defaults {
        retry: retry_policy.map(retry::policy).transpose().within("retry_policy")?.map(Arc::new),
        replay: Replay { body: request_body_buffer_limit, request: per_request_buffer_limit_bytes },
        mirrors: if request_mirror_policies.is_empty() { table.mirrors.clone() } else { request_mirror_policies },
        direct_body: table.direct_body,
    };
    let mut converted = Vec::with_capacity(routes.len());
    for (index, value) in routes.into_iter().enumerate() {
        let prefix = value.stat_prefix.clone();
        let mut value = route(context, value, &defaults).within(format_args!("routes[{index}]"))?;
        if !prefix.is_empty() {
            value.group = Some(Arc::new(RequestGroup::route(&context.counters, &name, &prefix)));
        }
        converted.push(Arc::new(value));
    }
    Ok(VirtualHost {
        virtual_clusters: self::virtual_clusters(context, &name, virtual_clusters)?,
        name: name.into(),
        domains: domains.into_iter().map(Into::into).collect(),
        routes: converted,
        headers: HeaderOps {
            request: header_ops(context, request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(context, response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
        filters: settings(context, typed_per_filter_config, cors)?,
        require_tls,
        attempt_count_in_request: include_request_attempt_count,
        attempt_count_in_response: include_attempt_count_in_response,
        timeout_retry_in_request: include_is_timeout_retry_header,
        rate_limits: filter::rate_limits(context, rate_limits).within("rate_limits")?,
        metadata: crate::config::Metadata::of(metadata.as_ref()),
    })
}

/// Requests that are counted together, those that fit none of them as `other`.
fn virtual_clusters(context: &Context, host: &str, values: Vec<xds::VirtualCluster>) -> Converted<Vec<VirtualCluster>> {
    let group = |name: &str| Arc::new(RequestGroup::virtual_cluster(&context.counters, host, name));
    let mut all = Vec::with_capacity(values.len());
    for (index, xds::VirtualCluster { headers, name }) in values.into_iter().enumerate() {
        let within = format!("virtual_clusters[{index}]");
        if headers.is_empty() || name.is_empty() {
            return Err(Refused::new(if name.is_empty() { "name" } else { "headers" }, "is missing").within(within));
        }
        let headers = matcher::headers(headers, "headers").within(within)?;
        all.push(VirtualCluster { headers, group: group(&name) });
    }
    if !all.is_empty() {
        let group = Arc::new(RequestGroup::others(&context.counters, host));
        all.push(VirtualCluster { headers: Vec::new(), group });
    }
    Ok(all)
}

/// What a level says about filters, and about cross-origin requests in the older way where it says nothing in the newer one.
pub(super) fn settings(
    context: &mut Context,
    mut values: BTreeMap<String, Any>,
    cors: Option<CorsPolicy>,
) -> Converted<FilterSettings> {
    match cors {
        Some(cors) if values.is_empty() => {
            let policy = filter::legacy_cors(context, cors).within("cors")?;
            Ok(FilterSettings::new(vec![(CORS.into(), FilterSetting::Cors(Arc::new(policy)))]))
        }
        Some(cors) if !values.contains_key(CORS) => {
            refuse!(cors);
            filter::settings(context, std::mem::take(&mut values))
        }
        _ => filter::settings(context, values),
    }
}

fn route(context: &mut Context, value: xds::Route, defaults: &Defaults) -> Converted<Route> {
    let xds::Route {
        name,
        r#match: condition,
        metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        // Read by the virtual host, whose name is a part of what it counts under.
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action: value,
    } = value;
    refuse!(route_specifiers);
    let Some(condition) = condition else { return Err(Refused::new("match", "is missing")) };
    let matches = route_match(context, condition).within("match")?;
    let replay = Replay { body: request_body_buffer_limit, request: per_request_buffer_limit_bytes };
    let (action, cors) = action(context, value, &matches, replay, defaults)?;
    Ok(Route {
        name: name.into(),
        matches,
        action,
        headers: HeaderOps {
            request: header_ops(context, request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(context, response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
        filters: settings(context, typed_per_filter_config, cors)?,
        origin: origin(metadata.as_ref()),
        tracing: tracing
            .map(|value| super::tracing::of_route(context, value))
            .transpose()
            .within("tracing")?
            .map(Box::new),
        decorator: decorator.map(super::tracing::decorator).transpose().within("decorator")?.map(Box::new),
        metadata: crate::config::Metadata::of(metadata.as_ref()),
        group: None,
    })
}

/// The configuration object that a resource was made from.
pub fn origin(metadata: Option<&Metadata>) -> Option<Arc<str>> {
    super::common::text(super::common::filter_metadata(metadata, "istio")?, "config").map(Arc::from)
}

fn route_match(context: &mut Context, value: xds::RouteMatch) -> Converted<RouteMatch> {
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
    refuse!(filter_state);
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(text)) if text == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(text)) => PathMatch::Prefix(text.into()),
        Some(PathSpecifier::Path(text)) => PathMatch::Exact(text.into()),
        Some(PathSpecifier::PathSeparatedPrefix(text)) => {
            let fits = text.starts_with('/') && text.len() > 1 && !text.ends_with('/') && !text.contains(['?', '#']);
            if !fits {
                let reason = format!("`{text}` does not begin with a slash, or ends with one, or has a `?` or `#`");
                return Err(Refused::new("path_separated_prefix", reason));
            }
            PathMatch::SeparatedPrefix(text.into())
        }
        Some(PathSpecifier::SafeRegex(value)) => PathMatch::Regex(matcher::regex(value).within("safe_regex")?),
        Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(value)) => {
            PathMatch::Template(action::uri_template(value).within("path_match_policy")?)
        }
        None => return Err(Refused::new("path_specifier", "is missing")),
    };
    let headers = matcher::headers(headers, "headers")?;
    let query = query_parameters
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::query(value).within(format_args!("query_parameters[{index}]")))
        .collect::<Converted<_>>()?;
    let cookies = cookies
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::cookie(value).within(format_args!("cookies[{index}]")))
        .collect::<Converted<_>>()?;
    let TlsContextMatchOptions { presented, validated } = tls_context.unwrap_or_default();
    let fraction =
        runtime_fraction.map(|value| filter::fraction(context, value)).transpose().within("runtime_fraction")?;
    let metadata: Vec<_> = dynamic_metadata
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::metadata(value).within(format_args!("dynamic_metadata[{index}]")))
        .collect::<Converted<_>>()?;
    context.asks_dynamic |= !metadata.is_empty();
    Ok(RouteMatch {
        path,
        case_sensitive: case_sensitive.unwrap_or(true),
        headers,
        query,
        cookies,
        metadata,
        grpc: grpc.is_some_and(|GrpcRouteMatchOptions {}| true),
        certificate_presented: presented,
        certificate_validated: validated,
        fraction,
    })
}
