//! Times as Envoy writes them: by `strftime`, with absl's extensions (`%E3S`, `%E*f`, `%Ez`, `%:z`) and Envoy's own `%s`, `%f` and
//! `%3f`.

use std::ffi::CString;
use std::fmt::Write as _;
use std::time::SystemTime;
use time::{OffsetDateTime, UtcOffset};

/// Digits of a fraction at most, as absl has it.
const MAX_DIGITS: usize = 18;
/// Longest text that `strftime` makes of one piece of a format; a longer one is left out.
const MAX_TEXT: usize = 4096;

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
    /// So many digits of the second's fraction; `None` is as many as it has.
    Fraction(Option<usize>),
    /// The second with so many digits of its fraction.
    Second(Option<usize>),
    /// The distance from UTC.
    Offset(Offset),
    /// What only `strftime` knows, or nobody: it writes that as it is.
    Other(CString),
}

/// How the distance from UTC is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offset {
    /// `+hhmm`.
    Plain,
    /// `+hh:mm`.
    Colon,
    /// `+hh:mm:ss`.
    Whole,
    /// `+hh`, and minutes and seconds where there are any.
    Short,
}

impl TimeFormat {
    /// What a time of a request is written by, where nothing else is said.
    pub const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
    /// The same for local times.
    pub const DEFAULT_LOCAL: &str = "%Y-%m-%dT%H:%M:%S.%3f%z";
    /// What a time of a certificate is written by, where nothing else is said.
    pub const CERTIFICATE: &str = "%Y-%m-%dT%H:%M:%S.000Z";

    /// Compiles a format; `None` when it has a line break.
    pub fn compile(text: &str, local: bool) -> Option<Self> {
        if text == Self::DEFAULT && !local {
            return Some(Self { parts: vec![Part::Usual], local });
        }
        if breaks_line(text.as_bytes()) {
            return None;
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        // Envoy looks for its own specifiers first, behind a `%%` too, and has what stands between formatted piece by piece.
        while let Some((at, length, part)) = own(rest.as_bytes()) {
            piece(&rest[..at], &mut parts);
            parts.push(part);
            rest = &rest[at + length..];
        }
        piece(rest, &mut parts);
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
                Part::Fraction(digits) => match fraction(t, *digits) {
                    Some(fraction) => out.write_str(&fraction),
                    None if digits.is_none() => out.write_str("0"),
                    None => Ok(()),
                },
                Part::Second(digits) => match fraction(t, *digits) {
                    Some(fraction) => write!(out, "{:02}.{fraction}", t.second()),
                    None => write!(out, "{:02}", t.second()),
                },
                Part::Field(field) => write_field(&mut out, *field, t),
                Part::Offset(form) => write_offset(&mut out, *form, t.offset().whole_seconds()),
                Part::Other(format) => {
                    by_strftime(format, t, out.0);
                    Ok(())
                }
            };
        }
    }
}

/// Whether a format would break a line: by itself, or by a `%n`, however that is adorned.
fn breaks_line(text: &[u8]) -> bool {
    let adorned = |rest: &[u8]| {
        let rest = &rest[rest.iter().take_while(|byte| b"-_0^#".contains(byte)).count()..];
        let rest = &rest[rest.iter().take_while(|byte| matches!(byte, b'1'..=b'9')).count()..];
        matches!(rest, [b'n', ..] | [b'E' | b'O', b'n', ..])
    };
    let breaks = |(at, byte): (usize, &u8)| match byte {
        b'\n' | b'\r' | b'\0' => true,
        b'%' => adorned(&text[at + 1..]),
        _ => false,
    };
    text.iter().enumerate().any(breaks)
}

/// The first of Envoy's own specifiers: where it begins, how long it is, and what it stands for.
fn own(text: &[u8]) -> Option<(usize, usize, Part)> {
    (0..text.len()).find_map(|at| match text[at..] {
        [b'%', b's', ..] => Some((at, 2, Part::Field('s'))),
        // Envoy's clock counts microseconds, but it writes nanoseconds.
        [b'%', b'f', ..] => Some((at, 2, Part::Fraction(Some(9)))),
        [b'%', digit @ b'1'..=b'9', b'f', ..] => Some((at, 3, Part::Fraction(Some(usize::from(digit - b'0'))))),
        _ => None,
    })
}

/// Reads a piece of a format as absl does: it takes what it knows, and leaves the rest to `strftime`.
fn piece(text: &str, parts: &mut Vec<Part>) {
    let bytes = text.as_bytes();
    let (mut pending, mut at) = (0, 0);
    while at < bytes.len() {
        let mut start = at;
        at = bytes[at..].iter().position(|byte| *byte == b'%').map_or(bytes.len(), |found| at + found);
        if at != start && pending == start {
            literal(&text[pending..at], parts);
            (pending, start) = (at, at);
        }
        let percent = at;
        at += bytes[at..].iter().take_while(|byte| **byte == b'%').count();
        if at != start && pending == start {
            let pairs = (at - pending) / 2;
            literal(&text[pending..pending + pairs], parts);
            pending += pairs * 2;
            if pending != at && at == bytes.len() {
                literal("%", parts);
                pending = at;
            }
        }
        if at == bytes.len() || (at - percent).is_multiple_of(2) {
            continue;
        }
        if let Some((part, length)) = specifier(&bytes[at..]) {
            left(&text[pending..at - 1], parts);
            parts.push(part);
            at += length;
            pending = at;
        }
    }
    left(&text[pending..], parts);
}

