//! HTTP filters: the chain of a connection manager, and what routes say about its filters.

mod compression;
mod cors;
pub mod discovery;
mod fault;
mod lua;
mod metadata;
mod mutation;
mod ratelimit;
#[cfg(test)]
mod tests;

pub use cors::legacy as legacy_cors;
use discovery::Discovered;
pub use metadata::key as metadata_key;
pub use mutation::list as header_mutations;
pub use ratelimit::policies as rate_limits;

use super::common::{optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, matcher, refuse};
use crate::config::{
    CountedMethods, FilterEntry, FilterSetting, FilterSettings, FilterStats, HealthFilter, HttpFilter, RouterOptions,
    Share, StrictHeaders,
};
use crate::rbac::Decider;
use crate::telemetry::counters::{CorsStats, FaultStats, RbacStats, Scope, ShadowStats};
use crate::telemetry::policies::PolicyCounts;
use leno_xds::envoy::config::core::v3::{
    GrpcMethodList, RuntimeFeatureFlag, RuntimeFractionalPercent, grpc_method_list,
};
use leno_xds::envoy::config::route::v3::FilterConfig;
use leno_xds::envoy::extensions::filters::http::{
    buffer::v3::{Buffer, BufferPerRoute, buffer_per_route},
    compressor::v3::{Compressor, CompressorPerRoute},
    cors::v3::{Cors, CorsPolicy},
    decompressor::v3::Decompressor,
    fault::v3::HttpFault,
    grpc_stats::v3::{FilterConfig as GrpcStats, filter_config::PerMethodStatSpecifier},
    grpc_web::v3::GrpcWeb,
    header_mutation::v3::{HeaderMutation, HeaderMutationPerRoute},
    header_to_metadata::v3::Config as HeaderToMetadata,
    health_check::v3::HealthCheck as Check,
    local_ratelimit::v3::LocalRateLimit,
    lua::v3::{Lua, LuaPerRoute},
    rbac::v3::{Rbac, RbacPerRoute},
    router::v3::Router,
    set_metadata::v3::Config as SetMetadata,
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter as Entry, http_filter};
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost_types::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// The filters of a field before the router, and how the router works. Those whose configurations come by name are added to
/// `discovered`; while one has not come, and there is no other, requests are answered 500 in its place.
pub fn chain(
    context: &mut Context,
    prefix: &str,
    (field, values): (&str, Vec<Entry>),
    discovered: &mut Vec<Discovered>,
) -> Converted<(Vec<FilterEntry>, RouterOptions)> {
    let last = values.len().saturating_sub(1);
    let (mut entries, mut options) = (Vec::new(), RouterOptions::default());
    for (index, value) in values.into_iter().enumerate() {
        let Entry { name, is_optional, disabled, config_type } = value;
        let within = format!("{field}[{index}]");
        let comes_by_name = matches!(config_type, Some(http_filter::ConfigType::ConfigDiscovery(_)));
        let any = match config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(http_filter::ConfigType::ConfigDiscovery(value)) => {
                let used = discovery::discovered(context, &name, value, index == last);
                let (used, found) = used.within("config_discovery").within(&within)?;
                discovered.push(used);
                match found {
                    Some(any) => any,
                    None => {
                        let (filter, stats) = (HttpFilter::Missing, FilterStats::None);
                        entries.push(FilterEntry { name: name.into(), disabled, filter, stats });
                        continue;
                    }
                }
            }
            None => return Err(Refused::new("typed_config", format!("of `{name}` is missing")).within(within)),
        };
        if let Some(value) = optional::<Router>(&any).within(&within)? {
            if index != last {
                return Err(Refused::new("", "the router must be the last filter").within(within));
            }
            if disabled {
                return Err(
                    Refused::new("disabled", "is set for the router, without which nothing is served").within(within)
                );
            }
            options = router(value).within(within)?;
            continue;
        }
        if let Some(value) = optional::<Lua>(&any).within(&within)? {
            lua::nothing(value).within("typed_config").within(&within)?;
            continue;
        }
        match filter(context, prefix, &any).within(format_args!("{within}.typed_config"))? {
            Some(_) if index == last && !comes_by_name => {
                return Err(Refused::new("", "is the last filter: that must be the router").within(within));
            }
            Some(filter) => {
                let stats = stats(context, prefix, &filter);
                entries.push(FilterEntry { name: name.into(), disabled, filter, stats });
            }
            None if index == last && (is_optional || disabled) => {
                return Err(Refused::new("", "is the last filter: that must be the router").within(within));
            }
            None if is_optional => {}
            // Routes that switch it on are answered as those are for which its configuration has not come.
            None if disabled => {
                let (filter, stats) = (HttpFilter::Missing, FilterStats::None);
                entries.push(FilterEntry { name: name.into(), disabled, filter, stats });
            }
            None => return Err(unknown_type(&any).within(within)),
        }
    }
    Ok((entries, options))
}

