//! Conversions that several resources need: packed messages, durations, addresses, header changes.

use super::{Context, Converted, Refused, Within as _, refuse, refuse_set};
use crate::config::{HeaderOp, HeaderText, OptionTime, SocketOption};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use leno_xds::envoy::config::core::v3::{
    Address, BackoffStrategy, CidrRange, DataSource, HeaderValue, HeaderValueOption, Metadata, RetryPolicy,
    SocketAddress, SocketOption as XdsOption, address, data_source, header_value_option::HeaderAppendAction,
    socket_address, socket_option, socket_option::SocketState,
};
use leno_xds::envoy::r#type::v3::Percent;
use prost::{Message, Name};
use prost_types::{Any, Struct, Value, value::Kind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Unpacks a message, and refuses fields in its bytes that its type does not know.
///
/// # Errors
/// When it is of another type, does not decode, or has unknown fields.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Converted<M> {
    match optional(any)? {
        Some(message) => Ok(message),
        None => Err(unknown_type(any)),
    }
}

/// As [`unpack`]; `None` when it is of another type.
pub fn optional<M: Message + Name + Default>(any: &Any) -> Converted<Option<M>> {
    let held = leno_xds::json::typed_struct(any).map_err(|error| Refused::new("", error.to_string()))?;
    let any = held.as_ref().unwrap_or(any);
    let message = match leno_xds::unpack::<M>(any) {
        Ok(Some(message)) => message,
        Ok(None) => return Ok(None),
        Err(error) => return Err(Refused::new("", format!("is no {}: {error}", M::full_name()))),
    };
    // Unknown fields are dropped by decoding. A shorter message is therefore suspect; only then are the descriptors
    // (some MiB) loaded, to name the fields or find it was another way to write the same.
    if message.encoded_len() != any.value.len()
        && let Ok(unknown) = leno_xds::json::unknown_fields(any)
        && let Some(first) = unknown.first()
    {
        return Err(Refused::new(first.clone(), "is not known to this proxy (set by a newer control plane?)"));
    }
    Ok(Some(message))
}

/// The refusal of a packed message of a type that is not known here.
pub fn unknown_type(any: &Any) -> Refused {
    Refused::new("", format!("`{}` is not supported by this proxy", leno_xds::json::type_inside(any)))
}

/// A duration that is not negative.
pub fn duration(value: prost_types::Duration, field: &str) -> Converted<Duration> {
    Duration::try_from(value).map_err(|_| Refused::new(field, "is not a duration of zero or more"))
}

/// As [`duration`], if it is set.
pub fn maybe_duration(value: Option<prost_types::Duration>, field: &str) -> Converted<Option<Duration>> {
    value.map(|value| duration(value, field)).transpose()
}

/// Refuses a limit that is set, unless it is one that never passes.
pub fn never(value: Option<prost_types::Duration>, field: &str) -> Converted<()> {
    refuse_set(&maybe_duration(value, field)?.unwrap_or_default(), field)
}

/// As [`maybe_duration`], one that is longer than nothing.
pub fn positive(value: Option<prost_types::Duration>, field: &str) -> Converted<Option<Duration>> {
    match maybe_duration(value, field)? {
        Some(Duration::ZERO) => Err(Refused::new(field, "must be more than 0")),
        value => Ok(value),
    }
}

/// Waits between attempts to reach a server where nothing is said, the first and the longest: Envoy's.
const STREAM_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The waits between attempts to open a stream to a server. They go on for as long as it is wanted, whatever their number should be.
pub fn stream_backoff(value: Option<RetryPolicy>, field: &str) -> Converted<(Duration, Duration)> {
    let within = |value: RetryPolicy| {
        let RetryPolicy {
            retry_back_off,
            num_retries: _,
            retry_on,
            retry_priority,
            retry_host_predicate,
            host_selection_retry_max_attempts,
        } = value;
        refuse!(retry_on, retry_priority, retry_host_predicate, host_selection_retry_max_attempts);
        let Some(BackoffStrategy { base_interval, max_interval }) = retry_back_off else { return Ok(STREAM_BACKOFF) };
        let base = positive(base_interval, "retry_back_off.base_interval")?
            .ok_or_else(|| Refused::new("retry_back_off.base_interval", "is missing"))?
            .max(Duration::from_millis(1));
        let longest = maybe_duration(max_interval, "retry_back_off.max_interval")?;
        Ok((base, longest.unwrap_or(base.saturating_mul(10)).max(base)))
    };
    value.map_or(Ok(STREAM_BACKOFF), within).within(field)
}

/// A percentage, if it is set.
pub fn percent(value: Option<Percent>, field: &str) -> Converted<Option<f64>> {
    match value {
        Some(Percent { value }) if !(0.0..=100.0).contains(&value) => Err(Refused::new(field, "must be from 0 to 100")),
        value => Ok(value.map(|percent| percent.value)),
    }
}