fn literal(text: &str, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
}

/// What absl knows itself, behind a `%`, and how long that is.
fn specifier(text: &[u8]) -> Option<(Part, usize)> {
    Some(match text {
        [field, ..] if b"YmdeUuWwHMSTZs".contains(field) => (Part::Field(char::from(*field)), 1),
        [b'z', ..] => (Part::Offset(Offset::Plain), 1),
        [b':', b'z', ..] => (Part::Offset(Offset::Colon), 2),
        [b':', b':', b'z', ..] => (Part::Offset(Offset::Whole), 3),
        [b':', b':', b':', b'z', ..] => (Part::Offset(Offset::Short), 4),
        [b'E', b'T', ..] => (Part::Text("T".into()), 2),
        [b'E', b'z', ..] => (Part::Offset(Offset::Colon), 2),
        [b'E', b'*', b'z', ..] => (Part::Offset(Offset::Whole), 3),
        [b'E', b'*', b'S', ..] => (Part::Second(None), 3),
        [b'E', b'*', b'f', ..] => (Part::Fraction(None), 3),
        [b'E', b'4', b'Y', ..] => (Part::Field('4'), 3),
        [b'E', rest @ ..] => {
            let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let digits: usize = std::str::from_utf8(&rest[..length]).ok()?.parse().ok()?;
            let digits = Some(digits).filter(|digits| *digits <= 1024)?.min(MAX_DIGITS);
            match rest.get(length) {
                Some(b'S') => (Part::Second(Some(digits)), length + 2),
                Some(b'f') => (Part::Fraction(Some(digits)), length + 2),
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// What is left to `strftime`. What most formats have of it needs no call.
fn left(text: &str, parts: &mut Vec<Part>) {
    let usual = |rest: &str| rest.chars().next().is_some_and(|field| "yjaAbBhFDRCIp".contains(field));
    let mut pieces = text.split('%');
    if let Some(first) = pieces.next()
        && pieces.clone().all(usual)
    {
        literal(first, parts);
        for piece in pieces {
            let (field, rest) = piece.split_at(1);
            parts.extend(field.chars().map(Part::Field));
            literal(rest, parts);
        }
        return;
    }
    // There is no zero byte in it.
    parts.extend(CString::new(text).ok().map(Part::Other));
}

/// So many digits of the second's fraction; `None` where there are none.
fn fraction(t: OffsetDateTime, digits: Option<usize>) -> Option<String> {
    // Envoy's clock counts microseconds.
    let all = format!("{:06}000000000000", t.microsecond());
    let wanted = digits.unwrap_or_else(|| all.trim_end_matches('0').len());
    all.get(..wanted).filter(|digits| !digits.is_empty()).map(Into::into)
}

fn write_offset(out: &mut super::Sink<'_>, form: Offset, seconds: i32) -> std::fmt::Result {
    let sign = if seconds < 0 { '-' } else { '+' };
    let seconds = seconds.unsigned_abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match form {
        Offset::Plain => write!(out, "{sign}{hours:02}{minutes:02}"),
        Offset::Colon => write!(out, "{sign}{hours:02}:{minutes:02}"),
        Offset::Short if (minutes, seconds) == (0, 0) => write!(out, "{sign}{hours:02}"),
        Offset::Short if seconds == 0 => write!(out, "{sign}{hours:02}:{minutes:02}"),
        Offset::Whole | Offset::Short => write!(out, "{sign}{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

/// Has the C library write a time.
fn by_strftime(format: &CString, t: OffsetDateTime, out: &mut Vec<u8>) {
    // SAFETY: `tm` is plain data for which zero is a value.
    let mut broken_down: libc::tm = unsafe { std::mem::zeroed() };
    broken_down.tm_year = t.year() - 1900;
    broken_down.tm_mon = i32::from(u8::from(t.month())) - 1;
    broken_down.tm_mday = t.day().into();
    (broken_down.tm_hour, broken_down.tm_min, broken_down.tm_sec) =
        (t.hour().into(), t.minute().into(), t.second().into());
    broken_down.tm_wday = t.weekday().number_days_from_sunday().into();
    broken_down.tm_yday = i32::from(t.ordinal()) - 1;
    let from = out.len();
    out.resize(from + MAX_TEXT, 0);
    // SAFETY: there is room for as many bytes as are told; the format ends with a zero byte, and both live on.
    let length =
        unsafe { libc::strftime(out[from..].as_mut_ptr().cast(), MAX_TEXT, format.as_ptr(), &raw const broken_down) };
    out.truncate(from + length);
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
        'U' => write!(out, "{:02}", t.sunday_based_week()),
        'W' => write!(out, "{:02}", t.monday_based_week()),
        '4' => write!(out, "{year:04}"),
        'Z' if t.offset().is_utc() => out.write_str("UTC"),
        _ => write_offset(out, Offset::Plain, t.offset().whole_seconds()),
    }
}
