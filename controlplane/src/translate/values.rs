//! Small values that many messages have: durations, metadata, header changes, addresses.

use std::net::IpAddr;
use std::time::Duration;

use leno_core::ObjectRef;
use leno_core::route::{HeaderChange, TextMatch};
use leno_xds::envoy::config::core::v3::{
    Address, ConfigSource, HeaderValue, HeaderValueOption, Metadata, SocketAddress, address,
    config_source::ConfigSourceSpecifier, header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
};
use leno_xds::envoy::config::core::v3::{AggregatedConfigSource, ApiVersion};
use leno_xds::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use prost_types::{Struct, Value, value::Kind};

/// A duration as messages have it.
pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// The duration that means "none" in most fields.
pub(super) const ZERO: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 0 };

/// A socket address.
pub(super) fn socket(address: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// The address of an endpoint or service.
pub(super) fn ip_socket(address: IpAddr, port: u16) -> Address {
    socket(&address.to_string(), port)
}

/// The stream that everything else comes by. Without a time limit: a resource is never started half configured.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: Some(ZERO),
        ..Default::default()
    }
}

/// A text as a value of metadata.
pub(super) fn text(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

/// Yes or no as a value of metadata.
pub(super) fn truth(truth: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(truth)) }
}

/// An object as a value of metadata.
pub(super) fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Metadata under the given names.
pub(super) fn metadata<'a>(entries: impl IntoIterator<Item = (&'a str, Struct)>) -> Metadata {
    Metadata {
        filter_metadata: entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Default::default()
    }
}

/// The path of the object that a resource was made from, as Istio writes it.
pub(super) fn config_path(origin: &ObjectRef) -> String {
    let kind = match origin.kind.as_str() {
        "VirtualService" => "virtual-service",
        "DestinationRule" => "destination-rule",
        other => other,
    };
    format!("/apis/{}/v1/namespaces/{}/{kind}/{}", origin.group, origin.namespace, origin.name)
}

/// Headers that are set and added, and those that are removed.
pub(super) fn headers(change: &HeaderChange) -> (Vec<HeaderValueOption>, Vec<String>) {
    let HeaderChange { set, add, remove } = change;
    let set = set.iter().map(|(name, value)| header(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = add.iter().map(|(name, value)| header(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), remove.clone())
}

/// One header to write.
pub(super) fn header(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: escaped(value), ..Default::default() }),
        append_action: action.into(),
        ..Default::default()
    }
}

/// A header value in which every `%` that begins no command is doubled: Envoy refuses the whole resource otherwise.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let inside = &from[1..];
        match command_len(inside) {
            Some(len) => {
                out.push_str(&from[..len + 2]);
                rest = &from[len + 2..];
            }
            None if inside.starts_with('%') => {
                out.push_str("%%");
                rest = &inside[1..];
            }
            None => {
                out.push_str("%%");
                rest = inside;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The length of a command such as `REQ(x-id)` before its closing `%`, if it is one that takes no part of the request's
/// body and that every Envoy knows.
fn command_len(text: &str) -> Option<usize> {
    const PLAIN: [&str; 8] = [
        "PROTOCOL",
        "DOWNSTREAM_REMOTE_ADDRESS",
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_LOCAL_ADDRESS",
        "DOWNSTREAM_PEER_URI_SAN",
        "UPSTREAM_HOST",
        "START_TIME",
        "RESPONSE_FLAGS",
    ];
    let len = text.find('%')?;
    let command = &text[..len];
    let with_name =
        command.strip_prefix("REQ(").or_else(|| command.strip_prefix("RESP(")).and_then(|rest| rest.strip_suffix(')'));
    let named = with_name.is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:?".contains(&byte))
    });
    (named || PLAIN.contains(&command)).then_some(len)
}

/// A regular expression.
pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), ..Default::default() }
}

/// A comparison of texts; `None` when it only asks that there is one.
pub(super) fn text_matcher(text: &TextMatch) -> Option<StringMatcher> {
    let pattern = match text {
        TextMatch::Present => return None,
        TextMatch::Exact(exact) => MatchPattern::Exact(exact.clone()),
        TextMatch::Prefix(prefix) => MatchPattern::Prefix(prefix.clone()),
        TextMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn header_value_when_a_percent_begins_no_command_then_doubled() {
        assert_eq!(escaped("50%"), "50%%");
        assert_eq!(escaped("50%% of %REQ(x-id)% %NOPE% %"), "50%% of %REQ(x-id)% %%NOPE%% %%");
        assert_eq!(escaped("%START_TIME%"), "%START_TIME%");
    }
}
