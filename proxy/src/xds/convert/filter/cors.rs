//! Cross-origin requests.

use super::super::{Context, Converted, Within as _, matcher};
use super::fraction;
use crate::config::Cors;
use leno_xds::envoy::config::core::v3::RuntimeFractionalPercent;
use leno_xds::envoy::config::route::v3 as old;
use leno_xds::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use leno_xds::envoy::r#type::matcher::v3::StringMatcher;

/// A policy.
pub fn policy(context: &Context, value: CorsPolicy) -> Converted<Cors> {
    let CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = value;
    Ok(Cors {
        origins: origins(allow_origin_string_match)?,
        methods: allow_methods.into(),
        headers: allow_headers.into(),
        expose: expose_headers.into(),
        max_age: max_age.into(),
        credentials: allow_credentials,
        private_network: allow_private_network_access,
        forward_not_matching: forward_not_matching_preflights,
        enabled: share(context, filter_enabled, 1_000_000).within("filter_enabled")?,
        shadow: share(context, shadow_enabled, 0).within("shadow_enabled")?,
    })
}

/// A policy as routes had it before they spoke of filters.
pub fn legacy(context: &Context, value: old::CorsPolicy) -> Converted<Cors> {
    let old::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value;
    policy(
        context,
        CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled: enabled_specifier.map(|old::cors_policy::EnabledSpecifier::FilterEnabled(enabled)| enabled),
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        },
    )
}

fn origins(values: Vec<StringMatcher>) -> Converted<Vec<crate::config::StringMatch>> {
    let one = |(index, value)| matcher::string(value).within(format_args!("allow_origin_string_match[{index}]"));
    values.into_iter().enumerate().map(one).collect()
}

fn share(context: &Context, value: Option<RuntimeFractionalPercent>, none: u32) -> Converted<u32> {
    value.map_or(Ok(none), |value| fraction(context, value))
}
