//! Limits of rates that this process enforces by itself.

use super::{
    super::{call::Call, head::RequestHead, pipeline::Stop},
    Step, edit, falls, refusal,
};
use crate::{
    config::{
        Action, Buckets, DescriptorValue, HeaderText, HostPolicies, LimitedDescriptor, LocalRateLimit, RateLimitAction,
        RateLimitPolicy, TokenBucket,
    },
    route::{self, Selected},
    telemetry::ResponseFlags,
};
use prost_types::value::Kind;
use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Instant};

type Entries<'a> = Vec<(&'a str, Cow<'a, [u8]>)>;

/// What a request counts as, and how many tokens that takes.
type Descriptor<'a> = (Entries<'a>, u32);

/// Takes the request's tokens, or answers that there are none.
pub(super) fn pass<'a>(
    call: &mut Call<'a>,
    limit: &'a LocalRateLimit,
    selected: Option<Selected<'a>>,
) -> Result<(), Stop> {
    if !falls(call, limit.enabled) {
        return Ok(());
    }
    limit.stats.enabled.add(1);
    let now = Instant::now();
    let own = limit.per_connection.then(|| call.conn.buckets(limit));
    let buckets = own.as_deref().unwrap_or(&limit.buckets);
    let descriptors = descriptors(call, limit, buckets, selected);
    let mut wanted = wanted_of(&buckets.descriptors, &descriptors);
    drop(descriptors);
    if let Some(bucket) = &buckets.bucket
        && (wanted.is_empty() || limit.default_too)
    {
        wanted.push(Wanted { bucket: Shared::Own(bucket), hits: 1, shadow: false });
    }
    let (mut refused, mut shadowed) = (None, false);
    for (index, one) in wanted.iter().enumerate() {
        if one.bucket.take(one.hits, now) {
            continue;
        }
        if !one.shadow {
            refused = Some(index);
            break;
        }
        limit.stats.shadow_mode.add(1);
        shadowed = true;
    }
    let enforced = refused.is_some() && falls(call, limit.enforced);
    // Who passes is told of the descriptor that fills slowest, and of the bucket for all where it counts as none.
    let told = match refused {
        Some(index) => wanted.get(index),
        None => wanted.first().filter(|_| limit.headers),
    };
    if let Some(bucket) = told.map(|one| &one.bucket) {
        let wait = bucket.wait();
        let reset = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let mut headers = Vec::new();
        if limit.headers {
            headers.push(("x-ratelimit-limit", bucket.max.to_string().into_bytes()));
            headers.push(("x-ratelimit-remaining", bucket.left().to_string().into_bytes()));
            headers.push(("x-ratelimit-reset", reset.to_string().into_bytes()));
        }
        if limit.retry_after && enforced {
            headers.push(("retry-after", reset.to_string().into_bytes()));
        }
        if !headers.is_empty() {
            call.tally.filters().steps.push(Step::Add(headers));
        }
    }
    if refused.is_none() {
        if shadowed { &limit.stats.rate_limited } else { &limit.stats.ok }.add(1);
        return Ok(());
    }
    limit.stats.rate_limited.add(1);
    if !enforced {
        edit::request(call, &limit.request_headers);
        return Ok(());
    }
    limit.stats.enforced.add(1);
    let state = call.tally.filters();
    state.reply.headers = &limit.response_headers;
    // Else it is what the status means, whatever that becomes.
    state.reply.grpc = limit.resource_exhausted.then_some(8);
    state.reply.details = Some("local_rate_limited".into());
    let mut reply = refusal(limit.status, "local_rate_limited", "local_rate_limited");
    reply.flags = ResponseFlags::RATE_LIMITED;
    // What a gRPC client is told in its own way is told with status 200.
    Err(reply.into())
}

/// A bucket that a request must find a token in.
struct Wanted<'a> {
    bucket: Shared<'a>,
    hits: u32,
    /// If there is none it passes all the same.
    shadow: bool,
}

