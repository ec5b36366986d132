//! What routes do with requests.

use super::common::{filter_metadata, header_name, header_ops, maybe_duration, optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, direct, filter, matcher, refuse, refuse_set, retry};
use crate::config::{
    Action, ClusterId, ConnectHere, Forward, GrpcTimeout, HashPolicy, HashSource, HeaderOps, HostRewrite,
    InternalRedirect, LABELS, Labels, Mirror, PathMatch, PathRewrite, Priority, Redirect, RedirectPredicate,
    RegexRewrite, RetryPolicy, RouteMatch, TargetChoice, UriTemplate, WeightedCluster,
};
use leno_xds::envoy::config::core::v3::{Metadata, TypedExtensionConfig};
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::{
    CorsPolicy, InternalRedirectPolicy,
    redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
    route_action::{
        self, ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy, UpgradeConfig,
        hash_policy::{self, PolicySpecifier},
        upgrade_config::ConnectConfig,
    },
    weighted_cluster::{ClusterWeight, RandomValueSpecifier, cluster_weight},
};
use leno_xds::envoy::extensions::internal_redirect::{
    allow_listed_routes::v3::AllowListedRoutesConfig, previous_routes::v3::PreviousRoutesConfig,
    safe_cross_scheme::v3::SafeCrossSchemeConfig,
};
use leno_xds::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use leno_xds::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use leno_xds::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's limit for a request when a route says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What routes have where they say nothing.
#[derive(Debug)]
pub(super) struct Defaults {
    /// When requests are tried again.
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// Bytes of a body that are kept for another attempt.
    pub(super) replay: Replay,
    /// Copies.
    pub(super) mirrors: Vec<RequestMirrorPolicy>,
    /// Bytes that the body of a direct response may have; Envoy's default is 4 KiB.
    pub(super) direct_body: usize,
}

/// How many bytes of a body are kept, as it is said today and as it was said before; the newer field counts even from further away.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Replay {
    pub(super) body: Option<u64>,
    pub(super) request: Option<u32>,
}

impl Replay {
    fn or(self, other: Self) -> Option<u64> {
        self.body.or(other.body).or(self.request.or(other.request).map(u64::from))
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self { retry: None, replay: Replay::default(), mirrors: Vec::new(), direct_body: 4096 }
    }
}

/// A route's action, and what it says about cross-origin requests in the older way.
pub(super) fn action(
    context: &mut Context,
    value: Option<xds::route::Action>,
    matches: &RouteMatch,
    replay: Replay,
    defaults: &Defaults,
) -> Converted<(Action, Option<CorsPolicy>)> {
    let unsupported = |field: &str| Err(Refused::new(field, "is not supported by this proxy"));
    Ok(match value {
        Some(xds::route::Action::Route(value)) => {
            let (mut forward, cors) = forward(context, value, matches, defaults).within("route")?;
            forward.replay_limit = replay.or(defaults.replay);
            (Action::Forward(Box::new(forward)), cors)
        }
        Some(xds::route::Action::Redirect(value)) => {
            (Action::Redirect(Box::new(redirect(value, matches).within("redirect")?)), None)
        }
        Some(xds::route::Action::DirectResponse(value)) => {
            (Action::Direct(direct::direct(context, value, defaults.direct_body).within("direct_response")?), None)
        }
        Some(xds::route::Action::FilterAction(_)) => return unsupported("filter_action"),
        Some(xds::route::Action::NonForwardingAction(_)) => return unsupported("non_forwarding_action"),
        None => return Err(Refused::new("action", "is missing")),
    })
}

