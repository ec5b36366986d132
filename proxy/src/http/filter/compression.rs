//! Compresses and decompresses: which bodies, and what heads then say. The rules are Envoy's.

use super::{
    super::{
        call::Call,
        head::BodyLength,
        headers::{Headers, Known},
        recode::Recode,
    },
    is_off, setting,
};
use crate::config::{Coding, Compressible, Compressor, CompressorSetting, Decompressor, HttpFilter};
use crate::telemetry::counters::{CompressorStats, DecompressorStats};

/// What of a request decides about its response.
pub(super) struct Asked<'a> {
    compressor: &'a Compressor,
    /// The client's `accept-encoding`.
    accepts: Option<Box<[u8]>>,
    enabled: bool,
}

/// Leads a request past a compressor. What decides about the response, if it may be compressed.
pub(super) fn on_request<'a>(
    call: &mut Call<'a>,
    compressor: &'a Compressor,
    setting: Option<&CompressorSetting>,
) -> Option<Asked<'a>> {
    let mut lines = call.request.headers.values("accept-encoding").peekable();
    let accepts = lines.peek().is_some().then(|| lines.collect::<Vec<_>>().join(&b","[..]).into());
    let (mut compressed, [stats, of_responses]) = (false, &compressor.stats);
    if let Some(wanted) = compressor.requests.as_ref().filter(|wanted| wanted.enabled)
        && !call.request.wants_tunnel()
        && call.request.body != BodyLength::Empty
        && long_enough(wanted, call.request.body, stats)
        && has_type(wanted, &call.request.headers)
        && call.request.headers.get("content-encoding").is_none()
        && let Some(recode) = compress(call.tally.filters().recode_request.take(), compressor, stats)
    {
        compressed = true;
        call.tally.filters().recode_request = Some(recode);
        let headers = &mut call.request.headers;
        headers.remove_known(Known::ContentLength);
        headers.set("content-encoding", compressor.library.coding().name().as_bytes());
        call.request.body = BodyLength::Unknown;
    }
    if compressed { &stats.compressed } else { &stats.not_compressed }.add(1);
    let enabled = setting.map_or(compressor.responses.enabled, |setting| setting.responses);
    if !enabled {
        of_responses.not_compressed.add(1);
    }
    let remove = setting.and_then(|setting| setting.remove_accept_encoding);
    if enabled && remove.unwrap_or(compressor.remove_accept_encoding) {
        call.request.headers.remove("accept-encoding");
    }
    enabled.then_some(Asked { compressor, accepts, enabled })
}

/// What decides about an answer whose request never came to the compressor: nobody has asked for it to be compressed.
pub(super) fn unasked<'a>(compressor: &'a Compressor, setting: Option<&CompressorSetting>) -> Option<Asked<'a>> {
    let enabled = setting.map_or(compressor.responses.enabled, |setting| setting.responses);
    enabled.then_some(Asked { compressor, accepts: None, enabled })
}

fn compress(recode: Option<Box<Recode>>, compressor: &Compressor, stats: &CompressorStats) -> Option<Box<Recode>> {
    let mut recode = recode.unwrap_or_default();
    let passed = [stats.uncompressed_bytes.clone(), stats.compressed_bytes.clone()];
    recode.compress(compressor.library, Some(passed)).ok()?;
    Some(recode)
}

/// Leads the response past a compressor.
pub(super) fn on_response(call: &mut Call<'_>, asked: &Asked<'_>) {
    let [_, stats] = &asked.compressor.stats;
    if recoded(call, asked, stats) { &stats.compressed } else { &stats.not_compressed }.add(1);
}

/// Counts what a client accepts; whether that is this coding.
fn accepts(call: &Call<'_>, asked: &Asked<'_>) -> bool {
    let Asked { compressor, accepts, .. } = asked;
    let counted = &compressor.accepted;
    let Some(accepts) = accepts else {
        counted.none.add(1);
        return false;
    };
    let (chosen, why) = choose(accepts, call, call.response.headers.get("content-type"));
    let fits = chosen == Some(compressor.library.coding());
    match why {
        Why::Named if fits => &counted.used,
        Why::Named => &counted.overshadowed,
        Why::Wildcard => &counted.wildcard,
        Why::Identity => &counted.identity,
        Why::Nothing => &counted.not_valid,
    }
    .add(1);
    fits
}

