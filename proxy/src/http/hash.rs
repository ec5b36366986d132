//! The hash of a request, by which ring hash and Maglev choose its endpoint: the same as Envoy's, so that both send a request
//! to the same endpoint.

use super::call::Call;
use crate::{
    balance::hash::xx_hash,
    config::{HashPolicy, HashSource},
    route,
};
use std::borrow::Cow;

/// The hash that a route's policies give, each rotated into the one before, and the cookies that the client is to be given.
pub(super) fn of(call: &Call<'_>, policies: &[HashPolicy], cookies: &mut Vec<Vec<u8>>) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        if let Some(new) = one(call, &policy.source, cookies) {
            hash = Some(hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn one(call: &Call<'_>, source: &HashSource, cookies: &mut Vec<Vec<u8>>) -> Option<u64> {
    let request = &*call.request;
    match source {
        HashSource::Header { name, rewrite } => {
            let mut values: Vec<Cow<'_, [u8]>> = if name.starts_with(':') || name.as_ref() == "host" {
                route::header_value(name, request).into_iter().collect()
            } else {
                request.headers.values(name).map(Cow::Borrowed).collect()
            };
            if values.is_empty() {
                return None;
            }
            if let Some(rewrite) = rewrite {
                values.iter_mut().for_each(|value| *value = Cow::Owned(rewrite.apply(value)));
            }
            values.sort();
            Some(values.iter().fold(0, |seed, value| xx_hash(value, seed)))
        }
        HashSource::Cookie { name, ttl, path, attributes } => match (route::cookie(&request.headers, name), ttl) {
            (Some(value), _) if !value.is_empty() => Some(xx_hash(value, 0)),
            (_, None) => None,
            (_, Some(ttl)) => {
                // The same for every request of a connection, so that those under way together get the same endpoint.
                let seed = format!("{}{}", call.conn.remote, call.conn.local);
                let value = format!("{:016x}", xx_hash(seed.as_bytes(), 0));
                let mut cookie = format!("{name}=\"{value}\"");
                if !ttl.is_zero() {
                    cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if !path.is_empty() {
                    cookie.push_str(&format!("; Path={path}"));
                }
                cookie.push_str(attributes);
                cookie.push_str("; HttpOnly");
                cookies.push(cookie.into_bytes());
                Some(xx_hash(value.as_bytes(), 0))
            }
        },
        HashSource::SourceIp => Some(xx_hash(call.client().ip().to_string().as_bytes(), 0)),
        HashSource::Query(name) => {
            let pairs = request.query().split(|&b| b == b'&');
            let mut found = pairs.filter_map(|pair| {
                let at = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
                (&pair[..at] == name.as_bytes()).then(|| pair.get(at + 1..).unwrap_or_default())
            });
            found.next().map(|value| xx_hash(value, 0))
        }
    }
}
