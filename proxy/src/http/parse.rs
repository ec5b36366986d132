//! Heads of HTTP/1 messages, read strictly.
//!
//! `httparse` finds the parts; what it tolerates and another server could read differently is refused here: bare line feeds,
//! two lengths, a length beside chunks, codings other than `chunked`, a missing or doubled host. Requests are answered with
//! an error and the connection is closed; responses count as a broken endpoint.

use super::{
    framing::{Connection, Framing},
    head::{BodyLength, RequestHead, ResponseHead, Spelling, Version},
    headers::{Headers, Known},
    rules::{METHODS, RequestRules},
    target::{check_authority, check_target},
};
use crate::config::HeaderNames;
use std::mem::MaybeUninit;

#[cfg(test)]
mod tests;

/// Room for headers on the stack while a head is read; where more are allowed, it is on the heap.
const MAX_SLOTS: usize = 128;

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is not HTTP/1.
    #[error("malformed head: {0}")]
    Malformed(&'static str),
    /// Its framing can be read in two ways.
    #[error("ambiguous framing: {0}")]
    Framing(&'static str),
    /// Its length is no number, or there are several.
    #[error("the content-length is not one number")]
    Length,
    /// A transfer coding that is not implemented.
    #[error("the transfer coding is not `chunked`")]
    Coding,
    /// A version that is not implemented.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// More bytes than allowed.
    #[error("the head has more bytes than allowed")]
    TooLong,
    /// More headers than allowed.
    #[error("the head has more headers than allowed")]
    TooMany,
    /// A header's name has an underscore where those are refused.
    #[error("a header's name has an underscore")]
    Underscore,
    /// The target is a URL whose host is none.
    #[error("the target's host is none")]
    Url,
    /// The target is a URL of neither http nor https.
    #[error("the target's scheme is neither http nor https")]
    Scheme,
    /// The target is a URL of https where the connection has no TLS and nobody in front of it is trusted to have had it.
    #[error("the target asks for https on a connection without TLS")]
    Insecure,
}

impl HeadError {
    /// The status that the client is told.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Framing(_) | Self::Length | Self::Underscore | Self::Url | Self::Scheme => 400,
            Self::Insecure => 403,
            Self::Coding => 501,
            Self::Version => 426,
            Self::TooLong | Self::TooMany => 431,
        }
    }
}

/// The limits of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes.
    pub bytes: usize,
    /// Headers.
    pub headers: usize,
    /// An answer's length beside chunks is dropped; else it is refused.
    pub chunked_length: bool,
    /// Whether to take down how names are written.
    pub names: HeaderNames,
}

/// How the names are written, where that is to be taken down.
fn spelling(limits: HeadLimits, headers: &[httparse::Header<'_>]) -> Option<Box<Spelling>> {
    match limits.names {
        HeaderNames::Kept { others_proper } => {
            Some(Spelling::of(headers.iter().map(|header| header.name.as_bytes()), others_proper))
        }
        HeaderNames::Plain | HeaderNames::Proper => None,
    }
}

/// How far a head that is not whole yet was looked at. A long one that comes in many small pieces is not read from its beginning
/// with each of them.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that were there when it was read last.
    read: usize,
    /// Bytes in which its end was looked for.
    seen: usize,
}

impl Progress {
    /// Heads of so many bytes are read with every piece, so that mistakes are told at once.
    const SMALL: usize = 4096;

    /// Whether it is worth reading: it is short, ends here, has doubled, or is as long as it may be.
    pub fn is_due(&mut self, bytes: &[u8], limits: HeadLimits) -> bool {
        let new = &bytes[self.seen.saturating_sub(2).min(bytes.len())..];
        self.seen = bytes.len();
        let due = bytes.len() <= Self::SMALL
            || bytes.len() >= limits.bytes
            || bytes.len() / 2 >= self.read
            || memchr::memchr_iter(b'\n', new).any(|at| matches!(new[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]));
        if due {
            self.read = bytes.len();
        }
        due
    }
}

/// Headers that `connection` may list at most; Envoy's limit.
const MAX_LISTED: usize = 9;

