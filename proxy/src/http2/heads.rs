//! Heads between HTTP/2's fields and the shared types (RFC 9113, section 8).

use super::hpack::Encoder;
use crate::http::head::{BodyLength, RequestHead, ResponseHead, Version};
use crate::http::headers::{Headers, Known};
use crate::http::{parse::HeadError, target::check_authority};

/// Whether a field may have this name: a token without large letters (section 8.2.1).
pub(super) fn is_name(name: &[u8]) -> bool {
    is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}

/// Whether it is a token (RFC 9110, section 5.6.2), as a method is.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&b| b.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(&b))
}

/// Whether a field may have this value (section 8.2.1; other control characters are refused as HTTP/1 does).
pub(super) fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&b| b == b'\t' || b >= 0x20 && b != 0x7f)
}

/// Whether a field concerns a connection of HTTP/1, which makes a message malformed (section 8.2.2).
pub(super) fn is_of_a_connection(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => true,
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

/// What is wrong with a header that has a character that none has; Envoy tells it apart from what else may be wrong.
pub(super) const INVALID_HEADER: &str = "a header with a character that none has";

/// What both kinds of head have in common.
struct Fields {
    headers: Headers,
    /// Cookies, which may come in crumbs (section 8.2.3).
    cookie: Vec<u8>,
    length: Option<u64>,
    count: usize,
    bytes: usize,
    max_count: usize,
    max_bytes: usize,
    malformed: Option<&'static str>,
    regular: bool,
}

impl Fields {
    fn new(max_bytes: usize, max_count: usize) -> Self {
        Self {
            headers: Headers::fresh(),
            cookie: Vec::new(),
            length: None,
            count: 0,
            bytes: 0,
            max_count,
            max_bytes,
            malformed: None,
            regular: false,
        }
    }

    /// Counts a field by its text, as Envoy does; false when it is beyond the limits and need not be kept.
    fn count(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.bytes += name.len() + value.len();
        self.bytes <= self.max_bytes
    }

    fn is_beyond(&self) -> Option<HeadError> {
        if self.bytes > self.max_bytes {
            return Some(HeadError::TooLong);
        }
        (self.count > self.max_count).then_some(HeadError::TooMany)
    }

    /// Takes a field that is no pseudo-header.
    fn regular(&mut self, name: &[u8], value: &[u8]) {
        self.regular = true;
        self.count += 1;
        if self.count > self.max_count {
            return;
        }
        if !is_name(name) || !is_value(value) {
            self.malformed = Some(INVALID_HEADER);
            return;
        }
        match name {
            b"cookie" => {
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
                return;
            }
            b"content-length" => {
                let number = Some(value).filter(|value| value.iter().all(u8::is_ascii_digit) && value.len() <= 18);
                let number = number.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                // Two are too many, also where they say the same.
                if number.is_none() || self.length.is_some() {
                    self.malformed = Some("a content-length that is not one number");
                    return;
                }
                self.length = number;
            }
            _ if is_of_a_connection(name, value) => {
                self.malformed = Some("a header that concerns a connection of HTTP/1")
            }
            _ => {}
        }
        self.headers.push(name, value);
    }

    fn finish(&mut self) {
        if !self.cookie.is_empty() {
            self.headers.push(b"cookie", &self.cookie);
        }
    }
}

/// Takes a request's fields in.
pub(super) struct Request {
    fields: Fields,
    head: RequestHead,
    seen: u8,
    /// Extended CONNECT is offered (RFC 8441).
    connect: bool,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const PATH: u8 = 4;
const AUTHORITY: u8 = 8;
const PROTOCOL: u8 = 16;

impl Request {
    pub(super) fn new(max_bytes: usize, max_count: usize, connect: bool) -> Self {
        Self { fields: Fields::new(max_bytes, max_count), head: RequestHead::default(), seen: 0, connect }
    }

    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        if !self.fields.count(name, value) || self.fields.malformed.is_some() {
            return;
        }
        if name.first() == Some(&b':') { self.pseudo(name, value) } else { self.fields.regular(name, value) }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        // They count among the headers, as in Envoy.
        self.fields.count += 1;
        // The method and what else has a place of its own is kept in the store of the headers.
        std::mem::swap(&mut self.head.headers, &mut self.fields.headers);
        let mut good = !value.is_empty() && value.iter().all(|&b| b > 0x20 && b != 0x7f);
        let bit = match name {
            b":method" => {
                self.head.set_method(value);
                if !is_token(value) {
                    self.fields.malformed = Some("a method with a character that none has");
                }
                METHOD
            }
            b":scheme" => {
                good &= is_scheme(value);
                self.head.secure = value.eq_ignore_ascii_case(b"https");
                self.head.has_scheme = true;
                SCHEME
            }
            b":path" => {
                self.head.set_path(value);
                PATH
            }
            b":authority" => {
                self.head.set_authority(value);
                AUTHORITY
            }
            b":protocol" if self.connect => {
                self.head.set_upgrade(Some(value));
                PROTOCOL
            }
            _ => 0,
        };
        std::mem::swap(&mut self.head.headers, &mut self.fields.headers);
        if bit == 0 || self.seen & bit != 0 || self.fields.regular || !good {
            self.fields.malformed = Some("a pseudo-header that is unknown, misplaced or malformed");
        }
        self.seen |= bit;
    }

    /// The head, or why it is refused; and how long its body says that it is.
    ///
    /// # Errors
    /// When it is malformed: the stream is reset, and says what is wrong.
    #[allow(clippy::type_complexity, reason = "a head and a length, each of which may be wanting")]
    pub(super) fn finish(mut self, ended: bool) -> Result<(Result<RequestHead, HeadError>, Option<u64>), &'static str> {
        // What is both is malformed: it is cut at once, and not answered again and again.
        if let Some(what) = self.fields.malformed {
            return Err(what);
        }
        if let Some(error) = self.fields.is_beyond() {
            return Ok((Err(error), None));
        }
        self.fields.finish();
        let length = self.fields.length;
        let head = &mut self.head;
        head.headers = self.fields.headers;
        let connect = head.method() == b"CONNECT";
        let extended = self.seen & PROTOCOL != 0;
        let (wanted, unwanted) = match (connect, extended) {
            (true, true) => (METHOD | SCHEME | PATH | AUTHORITY, 0),
            (true, false) => (METHOD | AUTHORITY, SCHEME | PATH),
            (false, _) => (METHOD | SCHEME | PATH, PROTOCOL),
        };
        let hosts = head.headers.may_have(Known::Host) && head.headers.known_values(Known::Host).nth(1).is_some();
        let wrong = self.seen & wanted != wanted || self.seen & unwanted != 0 || hosts;
        if wrong || ended && length.is_some_and(|length| length > 0) {
            return Err(if wrong {
                "pseudo-headers that do not go together"
            } else {
                "a body that is shorter than its length"
            });
        }
        // Extended CONNECT is seen as the upgrade of HTTP/1 that it stands for (RFC 8441, section 5), CONNECT as it is.
        let plain = connect && (!extended || head.upgrade() == Some(b"bytestream"));
        if plain {
            head.set_upgrade(None);
            head.set_path(b"");
        } else if head.path().is_empty() {
            return Err("an empty path");
        } else if connect {
            head.set_method(b"GET");
            // What follows is no body.
            head.headers.remove_known(Known::ContentLength);
            if let Some(protocol) = head.upgrade().map(<[u8]>::to_vec) {
                head.headers.push(b"connection", b"upgrade");
                head.headers.push(b"upgrade", &protocol);
            }
        }
        if let Some(error) = complete(head).err() {
            return Ok((Err(error), length));
        }
        head.version = Version::Http2;
        head.keep_alive = true;
        head.body = match (ended, length) {
            // What follows is the tunnel's.
            _ if connect => BodyLength::Empty,
            (true, _) => BodyLength::Empty,
            (false, Some(length)) => BodyLength::Exact(length),
            (false, None) => BodyLength::Unknown,
        };
        Ok((Ok(self.head), length.filter(|_| !connect)))
    }
}