/// Whether the body is compressed.
fn recoded(call: &mut Call<'_>, asked: &Asked<'_>, stats: &CompressorStats) -> bool {
    let Asked { compressor, enabled, .. } = asked;
    let (wanted, headers) = (&compressor.responses, &call.response.headers);
    let body = call.response.body;
    // An answer to HEAD tells what a GET would get. What says nothing of its length may be of any, even of none.
    let long_enough = match (headers.known(Known::ContentLength), body) {
        (Some(length), _) => number(length).is_some_and(|length| length >= wanted.min_length),
        (None, BodyLength::Exact(length)) => length >= wanted.min_length,
        (None, _) => true,
    };
    if !long_enough && body != BodyLength::Empty {
        stats.too_small.add(1);
    }
    let ended = body == BodyLength::Empty || call.request.method() == b"HEAD";
    let accepted = *enabled && long_enough && !ended && accepts(call, asked);
    let headers = &call.response.headers;
    let compressible = *enabled
        && long_enough
        && body != BodyLength::Tunnel
        && has_type(wanted, headers)
        && !says_no_transform(headers)
        && !(compressor.spare_etags && has_etag(headers, compressor))
        && headers.get("content-encoding").is_none()
        && !compressor.spared_statuses.contains(&call.response.status);
    if !compressible {
        return false;
    }
    let (coding, mut compressed) = (compressor.library.coding(), false);
    if accepted && let Some(recode) = compress(call.tally.filters().recode_response.take(), compressor, stats) {
        compressed = true;
        call.tally.filters().recode_response = Some(recode);
        call.response.body = BodyLength::Unknown;
        let headers = &mut call.response.headers;
        headers.remove_known(Known::ContentLength);
        headers.set("content-encoding", coding.name().as_bytes());
        etag(headers, compressor.weaken_etags);
    }
    vary(&mut call.response.headers);
    compressed
}

/// Whether there is an `etag`, for which nothing is compressed.
fn has_etag(headers: &Headers, compressor: &Compressor) -> bool {
    let has = headers.get("etag").is_some();
    if has {
        compressor.accepted.etag.add(1);
    }
    has
}

/// A strong `etag` stands for the bytes themselves, which are others now.
fn etag(headers: &mut Headers, weaken: bool) {
    let Some(value) = headers.get("etag").map(<[u8]>::to_vec) else { return };
    match (weaken, matches!(value[..], [b'W' | b'w', b'/', ..])) {
        (_, true) => {}
        (true, false) if !value.is_empty() => headers.set("etag", &[b"W/", &value[..]].concat()),
        (false, false) if value.len() > 2 => _ = headers.remove("etag"),
        (_, false) => {}
    }
}

/// Says that the answer would be another for clients that accept other codings.
fn vary(headers: &mut Headers) {
    let has = headers
        .get("vary")
        .is_some_and(|value| value.split(|&b| b == b',').any(|token| token.trim_ascii() == b"Accept-Encoding"));
    if !has {
        headers.append_to("vary", b", ", b"Accept-Encoding");
    }
}

fn is(token: &[u8], name: &[u8]) -> bool {
    token.trim_ascii().eq_ignore_ascii_case(name)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn long_enough(wanted: &Compressible, body: BodyLength, stats: &CompressorStats) -> bool {
    match body {
        BodyLength::Exact(length) if length < wanted.min_length => {
            stats.too_small.add(1);
            false
        }
        BodyLength::Exact(_) => true,
        BodyLength::Unknown => true,
        BodyLength::Empty | BodyLength::Tunnel => false,
    }
}

/// A content type without its parameters.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|&b| b == b';').next().unwrap_or_default().trim_ascii()
}

fn has_type(wanted: &Compressible, headers: &Headers) -> bool {
    fits(wanted, headers.get("content-type"))
}

fn fits(wanted: &Compressible, content_type: Option<&[u8]>) -> bool {
    let Some(value) = content_type.map(media_type) else { return true };
    wanted.types.is_empty() || wanted.types.iter().any(|known| value.eq_ignore_ascii_case(known.as_bytes()))
}

fn says_no_transform(headers: &Headers) -> bool {
    let says = |value: &[u8]| value.split(|&b| b == b',').any(|token| is(token, b"no-transform"));
    headers.get("cache-control").is_some_and(says)
}

/// Why a coding was chosen, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Named,
    Wildcard,
    Identity,
    Nothing,
}

