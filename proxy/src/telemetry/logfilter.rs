//! Which requests and connections are logged, and which answers a mapper of local replies changes.

use super::{HeaderLookup, LogEntry, ResponseFlags};
use crate::config::{HeaderMatch, MetadataMatch};

/// A condition, decided when the configuration comes as far as it can be.
#[derive(Debug, Clone)]
pub enum LogFilter {
    /// By status.
    Status(Comparison, u16),
    /// By duration in milliseconds.
    Duration(Comparison, u64),
    /// What is no health check.
    NotHealthCheck,
    /// What the service wants traced.
    Traceable,
    /// A share of the requests: so many of so many. The same request id decides alike everywhere, unless chance is to decide.
    Share {
        /// So many.
        numerator: u32,
        /// Of so many.
        denominator: u32,
        /// Chance decides, not the request's id.
        independent: bool,
    },
    /// Those with one of these flags; with any where it is empty.
    Flags(ResponseFlags),
    /// By a header of the request.
    Header(HeaderMatch),
    /// By the status of gRPC, a bit each; or those that have none of these.
    GrpcStatus {
        /// The statuses.
        statuses: u32,
        /// Those that have none of these.
        exclude: bool,
    },
    /// By what a line is about, a bit each; or those that are not about these.
    Kinds {
        /// Bits by [`super::LogKind::number`].
        kinds: u32,
        /// Those that are not about these.
        exclude: bool,
    },
    /// By what filters found out.
    Metadata {
        /// What the value must be; Envoy has no ear for the opposite here.
        wanted: MetadataMatch,
        /// What holds where there is no such value.
        missing: bool,
    },
    /// Those for which each holds.
    All(Vec<LogFilter>),
    /// Those for which one holds.
    Any(Vec<LogFilter>),
}

/// How a number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Greater or equal.
    AtLeast,
    /// Less or equal.
    AtMost,
    /// Not equal.
    Unequal,
}

impl Comparison {
    fn holds<T: Ord>(self, value: T, wanted: T) -> bool {
        match self {
            Self::Equal => value == wanted,
            Self::AtLeast => value >= wanted,
            Self::AtMost => value <= wanted,
            Self::Unequal => value != wanted,
        }
    }
}

impl LogFilter {
    /// Whether it asks for what filters find out.
    pub fn needs_dynamic(&self) -> bool {
        match self {
            Self::Metadata { .. } => true,
            Self::All(filters) | Self::Any(filters) => filters.iter().any(Self::needs_dynamic),
            _ => false,
        }
    }

    /// Whether it holds; `random` draws a number.
    pub fn holds<Q: HeaderLookup, S: HeaderLookup>(
        &self,
        entry: &LogEntry<'_, Q, S>,
        random: &impl Fn() -> u64,
    ) -> bool {
        match self {
            Self::Status(comparison, wanted) => comparison.holds(entry.code, *wanted),
            Self::Duration(comparison, wanted) => {
                comparison.holds(u64::try_from(entry.duration.as_millis()).unwrap_or(u64::MAX), *wanted)
            }
            Self::NotHealthCheck => !entry.health_check,
            Self::Traceable => entry.forced,
            Self::Share { numerator, denominator, independent } => {
                let of_id = entry.request.header("x-request-id").filter(|_| !independent).and_then(leading);
                let drawn = of_id.map_or_else(random, u64::from);
                drawn % u64::from(*denominator).max(1) < u64::from(*numerator)
            }
            Self::Flags(wanted) if wanted.is_empty() => !entry.flags.is_empty(),
            Self::Flags(wanted) => entry.flags.intersects(*wanted),
            Self::Header(header) => matches(header, entry),
            Self::GrpcStatus { statuses, exclude } => {
                let told = |headers: &S| crate::http::grpc_status(headers.header("grpc-status"));
                let status = entry.trailers.as_ref().and_then(told).or_else(|| told(&entry.response));
                let status = status.or(entry.grpc_status).unwrap_or_else(|| grpc_of_http(entry.code));
                let named = status <= 16 && statuses & (1 << status) != 0;
                named != *exclude
            }
            Self::Kinds { kinds, exclude } => (kinds & (1 << entry.kind.number()) != 0) != *exclude,
            Self::Metadata { wanted, missing } => {
                let value = entry.dynamic.and_then(|dynamic| dynamic.at(&wanted.filter, &wanted.path));
                value.map_or(*missing, |value| wanted.test.holds(Some(value)))
            }
            Self::All(filters) => filters.iter().all(|filter| filter.holds(entry, random)),
            Self::Any(filters) => filters.iter().any(|filter| filter.holds(entry, random)),
        }
    }
}

