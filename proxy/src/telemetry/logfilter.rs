//! Which requests and connections are logged, and which answers a mapper of local replies changes.

use super::{HeaderLookup, LogEntry, ResponseFlags, Told, ToldValue};
use crate::config::{HeaderMatch, StringMatch};

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
    /// By what filters told.
    Told(ToldMatch),
    /// Those for which each holds.
    All(Vec<LogFilter>),
    /// Those for which one holds.
    Any(Vec<LogFilter>),
}

/// A condition on what a filter told.
#[derive(Debug, Clone)]
pub struct ToldMatch {
    /// The filter.
    pub filter: Box<str>,
    /// The way to the value among what it told.
    pub path: Vec<Box<str>>,
    /// What the value must be.
    pub test: ToldTest,
    /// What holds where it told nothing of the kind.
    pub untold: bool,
}

/// What a value must be that was told: a text or a flag, since filters tell nothing else.
#[derive(Debug, Clone)]
pub enum ToldTest {
    /// Such a text.
    Text(StringMatch),
    /// Such a flag.
    Flag(bool),
    /// There, or not.
    Present(bool),
    /// One of these.
    Any(Vec<ToldTest>),
    /// Something that is neither.
    Never,
}

impl ToldTest {
    fn holds(&self, value: &ToldValue) -> bool {
        match self {
            Self::Text(text) => matches!(value, ToldValue::Text(value) if text.matches(value.as_bytes())),
            Self::Flag(wanted) => matches!(value, ToldValue::Flag(value) if value == wanted),
            Self::Present(wanted) => *wanted,
            Self::Any(tests) => tests.iter().any(|test| test.holds(value)),
            Self::Never => false,
        }
    }
}

impl ToldMatch {
    fn holds(&self, told: &[Told]) -> bool {
        // What is told last goes before what was told earlier.
        let mut of_filter = told.iter().rev().filter(|told| told.filter == &*self.filter);
        let value = of_filter.find(|told| self.path.iter().map(AsRef::as_ref).eq([told.name().as_str()]));
        value.map_or(self.untold, |told| self.test.holds(&told.value))
    }
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
    /// Whether it asks for what filters tell.
    pub fn needs_told(&self) -> bool {
        match self {
            Self::Told(_) => true,
            Self::All(filters) | Self::Any(filters) => filters.iter().any(Self::needs_told),
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
            Self::Told(wanted) => wanted.holds(entry.told),
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
    use crate::telemetry::LogKind;
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
    fn told_when_a_filter_told_it_then_the_text_decides_and_else_what_is_said_for_that() {
        let headers = http::HeaderMap::new();
        let told = |key, value| Told { filter: "envoy.common", prefix: "".into(), key, value };
        let all = [told("flag", ToldValue::Flag(true)), told("access_log_hint", ToldValue::Text("true".into()))];
        let entry = LogEntry { told: &all, ..entry(&headers) };
        let wanted = |filter: &str, path: &str, test, untold| {
            let wanted = ToldMatch { filter: filter.into(), path: vec![path.into()], test, untold };
            LogFilter::Told(wanted).holds(&entry, &|| 0)
        };
        let exact = |text: &str| ToldTest::Text(StringMatch::Exact(text.into()));
        assert!(wanted("envoy.common", "access_log_hint", exact("true"), false));
        assert!(!wanted("envoy.common", "access_log_hint", exact("false"), true));
        assert!(wanted("envoy.common", "access_log_hint", ToldTest::Any(vec![exact("x"), exact("true")]), false));
        assert!(!wanted("envoy.common", "access_log_hint", ToldTest::Never, true), "it is no number");
        assert!(wanted("envoy.common", "flag", ToldTest::Flag(true), false));
        assert!(!wanted("envoy.common", "flag", ToldTest::Flag(false), true));
        assert!(!wanted("envoy.common", "flag", exact("true"), true), "it is no text");
        assert!(wanted("envoy.common", "other", exact("true"), true));
        assert!(!wanted("other", "access_log_hint", exact("true"), false));
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