/// How often lines are written about what goes on; Envoy's least is a millisecond.
pub fn log_interval(value: Option<prost_types::Duration>) -> Converted<Option<Duration>> {
    let field = "access_log_flush_interval";
    match maybe_duration(value, field)? {
        Some(every) if every < Duration::from_millis(1) => Err(Refused::new(field, "is shorter than a millisecond")),
        every => Ok(every),
    }
}

/// A port.
pub fn port(value: u32) -> Converted<u16> {
    u16::try_from(value).map_err(|_| Refused::new("port_value", format!("{value} is not a port")))
}

/// A range of addresses. Bits behind the prefix do not count; no length is the length 0: every address.
pub fn cidr(value: CidrRange) -> Converted<ipnet::IpNet> {
    let CidrRange { address_prefix, prefix_len } = value;
    let ip: IpAddr = address_prefix
        .parse()
        .map_err(|_| Refused::new("address_prefix", format!("`{address_prefix}` is no IP address")))?;
    let length = prefix_len.unwrap_or(0);
    let net = u8::try_from(length).ok().and_then(|length| ipnet::IpNet::new(ip, length).ok());
    let net = net.ok_or_else(|| Refused::new("prefix_len", format!("{length} is longer than the address")))?;
    Ok(net.trunc())
}

/// An IP address with its port.
pub fn socket(value: SocketAddress) -> Converted<SocketAddr> {
    let SocketAddress { protocol, address, resolver_name, ipv4_compat, network_namespace_filepath, port_specifier } =
        value;
    // 0 is TCP, and `ipv4_compat` would make one socket serve both families.
    refuse!(protocol, resolver_name, ipv4_compat, network_namespace_filepath);
    let ip: IpAddr = address.parse().map_err(|_| Refused::new("address", format!("`{address}` is no IP address")))?;
    let port = match port_specifier {
        None => 0,
        Some(socket_address::PortSpecifier::PortValue(value)) => port(value)?,
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            return Err(Refused::new("named_port", "is not supported by this proxy; write a number"));
        }
    };
    Ok(SocketAddr::new(ip, port))
}

/// The IP address and port in an address of any kind.
pub fn address(value: Option<Address>) -> Converted<SocketAddr> {
    let Some(Address { address }) = value else { return Err(Refused::new("", "is missing")) };
    match address {
        Some(address::Address::SocketAddress(value)) => socket(value).within("socket_address"),
        Some(address::Address::Pipe(_)) => Err(Refused::new("pipe", "is not supported by this proxy")),
        Some(address::Address::EnvoyInternalAddress(_)) => {
            Err(Refused::new("envoy_internal_address", "is not supported by this proxy"))
        }
        None => Err(Refused::new("", "is missing")),
    }
}

/// Options of sockets, each with the moment at which it is set.
pub fn socket_options(options: Vec<XdsOption>) -> Converted<Vec<(OptionTime, i32, i32, SocketOption)>> {
    let option = |(index, option)| socket_option(option).within(format_args!("socket_options[{index}]"));
    options.into_iter().enumerate().map(option).collect()
}

