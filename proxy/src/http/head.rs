//! The heads of requests and responses, shared by every HTTP version.

use super::headers::{Headers, Span};

/// The version in which a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyLength {
    /// There is none.
    #[default]
    Empty,
    /// So many bytes.
    Exact(u64),
    /// It says so itself when it ends (chunks, frames, end of the connection).
    Unknown,
    /// Not a body: the connection becomes a tunnel of bytes.
    Tunnel,
}

/// Whether a content type is one of gRPC.
pub(super) fn is_grpc_type(value: &[u8]) -> bool {
    value.starts_with(b"application/grpc") && matches!(value.get(16), None | Some(b'+'))
}

/// The head of a request. Its memory is used again for the next request of the connection.
#[derive(Debug, Default, Clone)]
pub struct RequestHead {
    /// The headers; `host` is not among them (see [`Self::authority`]).
    pub headers: Headers,
    /// The version in which it came.
    pub version: Version,
    /// Whether it came over TLS (or says `https` in HTTP/2).
    pub secure: bool,
    /// Whether the scheme is decided: HTTP/2 and the absolute form tell it, for the rest it is found when the request is admitted.
    pub has_scheme: bool,
    /// Its authority was rewritten to what none is. HTTP/1 passes it on as a header, HTTP/2 has no place for it.
    pub no_authority: bool,
    /// The port that was taken off the authority of CONNECT: without it nobody can be connected to.
    pub connect_port: Option<u32>,
    /// How long its body is.
    pub body: BodyLength,
    method: Span,
    path: Span,
    authority: Option<Span>,
    /// The protocol to which the client wants to upgrade, as it wrote it.
    upgrade: Option<Span>,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The client wants the connection to stay.
    pub keep_alive: bool,
    /// Bytes of the head that lines about headers do not count: the first line, the end, and a blank a header (HTTP/1).
    pub around: u32,
    /// How its headers' names were written, where that is to be kept.
    pub spelling: Option<Box<Spelling>>,
}

/// How names of headers were written that came, where all of those names are to leave so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelling {
    names: Vec<Box<[u8]>>,
    others_proper: bool,
}

impl Spelling {
    /// Of these names; others are brought into the form `Content-Type` where `others_proper`.
    pub fn of<'n>(names: impl Iterator<Item = &'n [u8]>, others_proper: bool) -> Box<Self> {
        Box::new(Self { names: names.map(Into::into).collect(), others_proper })
    }

    /// Writes the names of header lines so.
    pub fn apply(&self, lines: &mut [u8]) {
        each_name(lines, |name| match self.names.iter().find(|came| came.eq_ignore_ascii_case(name)) {
            Some(came) => name.copy_from_slice(came),
            None if self.others_proper => proper_name(name),
            None => {}
        });
    }
}

/// Lets every name of header lines be changed in place.
pub(crate) fn each_name(lines: &mut [u8], change: impl Fn(&mut [u8])) {
    for line in lines.split_mut(|byte| *byte == b'\n') {
        let end = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        change(&mut line[..end]);
    }
}

