//! Limits of rates.

use super::super::common::{cidr, duration, header_ops, header_text};
use super::super::{Context, Converted, Refused, Within as _, matcher, refuse, refuse_set};
use super::{fraction, metadata};
use crate::config::{
    Buckets, DescriptorValue, Dynamic, HostPolicies, LimitedDescriptor, LocalRateLimit, RateLimitAction,
    RateLimitPolicy, TokenBucket,
};
use crate::rbac::Source;
use crate::telemetry::counters::{RateLimitStats, Scope};
use crate::xds::bootstrap::WRITTEN_VALUES;
use leno_xds::envoy::config::core::v3 as core;
use leno_xds::envoy::config::route::v3 as route;
use leno_xds::envoy::config::route::v3::rate_limit::{Action, HitsAddend, action, action::ActionSpecifier};
use leno_xds::envoy::extensions::common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry};
use leno_xds::envoy::extensions::filters::http::local_ratelimit::v3 as xds;
use leno_xds::envoy::r#type::matcher::v3::AddressMatcher;
use leno_xds::envoy::r#type::v3::{HttpStatus, TokenBucket as Bucket};
use leno_xds::xds::core::v3::CidrRange;
use prost::Message as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of values that requests bring, where nothing is said; Envoy's default.
const MAX_DYNAMIC: u32 = 20;
/// The most that may be said: each is some 200 bytes that clients fill.
const MOST_DYNAMIC: u32 = 65_536;

/// The most tokens that a request takes from one bucket; Envoy's bound.
const MOST_HITS: u32 = 1_000_000_000;

/// The number of the next limit.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A limit of rates that this process enforces by itself.
pub fn local(context: &mut Context, value: xds::LocalRateLimit) -> Converted<LocalRateLimit> {
    let written = value.encode_to_vec();
    let xds::LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors: values,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
        enable_retry_after_header,
    } = value;
    refuse!(local_cluster_rate_limit);
    let status = match status {
        Some(HttpStatus { code }) if code >= 400 => {
            u16::try_from(code).map_err(|_| Refused::new("status", format!("{code} is no status")))?
        }
        _ => 429,
    };
    let mut descriptors = Vec::with_capacity(values.len());
    let most = max_dynamic_descriptors.unwrap_or(MAX_DYNAMIC);
    if !(1..=MOST_DYNAMIC).contains(&most) {
        return Err(Refused::new("max_dynamic_descriptors", format!("is not between 1 and {MOST_DYNAMIC}")));
    }
    for (index, value) in values.into_iter().enumerate() {
        let made = descriptor(value, most).within(format_args!("descriptors[{index}]"))?;
        if descriptors.iter().any(|other: &LimitedDescriptor| other.entries == made.entries) {
            let reason = "has the entries of another; leave one of them out";
            return Err(Refused::new(format!("descriptors[{index}]"), reason));
        }
        descriptors.push(made);
    }
    for (index, limit) in rate_limits.iter().enumerate() {
        if limit.stage.is_some() || !limit.disable_key.is_empty() {
            let reason = "has a `stage` or a `disable_key`, which count only on routes; leave them out";
            return Err(Refused::new(format!("rate_limits[{index}]"), reason));
        }
    }
    let host_policies = match vh_rate_limits {
        0 => HostPolicies::Override,
        1 => HostPolicies::Include,
        2 => HostPolicies::Ignore,
        other => return Err(Refused::new("vh_rate_limits", format!("{other} is not known to this proxy"))),
    };
    let headers = match enable_x_ratelimit_headers {
        0 => false,
        1 => true,
        other => return Err(Refused::new("enable_x_ratelimit_headers", format!("{other} is not known to this proxy"))),
    };
    let scope = Scope::bare("envoy_local_http_ratelimit_prefix", &stat_prefix);
    let bucket = token_bucket.map(bucket).transpose().within("token_bucket")?;
    let make = || Buckets { id: NEXT.fetch_add(1, Ordering::Relaxed), bucket, descriptors };
    let buckets = context.limits.of_requests(&written, make);
    Ok(LocalRateLimit {
        stats: RateLimitStats::new(&context.counters, &[scope]),
        status,
        buckets,
        per_connection: local_rate_limit_per_downstream_connection,
        retry_after: enable_retry_after_header,
        enabled: filter_enabled.map_or(Ok(0), |value| fraction(context, value)).within("filter_enabled")?,
        enforced: filter_enforced.map_or(Ok(0), |value| fraction(context, value)).within("filter_enforced")?,
        request_headers: header_ops(
            context,
            request_headers_to_add_when_not_enforced,
            Vec::new(),
            "request_headers_to_add_when_not_enforced",
        )?,
        response_headers: header_ops(context, response_headers_to_add, Vec::new(), "response_headers")?,
        stage,
        policies: own_policies(context, rate_limits).within("rate_limits")?,
        host_policies,
        default_too: always_consume_default_token_bucket.unwrap_or(true),
        headers,
        resource_exhausted: rate_limited_as_resource_exhausted,
    })
}