fn socket_option(option: XdsOption) -> Converted<(OptionTime, i32, i32, SocketOption)> {
    let XdsOption { description: _, level, name, state, r#type, ip_version, value } = option;
    refuse_set(&r#type, "type")?;
    refuse_set(&ip_version, "ip_version")?;
    let time = match SocketState::try_from(state) {
        Ok(SocketState::StatePrebind) => OptionTime::Unbound,
        Ok(SocketState::StateBound) => OptionTime::Bound,
        Ok(SocketState::StateListening) => OptionTime::Listening,
        Err(_) => return Err(Refused::new("state", "is not known to this proxy")),
    };
    let number = |value: i64, field: &str| {
        i32::try_from(value).map_err(|_| Refused::new(field, format!("{value} is too large")))
    };
    let (level, name) = (number(level, "level")?, number(name, "name")?);
    let value = match value {
        Some(socket_option::Value::IntValue(value)) => SocketOption::Int(number(value, "int_value")?),
        Some(socket_option::Value::BufValue(bytes)) => SocketOption::Bytes(bytes.into()),
        None => return Err(Refused::new("value", "is missing")),
    };
    Ok((time, level, name, value))
}

/// Text that is written in the resource itself.
pub fn inline(source: DataSource) -> Converted<Vec<u8>> {
    let DataSource { watched_directory, specifier } = source;
    refuse!(watched_directory);
    match specifier {
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(data_source::Specifier::InlineString(text)) => Ok(text.into_bytes()),
        None => Ok(Vec::new()),
        Some(data_source::Specifier::Filename(_)) => Err(Refused::new("filename", "is not supported; write it inline")),
        Some(data_source::Specifier::EnvironmentVariable(_)) => {
            Err(Refused::new("environment_variable", "is not supported; write it inline"))
        }
    }
}

/// Header changes in the order in which Envoy makes them: removals first.
pub fn header_ops(
    context: &mut Context,
    add: Vec<HeaderValueOption>,
    remove: Vec<String>,
    field: &str,
) -> Converted<Vec<HeaderOp>> {
    let mut ops = Vec::with_capacity(add.len() + remove.len());
    for (index, name) in remove.into_iter().enumerate() {
        ops.push(HeaderOp::Remove(header_name(&name).within(format_args!("{field}_to_remove[{index}]"))?));
    }
    for (index, option) in add.into_iter().enumerate() {
        ops.extend(header_op(context, option).within(format_args!("{field}_to_add[{index}]"))?);
    }
    Ok(ops)
}

/// One header change; `None` where an empty value means that there is none. As in Envoy, `raw_value` is not looked at.
pub fn header_op(context: &mut Context, option: HeaderValueOption) -> Converted<Option<HeaderOp>> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = option;
    let Some(HeaderValue { key, value, raw_value: _ }) = header else {
        return Err(Refused::new("header", "is missing"));
    };
    let name = header_name(&key).within("header.key")?;
    if value.is_empty() && !keep_empty_value {
        return Ok(None);
    }
    let value = header_text(context, &value, keep_empty_value).within("header.value")?;
    if append.is_some() && append_action != HeaderAppendAction::AppendIfExistsOrAdd as i32 {
        return Err(Refused::new("append", "stands beside `append_action`; leave it out"));
    }
    let action = match append {
        Some(true) => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => HeaderAppendAction::try_from(append_action)
            .map_err(|_| Refused::new("append_action", format!("{append_action} is not known to this proxy")))?,
    };
    Ok(Some(match action {
        HeaderAppendAction::AppendIfExistsOrAdd => HeaderOp::Append(name, value),
        HeaderAppendAction::AddIfAbsent => HeaderOp::AddIfAbsent(name, value),
        HeaderAppendAction::OverwriteIfExistsOrAdd => HeaderOp::Set(name, value),
        HeaderAppendAction::OverwriteIfExists => HeaderOp::SetIfPresent(name, value),
    }))
}

/// A header's name in lower case; the pseudo headers of HTTP/2 are not among them.
pub fn header_name(name: &str) -> Converted<Box<str>> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if name == http::header::HOST => {
            Err(Refused::new("", "`host` cannot be changed here; use the route's host rewrite"))
        }
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => Err(Refused::new("", format!("`{name}` is no name of a header"))),
    }
}

/// A header's value: a text, or Envoy's `%COMMAND%`s; `%%` is a percent sign.
pub fn header_text(context: &mut Context, text: &str, keep_empty: bool) -> Converted<HeaderText> {
    let plain = text.replace("%%", "");
    if http::HeaderValue::from_str(&plain).is_err() {
        return Err(Refused::new("", "has characters that no header may have"));
    }
    if !plain.contains('%') {
        return Ok(HeaderText::Literal(text.replace("%%", "%").into()));
    }
    let format = context.text_format(text, true)?;
    Ok(HeaderText::Format { format, keep_empty })
}

/// The metadata of one filter.
pub fn filter_metadata<'a>(metadata: Option<&'a Metadata>, filter: &str) -> Option<&'a Struct> {
    metadata?.filter_metadata.get(filter)
}

/// Whether a field is there and true.
pub fn is_set(fields: &Struct, name: &str) -> bool {
    matches!(fields.fields.get(name), Some(Value { kind: Some(Kind::BoolValue(true)) }))
}

/// A field that is there and a text.
pub fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    match fields.fields.get(name) {
        Some(Value { kind: Some(Kind::StringValue(text)) }) => Some(text),
        _ => None,
    }
}

/// Headers of calls to a gRPC service: names and values. What `-bin` names end in is bytes, and travels as base64.
pub fn grpc_metadata(values: Vec<HeaderValue>) -> Converted<Vec<(Box<str>, String)>> {
    let one = |HeaderValue { key, value, raw_value }| {
        let name = header_name(&key).within("key")?;
        let value = match (name.ends_with("-bin"), raw_value.is_empty()) {
            (true, true) => STANDARD.encode(value),
            (true, false) => STANDARD.encode(raw_value),
            (false, true) => super::edge::header_value(value, "value")?,
            (false, false) => return Err(Refused::new("raw_value", "is for names that end in -bin; write `value`")),
        };
        Ok((name, value))
    };
    values.into_iter().map(one).collect()
}