fn forward(
    context: &mut Context,
    value: xds::RouteAction,
    matches: &RouteMatch,
    defaults: &Defaults,
) -> Converted<(Forward, Option<CorsPolicy>)> {
    let xds::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite: regex_rewrite_field,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy: _,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    refuse!(path_rewrite, retry_policy_typed_config);
    hedge_policy.map_or(Ok(()), retry::no_hedge).within("hedge_policy")?;
    let mut forward = Forward { labels: labels(metadata_match.as_ref()), ..Forward::default() };
    forward.priority = match priority {
        0 => Priority::Default,
        1 => Priority::High,
        other => return Err(Refused::new("priority", format!("{other} is not known to this proxy"))),
    };
    match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            forward.targets = vec![WeightedCluster::all(context.cluster(&name).within("cluster")?)];
        }
        Some(ClusterSpecifier::WeightedClusters(value)) => {
            (forward.targets, forward.choice) = weighted(context, value).within("weighted_clusters")?;
            for target in &mut forward.targets {
                if let (Some(of_route), Some(own)) = (&forward.labels, &target.labels) {
                    target.labels = Some(Arc::new(of_route.with(own)));
                }
            }
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            forward.cluster_header = Some(routed_header(&name).within("cluster_header")?);
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err(Refused::new("cluster_specifier_plugin", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("cluster_specifier", "is missing")),
    }
    forward.no_cluster_code = match cluster_not_found_response_code {
        0 => 503,
        1 => 404,
        2 => 500,
        other => {
            let reason = format!("{other} is not known to this proxy");
            return Err(Refused::new("cluster_not_found_response_code", reason));
        }
    };
    forward.host = match host_rewrite_specifier {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => {
            (!text.is_empty()).then(|| HostRewrite::Literal(text.into()))
        }
        Some(HostRewriteSpecifier::HostRewrite(text)) => {
            Some(HostRewrite::Format(context.text_format(&text, false).within("host_rewrite")?))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(name.to_ascii_lowercase().into()))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(value)) => {
            Some(HostRewrite::Path(regex_rewrite(value).within("host_rewrite_path_regex")?))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Some(HostRewrite::Endpoint),
    };
    forward.append_forwarded_host = append_x_forwarded_host;
    forward.path = path_rewrite_of(prefix_rewrite, regex_rewrite_field, path_rewrite_policy, matches)?;
    let max_grpc_timeout = maybe_duration(max_grpc_timeout, "max_grpc_timeout")?;
    let offset = maybe_duration(grpc_timeout_offset, "grpc_timeout_offset")?.unwrap_or_default();
    let timeout = maybe_duration(timeout, "timeout")?.unwrap_or(DEFAULT_TIMEOUT);
    match max_stream_duration {
        None => {
            forward.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
            if let Some(max) = max_grpc_timeout {
                forward.grpc_timeout = GrpcTimeout::Timeout { max, offset };
            }
        }
        // As in Envoy: with it, `timeout` and `max_grpc_timeout` do not count.
        Some(value) => {
            let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } = value;
            let within = "max_stream_duration";
            forward.max_duration = maybe_duration(max_stream_duration, "max_stream_duration").within(within)?;
            let offset = maybe_duration(grpc_timeout_header_offset, "grpc_timeout_header_offset").within(within)?;
            let max = maybe_duration(grpc_timeout_header_max, "grpc_timeout_header_max").within(within)?;
            forward.grpc_timeout =
                max.map_or(GrpcTimeout::Told, |max| GrpcTimeout::Stream { max, offset: offset.unwrap_or_default() });
        }
    }
    forward.idle_timeout = maybe_duration(idle_timeout, "idle_timeout")?;
    forward.flush_timeout = maybe_duration(flush_timeout, "flush_timeout")?;
    forward.retry = match retry_policy {
        Some(value) => Some(Arc::new(retry::policy(value).within("retry_policy")?)),
        None => defaults.retry.clone(),
    };
    let mirrors = if request_mirror_policies.is_empty() { &defaults.mirrors } else { &request_mirror_policies };
    for (index, value) in mirrors.iter().enumerate() {
        let within = format!("request_mirror_policies[{index}]");
        forward.mirrors.push(mirror(context, value.clone()).within(within)?);
    }
    for (index, value) in hash_policy.into_iter().enumerate() {
        forward.hash.extend(hash(value).within(format_args!("hash_policy[{index}]"))?);
    }
    forward.internal_redirect = match (internal_redirect_policy, internal_redirect_action) {
        (Some(value), _) => Some(internal_redirect(value).within("internal_redirect_policy")?),
        (None, 1) => {
            let policy = InternalRedirectPolicy { max_internal_redirects, ..InternalRedirectPolicy::default() };
            Some(internal_redirect(policy)?)
        }
        (None, _) => None,
    };
    for (index, value) in upgrade_configs.into_iter().enumerate() {
        upgrade(&mut forward, value).within(format_args!("upgrade_configs[{index}]"))?;
    }
    forward.rate_limits = filter::rate_limits(context, rate_limits).within("rate_limits")?;
    forward.include_host_rate_limits = include_vh_rate_limits.unwrap_or(false);
    Ok((forward, cors))
}

