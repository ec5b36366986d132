//! Metadata that is set by what heads say, or as the configuration says.

use super::super::{call::Call, headers::Headers};
use crate::{
    config::{FixedMetadata, HeaderToMetadata, MetadataEntry, MetadataFrom, MetadataKind, MetadataRule},
    route,
    telemetry::DynamicMetadata,
};
use base64::{Engine as _, engine::general_purpose::GeneralPurpose};
use prost::Message as _;
use prost_types::{Value, value::Kind};
use std::borrow::Cow;

/// Bytes of a value that are too many.
const TOO_LONG: usize = 8 * 1024;
/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// Of the request.
pub(super) fn of_request(call: &mut Call<'_>, filter: &HeaderToMetadata) {
    if filter.request.is_empty() {
        return;
    }
    let mut found = DynamicMetadata::default();
    for rule in &filter.request {
        let value = match &rule.from {
            MetadataFrom::Header { name, .. } => route::header_value(name, call.request).map(Cow::into_owned),
            MetadataFrom::Cookie(name) => cookie(&call.request.headers, name),
        };
        taken_away(rule, &mut call.request.headers);
        apply(rule, value, &mut found);
    }
    keep(call, found);
}

/// Of the answer.
pub(super) fn of_response(call: &mut Call<'_>, filter: &HeaderToMetadata) {
    let mut found = DynamicMetadata::default();
    for rule in &filter.response {
        let headers = &mut call.response.headers;
        let value = match &rule.from {
            MetadataFrom::Header { name, .. } if &**name == ":status" => {
                Some(call.response.status.to_string().into_bytes())
            }
            MetadataFrom::Header { name, .. } => route::joined(headers, name).map(Cow::into_owned),
            MetadataFrom::Cookie(name) => cookie(headers, name),
        };
        taken_away(rule, headers);
        apply(rule, value, &mut found);
    }
    keep(call, found);
}

/// Sets what the configuration says.
pub(super) fn fixed(call: &mut Call<'_>, all: &[FixedMetadata]) {
    let dynamic = &mut call.tally.filters().dynamic;
    for FixedMetadata { namespace, fields, overwrite } in all {
        if *overwrite || dynamic.fields(namespace).is_none() {
            dynamic.update(namespace, fields);
        }
    }
}

/// A cookie; an empty one is none.
fn cookie(headers: &Headers, name: &str) -> Option<Vec<u8>> {
    route::cookie(headers, name).filter(|value| !value.is_empty()).map(<[u8]>::to_vec)
}

fn taken_away(rule: &MetadataRule, headers: &mut Headers) {
    if let MetadataFrom::Header { name, remove: true } = &rule.from {
        headers.remove(name);
    }
}

fn keep(call: &mut Call<'_>, found: DynamicMetadata) {
    if !found.is_empty() {
        call.tally.filters().dynamic.merge(found);
    }
}

/// Sets what a rule says; what is empty, too long or cannot be read is not set.
fn apply(rule: &MetadataRule, value: Option<Vec<u8>>, found: &mut DynamicMetadata) {
    let entry = if value.is_some() { &rule.present } else { &rule.missing };
    let Some(entry) = entry else { return };
    let text = match (&rule.rewrite, value.unwrap_or_default()) {
        _ if !entry.value.is_empty() => entry.value.as_bytes().to_vec(),
        (Some(rewrite), value) => rewrite.apply(&value),
        (None, value) => value,
    };
    if let Some(kind) = read(entry, text) {
        found.set(&entry.namespace, entry.key.to_string(), kind);
    }
}

fn read(entry: &MetadataEntry, text: Vec<u8>) -> Option<Kind> {
    if text.is_empty() || text.len() >= TOO_LONG {
        return None;
    }
    let bytes = match entry.base64 {
        true => BASE64.decode(&text).ok().filter(|bytes| !bytes.is_empty())?,
        false => text,
    };
    match entry.kind {
        MetadataKind::Text => Some(Kind::StringValue(String::from_utf8_lossy(&bytes).into_owned())),
        MetadataKind::Number => number(std::str::from_utf8(&bytes).ok()?.trim()).map(Kind::NumberValue),
        MetadataKind::Protobuf => Value::decode(&*bytes).ok()?.kind,
    }
}

/// A number as C reads it, hexadecimal ones included.
fn number(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok().map(|number| sign * number as f64)
        }
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_when_it_cannot_be_read_then_nothing_is_set() {
        let entry =
            |kind, base64| MetadataEntry { namespace: "n".into(), key: "k".into(), value: "".into(), kind, base64 };
        let text = |base64, value: &[u8]| read(&entry(MetadataKind::Text, base64), value.to_vec());
        let number = |value: &str| match read(&entry(MetadataKind::Number, false), value.as_bytes().to_vec()) {
            Some(Kind::NumberValue(number)) => Some(number),
            _ => None,
        };
        assert_eq!(text(false, b"v"), Some(Kind::StringValue("v".to_owned())));
        assert_eq!(text(false, b""), None);
        assert!(text(false, &vec![b'a'; TOO_LONG - 1]).is_some() && text(false, &vec![b'a'; TOO_LONG]).is_none());
        for hello in [&b"aGVsbG8"[..], b"aGVsbG8="] {
            assert_eq!(text(true, hello), Some(Kind::StringValue("hello".to_owned())));
        }
        assert_eq!(text(true, b"!!"), None);
        assert_eq!(["15", "1e3", "+5", " 0.5 ", "-0x10"].map(number), [15.0, 1000.0, 5.0, 0.5, -16.0].map(Some));
        assert_eq!(["abc", "1_000", "0x", "0x+1", ""].map(number), [None; 5]);
        let encoded = read(&entry(MetadataKind::Protobuf, true), b"GgNhYmM=".to_vec());
        assert_eq!(encoded, Some(Kind::StringValue("abc".to_owned())));
        assert_eq!(read(&entry(MetadataKind::Protobuf, true), b"zzzz".to_vec()), None);
    }
}