/// The coding that the client likes best of those that the chain has for this content; `None` is none.
fn choose(accepts: &[u8], call: &Call<'_>, content_type: Option<&[u8]>) -> (Option<Coding>, Why) {
    let mut offered: Vec<(Coding, bool)> = Vec::new();
    for entry in call.filters {
        let setting = || setting(call, call.tally.selected, entry);
        if let HttpFilter::Compressor(compressor) = &entry.filter
            && !is_off(entry, setting())
            && fits(&compressor.responses, content_type)
        {
            let coding = compressor.library.coding();
            if !offered.iter().any(|(known, _)| *known == coding) {
                offered.push((coding, compressor.choose_first));
            }
        }
    }
    preferred(accepts, offered)
}

/// Of codings in the order of the chain, and whether each goes first among those that are liked alike.
fn preferred(accepts: &[u8], mut offered: Vec<(Coding, bool)>) -> (Option<Coding>, Why) {
    let mut wishes: Vec<(&[u8], f32)> = Vec::new();
    for token in accepts.split(|&b| b == b',').filter(|token| !token.is_empty()) {
        let mut parts = token.splitn(2, |&b| b == b';');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let weight = parts.next().and_then(|text| {
            let at = text.iter().position(|&b| b == b'=')?;
            is(&text[..at], b"q").then(|| text[at + 1..].trim_ascii())
        });
        let weight = match weight {
            None => 1.0,
            Some(text) => match std::str::from_utf8(text).ok().and_then(|text| text.parse::<f32>().ok()) {
                Some(weight) if weight.is_finite() => weight,
                _ => continue,
            },
        };
        wishes.push((name, weight));
        if weight == 0.0 {
            offered.retain(|(coding, _)| coding.name().as_bytes() != name);
        }
    }
    let Some((first, _)) = offered.first().copied() else { return (None, Why::Nothing) };
    let mut choice: (Option<Coding>, Why, f32) = (None, Why::Nothing, 0.0);
    for (name, weight) in wishes {
        let offer = offered.iter().find(|(coding, _)| coding.name().as_bytes() == name);
        let goes_first = offer.is_some_and(|(_, goes_first)| *goes_first);
        if weight > choice.2 || weight > 0.0 && weight == choice.2 && goes_first {
            match (offer, name) {
                (Some((coding, _)), _) => choice = (Some(*coding), Why::Named, weight),
                (None, b"*") => choice = (Some(first), Why::Wildcard, weight),
                (None, b"identity") => choice = (None, Why::Identity, weight),
                _ => {}
            }
        }
    }
    (choice.0, choice.1)
}

/// Leads a request past a decompressor; whether its response may be decompressed.
pub(super) fn open_request(call: &mut Call<'_>, decompressor: &Decompressor) -> bool {
    if decompressor.advertise {
        advertise(&mut call.request.headers, decompressor.coding.name().as_bytes());
    }
    let (mut opened, [stats, _]) = (false, &decompressor.stats);
    if let Some(always) = decompressor.requests
        && call.request.body != BodyLength::Empty
        && !call.request.wants_tunnel()
        && opens(&mut call.request.headers, decompressor, always)
        && let Some(recode) = decompress(call.tally.filters().recode_request.take(), decompressor, stats)
    {
        opened = true;
        call.tally.filters().recode_request = Some(recode);
        call.request.headers.remove_known(Known::ContentLength);
        call.request.body = BodyLength::Unknown;
    }
    if call.request.body != BodyLength::Empty || opened {
        if opened { &stats.decompressed } else { &stats.not_decompressed }.add(1);
    }
    decompressor.responses.is_some()
}

/// Leads a response past a decompressor.
pub(super) fn open_response(call: &mut Call<'_>, decompressor: &Decompressor) {
    let ended =
        matches!(call.response.body, BodyLength::Empty | BodyLength::Tunnel) || call.request.method() == b"HEAD";
    let (mut opened, [_, stats]) = (false, &decompressor.stats);
    if let Some(always) = decompressor.responses
        && !ended
        && opens(&mut call.response.headers, decompressor, always)
        && let Some(recode) = decompress(call.tally.filters().recode_response.take(), decompressor, stats)
    {
        opened = true;
        call.tally.filters().recode_response = Some(recode);
        call.response.headers.remove_known(Known::ContentLength);
        call.response.body = BodyLength::Unknown;
    }
    if !ended {
        if opened { &stats.decompressed } else { &stats.not_decompressed }.add(1);
    }
}