/// The status of gRPC that clients read from one of HTTP. A 200 says nothing about it.
pub(crate) fn grpc_of_http(code: u16) -> u16 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Whether a condition on a header holds, as it does where routes are chosen.
fn matches<Q: HeaderLookup, S>(header: &HeaderMatch, entry: &LogEntry<'_, Q, S>) -> bool {
    let pseudo = match &*header.name {
        ":method" => entry.method,
        ":path" => entry.path,
        ":authority" | "host" => entry.authority,
        ":scheme" => entry.scheme,
        name => return header.matches(entry.request.each(name)),
    };
    header.matches(pseudo.map(str::as_bytes))
}

/// The number that the first eight digits of a UUID are.
pub fn leading(id: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(id.get(..8)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{StringMatch, ValueMatch};
    use crate::telemetry::DynamicMetadata;
    use crate::telemetry::LogKind;
    use prost_types::value::Kind;
    use std::time::{Duration, SystemTime};

    fn entry(headers: &http::HeaderMap) -> LogEntry<'_, &http::HeaderMap, ()> {
        LogEntry {
            kind: LogKind::DownstreamEnd,
            code: 503,
            flags: ResponseFlags::NO_ROUTE,
            path: Some("/a"),
            protocol: Some("HTTP/1.1"),
            ..LogEntry::new(SystemTime::UNIX_EPOCH, Duration::from_millis(100), headers, ())
        }
    }

    #[test]
    fn filter_when_conditions_are_joined_then_each_counts() {
        let headers = http::HeaderMap::new();
        let entry = entry(&headers);
        let holds = |filter: &LogFilter| filter.holds(&entry, &|| 0);
        let late = LogFilter::Duration(Comparison::AtLeast, 100);
        let other = LogFilter::Flags(ResponseFlags::NO_CLUSTER);
        assert!(holds(&late) && !holds(&other));
        assert!(!holds(&LogFilter::All(vec![late.clone(), other.clone()])));
        assert!(holds(&LogFilter::Any(vec![late, other])));
        assert!(holds(&LogFilter::Flags(ResponseFlags::none())), "any flag");
        assert!(holds(&LogFilter::GrpcStatus { statuses: 1 << 14, exclude: false }), "503 is UNAVAILABLE");
        assert!(!holds(&LogFilter::GrpcStatus { statuses: 1 << 14, exclude: true }));
        assert!(holds(&LogFilter::Kinds { kinds: 1 << LogKind::DownstreamEnd.number(), exclude: false }));
    }

    #[test]
    fn metadata_when_a_filter_set_it_then_its_value_decides_and_else_what_is_said_for_that() {
        let headers = http::HeaderMap::new();
        let mut dynamic = DynamicMetadata::default();
        dynamic.set("envoy.common", "access_log_hint".to_owned(), Kind::StringValue("true".to_owned()));
        let entry = LogEntry { dynamic: Some(&dynamic), ..entry(&headers) };
        let wanted = |filter: &str, path: &str, text: &str, missing| {
            let test = ValueMatch::Text(StringMatch::Exact(text.into()));
            let wanted = MetadataMatch { filter: filter.into(), path: vec![path.into()], test, invert: false };
            LogFilter::Metadata { wanted, missing }.holds(&entry, &|| 0)
        };
        assert!(wanted("envoy.common", "access_log_hint", "true", false));
        assert!(!wanted("envoy.common", "access_log_hint", "false", true));
        assert!(wanted("envoy.common", "other", "true", true));
        assert!(!wanted("other", "access_log_hint", "true", false));
        assert!(LogFilter::Any(vec![LogFilter::All(Vec::new())]).holds(&entry, &|| 0));
    }

    #[test]
    fn share_when_there_is_a_request_id_then_it_decides() {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-request-id", "00000031-0000-4000-8000-000000000000".parse().unwrap());
        let entry = entry(&headers);
        let share = |numerator, independent| LogFilter::Share { numerator, denominator: 100, independent };
        assert!(share(50, false).holds(&entry, &|| 99), "0x31 is 49");
        assert!(!share(49, false).holds(&entry, &|| 0));
        assert!(share(49, true).holds(&entry, &|| 0), "chance instead");
    }
}