/// What a route asks of an endpoint's labels.
fn labels(metadata: Option<&Metadata>) -> Option<Arc<Labels>> {
    let fields = filter_metadata(metadata, LABELS)?;
    Some(Arc::new(Labels::of(fields)))
}

fn upgrade(forward: &mut Forward, value: UpgradeConfig) -> Converted<()> {
    let UpgradeConfig { upgrade_type, enabled, connect_config } = value;
    if let Some(ConnectConfig { proxy_protocol_config, allow_post }) = connect_config {
        refuse_set(&proxy_protocol_config, "connect_config.proxy_protocol_config")?;
        if !upgrade_type.eq_ignore_ascii_case("connect") {
            return Err(Refused::new("connect_config", "is for the upgrade type CONNECT only"));
        }
        forward.connect = Some(ConnectHere { allow_post });
    }
    let name = upgrade_type.to_ascii_lowercase().into_boxed_str();
    if forward.upgrades.iter().any(|(known, _)| *known == name) {
        return Err(Refused::new("upgrade_type", format!("`{upgrade_type}` is there twice")));
    }
    forward.upgrades.push((name, enabled.unwrap_or(true)));
    Ok(())
}

fn named_header(name: &str) -> Converted<Box<str>> {
    match name.strip_prefix(':') {
        Some(_) => Err(Refused::new("", "a pseudo header is not supported by this proxy")),
        None => header_name(name),
    }
}

/// A header that names a cluster, which may be a pseudo header.
fn routed_header(name: &str) -> Converted<Box<str>> {
    match name {
        "host" | ":authority" | ":path" | ":method" | ":scheme" => Ok(name.into()),
        name => named_header(name),
    }
}

fn redirect_predicate(value: TypedExtensionConfig) -> Converted<RedirectPredicate> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    Ok(if let Some(PreviousRoutesConfig {}) = optional(&any).within("typed_config")? {
        RedirectPredicate::PreviousRoutes
    } else if let Some(AllowListedRoutesConfig { allowed_route_names }) = optional(&any).within("typed_config")? {
        RedirectPredicate::AllowedRoutes(allowed_route_names.into_iter().map(Into::into).collect())
    } else if let Some(SafeCrossSchemeConfig {}) = optional(&any).within("typed_config")? {
        RedirectPredicate::SafeCrossScheme
    } else {
        return Err(unknown_type(&any).within("typed_config"));
    })
}

fn internal_redirect(value: InternalRedirectPolicy) -> Converted<InternalRedirect> {
    let InternalRedirectPolicy {
        max_internal_redirects,
        redirect_response_codes,
        predicates,
        allow_cross_scheme_redirect,
        response_headers_to_copy,
    } = value;
    for (index, name) in response_headers_to_copy.iter().enumerate() {
        if response_headers_to_copy[..index].contains(name) {
            return Err(Refused::new(format!("response_headers_to_copy[{index}]"), "is there twice; leave one out"));
        }
    }
    // Others are ignored, as in Envoy.
    let codes: Vec<u16> = redirect_response_codes
        .into_iter()
        .filter_map(|code| u16::try_from(code).ok())
        .filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308))
        .collect();
    Ok(InternalRedirect {
        max: max_internal_redirects.unwrap_or(1),
        codes: if codes.is_empty() { vec![302] } else { codes },
        cross_scheme: allow_cross_scheme_redirect,
        predicates: predicates
            .into_iter()
            .enumerate()
            .map(|(index, value)| redirect_predicate(value).within(format_args!("predicates[{index}]")))
            .collect::<Converted<_>>()?,
        copied_headers: response_headers_to_copy
            .iter()
            .map(|name| header_name(name).within("response_headers_to_copy"))
            .collect::<Converted<_>>()?,
    })
}

fn mirror(context: &mut Context, value: RequestMirrorPolicy) -> Converted<Mirror> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    if !cluster.is_empty() && !cluster_header.is_empty() {
        return Err(Refused::new("cluster_header", "and `cluster` exclude each other; leave one out"));
    }
    let (cluster, cluster_header) = match cluster_header.as_str() {
        "" => (context.cluster(&cluster).within("cluster")?, None),
        name => (ClusterId(u32::MAX), Some(routed_header(name).within("cluster_header")?)),
    };
    Ok(Mirror {
        cluster,
        cluster_header,
        fraction: runtime_fraction
            .map_or(Ok(1_000_000), |value| filter::fraction(context, value))
            .within("runtime_fraction")?,
        suffix: !disable_shadow_host_suffix_append,
        host: Some(host_rewrite_literal).filter(|host| !host.is_empty()).map(Into::into),
        headers: filter::header_mutations(context, request_headers_mutations, "request_headers_mutations")?,
        sampled: trace_sampled,
    })
}

