//! Points in time of a request or connection, and the spans between them.

use super::FormatError;
use super::operator::{Operator, Written};
use crate::telemetry::LogEntry;
use std::time::Duration;

/// A point in time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Begin,
    Received,
    Sending,
    Sent,
    Answered,
    AnswerBody,
    AnswerEnded,
    Answering,
    End,
    Accepted,
    Closed,
    Connecting,
    Connected,
    Secured,
    /// Nobody sets it.
    Never,
}

/// The unit of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Moment {
    /// Whether it is only kept where a line asks for it.
    pub(super) const fn is_observed(self) -> bool {
        matches!(self, Self::Connecting | Self::Connected | Self::Secured | Self::AnswerBody | Self::Answering)
    }
}

/// `COMMON_DURATION(FROM:TO:UNIT)`.
pub(super) fn common_duration(w: &Written<'_>) -> Result<Operator, FormatError> {
    let parts: Vec<&str> = w.argument.unwrap_or_default().split(':').collect();
    let (from, to, unit) = match (parts.as_slice(), w.length) {
        ([from, to], None) => (from, to, "ms"),
        ([from, to, unit], None) => (from, to, *unit),
        _ => return Err(w.malformed()),
    };
    let moment = |text: &str| match text {
        "DS_CX_BEG" => Moment::Accepted,
        "DS_CX_END" => Moment::Closed,
        "DS_RX_BEG" => Moment::Begin,
        "DS_RX_END" => Moment::Received,
        "US_CX_BEG" => Moment::Connecting,
        "US_CX_END" => Moment::Connected,
        "US_HS_END" => Moment::Secured,
        "US_TX_BEG" => Moment::Sending,
        "US_TX_END" => Moment::Sent,
        "US_RX_BEG" => Moment::Answered,
        "US_RX_BODY_BEG" => Moment::AnswerBody,
        "US_RX_END" => Moment::AnswerEnded,
        "DS_TX_BEG" => Moment::Answering,
        "DS_TX_END" => Moment::End,
        // Filters could set others; none here does.
        _ => Moment::Never,
    };
    let unit = match unit {
        "ms" => Unit::Millis,
        "us" => Unit::Micros,
        "ns" => Unit::Nanos,
        _ => return Err(w.malformed()),
    };
    Ok(Operator::Span(moment(from), moment(to), unit))
}

/// Whole units of a span.
pub(super) fn whole(span: Duration, unit: Unit) -> u64 {
    let value = match unit {
        Unit::Millis => span.as_millis(),
        Unit::Micros => span.as_micros(),
        Unit::Nanos => span.as_nanos(),
    };
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// When it was, in nanoseconds since the beginning of what is told.
pub(super) fn moment<Q, S>(moment: Moment, entry: &LogEntry<'_, Q, S>) -> Option<i128> {
    let (moments, observed) = (&entry.moments, entry.observed);
    let connecting = observed.map(|observed| observed.connecting).unwrap_or_default();
    let since = match moment {
        Moment::Begin => Some(Duration::ZERO),
        Moment::Received => moments.received,
        Moment::Sending => moments.sending,
        Moment::Sent => moments.sent,
        Moment::Answered => moments.answered,
        Moment::AnswerBody => observed.and_then(|observed| observed.body),
        Moment::AnswerEnded => moments.answer_ended,
        Moment::Answering => observed.and_then(|observed| observed.answering),
        Moment::End => moments.ended.then_some(entry.duration),
        Moment::Closed => moments.closed,
        Moment::Accepted => return entry.accepted.map(i128::from),
        Moment::Connecting => return connecting.begun.map(i128::from),
        Moment::Connected => return connecting.connected.map(i128::from),
        Moment::Secured => return connecting.secured.map(i128::from),
        Moment::Never => None,
    };
    since.and_then(|since| i128::try_from(since.as_nanos()).ok())
}