/// Checks and completes what does not end the stream.
fn complete(head: &mut RequestHead) -> Result<(), HeadError> {
    let whole_server = head.path() == b"*" && head.method() == b"OPTIONS";
    if !head.path().starts_with(b"/") && !whole_server && !head.is_connect() {
        return Err(HeadError::Malformed("the path does not begin with a slash"));
    }
    if !head.has_authority()
        && let Some(host) = head.headers.known(Known::Host).map(<[u8]>::to_vec)
    {
        head.set_authority(&host);
    }
    check_authority(head.authority())?;
    head.headers.remove_known(Known::Host);
    // Several are one that is another.
    if head.headers.known(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
        && head.headers.known_values(Known::Expect).nth(1).is_none()
    {
        head.headers.remove_known(Known::Expect);
        head.expects_continue = true;
    }
    Ok(())
}

/// Takes an answer's fields in.
pub(super) struct Answer {
    fields: Fields,
    status: Option<u16>,
}

impl Answer {
    pub(super) fn new(max_bytes: usize, max_count: usize) -> Self {
        Self { fields: Fields::new(max_bytes, max_count), status: None }
    }

    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        if !self.fields.count(name, value) || self.fields.malformed.is_some() {
            return;
        }
        if name.first() != Some(&b':') {
            return self.fields.regular(name, value);
        }
        let status = Some(value).filter(|value| value.len() == 3 && value.iter().all(u8::is_ascii_digit));
        let status = status.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        if name != b":status"
            || self.status.is_some()
            || self.fields.regular
            || status.is_none_or(|status| status < 100)
        {
            self.fields.malformed = Some("a pseudo-header that is unknown, misplaced or malformed");
        }
        self.status = status;
    }

    /// Whether it has more bytes or headers than it may.
    pub(super) fn is_too_large(&self) -> bool {
        self.fields.is_beyond().is_some()
    }

    /// Status, headers, and how long its body says that it is.
    pub(super) fn finish(mut self) -> Result<(u16, Headers, Option<u64>), &'static str> {
        self.fields.finish();
        if let Some(what) = self.fields.malformed {
            return Err(what);
        }
        let status = self.status.ok_or("an answer without a status")?;
        Ok((status, self.fields.headers, self.fields.length))
    }
}

