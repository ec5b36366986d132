//! Operators about metadata: what servers of configuration wrote beside routes, clusters and endpoints, and what filters find out.

use super::FormatError;
use super::json::shortest;
use super::operator::{Operator, Written};
use super::value::{Given, foreign};
use crate::telemetry::LogEntry;
use prost_types::{ListValue, Struct, Value, value::Kind};

/// Names of members on the way to a value at most.
const MAX_PATH: usize = 16;

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// What filters found out about the request.
    Request,
    /// Its route's.
    Route,
    /// Its virtual host's.
    VirtualHost,
    /// Its cluster's.
    Cluster,
    /// Its endpoint's.
    Endpoint,
    /// The listener's.
    Listener,
    /// The filter chain's.
    Chain,
}

/// The operator that is written so, if it is about metadata: `NAME(FILTER:KEY:KEY)`.
pub(super) fn operator(w: &Written<'_>) -> Option<Result<Operator, FormatError>> {
    let argument = w.argument.unwrap_or_default();
    let (of, rest) = match w.name {
        "DYNAMIC_METADATA" => (Of::Request, argument),
        "CLUSTER_METADATA" => (Of::Cluster, argument),
        "UPSTREAM_METADATA" => (Of::Endpoint, argument),
        "METADATA" => {
            let (of, rest) = argument.split_once(':').unwrap_or((argument, ""));
            let of = match of {
                "DYNAMIC" => Of::Request,
                "ROUTE" => Of::Route,
                "VIRTUAL_HOST" => Of::VirtualHost,
                "CLUSTER" => Of::Cluster,
                "UPSTREAM_HOST" => Of::Endpoint,
                "LISTENER" => Of::Listener,
                "LISTENER_FILTER_CHAIN" => Of::Chain,
                _ => return Some(Err(w.malformed())),
            };
            (of, rest)
        }
        _ => return None,
    };
    // The older form: `NAME(["FILTER", "KEY", "KEY"])`.
    let mut keys: Vec<Box<str>> = match serde_json::from_str(rest) {
        Ok(keys) => keys,
        Err(_) => rest.split(':').map(Into::into).collect(),
    };
    let path = keys.split_off(keys.len().min(1));
    let filter = keys.pop();
    // A filter without a name has none, but may be asked for.
    let filter = filter.filter(|_| !argument.is_empty() && path.len() <= MAX_PATH);
    Some(filter.ok_or_else(|| w.malformed()).map(|filter| Operator::Metadata(of, filter, path, w.limit())))
}

/// Appends a value: a text as it is, what else there may be as JSON.
pub(super) fn give<Q, S>(
    of: Of,
    filter: &str,
    path: &[Box<str>],
    limit: usize,
    entry: &LogEntry<'_, Q, S>,
    out: &mut Vec<u8>,
) -> Given {
    let kept = match of {
        Of::Request => {
            let value = entry.dynamic.and_then(|dynamic| dynamic.value(filter, path));
            return shown(value, limit, out);
        }
        Of::Route => entry.metadata.route,
        Of::VirtualHost => entry.metadata.virtual_host,
        Of::Cluster => entry.metadata.cluster,
        Of::Endpoint => entry.metadata.endpoint,
        Of::Listener => entry.metadata.listener,
        Of::Chain => entry.metadata.chain,
    };
    shown(kept.and_then(|kept| kept.value(filter, path)), limit, out)
}

fn shown(value: Option<Value>, limit: usize, out: &mut Vec<u8>) -> Given {
    match value.and_then(|value| value.kind) {
        None | Some(Kind::NullValue(_)) => Given::Nothing,
        Some(Kind::StringValue(text)) => foreign(Some(&text.as_bytes()[..text.floor_char_boundary(limit)]), out),
        Some(kind) => {
            json(Some(&kind), out);
            Given::Json
        }
    }
}

/// A value as JSON.
pub(crate) fn json_of(value: &Value) -> String {
    let mut out = Vec::new();
    json(value.kind.as_ref(), &mut out);
    String::from_utf8(out).unwrap_or_default()
}

fn json(kind: Option<&Kind>, out: &mut Vec<u8>) {
    match kind {
        None | Some(Kind::NullValue(_)) => out.extend_from_slice(b"null"),
        Some(Kind::BoolValue(value)) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Some(Kind::NumberValue(value)) => out.extend_from_slice(shortest(*value).as_bytes()),
        Some(Kind::StringValue(text)) => out.extend_from_slice(quoted(text).as_bytes()),
        Some(Kind::StructValue(Struct { fields })) => {
            out.push(b'{');
            for (at, (name, value)) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(quoted(name).as_bytes());
                out.push(b':');
                json(value.kind.as_ref(), out);
            }
            out.push(b'}');
        }
        Some(Kind::ListValue(ListValue { values })) => {
            out.push(b'[');
            for (at, Value { kind }) in values.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                json(kind.as_ref(), out);
            }
            out.push(b']');
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