/// `None` where the policy hashes nothing.
pub(super) fn hash(value: route_action::HashPolicy) -> Converted<Option<HashPolicy>> {
    let route_action::HashPolicy { terminal, policy_specifier } = value;
    let source = match policy_specifier {
        Some(PolicySpecifier::Header(hash_policy::Header { header_name: name, regex_rewrite: rewrite })) => {
            HashSource::Header {
                name: name.to_ascii_lowercase().into(),
                rewrite: rewrite.map(regex_rewrite).transpose().within("header.regex_rewrite")?,
            }
        }
        Some(PolicySpecifier::Cookie(hash_policy::Cookie { name, ttl, path, attributes })) => {
            let attribute = |hash_policy::CookieAttribute { name, value }: hash_policy::CookieAttribute| match value {
                value if value.is_empty() => format!("; {name}"),
                value => format!("; {name}={value}"),
            };
            let attributes: String = attributes.into_iter().map(attribute).collect();
            if http::HeaderValue::from_str(&format!("{name}{path}{attributes}")).is_err() {
                return Err(Refused::new("cookie", "has characters that no header may have"));
            }
            HashSource::Cookie {
                name: name.into(),
                // Whole seconds, as in Envoy.
                ttl: maybe_duration(ttl, "cookie.ttl")?.map(|ttl| Duration::from_secs(ttl.as_secs())),
                path: path.into(),
                attributes: attributes.into(),
            }
        }
        Some(PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip })) => {
            if !source_ip {
                return Ok(None);
            }
            HashSource::SourceIp
        }
        Some(PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name })) => HashSource::Query(name.into()),
        Some(PolicySpecifier::FilterState(_)) => {
            return Err(Refused::new("filter_state", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("policy_specifier", "is missing")),
    };
    Ok(Some(HashPolicy { source, terminal }))
}

fn path_rewrite_of(
    prefix: String,
    regex: Option<RegexMatchAndSubstitute>,
    policy: Option<TypedExtensionConfig>,
    matches: &RouteMatch,
) -> Converted<Option<PathRewrite>> {
    match (prefix.is_empty(), regex, policy) {
        (true, None, None) => Ok(None),
        (false, None, None) => {
            no_template(matches, "prefix_rewrite")?;
            Ok(Some(PathRewrite::Prefix(prefix.into())))
        }
        (true, Some(regex), None) => Ok(Some(PathRewrite::Regex(regex_rewrite(regex).within("regex_rewrite")?))),
        (true, None, Some(policy)) => template(policy, matches).within("path_rewrite_policy").map(Some),
        _ => Err(Refused::new("path_rewrite_policy", "only one of it, prefix_rewrite and regex_rewrite may be set")),
    }
}

/// A path that is matched by a template has no prefix that could be replaced.
fn no_template(matches: &RouteMatch, field: &str) -> Converted<()> {
    match matches.path {
        PathMatch::Template(_) => {
            Err(Refused::new(field, "stands on a route with a `path_match_policy`; use `path_rewrite_policy`"))
        }
        _ => Ok(()),
    }
}

fn template(value: TypedExtensionConfig, matches: &RouteMatch) -> Converted<PathRewrite> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    let Some(UriTemplateRewriteConfig { path_template_rewrite }) = super::common::optional(&any)? else {
        return Err(super::common::unknown_type(&any).within("typed_config"));
    };
    let field = "typed_config.path_template_rewrite";
    let rewrite =
        UriTemplate::rewrite(&path_template_rewrite).map_err(|error| Refused::new(field, error.to_string()))?;
    match &matches.path {
        PathMatch::Template(pattern) if pattern.has_variables_of(&rewrite) => Ok(PathRewrite::Template(rewrite)),
        PathMatch::Template(_) => Err(Refused::new(field, "names a variable that the route's template has not")),
        _ => Err(Refused::new("", "stands on a route that is not matched by a template")),
    }
}