/// Reads a request's head from the front of `bytes` into `head` (which was cleared). The number of bytes it took, or `None`
/// when more are needed.
///
/// # Errors
/// When the head is malformed, ambiguous or beyond the limits, or the rules refuse it.
pub fn request(
    bytes: &[u8],
    limits: HeadLimits,
    rules: RequestRules,
    head: &mut RequestHead,
) -> Result<Option<usize>, HeadError> {
    // One empty line before a request is tolerated (RFC 9112, 2.2), as clients once sent it.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let bytes = &bytes[skipped..];
    let mut slots = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_SLOTS];
    let mut more = Vec::new();
    let slots = match limits.headers {
        0..=MAX_SLOTS => &mut slots[..limits.headers],
        many => {
            more.resize_with(many, MaybeUninit::uninit);
            &mut more[..]
        }
    };
    let mut parsed = httparse::Request::new(&mut []);
    let count = match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, bytes, slots) {
        Ok(httparse::Status::Complete(count)) => count,
        Ok(httparse::Status::Partial) if bytes.len() >= limits.bytes => return Err(HeadError::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(request_error(error, bytes)),
    };
    if count > limits.bytes {
        return Err(HeadError::TooLong);
    }
    let raw = &bytes[..count];
    refuse_bare_line_feeds(raw)?;
    head.version = match parsed.version {
        Some(1) => Version::Http11,
        Some(0) if rules.http_10 => Version::Http10,
        _ => return Err(HeadError::Version),
    };
    let base = head.headers.keep(raw);
    let (method, target) = (parsed.method.unwrap_or_default().as_bytes(), parsed.path.unwrap_or_default().as_bytes());
    if !rules.any_method && !METHODS.iter().any(|known| known.as_bytes() == method) {
        return Err(HeadError::Malformed("the method is not known"));
    }
    head.set_spans(Headers::span_of(base, raw, method), Headers::span_of(base, raw, target));

    // Two blanks, the version, two ends of lines, and a blank a header.
    head.around = (skipped + method.len() + target.len() + 14 + parsed.headers.len()) as u32;
    let mut framing = Framing::default();
    let mut misframed = None;
    head.spelling = spelling(limits, parsed.headers);
    let (mut hosts, mut expectations) = (0, 0);
    let mut connection = Connection::default();
    let mut upgrade = None;
    for header in parsed.headers.iter() {
        let name = Headers::span_of(base, raw, header.name.as_bytes());
        let value = Headers::span_of(base, raw, header.value);
        if !rules.underscores && header.name.contains('_') {
            return Err(HeadError::Underscore);
        }
        let known = head.headers.push_spans(name, value);
        match known {
            Known::Other => {}
            Known::ContentLength | Known::TransferEncoding => {
                misframed = misframed.or(framing.see(known, header.value, rules.chunked_length).err());
            }
            Known::Connection => connection.see(header.value),
            Known::ProxyConnection => connection.see_proxy(header.value),
            Known::Upgrade => upgrade = Some(header.value),
            Known::Host => {
                hosts += 1;
                check_authority(header.value)?;
                head.set_authority(header.value);
            }
            Known::Expect => {
                expectations += 1;
                // Any other is for the endpoint to meet or to refuse.
                head.expects_continue = expectations == 1 && header.value.eq_ignore_ascii_case(b"100-continue");
            }
            _ => {}
        }
    }
    if hosts > 1 {
        return Err(HeadError::Malformed("there must be exactly one host"));
    }
    // A target that is none is told first: what follows it need not be what it seems. One that is only not for this connection is not.
    match (check_target(method, target, rules, head), misframed) {
        (Ok(()) | Err(HeadError::Insecure), Some(error)) | (Err(error), _) => return Err(error),
        (Ok(()), None) => {}
    }
    head.headers.remove_known(Known::Host);
    if head.expects_continue {
        head.headers.remove_known(Known::Expect);
    }
    if framing.chunked && head.version == Version::Http10 {
        return Err(HeadError::Framing("chunks in HTTP/1.0"));
    }
    if framing.chunked && framing.length.is_some() {
        head.headers.remove_known(Known::ContentLength);
    }
    head.body = match framing.length {
        _ if framing.chunked => BodyLength::Unknown,
        None | Some(0) => BodyLength::Empty,
        Some(length) => BodyLength::Exact(length),
    };
    head.keep_alive = connection.keep_alive(head.version);
    if connection.tokens > MAX_LISTED || connection.forbidden {
        return Err(HeadError::Malformed("`connection` lists what is not the client's to take away"));
    }
    // What the client takes away is gone, and it has to live with that.
    if connection.host {
        head.forget_authority();
    }
    if head.is_connect() {
        // What follows belongs to the tunnel (RFC 9110, 9.3.6); a length would make it a body for some and not for others.
        if head.body != BodyLength::Empty {
            return Err(HeadError::Framing("a body of CONNECT"));
        }
    } else if let (Some(protocol), true, Version::Http11) = (upgrade, connection.upgrade, head.version) {
        head.set_upgrade(Some(protocol));
    }
    Ok(Some(skipped + count))
}

