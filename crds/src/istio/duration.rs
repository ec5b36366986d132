//! Durations as Istio writes them: `5s`, `1h30m`, `250ms`.
//!
//! The text is kept as it was written, so that an object comes back unchanged; [`IstioDuration::parse`] gives its
//! value.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest text that is looked at, in bytes. The longest sensible duration is a fraction of it.
const MAX_LEN: usize = 128;

/// What Go's `time.ParseDuration` takes, but for numbers that are only a point.
pub(crate) const GO_DURATION: &str = "^[-+]?(0|([0-9]*\\.?[0-9]*(ns|us|\u{b5}s|\u{3bc}s|ms|s|m|h))+)$";

/// A duration, as text: decimal numbers, each with a unit (`ns`, `us`, `ms`, `s`, `m`, `h`), for example `1h30m` or
/// `1.5s`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IstioDuration(pub String);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// The text is empty.
    #[error("a duration must not be empty; write for example \"5s\"")]
    Empty,
    /// A number is missing, or not one.
    #[error("\"{0}\" is not a duration: a number is missing; write for example \"5s\" or \"1h30m\"")]
    Number(String),
    /// A number has no unit.
    #[error("\"{0}\" is not a duration: a unit is missing (ns, us, ms, s, m, h); write for example \"5s\"")]
    MissingUnit(String),
    /// A unit is not known.
    #[error("\"{0}\" is not a duration: the unit \"{1}\" is not known (ns, us, ms, s, m, h)")]
    UnknownUnit(String, String),
    /// The duration is negative.
    #[error("\"{0}\" is negative; a duration must be 0 or more")]
    Negative(String),
    /// The duration is longer than 292 years, or its text is longer than any duration needs.
    #[error("the duration is too long (at most 292 years, 128 characters)")]
    TooLong,
}

impl IstioDuration {
    /// The duration's value, with nanosecond precision (finer fractions are cut off).
    ///
    /// # Errors
    ///
    /// [`DurationError`] when the text is not a duration, is negative, or is out of range. The syntax is that of Go's
    /// `time.ParseDuration`, which Istio and the API server use.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        let text = self.0.as_str();
        if text.len() > MAX_LEN {
            return Err(DurationError::TooLong);
        }
        let (negative, mut rest) = match text.as_bytes().first() {
            None => return Err(DurationError::Empty),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        if rest == "0" {
            return Ok(Duration::ZERO);
        }
        if rest.is_empty() {
            return Err(DurationError::Number(text.to_owned()));
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let (part, after) = parse_part(text, rest)?;
            nanos = nanos.saturating_add(part);
            rest = after;
        }
        // Go counts nanoseconds in a signed 64-bit integer.
        if nanos > i64::MAX as u128 {
            return Err(DurationError::TooLong);
        }
        if negative && nanos > 0 {
            return Err(DurationError::Negative(text.to_owned()));
        }
        Ok(Duration::from_nanos(nanos as u64))
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for IstioDuration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Reads one number with its unit off the front of `rest`; gives nanoseconds and what follows. `text` is for messages.
fn parse_part<'a>(text: &str, rest: &'a str) -> Result<(u128, &'a str), DurationError> {
    let (whole, rest) = split_digits(rest);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => split_digits(after),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Number(text.to_owned()));
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let scale: u128 = match unit {
        "ns" => 1,
        // The micro sign and the Greek letter mu look alike and are both in use.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "" => return Err(DurationError::MissingUnit(text.to_owned())),
        other => return Err(DurationError::UnknownUnit(text.to_owned(), other.to_owned())),
    };
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError::TooLong)? };
    let mut nanos = whole.checked_mul(scale).ok_or(DurationError::TooLong)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        // Exact for every unit down to one nanosecond: what is cut off is below that.
        place = place.checked_div(10).unwrap_or(0);
        nanos += u128::from(digit - b'0') * place;
    }
    Ok((nanos, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl JsonSchema for IstioDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IstioDuration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            // The format makes the API server hand CEL a duration instead of a text. That halves the cost of the rule, of
            // which a DestinationRule has so many that they would fill the budget. It also lets forms like `5 days`
            // through, which the pattern stops.
            "format": "duration",
            "pattern": GO_DURATION,
            "x-kubernetes-validations": [{
                "rule": "self >= duration('1ms')",
                "message": "must be a duration of at least 1ms, for example 5s or 1h30m",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Duration, DurationError> {
        IstioDuration::from(text).parse()
    }

    #[test]
    fn duration_when_valid_then_has_the_value_that_go_gives_it() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("250ms", 250_000_000),
            ("10us", 10_000),
            ("10\u{b5}s", 10_000),
            ("1s500ms", 1_500_000_000),
            ("1m0.000000001s", 60_000_000_001),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
        ] {
            let value = parse(text).map(|value| value.as_nanos() as i128);
            match value {
                // Go computes the fraction in floating point where ours is cut; one nanosecond is as good.
                Ok(value) => assert!((value - nanos).abs() <= 3_600, "{text}: {value} != {nanos}"),
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn duration_when_invalid_then_says_why() {
        assert_eq!(parse(""), Err(DurationError::Empty));
        assert_eq!(parse("5"), Err(DurationError::MissingUnit("5".into())));
        assert_eq!(parse("s"), Err(DurationError::Number("s".into())));
        assert_eq!(parse("-"), Err(DurationError::Number("-".into())));
        assert_eq!(parse(".s"), Err(DurationError::Number(".s".into())));
        assert_eq!(parse("1d"), Err(DurationError::UnknownUnit("1d".into(), "d".into())));
        assert_eq!(parse("-5s"), Err(DurationError::Negative("-5s".into())));
        assert_eq!(parse("9999999h"), Err(DurationError::TooLong));
        assert_eq!(parse(&"9".repeat(200)), Err(DurationError::TooLong));
    }

    proptest! {
        #[test]
        fn duration_when_any_text_then_never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn duration_when_written_in_parts_then_adds_up(h in 0u64..1000, m in 0u64..1000, s in 0u64..1000, ms in 0u64..1000) {
            let value = parse(&format!("{h}h{m}m{s}s{ms}ms"));
            prop_assert_eq!(value, Ok(Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms)));
        }
    }
}