/// What the filter of a manager with this prefix counts.
fn stats(context: &Context, prefix: &str, filter: &HttpFilter) -> FilterStats {
    let (counters, http) = (&context.counters, Scope::http(prefix));
    match filter {
        HttpFilter::Fault(_) => FilterStats::Fault(FaultStats::new(counters, &[http])),
        HttpFilter::Cors => FilterStats::Cors(CorsStats::new(counters, &[http])),
        HttpFilter::Rbac(rbac) => FilterStats::Rbac(
            RbacStats::new(counters, &[http, Scope::rbac(&rbac.prefix)]),
            ShadowStats::new(counters, &[http, Scope::rbac(&rbac.shadow_prefix)]),
            Arc::new(PolicyCounts::new(counters, prefix, &rbac.prefix, &rbac.shadow_prefix)),
        ),
        _ => FilterStats::None,
    }
}

/// A filter that is known here.
fn filter(context: &mut Context, prefix: &str, any: &Any) -> Converted<Option<HttpFilter>> {
    Ok(Some(if let Some(value) = optional::<HttpFault>(any)? {
        // All faults of a prefix are counted together, whatever becomes of the listeners around them.
        let active = context.limits.count(&format!("fault/{prefix}"), AtomicU32::default);
        HttpFilter::Fault(Arc::new(crate::config::Fault { active, ..fault::fault(context, value)? }))
    } else if let Some(Cors {}) = optional(any)? {
        HttpFilter::Cors
    } else if let Some(value) = optional::<Rbac>(any)? {
        HttpFilter::Rbac(Arc::new(rbac(context, value)?))
    } else if let Some(value) = optional::<LocalRateLimit>(any)? {
        HttpFilter::LocalRateLimit(Arc::new(ratelimit::local(context, value)?))
    } else if let Some(HeaderMutation { mutations, most_specific_header_mutations_wins }) = optional(any)? {
        let mutation = mutation::mutations(context, mutations.unwrap_or_default()).within("mutations")?;
        HttpFilter::HeaderMutation(Arc::new(crate::config::HeaderMutation {
            most_specific_wins: most_specific_header_mutations_wins,
            ..mutation
        }))
    } else if let Some(Buffer { max_request_bytes }) = optional(any)? {
        HttpFilter::Buffer(buffer_limit(max_request_bytes)?)
    } else if let Some(value) = optional::<GrpcStats>(any)? {
        HttpFilter::GrpcStats(Arc::new(grpc_stats(context, value)?))
    } else if let Some(GrpcWeb {}) = optional(any)? {
        HttpFilter::GrpcWeb
    } else if let Some(value) = optional::<Compressor>(any)? {
        HttpFilter::Compressor(Arc::new(compression::compressor(context, prefix, value)?))
    } else if let Some(value) = optional::<Decompressor>(any)? {
        HttpFilter::Decompressor(Arc::new(compression::decompressor(context, prefix, value)?))
    } else if let Some(value) = optional::<Check>(any)? {
        HttpFilter::HealthCheck(Arc::new(health_check(context, value)?))
    } else if let Some(value) = optional::<HeaderToMetadata>(any)? {
        HttpFilter::HeaderToMetadata(Arc::new(metadata::headers(value)?))
    } else if let Some(value) = optional::<SetMetadata>(any)? {
        HttpFilter::SetMetadata(metadata::fixed(value)?)
    } else {
        return Ok(None);
    }))
}

