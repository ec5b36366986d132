//! Times as `strftime` writes them, with Envoy's own `%s`, `%f` and `%3f`.

use std::fmt::Write as _;
use std::time::SystemTime;
use time::{OffsetDateTime, UtcOffset};

/// A compiled format of times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat {
    parts: Vec<Part>,
    local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// `%Y-%m-%dT%H:%M:%S.%3fZ`, which nearly every line has.
    Usual,
    Field(char),
    /// So many digits of the second's fraction.
    Fraction(u8),
}

impl TimeFormat {
    /// What a time of a request is written by, where nothing else is said.
    pub const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
    /// The same for local times.
    pub const DEFAULT_LOCAL: &str = "%Y-%m-%dT%H:%M:%S.%3f%z";
    /// What a time of a certificate is written by, where nothing else is said.
    pub const CERTIFICATE: &str = "%Y-%m-%dT%H:%M:%S.000Z";

    /// Compiles a format; `None` when it has what is not known, or a line break.
    pub fn compile(text: &str, local: bool) -> Option<Self> {
        if text == Self::DEFAULT && !local {
            return Some(Self { parts: vec![Part::Usual], local });
        }
        let (mut parts, mut literal, mut chars) = (Vec::new(), String::new(), text.chars());
        while let Some(c) = chars.next() {
            if c == '\n' || c == '\r' || c == '\0' {
                return None;
            }
            if c != '%' {
                literal.push(c);
                continue;
            }
            let part = match chars.next()? {
                '%' => {
                    literal.push('%');
                    continue;
                }
                'f' => Part::Fraction(9),
                digit @ '1'..='9' => match chars.next()? {
                    'f' => Part::Fraction(digit as u8 - b'0'),
                    _ => return None,
                },
                field if "YymdeHIMSpjaAbBhzZFTDRsuwC".contains(field) => Part::Field(field),
                _ => return None,
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal).into()));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Some(Self { parts, local })
    }

    /// Appends a time.
    pub fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        let mut t = OffsetDateTime::from(at);
        if self.local {
            t = t.to_offset(local_offset(t.unix_timestamp()));
        }
        let mut out = super::Sink(out);
        for part in &self.parts {
            let _ = match part {
                Part::Text(text) => out.write_str(text),
                Part::Usual => {
                    let (hour, minute, second, milli) = t.to_hms_milli();
                    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
                    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
                }
                Part::Fraction(digits) => {
                    let nanos = t.nanosecond() / 10u32.pow(9 - u32::from(*digits));
                    write!(out, "{nanos:0width$}", width = usize::from(*digits))
                }
                Part::Field(field) => write_field(&mut out, *field, t),
            };
        }
    }
}

/// How far this machine's time is from UTC at a moment.
fn local_offset(at: i64) -> UtcOffset {
    // SAFETY: `tm` is plain data for which zero is a value, and `localtime_r` writes to nothing else.
    let seconds = unsafe {
        let mut broken_down: libc::tm = std::mem::zeroed();
        match libc::localtime_r(&at, &mut broken_down).is_null() {
            true => 0,
            false => broken_down.tm_gmtoff,
        }
    };
    i32::try_from(seconds)
        .ok()
        .and_then(|seconds| UtcOffset::from_whole_seconds(seconds).ok())
        .unwrap_or(UtcOffset::UTC)
}

fn write_field(out: &mut super::Sink<'_>, field: char, t: OffsetDateTime) -> std::fmt::Result {
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    let (hour, minute, second) = t.to_hms();
    let hour12 = match hour % 12 {
        0 => 12,
        hour => hour,
    };
    match field {
        'Y' => write!(out, "{year}"),
        'C' => write!(out, "{:02}", year / 100),
        'y' => write!(out, "{:02}", year.rem_euclid(100)),
        'm' => write!(out, "{month:02}"),
        'd' => write!(out, "{day:02}"),
        'e' => write!(out, "{day:2}"),
        'H' => write!(out, "{hour:02}"),
        'I' => write!(out, "{hour12:02}"),
        'M' => write!(out, "{minute:02}"),
        'S' => write!(out, "{second:02}"),
        'p' => out.write_str(if hour < 12 { "AM" } else { "PM" }),
        'j' => write!(out, "{:03}", t.ordinal()),
        'a' => out.write_str(&t.weekday().to_string()[..3]),
        'A' => write!(out, "{}", t.weekday()),
        'b' | 'h' => out.write_str(&t.month().to_string()[..3]),
        'B' => write!(out, "{}", t.month()),
        'F' => write!(out, "{year}-{month:02}-{day:02}"),
        'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
        'R' => write!(out, "{hour:02}:{minute:02}"),
        'D' => write!(out, "{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
        's' => write!(out, "{}", t.unix_timestamp()),
        'u' => write!(out, "{}", t.weekday().number_from_monday()),
        'w' => write!(out, "{}", t.weekday().number_days_from_sunday()),
        'Z' if t.offset().is_utc() => out.write_str("UTC"),
        _ => {
            let seconds = t.offset().whole_seconds();
            let sign = if seconds < 0 { '-' } else { '+' };
            let minutes = seconds.unsigned_abs() / 60;
            write!(out, "{sign}{:02}{:02}", minutes / 60, minutes % 60)
        }
    }
}