/// A bucket of the configuration, or one that was made for values.
enum Shared<'a> {
    Own(&'a TokenBucket),
    Made(Arc<TokenBucket>),
}

impl std::ops::Deref for Shared<'_> {
    type Target = TokenBucket;

    fn deref(&self) -> &TokenBucket {
        match self {
            Self::Own(bucket) => bucket,
            Self::Made(bucket) => bucket,
        }
    }
}

/// Whether a request counts as what is wanted.
fn fits(wanted: &LimitedDescriptor, have: &Entries<'_>) -> bool {
    have.len() == wanted.entries.len()
        && have.iter().zip(&wanted.entries).all(|((key, value), (wanted_key, wanted_value))| {
            **key == **wanted_key && wanted_value.as_ref().is_none_or(|wanted| wanted.as_bytes() == value.as_ref())
        })
}

/// The values of a descriptor as one. They may have any bytes: each begins with its length.
fn values(have: &Entries<'_>) -> Box<[u8]> {
    let mut values = Vec::new();
    for (_, value) in have {
        values.extend_from_slice(&value.len().to_ne_bytes());
        values.extend_from_slice(value);
    }
    values.into()
}

/// The buckets for what a request counts as: one for each of its descriptors, be they alike, those that fill slowest first. Those
/// for any value are only taken where none names the values.
fn wanted_of<'a>(all: &'a [LimitedDescriptor], have: &[Descriptor<'_>]) -> Vec<Wanted<'a>> {
    let of = |(have, hits): &Descriptor<'_>| {
        let fitting = || all.iter().filter(|one| fits(one, have));
        let wanted = fitting().find(|one| one.dynamic.is_none()).or_else(|| fitting().next())?;
        let bucket = match &wanted.dynamic {
            None => Shared::Own(&wanted.bucket),
            Some(dynamic) => Shared::Made(dynamic.of(values(have), &wanted.bucket)),
        };
        Some(Wanted { bucket, hits: *hits, shadow: wanted.shadow })
    };
    let mut found: Vec<Wanted<'a>> = have.iter().filter_map(of).collect();
    found.sort_by(|a, b| a.bucket.rate().total_cmp(&b.bucket.rate()));
    found
}

fn descriptors<'a>(
    call: &'a Call<'_>,
    limit: &'a LocalRateLimit,
    buckets: &Buckets,
    selected: Option<Selected<'a>>,
) -> Vec<Descriptor<'a>> {
    if buckets.descriptors.is_empty() {
        return Vec::new();
    }
    let (of_route, of_host, include): (&[RateLimitPolicy], &[RateLimitPolicy], bool) = match selected {
        _ if !limit.policies.is_empty() => (&limit.policies, &[], false),
        None => (&[], &[], false),
        Some(selected) => match &selected.route.action {
            Action::Forward(forward) => {
                (&forward.rate_limits, &selected.host.rate_limits, forward.include_host_rate_limits)
            }
            // What no cluster serves counts as nothing by what routes and hosts say.
            _ => (&[], &[], false),
        },
    };
    let host_counts = match limit.host_policies {
        HostPolicies::Override => include || of_route.is_empty(),
        HostPolicies::Include => true,
        HostPolicies::Ignore => false,
    };
    let of_host = if host_counts { of_host } else { &[] };
    let policies = of_route.iter().chain(of_host).filter(|policy| policy.stage == limit.stage);
    let made = policies.filter_map(|policy| Some((descriptor(call, policy, selected)?, policy.hits)));
    made.filter(|(entries, _)| !entries.is_empty()).collect()
}

/// The first value of a header, be it empty; or of a pseudo header.
fn first<'r>(name: &str, request: &'r RequestHead) -> Option<Cow<'r, [u8]>> {
    match route::is_pseudo(name) {
        true => route::header_value(name, request),
        false => request.headers.get(name).map(Cow::Borrowed),
    }
}