fn bucket(value: Bucket) -> Converted<TokenBucket> {
    let Bucket { max_tokens, tokens_per_fill, fill_interval } = value;
    let interval = fill_interval.ok_or_else(|| Refused::new("fill_interval", "is missing"))?;
    let interval = duration(interval, "fill_interval")?;
    if interval < Duration::from_millis(50) {
        return Err(Refused::new("fill_interval", "is below 50 ms"));
    }
    if tokens_per_fill == Some(0) {
        return Err(Refused::new("tokens_per_fill", "must be above zero"));
    }
    Ok(TokenBucket::new(max_tokens, tokens_per_fill.unwrap_or(1), interval))
}

fn descriptor(value: LocalRateLimitDescriptor, most: u32) -> Converted<LimitedDescriptor> {
    let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = value;
    let entry = |Entry { key, value }: Entry| (key.into(), (!value.is_empty()).then(|| value.into()));
    let entries: Vec<(Box<str>, Option<Box<str>>)> = entries.into_iter().map(entry).collect();
    let any = entries.iter().any(|(_, value)| value.is_none());
    let bucket = bucket(token_bucket.unwrap_or_default()).within("token_bucket")?;
    let dynamic = any.then(|| Dynamic::new(most as usize));
    Ok(LimitedDescriptor { entries, bucket: bucket.into(), shadow: shadow_mode, dynamic })
}

/// What requests count as. Those with a `disable_key` are for limits that others enforce: here they count as nothing.
pub fn policies(context: &mut Context, values: Vec<route::RateLimit>) -> Converted<Vec<RateLimitPolicy>> {
    for (index, value) in values.iter().enumerate() {
        let addend = refuse_set(&value.hits_addend, "hits_addend");
        addend.within(format_args!("[{index}]"))?;
    }
    own_policies(context, values)
}

/// The same in the filter's own configuration, where a request may count as several.
fn own_policies(context: &mut Context, values: Vec<route::RateLimit>) -> Converted<Vec<RateLimitPolicy>> {
    let mut converted = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        converted.extend(policy(context, value).within(format_args!("[{index}]"))?);
    }
    let asks = |action: &RateLimitAction| matches!(action, RateLimitAction::Metadata { of: Source::Request, .. });
    context.asks_dynamic |= converted.iter().flat_map(|policy| &policy.actions).any(asks);
    Ok(converted)
}

fn policy(context: &mut Context, value: route::RateLimit) -> Converted<Option<RateLimitPolicy>> {
    let route::RateLimit { stage, disable_key, actions, limit, hits_addend, apply_on_stream_done, x_ratelimit_option } =
        value;
    refuse!(limit, apply_on_stream_done, x_ratelimit_option);
    let HitsAddend { number, format, is_negative_hits } = hits_addend.unwrap_or_default();
    refuse_set(&format, "hits_addend.format")?;
    refuse_set(&is_negative_hits, "hits_addend.is_negative_hits")?;
    // With 0 Envoy lets nobody pass.
    let hits = match u32::try_from(number.unwrap_or(1)) {
        Ok(hits @ 1..=MOST_HITS) => hits,
        _ => return Err(Refused::new("hits_addend.number", format!("is not between 1 and {MOST_HITS}"))),
    };
    let mut converted = Vec::with_capacity(actions.len());
    for (index, value) in actions.into_iter().enumerate() {
        converted.push(action_of(context, value).within(format_args!("actions[{index}]"))?);
    }
    Ok(disable_key.is_empty().then(|| RateLimitPolicy { stage: stage.unwrap_or(0), hits, actions: converted }))
}