/// Brings a name into the form `Content-Type`.
pub(crate) fn proper_name(name: &mut [u8]) {
    let mut begins = true;
    for byte in name {
        *byte = if begins { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        begins = !byte.is_ascii_alphanumeric();
    }
}

impl RequestHead {
    /// Makes it empty for the next request.
    pub fn clear(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        *self = Self { headers, ..Self::default() };
    }

    /// The method, e.g. `GET`.
    pub fn method(&self) -> &[u8] {
        self.headers.text(self.method)
    }

    /// The path with its query, e.g. `/a?b=c`; empty for CONNECT, which has none.
    pub fn path(&self) -> &[u8] {
        self.headers.text(self.path)
    }

    /// The scheme, once it is decided.
    pub fn scheme(&self) -> Option<&'static str> {
        self.has_scheme.then_some(if self.secure { "https" } else { "http" })
    }

    /// The path without its query.
    pub fn path_only(&self) -> &[u8] {
        let path = self.path();
        &path[..path.iter().position(|&b| b == b'?').unwrap_or(path.len())]
    }

    /// The query without `?`; empty when there is none.
    pub fn query(&self) -> &[u8] {
        let path = self.path();
        path.iter().position(|&b| b == b'?').map_or(&b""[..], |at| &path[at + 1..])
    }

    /// The host with its port if it has one.
    pub fn authority(&self) -> &[u8] {
        self.authority.map_or(&b""[..], |span| self.headers.text(span))
    }

    /// Takes the host away.
    pub fn forget_authority(&mut self) {
        self.authority = None;
    }

    /// Whether there is a host at all; it may be empty.
    pub fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Whether the client asks for a tunnel to the authority.
    pub fn is_connect(&self) -> bool {
        self.method() == b"CONNECT"
    }

    /// Whether the connection (or stream) becomes a tunnel once the request is granted: CONNECT, or an upgrade. What follows the
    /// head is then no body of the request.
    pub fn wants_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.is_connect()
    }

    /// The protocol to which the client wants to upgrade.
    pub fn upgrade(&self) -> Option<&[u8]> {
        self.upgrade.map(|span| self.headers.text(span))
    }

    /// Sets the method.
    pub fn set_method(&mut self, method: &[u8]) {
        self.method = self.headers.keep(method);
    }

    /// Sets path and query.
    pub fn set_path(&mut self, path: &[u8]) {
        self.path = self.headers.keep(path);
    }

    /// Sets the authority.
    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = Some(self.headers.keep(authority));
        self.no_authority = false;
    }

    /// Sets or takes back the wish to upgrade.
    pub fn set_upgrade(&mut self, protocol: Option<&[u8]>) {
        self.upgrade = protocol.map(|protocol| self.headers.keep(protocol));
    }

    pub(super) fn set_spans(&mut self, method: Span, path: Span) {
        self.method = method;
        self.path = path;
    }

    /// Whether a repeat of it has the same effect as one (RFC 9110, 9.2.1: the safe methods).
    pub fn is_safe(&self) -> bool {
        matches!(self.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
    }

    /// Whether it is a gRPC call.
    pub fn is_grpc(&self) -> bool {
        // Several types are one, joined by a comma, as in Envoy: what is looked at is how it begins.
        let known = super::headers::Known::ContentType;
        let mut types = self.headers.known_values(known);
        let Some(first) = types.next().filter(|_| self.headers.may_have(known)) else { return false };
        is_grpc_type(first) && (first.contains(&b'+') || types.next().is_none())
    }
}

/// The head of a response.
#[derive(Debug, Default, Clone)]
pub struct ResponseHead {
    /// The status, e.g. 200.
    pub status: u16,
    /// The headers.
    pub headers: Headers,
    /// How long the body is that follows (for an answer to HEAD: [`BodyLength::Empty`], whatever `content-length` says).
    pub body: BodyLength,
    /// The connection can be used again after it.
    pub keep_alive: bool,
    /// Bytes of the head that lines about headers do not count: the first line, the end, and a blank a header (HTTP/1).
    pub around: u32,
    /// How its headers' names were written, where that is to be kept.
    pub spelling: Option<Box<Spelling>>,
}

impl ResponseHead {
    /// `100 Continue`.
    pub fn go_on() -> Self {
        Self { status: 100, ..Self::default() }
    }

    /// Whether another response follows: 1xx, but for the switch to another protocol.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }

    /// Whether it is an interim response with a meaning: `Continue`, `Processing`, `Early Hints`, `Upload Resumption Supported`.
    pub fn is_known_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=104)
    }

    /// Makes it empty for the next response.
    pub fn clear(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        *self = Self { headers, ..Self::default() };
    }
}

/// The reason phrase of a status, in Envoy's words.
pub fn reason(status: u16) -> &'static str {
    match status {
        203 => "Non-Authoritative Information",
        102 | 103 | 418 | 425 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        status => {
            http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
        }
    }
}

#[cfg(test)]
mod grpc_tests {
    use super::RequestHead;

    #[test]
    fn request_when_it_has_several_types_then_the_beginning_of_all_decides() {
        let of = |types: &[&str]| {
            let mut head = RequestHead::default();
            types.iter().for_each(|kind| head.headers.push(b"content-type", kind.as_bytes()));
            head.is_grpc()
        };
        assert!(
            of(&["application/grpc"])
                && of(&["application/grpc+proto"])
                && of(&["application/grpc+proto", "text/plain"])
        );
        assert!(!of(&[]) && !of(&["application/grpc", "text/plain"]) && !of(&["text/plain", "application/grpc"]));
    }
}