/// The value of an entry; `None` where there is none.
fn written<'a>(call: &Call<'_>, value: &'a DescriptorValue) -> Option<Cow<'a, [u8]>> {
    let format = match &value.text {
        HeaderText::Literal(text) => return Some(Cow::Borrowed(text.as_bytes())),
        HeaderText::Format { format, .. } => format,
    };
    let text = edit::formatted(call, format);
    match text.is_empty() {
        true => Some(Cow::Borrowed(value.default.as_bytes())).filter(|default| !default.is_empty()),
        false => Some(Cow::Owned(text)),
    }
}

fn descriptor<'a>(
    call: &'a Call<'_>,
    policy: &'a RateLimitPolicy,
    selected: Option<Selected<'a>>,
) -> Option<Entries<'a>> {
    let mut entries: Entries<'a> = Vec::with_capacity(policy.actions.len());
    let request = &*call.request;
    let address = |ip: IpAddr| Cow::Owned(ip.to_string().into_bytes());
    for action in &policy.actions {
        match action {
            RateLimitAction::DestinationCluster => {
                let target = selected.and_then(|selected| selected.target)?;
                let cluster = call.root.config().clusters.get(target.cluster.0 as usize)?.as_ref()?;
                entries.push(("destination_cluster", Cow::Borrowed(cluster.name.as_bytes())));
            }
            RateLimitAction::Header { name, key, skip_if_absent } => match first(name, request) {
                Some(value) => entries.push((key, value)),
                None if *skip_if_absent => {}
                None => return None,
            },
            RateLimitAction::Query { name, key, skip_if_absent } => {
                let mut pairs = request.query().split(|&b| b == b'&').filter_map(|pair| {
                    let at = pair.iter().position(|&b| b == b'=')?;
                    (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..])
                });
                match pairs.next() {
                    Some(value) => entries.push((key, Cow::Borrowed(value))),
                    None if *skip_if_absent => {}
                    None => return None,
                }
            }
            RateLimitAction::Metadata { of, filter, path, key, default, skip_if_absent } => {
                let found = call.metadata_of(*of, filter, path).and_then(|value| value.into_owned().kind);
                match found {
                    Some(Kind::StringValue(text)) if !text.is_empty() => {
                        entries.push((key, Cow::Owned(text.into_bytes())));
                    }
                    _ if !default.is_empty() => entries.push((key, Cow::Borrowed(default.as_bytes()))),
                    _ if *skip_if_absent => {}
                    _ => return None,
                }
            }
            RateLimitAction::RemoteAddress => entries.push(("remote_address", address(call.client().ip()))),
            RateLimitAction::MaskedRemoteAddress { v4, v6 } => {
                let ip = call.client().ip().to_canonical();
                let bits = if ip.is_ipv4() { *v4 } else { *v6 };
                let net = ipnet::IpNet::new(ip, bits).ok()?;
                let text = format!("{}/{bits}", net.network());
                entries.push(("masked_remote_address", Cow::Owned(text.into_bytes())));
            }
            RateLimitAction::AddressMatch { key, value, expect, networks } => {
                let ip = call.client().ip().to_canonical();
                if networks.iter().any(|network| network.contains(&ip)) != *expect {
                    return None;
                }
                entries.push((key, written(call, value)?));
            }
            RateLimitAction::GenericKey { key, value } => entries.push((key, written(call, value)?)),
            RateLimitAction::HeaderMatch { key, value, expect, headers } => {
                if headers.iter().all(|header| route::header_matches(header, request)) != *expect {
                    return None;
                }
                entries.push((key, written(call, value)?));
            }
            RateLimitAction::QueryMatch { key, value, expect, query } => {
                if query.iter().all(|query| query.matches(request.query())) != *expect {
                    return None;
                }
                entries.push((key, written(call, value)?));
            }
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_when_they_could_be_cut_in_several_ways_then_are_told_apart() {
        let of = |all: &[&'static str]| values(&all.iter().map(|text| ("k", Cow::Borrowed(text.as_bytes()))).collect());
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        let all = [of(&["a\0b", "c"]), of(&["a", "b\0c"]), of(&["ab", "c"]), of(&["a", "bc"]), of(&["abc", ""])];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| one != other));
        }
    }
}