fn action_of(context: &mut Context, Action { action_specifier }: Action) -> Converted<RateLimitAction> {
    let key = |key: String, default: &str| if key.is_empty() { default.into() } else { key.into_boxed_str() };
    let own_cluster = context.node_cluster.clone();
    let unsupported = |field: &str| Err(Refused::new(field, "is not supported by this proxy"));
    let mut written = |value: String, default: String| -> Converted<DescriptorValue> {
        let text = match context.runtime.flag(WRITTEN_VALUES, false) {
            true => header_text(context, &value, false).within("descriptor_value")?,
            false => value.as_str().into(),
        };
        Ok(DescriptorValue { text, default: default.into() })
    };
    Ok(match action_specifier {
        Some(ActionSpecifier::DestinationCluster(action::DestinationCluster {})) => RateLimitAction::DestinationCluster,
        Some(ActionSpecifier::RequestHeaders(action::RequestHeaders {
            header_name,
            descriptor_key,
            skip_if_absent,
        })) => RateLimitAction::Header {
            name: header_name.to_ascii_lowercase().into(),
            key: descriptor_key.into(),
            skip_if_absent,
        },
        Some(ActionSpecifier::QueryParameters(value)) => {
            let action::QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = value;
            RateLimitAction::Query { name: query_parameter_name.into(), key: descriptor_key.into(), skip_if_absent }
        }
        Some(ActionSpecifier::RemoteAddress(action::RemoteAddress {})) => RateLimitAction::RemoteAddress,
        Some(ActionSpecifier::MaskedRemoteAddress(value)) => {
            let action::MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = value;
            let bits = |value: Option<u32>, most: u8| {
                u8::try_from(value.unwrap_or(u32::from(most)))
                    .ok()
                    .filter(|bits| *bits <= most)
                    .ok_or_else(|| Refused::new("masked_remote_address", format!("has more than {most} bits")))
            };
            RateLimitAction::MaskedRemoteAddress {
                v4: bits(v4_prefix_mask_len, 32)?,
                v6: bits(v6_prefix_mask_len, 128)?,
            }
        }
        Some(ActionSpecifier::GenericKey(value)) => {
            let action::GenericKey { descriptor_value, default_value, descriptor_key } = value;
            let value = written(descriptor_value, default_value).within("generic_key")?;
            RateLimitAction::GenericKey { key: key(descriptor_key, "generic_key"), value }
        }
        Some(ActionSpecifier::HeaderValueMatch(value)) => {
            let action::HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers } =
                value;
            RateLimitAction::HeaderMatch {
                key: key(descriptor_key, "header_match"),
                value: written(descriptor_value, default_value).within("header_value_match")?,
                expect: expect_match.unwrap_or(true),
                headers: matcher::headers(headers, "header_value_match.headers")?,
            }
        }
        Some(ActionSpecifier::QueryParameterValueMatch(value)) => {
            let action::QueryParameterValueMatch {
                descriptor_value,
                default_value,
                descriptor_key,
                expect_match,
                query_parameters,
            } = value;
            RateLimitAction::QueryMatch {
                key: key(descriptor_key, "query_match"),
                value: written(descriptor_value, default_value).within("query_parameter_value_match")?,
                expect: expect_match.unwrap_or(true),
                query: query_parameters
                    .into_iter()
                    .map(matcher::query)
                    .collect::<Converted<_>>()
                    .within("query_parameter_value_match.query_parameters")?,
            }
        }
        Some(ActionSpecifier::SourceCluster(action::SourceCluster {})) => {
            let own = DescriptorValue { text: own_cluster.as_str().into(), default: Box::default() };
            RateLimitAction::GenericKey { key: "source_cluster".into(), value: own }
        }
        // The older form of the next.
        Some(ActionSpecifier::DynamicMetadata(value)) => {
            let action::DynamicMetaData { descriptor_key, metadata_key, default_value } = value;
            let (filter, path) = metadata::key(metadata_key).within("dynamic_metadata.metadata_key")?;
            RateLimitAction::Metadata {
                of: Source::Request,
                filter,
                path,
                key: descriptor_key.into(),
                default: default_value.into(),
                skip_if_absent: false,
            }
        }
        Some(ActionSpecifier::Metadata(value)) => {
            let action::MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent } = value;
            let of = match action::meta_data::Source::try_from(source) {
                Ok(action::meta_data::Source::Dynamic) => Source::Request,
                Ok(action::meta_data::Source::RouteEntry) => Source::Route,
                _ => {
                    return Err(Refused::new(
                        "metadata.source",
                        "is neither DYNAMIC nor ROUTE_ENTRY; others are not supported",
                    ));
                }
            };
            let (filter, path) = metadata::key(metadata_key).within("metadata.metadata_key")?;
            RateLimitAction::Metadata {
                of,
                filter,
                path,
                key: descriptor_key.into(),
                default: default_value.into(),
                skip_if_absent,
            }
        }
        Some(ActionSpecifier::Extension(_)) => return unsupported("extension"),
        Some(ActionSpecifier::RemoteAddressMatch(value)) => {
            let action::RemoteAddressMatch { descriptor_value, descriptor_key, default_value, address_matcher } = value;
            let AddressMatcher { ranges, invert_match } = address_matcher.unwrap_or_default();
            let mut networks = Vec::with_capacity(ranges.len());
            for (index, CidrRange { address_prefix, prefix_len }) in ranges.into_iter().enumerate() {
                let range = core::CidrRange { address_prefix, prefix_len };
                let within = format!("remote_address_match.address_matcher.ranges[{index}]");
                networks.push(cidr(range).within(within)?);
            }
            RateLimitAction::AddressMatch {
                key: key(descriptor_key, "remote_address"),
                value: written(descriptor_value, default_value).within("remote_address_match")?,
                expect: !invert_match,
                networks,
            }
        }
        None => return Err(Refused::new("action_specifier", "is missing")),
    })
}
