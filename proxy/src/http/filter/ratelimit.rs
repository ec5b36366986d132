//! Limits of rates that this process enforces by itself.

use super::{
    super::{call::Call, pipeline::Stop},
    Step, edit, falls, refusal,
};
use crate::{
    config::{Action, HostPolicies, LocalRateLimit, RateLimitAction, RateLimitPolicy, TokenBucket},
    route::{self, Selected},
    telemetry::ResponseFlags,
};
use std::{borrow::Cow, net::IpAddr, time::Instant};

type Descriptor<'a> = Vec<(&'a str, Cow<'a, [u8]>)>;

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
    let descriptors = descriptors(call, limit, selected);
    let mut buckets: Vec<&TokenBucket> = limit
        .descriptors
        .iter()
        .filter(|wanted| {
            descriptors.iter().any(|have| {
                have.len() == wanted.entries.len()
                    && have.iter().zip(&wanted.entries).all(|((key, value), (wanted_key, wanted_value))| {
                        **key == **wanted_key
                            && wanted_value.as_ref().is_none_or(|wanted| wanted.as_bytes() == value.as_ref())
                    })
            })
        })
        .map(|wanted| &wanted.bucket)
        .collect();
    drop(descriptors);
    if let Some(bucket) = &limit.bucket
        && (buckets.is_empty() || limit.default_too)
    {
        buckets.push(bucket);
    }
    let refused = buckets.iter().find(|bucket| !bucket.take(now)).copied();
    if limit.headers
        && let Some(bucket) = refused.or_else(|| buckets.iter().min_by_key(|bucket| bucket.left()).copied())
    {
        let wait = bucket.wait();
        let reset = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        call.tally.filters().steps.push(Step::Add(vec![
            ("x-ratelimit-limit", bucket.max.to_string().into_bytes()),
            ("x-ratelimit-remaining", bucket.left().to_string().into_bytes()),
            ("x-ratelimit-reset", reset.to_string().into_bytes()),
        ]));
    }
    if refused.is_none() {
        limit.stats.ok.add(1);
        return Ok(());
    }
    limit.stats.rate_limited.add(1);
    if !falls(call, limit.enforced) {
        edit::request(call, &limit.request_headers);
        return Ok(());
    }
    limit.stats.enforced.add(1);
    let state = call.tally.filters();
    state.reply.headers = &limit.response_headers;
    state.reply.grpc = Some(if limit.resource_exhausted { 8 } else { 14 });
    state.reply.details = Some("local_rate_limited".into());
    let mut reply = refusal(limit.status, "local_rate_limited", "local_rate_limited");
    reply.flags = ResponseFlags::RATE_LIMITED;
    // What a gRPC client is told in its own way is told with status 200.
    Err(reply.into())
}

fn descriptors<'a>(
    call: &'a Call<'_>,
    limit: &'a LocalRateLimit,
    selected: Option<Selected<'a>>,
) -> Vec<Descriptor<'a>> {
    if limit.descriptors.is_empty() {
        return Vec::new();
    }
    let (of_route, of_host, include): (&[RateLimitPolicy], &[RateLimitPolicy], bool) = match selected {
        _ if !limit.policies.is_empty() => (&limit.policies, &[], false),
        None => (&[], &[], false),
        Some(selected) => match &selected.route.action {
            Action::Forward(forward) => {
                (&forward.rate_limits, &selected.host.rate_limits, forward.include_host_rate_limits)
            }
            _ => (&[], &selected.host.rate_limits, false),
        },
    };
    let host_counts = match limit.host_policies {
        HostPolicies::Override => include || of_route.is_empty(),
        HostPolicies::Include => true,
        HostPolicies::Ignore => false,
    };
    let of_host = if host_counts { of_host } else { &[] };
    let policies = of_route.iter().chain(of_host).filter(|policy| policy.stage == limit.stage);
    policies.filter_map(|policy| descriptor(call, policy, selected)).filter(|entries| !entries.is_empty()).collect()
}

fn descriptor<'a>(
    call: &'a Call<'_>,
    policy: &'a RateLimitPolicy,
    selected: Option<Selected<'a>>,
) -> Option<Descriptor<'a>> {
    let mut entries: Descriptor<'a> = Vec::with_capacity(policy.actions.len());
    let request = &*call.request;
    let address = |ip: IpAddr| Cow::Owned(ip.to_string().into_bytes());
    for action in &policy.actions {
        match action {
            RateLimitAction::DestinationCluster => {
                let target = selected.and_then(|selected| selected.target)?;
                let cluster = call.root.config().clusters.get(target.cluster.0 as usize)?.as_ref()?;
                entries.push(("destination_cluster", Cow::Borrowed(cluster.name.as_bytes())));
            }
            RateLimitAction::Header { name, key, skip_if_absent } => {
                match route::header_value(name, request).filter(|value| !value.is_empty()) {
                    Some(value) => entries.push((key, value)),
                    None if *skip_if_absent => {}
                    None => return None,
                }
            }
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
            RateLimitAction::RemoteAddress => entries.push(("remote_address", address(call.client().ip()))),
            RateLimitAction::MaskedRemoteAddress { v4, v6 } => {
                let ip = call.client().ip().to_canonical();
                let bits = if ip.is_ipv4() { *v4 } else { *v6 };
                let net = ipnet::IpNet::new(ip, bits).ok()?;
                let text = format!("{}/{bits}", net.network());
                entries.push(("masked_remote_address", Cow::Owned(text.into_bytes())));
            }
            RateLimitAction::GenericKey { key, value } => entries.push((key, Cow::Borrowed(value.as_bytes()))),
            RateLimitAction::HeaderMatch { key, value, expect, headers } => {
                if headers.iter().all(|header| route::header_matches(header, request)) != *expect {
                    return None;
                }
                entries.push((key, Cow::Borrowed(value.as_bytes())));
            }
            RateLimitAction::QueryMatch { key, value, expect, query } => {
                if query.iter().all(|query| query.matches(request.query())) != *expect {
                    return None;
                }
                entries.push((key, Cow::Borrowed(value.as_bytes())));
            }
        }
    }
    Some(entries)
}