fn rbac(context: &mut Context, value: Rbac) -> Converted<crate::config::Rbac> {
    let Rbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats: by_policy,
    } = value;
    let rules = super::rbac::decider(rules, matcher, ["rules", "matcher"])?;
    let shadow = super::rbac::decider(shadow_rules, shadow_matcher, ["shadow_rules", "shadow_matcher"])?;
    context.asks_dynamic |= rules.iter().chain(&shadow).any(Decider::asks_dynamic);
    Ok(crate::config::Rbac {
        rules,
        shadow,
        prefix: rules_stat_prefix.into(),
        shadow_prefix: shadow_rules_stat_prefix.into(),
        by_policy,
    })
}

fn grpc_stats(context: &Context, value: GrpcStats) -> Converted<crate::config::GrpcStats> {
    let GrpcStats {
        // Nothing here reads what it would leave there.
        emit_filter_state: _,
        // How long endpoints take is told by cluster.
        enable_upstream_stats: _,
        replace_dots_in_grpc_service_name,
        per_method_stat_specifier,
    } = value;
    let methods = match per_method_stat_specifier {
        Some(PerMethodStatSpecifier::StatsForAllMethods(true)) => CountedMethods::All,
        None | Some(PerMethodStatSpecifier::StatsForAllMethods(false)) => CountedMethods::None,
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(GrpcMethodList { services })) => {
            let each = services.into_iter().flat_map(|grpc_method_list::Service { name, method_names }| {
                method_names.into_iter().map(move |method| (name.as_str().into(), method.into()))
            });
            CountedMethods::These(each.collect())
        }
    };
    Ok(crate::config::GrpcStats::new(methods, replace_dots_in_grpc_service_name, context.counters.clone()))
}

fn buffer_limit(value: Option<u32>) -> Converted<u64> {
    match value {
        Some(limit) if limit > 0 => Ok(u64::from(limit)),
        _ => Err(Refused::new("max_request_bytes", "is not above zero")),
    }
}

fn health_check(context: &Context, value: Check) -> Converted<HealthFilter> {
    let Check { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers } = value;
    refuse!(cache_time, cluster_min_healthy_percentages);
    match pass_through_mode {
        Some(false) => {}
        Some(true) => return Err(Refused::new("pass_through_mode", "is not supported by this proxy")),
        None => return Err(Refused::new("pass_through_mode", "is missing")),
    }
    Ok(HealthFilter { cluster: context.node_cluster.as_str().into(), headers: matcher::headers(headers, "headers")? })
}

fn router(value: Router) -> Converted<RouterOptions> {
    let Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options: _,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data: _,
    } = value;
    refuse!(upstream_log, upstream_http_filters);
    let mut strict = StrictHeaders::default();
    for (index, name) in strict_check_headers.iter().enumerate() {
        if !strict.add(&name.to_ascii_lowercase()) {
            let reason = format!("`{name}` is none of {}", StrictHeaders::NAMES.join(", "));
            return Err(Refused::new(format!("strict_check_headers[{index}]"), reason));
        }
    }
    Ok(RouterOptions {
        suppress_envoy_headers,
        respect_expected_timeout: respect_expected_rq_timeout,
        start_child_span,
        strict,
        counts_no_statuses: !dynamic_stats.unwrap_or(true),
        counts_no_failed_calls: suppress_grpc_request_failure_code_stats,
    })
}

/// What a route, virtual host, table or weighted target says about filters.
pub fn settings(context: &mut Context, values: BTreeMap<String, Any>) -> Converted<FilterSettings> {
    let mut settings = Vec::with_capacity(values.len());
    for (name, any) in values {
        let said = setting(context, &any).within(format_args!("typed_per_filter_config[{name}]"))?;
        if let Some(said) = said {
            settings.push((name.into_boxed_str(), said));
        }
    }
    Ok(FilterSettings::new(settings))
}