/// Puts a coding behind those that the client accepts, with no less weight than any.
fn advertise(headers: &mut Headers, name: &[u8]) {
    let values: Vec<&[u8]> = headers.values("accept-encoding").collect();
    let tokens = values.iter().flat_map(|value| value.split(|&b| b == b',')).map(<[u8]>::trim_ascii);
    let others = tokens.filter(|token| !token.is_empty() && media_type(token) != name);
    let all = others.chain([name]).collect::<Vec<_>>().join(&b","[..]);
    headers.set("accept-encoding", &all);
}

fn decompress(
    recode: Option<Box<Recode>>,
    decompressor: &Decompressor,
    stats: &DecompressorStats,
) -> Option<Box<Recode>> {
    let mut recode = recode.unwrap_or_default();
    let passed = [stats.compressed_bytes.clone(), stats.uncompressed_bytes.clone()];
    recode.decompress(decompressor.coding, decompressor.max_ratio, &decompressor.name, Some(passed)).ok()?;
    Some(recode)
}

/// Takes the coding from the head, if it is the last that was applied.
fn opens(headers: &mut Headers, decompressor: &Decompressor, always: bool) -> bool {
    if !always && says_no_transform(headers) {
        return false;
    }
    let Some(value) = headers.get("content-encoding").map(<[u8]>::to_vec) else { return false };
    let at = value.iter().rposition(|&b| b == b',');
    let last = at.map_or(&value[..], |at| &value[at + 1..]);
    if !is(last, decompressor.coding.name().as_bytes()) {
        return false;
    }
    match at {
        Some(at) => headers.set("content-encoding", value[..at].trim_ascii()),
        None => _ = headers.remove("content-encoding"),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_when_the_client_accepts_others_then_it_comes_behind_them_once() {
        for (accepts, want) in [
            (&[][..], "zstd"),
            (&[""], "zstd"),
            (&["gzip;q=0, *"], "gzip;q=0,*,zstd"),
            (&["zstd;q=0.1, br"], "br,zstd"),
            (&["ZSTD,, br ", "gzip"], "ZSTD,br,gzip,zstd"),
        ] {
            let mut headers = Headers::default();
            for value in accepts {
                headers.push(b"accept-encoding", value.as_bytes());
            }
            advertise(&mut headers, b"zstd");
            let values: Vec<&[u8]> = headers.values("accept-encoding").collect();
            assert_eq!(values, [want.as_bytes()], "{accepts:?}");
        }
    }

    #[test]
    fn coding_when_several_are_accepted_then_the_heaviest_that_is_offered() {
        let all = || vec![(Coding::Gzip, false), (Coding::Brotli, false), (Coding::Zstd, false)];
        for (accepts, chosen) in [
            ("gzip", Some(Coding::Gzip)),
            ("br, gzip", Some(Coding::Brotli)),
            ("gzip;q=0.5, zstd;q=0.8, br;q=0.1", Some(Coding::Zstd)),
            ("gzip;q=0, *", Some(Coding::Brotli)),
            ("*", Some(Coding::Gzip)),
            ("*;q=0.1, identity;q=0.5", None),
            ("identity, gzip;q=0.5", None),
            ("deflate, compress", None),
            ("gzip;q=x, br;q=0.2", Some(Coding::Brotli)),
            ("gzip ; q = 0.5 , br;q=0.4", Some(Coding::Gzip)),
            ("GZIP", None),
            ("gzip;q=0, br;q=0, zstd;q=0, *", None),
            ("", None),
        ] {
            assert_eq!(preferred(accepts.as_bytes(), all()).0, chosen, "{accepts}");
        }
        for (accepts, why) in
            [("br", Why::Named), ("*", Why::Wildcard), ("identity", Why::Identity), ("deflate", Why::Nothing)]
        {
            assert_eq!(preferred(accepts.as_bytes(), all()).1, why, "{accepts}");
        }
        let first = vec![(Coding::Gzip, false), (Coding::Brotli, true)];
        assert_eq!(preferred(b"gzip, br", first.clone()).0, Some(Coding::Brotli));
        assert_eq!(preferred(b"br, gzip", first.clone()).0, Some(Coding::Brotli));
        assert_eq!(preferred(b"gzip, br;q=0.9", first).0, Some(Coding::Gzip));
    }
}
