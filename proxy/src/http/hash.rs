//! The hash of a request, by which ring hash and Maglev choose its endpoint: the same as Envoy's, so that both send a request
//! to the same endpoint.

use super::call::Call;
use crate::{
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
            Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
        }
        HashSource::Cookie { name, ttl, path, attributes } => match (route::cookie(request, name), ttl) {
            (Some(value), _) if !value.is_empty() => Some(xxh64(value, 0)),
            (_, None) => None,
            (_, Some(ttl)) => {
                // The same for every request of a connection, so that those under way together get the same endpoint.
                let seed = format!("{}{}", call.conn.remote, call.conn.local);
                let value = format!("{:016x}", xxh64(seed.as_bytes(), 0));
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
                Some(xxh64(value.as_bytes(), 0))
            }
        },
        HashSource::SourceIp => Some(xxh64(call.client().ip().to_string().as_bytes(), 0)),
        HashSource::Query(name) => {
            let pairs = request.query().split(|&b| b == b'&');
            let mut found = pairs.filter_map(|pair| {
                let at = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
                (&pair[..at] == name.as_bytes()).then(|| pair.get(at + 1..).unwrap_or_default())
            });
            found.next().map(|value| xxh64(value, 0))
        }
    }
}

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 of the bytes.
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let round = |acc: u64, lane: u64| acc.wrapping_add(lane.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1);
    let word = |part: &[u8]| part.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let mut stripes = bytes.chunks_exact(32);
    let mut hash = if bytes.len() >= 32 {
        let mut acc = [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        for stripe in stripes.by_ref() {
            for (acc, lane) in acc.iter_mut().zip(stripe.chunks_exact(8)) {
                *acc = round(*acc, word(lane));
            }
        }
        let turns = [1, 7, 12, 18];
        let sum = acc.iter().zip(turns).fold(0u64, |sum, (acc, turn)| sum.wrapping_add(acc.rotate_left(turn)));
        acc.iter().fold(sum, |hash, &acc| (hash ^ round(0, acc)).wrapping_mul(P1).wrapping_add(P4))
    } else {
        seed.wrapping_add(P5)
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    let mut eights = stripes.remainder().chunks_exact(8);
    for lane in eights.by_ref() {
        hash = (hash ^ round(0, word(lane))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let mut rest = eights.remainder();
    if rest.len() >= 4 {
        hash = (hash ^ word(&rest[..4]).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = &rest[4..];
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(P2);
    hash = (hash ^ hash >> 29).wrapping_mul(P3);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    #[test]
    fn hash_when_made_then_it_is_that_of_the_reference() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a", 0), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"foobar", 0), 0xA2AA_05ED_9085_AAF9);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xFBCE_A83C_8A37_8BF1);
    }
}