/// Whether a header may go into an HTTP/2 head: what concerns a connection may not, and the length is written anew.
fn passes(known: Known, value: &[u8]) -> bool {
    match known {
        Known::Host | Known::ContentLength => false,
        Known::Te => value.eq_ignore_ascii_case(b"trailers"),
        known => !known.is_hop_by_hop(),
    }
}

/// Writes headers; what cannot be one in HTTP/2 is left out.
fn write_headers(headers: &Headers, peer_may_know: bool, encoder: &mut Encoder, out: &mut Vec<u8>) {
    for (name, value, known) in headers.iter() {
        if passes(known, value) && (known != Known::Peer || peer_may_know) && is_token(name) && is_value(value) {
            encoder.header(name, value, out);
        }
    }
}

fn write_length(length: u64, encoder: &mut Encoder, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = length;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    encoder.header(b"content-length", &digits[at..], out);
}

/// A letter, then letters, digits, `+`, `-` and `.` (RFC 3986, section 3.1).
fn is_scheme(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// Writes a request's head for an endpoint; `of_mesh` says that it has shown a certificate of the mesh. Who we are is told only then.
pub(super) fn write_request(head: &RequestHead, of_mesh: bool, encoder: &mut Encoder, out: &mut Vec<u8>) {
    let connect = head.is_connect();
    encoder.method(if head.upgrade().is_some() { b"CONNECT" } else { head.method() }, out);
    if let Some(protocol) = head.upgrade() {
        encoder.header(b":protocol", protocol, out);
    }
    if !connect {
        // The client's, whatever protects this connection.
        encoder.scheme(head.secure, out);
        encoder.path(head.path(), out);
    }
    if !head.authority().is_empty() {
        encoder.authority(head.authority(), out);
    }
    write_headers(&head.headers, of_mesh, encoder, out);
    match head.body {
        BodyLength::Exact(length) => write_length(length, encoder, out),
        // A body of nothing is told where the client told of it.
        BodyLength::Empty if head.headers.known(Known::ContentLength).is_some() => write_length(0, encoder, out),
        _ => {}
    }
}

/// Writes a response's head for a client; `to_head` says that it answers a HEAD request.
pub(super) fn write_response(head: &ResponseHead, to_head: bool, encoder: &mut Encoder, out: &mut Vec<u8>) {
    // An upgrade is granted by 200 here (RFC 8441, section 5).
    let status = if head.status == 101 { 200 } else { head.status };
    let good = if (100..1000).contains(&status) { status } else { 500 };
    encoder.status(good, out);
    write_headers(&head.headers, true, encoder, out);
    match head.body {
        BodyLength::Exact(length) => write_length(length, encoder, out),
        _ if matches!(head.status, 100..=199 | 204) => {}
        // What a GET would have been told is told for HEAD and 304 as well.
        _ if to_head || head.status == 304 => {
            if let Some(length) = head.headers.known(Known::ContentLength).filter(|value| is_value(value)) {
                encoder.header(b"content-length", length, out);
            }
        }
        // And that it is empty is told where the endpoint said so.
        BodyLength::Empty if head.headers.known(Known::ContentLength).is_some() => write_length(0, encoder, out),
        _ => {}
    }
}

/// Writes trailers.
pub(super) fn write_trailers(trailers: &Headers, encoder: &mut Encoder, out: &mut Vec<u8>) {
    write_headers(trailers, true, encoder, out);
}
