//! Filters that set metadata.

use super::super::{Converted, Refused, Within as _, action, refuse};
use crate::config::{FixedMetadata, HeaderToMetadata, MetadataEntry, MetadataFrom, MetadataKind, MetadataRule};
use leno_xds::envoy::extensions::filters::http::{
    header_to_metadata::v3::{
        Config,
        config::{KeyValuePair, Rule, ValueEncode, ValueType},
    },
    set_metadata::v3::{Config as SetConfig, Metadata},
};
use leno_xds::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use leno_xds::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
use std::sync::Arc;

/// Where is set what names no namespace.
const OWN: &str = "envoy.filters.http.header_to_metadata";

/// What heads say.
pub fn headers(value: Config) -> Converted<HeaderToMetadata> {
    // What is counted by rule is nothing that traffic depends on.
    let Config { request_rules, response_rules, stat_prefix: _ } = value;
    Ok(HeaderToMetadata {
        request: rules(request_rules, "request_rules")?,
        response: rules(response_rules, "response_rules")?,
    })
}

/// As [`headers`], of a route: it must say something.
pub fn of_route(value: Config) -> Converted<HeaderToMetadata> {
    match headers(value)? {
        own if own.request.is_empty() && own.response.is_empty() => {
            Err(Refused::new("request_rules", "and response_rules are both empty; set one of them"))
        }
        own => Ok(own),
    }
}

fn rules(values: Vec<Rule>, field: &str) -> Converted<Vec<MetadataRule>> {
    let one = |(index, value)| rule(value).within(format_args!("{field}[{index}]"));
    values.into_iter().enumerate().map(one).collect()
}

fn rule(value: Rule) -> Converted<MetadataRule> {
    let Rule { header, cookie, on_header_present, on_header_missing, remove } = value;
    let from = match (header.is_empty(), cookie.is_empty()) {
        (false, true) if remove && header.starts_with(':') => {
            return Err(Refused::new("remove", "takes away what no request or answer can be without"));
        }
        (false, true) => MetadataFrom::Header { name: header.to_ascii_lowercase().into(), remove },
        (true, false) if remove => return Err(Refused::new("remove", "is for headers only")),
        (true, false) => MetadataFrom::Cookie(cookie.into()),
        (false, false) => return Err(Refused::new("cookie", "and header are both set; one of them may be")),
        (true, true) => return Err(Refused::new("header", "and cookie are both missing; set one of them")),
    };
    if on_header_present.is_none() && on_header_missing.is_none() {
        return Err(Refused::new("on_header_present", "and on_header_missing are both missing; set one of them"));
    }
    if on_header_missing.as_ref().is_some_and(|pair| pair.value.is_empty()) {
        return Err(Refused::new("on_header_missing.value", "is missing"));
    }
    let (present, rewrite) = on_header_present.map(entry).transpose().within("on_header_present")?.unzip();
    let (missing, _) = on_header_missing.map(entry).transpose().within("on_header_missing")?.unzip();
    let rewrite = rewrite.flatten().map(action::regex_rewrite).transpose();
    Ok(MetadataRule { from, present, missing, rewrite: rewrite.within("on_header_present.regex_value_rewrite")? })
}

fn entry(value: KeyValuePair) -> Converted<(MetadataEntry, Option<RegexMatchAndSubstitute>)> {
    let KeyValuePair { metadata_namespace, key, value, regex_value_rewrite, r#type, encode } = value;
    if key.is_empty() {
        return Err(Refused::new("key", "is missing"));
    }
    if !value.is_empty() && regex_value_rewrite.is_some() {
        return Err(Refused::new("regex_value_rewrite", "and value are both set; one of them may be"));
    }
    let kind = match ValueType::try_from(r#type) {
        Ok(ValueType::String) => MetadataKind::Text,
        Ok(ValueType::Number) => MetadataKind::Number,
        Ok(ValueType::ProtobufValue) => MetadataKind::Protobuf,
        Err(_) => return Err(Refused::new("type", "is not known to this proxy")),
    };
    let base64 = match ValueEncode::try_from(encode) {
        Ok(ValueEncode::None) => false,
        Ok(ValueEncode::Base64) => true,
        Err(_) => return Err(Refused::new("encode", "is not known to this proxy")),
    };
    let namespace = if metadata_namespace.is_empty() { OWN.into() } else { metadata_namespace.into() };
    Ok((MetadataEntry { namespace, key: key.into(), value: value.into(), kind, base64 }, regex_value_rewrite))
}

/// The namespace of a value, and the way to it.
pub fn key(value: Option<MetadataKey>) -> Converted<(Box<str>, Vec<Box<str>>)> {
    let Some(MetadataKey { key, path }) = value else { return Err(Refused::new("", "is missing")) };
    if key.is_empty() {
        return Err(Refused::new("key", "is missing"));
    }
    let segment = |segment: metadata_key::PathSegment| match segment.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) if !key.is_empty() => Ok(Box::from(key)),
        Some(metadata_key::path_segment::Segment::Index(_)) => {
            Err(Refused::new("path", "has an index, which is not supported by this proxy"))
        }
        _ => Err(Refused::new("path", "has a segment without a key")),
    };
    let path: Vec<Box<str>> = path.into_iter().map(segment).collect::<Converted<_>>()?;
    if path.is_empty() {
        return Err(Refused::new("path", "is missing"));
    }
    Ok((key.into(), path))
}

/// Fixed values.
pub fn fixed(value: SetConfig) -> Converted<Arc<[FixedMetadata]>> {
    let SetConfig { metadata_namespace, value, metadata } = value;
    let mut all = Vec::with_capacity(metadata.len() + 1);
    if let Some(fields) = value.filter(|_| !metadata_namespace.is_empty()) {
        all.push(FixedMetadata { namespace: metadata_namespace.into(), fields, overwrite: true });
    }
    for (index, value) in metadata.into_iter().enumerate() {
        all.push(one(value).within(format_args!("metadata[{index}]"))?);
    }
    Ok(all.into())
}

fn one(value: Metadata) -> Converted<FixedMetadata> {
    let Metadata { metadata_namespace, allow_overwrite, value, typed_value } = value;
    refuse!(typed_value);
    if metadata_namespace.is_empty() {
        return Err(Refused::new("metadata_namespace", "is missing"));
    }
    let fields = value.ok_or_else(|| Refused::new("value", "is missing"))?;
    Ok(FixedMetadata { namespace: metadata_namespace.into(), fields, overwrite: allow_overwrite })
}