fn setting(context: &mut Context, any: &Any) -> Converted<Option<FilterSetting>> {
    match optional::<FilterConfig>(any)? {
        None => match one(context, any)? {
            Some(setting) => Ok(Some(setting)),
            None => Err(unknown_type(any)),
        },
        Some(FilterConfig { disabled: true, .. }) => Ok(Some(FilterSetting::Off)),
        Some(FilterConfig { config: None, is_optional: _, disabled: false }) => Ok(Some(FilterSetting::Enabled)),
        Some(FilterConfig { config: Some(any), .. }) if any.type_url.is_empty() => Ok(Some(FilterSetting::Enabled)),
        Some(FilterConfig { config: Some(any), is_optional, disabled: false }) => {
            match one(context, &any).within("config")? {
                None if !is_optional => Err(unknown_type(&any).within("config")),
                // It is switched on all the same.
                None => Ok(Some(FilterSetting::Enabled)),
                setting => Ok(setting),
            }
        }
    }
}

/// A setting of a filter that is known here.
fn one(context: &mut Context, any: &Any) -> Converted<Option<FilterSetting>> {
    Ok(Some(if let Some(value) = optional::<HttpFault>(any)? {
        FilterSetting::Fault(Arc::new(fault::fault(context, value)?))
    } else if let Some(value) = optional::<CorsPolicy>(any)? {
        FilterSetting::Cors(Arc::new(cors::policy(context, value)?))
    } else if let Some(RbacPerRoute { rbac: value }) = optional(any)? {
        FilterSetting::Rbac(value.map(|value| rbac(context, value)).transpose().within("rbac")?.map(Arc::new))
    } else if let Some(value) = optional::<LocalRateLimit>(any)? {
        if value.token_bucket.is_none() {
            return Err(Refused::new("token_bucket", "is missing; a setting of a route must have one"));
        }
        FilterSetting::LocalRateLimit(Arc::new(ratelimit::local(context, value)?))
    } else if let Some(HeaderMutationPerRoute { mutations }) = optional(any)? {
        let mutation = mutation::mutations(context, mutations.unwrap_or_default()).within("mutations")?;
        FilterSetting::HeaderMutation(Arc::new(mutation))
    } else if let Some(value) = optional::<HeaderToMetadata>(any)? {
        FilterSetting::HeaderToMetadata(Arc::new(metadata::of_route(value)?))
    } else if let Some(value) = optional::<SetMetadata>(any)? {
        FilterSetting::SetMetadata(metadata::fixed(value)?)
    } else if let Some(value) = optional::<CompressorPerRoute>(any)? {
        match compression::of_route(value)? {
            Some(setting) => FilterSetting::Compressor(setting),
            None => FilterSetting::On,
        }
    } else if let Some(BufferPerRoute { r#override }) = optional(any)? {
        match r#override {
            Some(buffer_per_route::Override::Disabled(true)) => FilterSetting::Off,
            Some(buffer_per_route::Override::Buffer(Buffer { max_request_bytes })) => {
                FilterSetting::Buffer(buffer_limit(max_request_bytes).within("buffer")?)
            }
            Some(buffer_per_route::Override::Disabled(false)) | None => {
                return Err(Refused::new("override", "is missing"));
            }
        }
    } else if let Some(value) = optional::<LuaPerRoute>(any)? {
        lua::of_route(value)?
    } else {
        return Ok(None);
    }))
}

/// A share as it is written; nothing is none.
pub fn share(value: Option<FractionalPercent>) -> Converted<Share> {
    let FractionalPercent { numerator, denominator } = value.unwrap_or_default();
    let denominator = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Refused::new("denominator", "is not known to this proxy")),
    };
    Ok(Share { numerator, denominator })
}

/// A share in millionths, as the runtime says or by default.
pub fn fraction(context: &Context, value: RuntimeFractionalPercent) -> Converted<u32> {
    let RuntimeFractionalPercent { default_value, runtime_key } = value;
    let default = share(default_value).within("default_value")?;
    Ok(context.runtime.share(&runtime_key, default).millionths())
}

/// A switch, as the runtime says or by default; nothing is on.
pub fn enabled(context: &Context, flag: Option<RuntimeFeatureFlag>) -> bool {
    let Some(RuntimeFeatureFlag { default_value, runtime_key }) = flag else { return true };
    context.runtime.flag(&runtime_key, default_value.unwrap_or(true))
}