/// A template of paths, as an extension.
pub(super) fn uri_template(value: TypedExtensionConfig) -> Converted<UriTemplate> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    let Some(UriTemplateMatchConfig { path_template }) = super::common::optional(&any)? else {
        return Err(super::common::unknown_type(&any).within("typed_config"));
    };
    UriTemplate::pattern(&path_template).map_err(|error| Refused::new("typed_config.path_template", error.to_string()))
}

pub(super) fn regex_rewrite(value: RegexMatchAndSubstitute) -> Converted<RegexRewrite> {
    let RegexMatchAndSubstitute { pattern, substitution } = value;
    RegexRewrite::new(&matcher::pattern(pattern.unwrap_or_default()), &substitution)
        .map_err(|error| Refused::new("pattern", error.to_string()))
}

fn weighted(context: &mut Context, value: xds::WeightedCluster) -> Converted<(Vec<WeightedCluster>, TargetChoice)> {
    // The total is the sum.
    let xds::WeightedCluster { clusters, total_weight: _, runtime_key_prefix, random_value_specifier } = value;
    let choice = match random_value_specifier {
        None | Some(RandomValueSpecifier::UseHashPolicy(false)) => TargetChoice::Random,
        Some(RandomValueSpecifier::HeaderName(name)) => {
            TargetChoice::Header(named_header(&name).within("header_name")?)
        }
        Some(RandomValueSpecifier::UseHashPolicy(true)) => TargetChoice::Hash,
    };
    let mut targets = Vec::with_capacity(clusters.len());
    for (index, cluster) in clusters.into_iter().enumerate() {
        let key = format!("{runtime_key_prefix}.{}", cluster.name);
        let mut target = cluster_weight(context, cluster).within(format_args!("clusters[{index}]"))?;
        if !runtime_key_prefix.is_empty()
            && let Some(weight) = context.runtime.whole(&key)
        {
            target.weight = u32::try_from(weight).unwrap_or(u32::MAX);
        }
        // What gets nothing is left out, so that every target that is there can be chosen.
        if target.weight > 0 {
            targets.push(target);
        }
    }
    if targets.is_empty() {
        return Err(Refused::new("clusters", "has no weight above zero"));
    }
    if targets.iter().map(|target| u64::from(target.weight)).sum::<u64>() > u64::from(u32::MAX) {
        return Err(Refused::new("clusters", "have weights whose sum is above 4294967295"));
    }
    Ok((targets, choice))
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
    let (cluster, cluster_header) = match cluster_header.as_str() {
        "" => (context.cluster(&name).within("name")?, None),
        _ if !name.is_empty() => return Err(Refused::new("cluster_header", "cannot stand beside name")),
        header => (ClusterId(u32::MAX), Some(routed_header(header).within("cluster_header")?)),
    };
    let host = host_rewrite_specifier.and_then(|value| {
        let cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(text) = value;
        (!text.is_empty()).then(|| text.into())
    });
    Ok(WeightedCluster {
        cluster,
        cluster_header,
        weight: weight.unwrap_or(0),
        headers: HeaderOps {
            request: header_ops(context, request_headers_to_add, request_headers_to_remove, "request_headers")?,
            response: header_ops(context, response_headers_to_add, response_headers_to_remove, "response_headers")?,
        },
        filters: filter::settings(context, typed_per_filter_config)?,
        host,
        labels: labels(metadata_match.as_ref()),
    })
}

fn redirect(value: xds::RedirectAction, matches: &RouteMatch) -> Converted<Redirect> {
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
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (!scheme.is_empty()).then(|| scheme.into_boxed_str()),
    };
    let (path, rewrite) = match path_rewrite_specifier {
        None => (None, None),
        // As in Envoy: those leave the path as it is.
        Some(PathRewriteSpecifier::PrefixRewrite(path) | PathRewriteSpecifier::PathRedirect(path))
            if path.is_empty() =>
        {
            (None, None)
        }
        Some(PathRewriteSpecifier::PathRedirect(path)) => (Some(path.into_boxed_str()), None),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            no_template(matches, "prefix_rewrite")?;
            (None, Some(PathRewrite::Prefix(prefix.into())))
        }
        Some(PathRewriteSpecifier::RegexRewrite(value)) => {
            (None, Some(PathRewrite::Regex(regex_rewrite(value).within("regex_rewrite")?)))
        }
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