/// Reads a response's head from the front of `bytes` into `head` (which was cleared); `to_head` says that it answers a HEAD
/// request. The number of bytes it took, or `None` when more are needed.
///
/// # Errors
/// When the head is malformed, ambiguous or beyond the limits.
pub fn response(
    bytes: &[u8],
    limits: HeadLimits,
    to_head: bool,
    head: &mut ResponseHead,
) -> Result<Option<usize>, HeadError> {
    // An empty line before it is tolerated by `httparse`, and by nobody else.
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(HeadError::Malformed("an empty line before the head"));
    }
    let mut slots = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_SLOTS];
    let mut more = Vec::new();
    let slots = match limits.headers {
        0..=MAX_SLOTS => &mut slots[..limits.headers],
        many => {
            more.resize_with(many, MaybeUninit::uninit);
            &mut more[..]
        }
    };
    let mut parsed = httparse::Response::new(&mut []);
    let count = match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, slots) {
        Ok(httparse::Status::Complete(count)) => count,
        Ok(httparse::Status::Partial) if bytes.len() >= limits.bytes => return Err(HeadError::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(head_error(error)),
    };
    if count > limits.bytes {
        return Err(HeadError::TooLong);
    }
    let raw = &bytes[..count];
    refuse_bare_line_feeds(raw)?;
    let version = match parsed.version {
        Some(1) => Version::Http11,
        Some(0) => Version::Http10,
        _ => return Err(HeadError::Version),
    };
    head.status = parsed.code.unwrap_or(0);
    if !(100..=999).contains(&head.status) {
        return Err(HeadError::Malformed("the status is not between 100 and 999"));
    }
    // The version, the status, two blanks, two ends of lines, and a blank a header.
    head.around = (parsed.reason.map_or(0, str::len) + 17 + parsed.headers.len()) as u32;
    let base = head.headers.keep(raw);
    head.spelling = spelling(limits, parsed.headers);
    let mut framing = Framing::default();
    let mut connection = Connection::default();
    for header in parsed.headers.iter() {
        let name = Headers::span_of(base, raw, header.name.as_bytes());
        let value = Headers::span_of(base, raw, header.value);
        match head.headers.push_spans(name, value) {
            known @ (Known::ContentLength | Known::TransferEncoding) => {
                framing.see(known, header.value, limits.chunked_length)?
            }
            Known::Connection => connection.see(header.value),
            Known::ProxyConnection => connection.see_proxy(header.value),
            _ => {}
        }
    }
    if framing.chunked && framing.length.is_some() {
        head.headers.remove_known(Known::ContentLength);
    }
    // They have no body, and an endpoint that says they do may mean to send one.
    if matches!(head.status, 100..=199 | 204) && (framing.chunked || framing.length.is_some_and(|length| length > 0)) {
        return Err(HeadError::Framing("a body after a status that has none"));
    }
    let none = to_head || matches!(head.status, 100..=199 | 204 | 304);
    head.body = match framing.length {
        _ if head.status == 101 => BodyLength::Tunnel,
        _ if none => BodyLength::Empty,
        _ if framing.chunked => BodyLength::Unknown,
        Some(0) => BodyLength::Empty,
        Some(length) => BodyLength::Exact(length),
        None => BodyLength::Unknown,
    };
    let until_close = head.body == BodyLength::Unknown && !framing.chunked;
    head.keep_alive = connection.keep_alive(version) && !until_close;
    Ok(Some(count))
}

/// Whether a response with this head ends with its connection (no length, no chunks).
pub fn until_close(head: &ResponseHead) -> bool {
    head.body == BodyLength::Unknown && head.headers.known(Known::TransferEncoding).is_none()
}

/// Refuses lines that end with a line feed alone, which `httparse` takes.
pub(super) fn refuse_bare_line_feeds(raw: &[u8]) -> Result<(), HeadError> {
    for at in memchr::memchr_iter(b'\n', raw) {
        if at == 0 || raw[at - 1] != b'\r' {
            return Err(HeadError::Malformed("a line that does not end with CR LF"));
        }
    }
    Ok(())
}

/// Why `httparse` did not take a request: whether the version is one that is not served, or something else is wrong.
fn request_error(error: httparse::Error, bytes: &[u8]) -> HeadError {
    let line = bytes.split(|&b| b == b'\r' || b == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next(), words.next());
    match (error, target, version) {
        // HTTP/0.9 says no version.
        (httparse::Error::Token | httparse::Error::Version | httparse::Error::NewLine, Some([_, ..]), None)
            if METHODS.iter().any(|known| known.as_bytes() == method) =>
        {
            HeadError::Version
        }
        (httparse::Error::Version, Some(_), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]))
            if major.is_ascii_digit() && minor.is_ascii_digit() && words.next().is_none() =>
        {
            HeadError::Version
        }
        (httparse::Error::Version, ..) => HeadError::Malformed("the first line"),
        (error, ..) => head_error(error),
    }
}

fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooMany,
        httparse::Error::Version => HeadError::Version,
        httparse::Error::HeaderName => HeadError::Malformed("a header's name"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header's value"),
        httparse::Error::NewLine => HeadError::Malformed("a line end"),
        httparse::Error::Status => HeadError::Malformed("the status"),
        httparse::Error::Token => HeadError::Malformed("the first line"),
    }
}
