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

/// Commands without an argument that tell of the request, its connections or its answer, and that both engines know.
const PLAIN: [&str; 52] = [
    "ACCESS_LOG_TYPE",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "HOSTNAME",
    "PROTOCOL",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "START_TIME",
    "STREAM_ID",
    "TRACE_ID",
    "UNIQUE_ID",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "VIRTUAL_CLUSTER_NAME",
];

/// The length of a command such as `REQ(x-id):8` before its closing `%`, if it is one that takes no part of the request's
/// body and that every engine knows. The environment and the metadata of proxies are no business of a route's author.
fn command_len(text: &str) -> Option<usize> {
    let of_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let name = text.bytes().take_while(of_name).count();
    let (command, rest) = text.split_at(name);
    let Some(inside) = rest.strip_prefix('(') else {
        return (rest.starts_with('%') && PLAIN.contains(&command)).then_some(name);
    };
    let end = inside.find(')')?;
    let (argument, rest) = (&inside[..end], &inside[end + 1..]);
    let known = match command {
        "REQ" => are_headers(argument, &[":method", ":path", ":authority", ":scheme"]),
        "RESP" => are_headers(argument, &[":status"]),
        "START_TIME" => is_time_format(argument),
        _ => false,
    };
    let digits = match rest.strip_prefix(':') {
        Some(limit) if command != "START_TIME" => {
            Some(limit.bytes().take_while(u8::is_ascii_digit).count()).filter(|count| (1..=5).contains(count))? + 1
        }
        _ => 0,
    };
    (known && rest[digits..].starts_with('%')).then_some(name + end + 2 + digits)
}

/// Whether these are the names of a header and, after a `?`, of one that stands in for it; `pseudo` are those that begin with a colon.
fn are_headers(names: &str, pseudo: &[&str]) -> bool {
    let token =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    names.split('?').count() <= 2
        && names.split('?').all(|name| token(name) || pseudo.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Whether a format of times has only parts that every engine knows.
fn is_time_format(format: &str) -> bool {
    let mut parts = format.split('%');
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" -:/.,_".contains(&byte));
    let part = |text: &str| {
        let (digits, text) = text.split_at(text.bytes().take_while(|byte| (b'1'..=b'9').contains(byte)).count());
        text.starts_with(if digits.is_empty() {
            &['Y', 'm', 'd', 'H', 'M', 'S', 's', 'T', 'F', 'f'][..]
        } else {
            &['f']
        }) && digits.len() <= 1
    };
    parts.next().is_some_and(plain) && parts.all(|text| part(text) && plain(text))
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
    use super::{PLAIN, escaped};

    #[test]
    fn header_value_when_a_percent_begins_no_command_then_doubled() {
        assert_eq!(escaped("50%"), "50%%");
        assert_eq!(escaped("50%% of %REQ(x-id)% %NOPE% %"), "50%% of %REQ(x-id)% %%NOPE%% %%");
        assert_eq!(escaped("%REQ()% %REQ(a% %REQ(a):% %REQ(a b)%"), "%%REQ()%% %%REQ(a%% %%REQ(a):%% %%REQ(a b)%%");
        for text in ["a?b?c", "a?", "?a", "a:b", ":foo", ":status", "a b", "ä"] {
            assert_eq!(escaped(&format!("%REQ({text})%")), format!("%%REQ({text})%%"));
        }
        assert_eq!(escaped("%RESP(:path)%"), "%%RESP(:path)%%");
        assert_eq!(escaped("%ENVIRONMENT(HOME)% a%20b"), "%%ENVIRONMENT(HOME)%% a%%20b");
        assert_eq!(escaped("%START_TIME(%Q)%"), "%%START_TIME(%%Q)%%");
    }

    #[test]
    fn header_value_when_it_has_commands_that_engines_know_then_they_stay() {
        for value in [
            "%START_TIME%",
            "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
            "at %START_TIME(%s)%: %RESPONSE_CODE%",
            "%REQ(X-A?:METHOD):3%%RESP(x-b)%",
            "%REQ(:AUTHORITY)% %RESP(:status)%",
        ] {
            assert_eq!(escaped(value), value);
        }
        for name in PLAIN {
            let value = format!("a %{name}% b");
            assert_eq!(escaped(&value), value);
        }
    }
}
