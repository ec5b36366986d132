//! Looks at a connection's first bytes: TLS with which names, HTTP of which version, or neither.
//!
//! The wait is bounded, since there are protocols in which the server speaks first; listeners whose protocol is known do not
//! wait at all.

use crate::{
    config::{Listener, Transport},
    http::buffer::Buffer,
    telemetry::histogram::Counter,
    tls::client_hello::{self, Inspect},
};
use std::{
    future::poll_fn,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};
use tokio::{io::AsyncRead, net::TcpStream};

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Detected {
    /// Plain text or TLS.
    pub transport: Transport,
    /// The ClientHello's server name.
    pub server_name: Option<Box<str>>,
    /// ALPN names, or the HTTP version as a name.
    pub protocols: Vec<Arc<str>>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are looked at for the first line of an HTTP request.
const MAX_FIRST_LINE: usize = 8 * 1024;

/// The verdict on a connection's first bytes as HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http {
    More,
    Not,
    Http10,
    Http11,
    Http2,
}

/// Is this the beginning of an HTTP request?
pub(super) fn http(bytes: &[u8]) -> Http {
    if bytes.len() >= 3 && (bytes.starts_with(PREFACE) || PREFACE.starts_with(bytes)) {
        return if bytes.len() >= PREFACE.len() { Http::Http2 } else { Http::More };
    }
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        let method_end = bytes.iter().position(|&b| b == b' ').unwrap_or(bytes.len());
        let token = |&b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        // The longest registered method has 17 letters.
        let plausible = method_end <= 24 && bytes[..method_end].iter().all(token);
        return if plausible && bytes.len() < MAX_FIRST_LINE { Http::More } else { Http::Not };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let mut parts = line.split(|&b| b == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(method), Some(_), Some(b"HTTP/1.1"), None) if !method.is_empty() => Http::Http11,
        (Some(method), Some(_), Some(b"HTTP/1.0"), None) if !method.is_empty() => Http::Http10,
        _ => Http::Not,
    }
}

/// Reads as much as the listener's inspectors need, at most as long as the listener waits. What was read stays in `first`.
/// `None` closes the connection. That it took too long is counted in `late`.
pub async fn detect(
    tcp: &mut TcpStream,
    first: &mut Buffer,
    listener: &Listener,
    port: u16,
    deadline: Option<Instant>,
    late: &Counter,
) -> Option<Detected> {
    let inspect = &listener.inspect;
    let mut look_tls = inspect.tls && !inspect.tls_off.contains(port);
    let look_http = inspect.http && !inspect.http_off.contains(port);
    let mut found = Detected { transport: Transport::Raw, server_name: None, protocols: Vec::new() };
    if !look_tls && !look_http {
        return Some(found);
    }
    let mut timed_out = false;
    let mut ended = false;
    loop {
        let bytes = first.bytes();
        if look_tls && !bytes.is_empty() {
            let most = inspect.most_hello.map_or(usize::MAX, |most| most as usize);
            match client_hello::inspect(&bytes[..bytes.len().min(most)]) {
                Inspect::Hello(hello) => {
                    let stats = &inspect.tls_stats;
                    stats.found.add(1);
                    if hello.server_name.is_some() { &stats.sni_found } else { &stats.sni_not_found }.add(1);
                    if hello.alpn.is_empty() { &stats.alpn_not_found } else { &stats.alpn_found }.add(1);
                    found.transport = Transport::Tls;
                    found.server_name = hello.server_name;
                    let names = hello.alpn.iter().filter_map(|name| std::str::from_utf8(name).ok());
                    found.protocols = names.map(Arc::from).collect();
                    return Some(found);
                }
                Inspect::NotTls => {
                    inspect.tls_stats.not_found.add(1);
                    look_tls = false;
                }
                Inspect::NeedMore if bytes.len() >= most => {
                    inspect.tls_stats.too_large.add(1);
                    return None;
                }
                Inspect::NeedMore => {}
            }
        }
        if !look_tls {
            if !look_http {
                return Some(found);
            }
            let verdict = http(bytes);
            if let Some(version) = name(verdict) {
                let stats = &inspect.http_stats;
                match verdict {
                    Http::Http10 => stats.http10.add(1),
                    Http::Http11 => stats.http11.add(1),
                    Http::Http2 => stats.http2.add(1),
                    Http::Not | Http::More => stats.not_found.add(1),
                }
                found.protocols = version.into_iter().collect();
                return Some(found);
            }
        }
        if timed_out {
            return listener.continue_on_timeout.then_some(found);
        }
        // Who ends in the middle of a ClientHello is not taken for one who speaks something else. A few bytes that could have become HTTP are
        // all that there is, and are passed on.
        if ended {
            return (!look_tls && !first.is_empty()).then_some(found);
        }
        match read(tcp, first, deadline).await {
            Read::Some => {}
            Read::End => ended = true,
            Read::Timeout => {
                late.add(1);
                timed_out = true;
            }
        }
    }
}

/// `None` while undecided; then the name, if it is HTTP.
fn name(verdict: Http) -> Option<Option<Arc<str>>> {
    static NAMES: LazyLock<[Arc<str>; 3]> =
        LazyLock::new(|| [Arc::from("http/1.0"), Arc::from("http/1.1"), Arc::from("h2c")]);
    match verdict {
        Http::More => None,
        Http::Not => Some(None),
        Http::Http10 => Some(Some(NAMES[0].clone())),
        Http::Http11 => Some(Some(NAMES[1].clone())),
        Http::Http2 => Some(Some(NAMES[2].clone())),
    }
}

pub(super) enum Read {
    Some,
    End,
    Timeout,
}

pub(super) async fn read<IO: AsyncRead + Unpin>(io: &mut IO, buffer: &mut Buffer, deadline: Option<Instant>) -> Read {
    let reading = poll_fn(|cx| buffer.poll_read(io, cx).map(|result| matches!(result, Ok(count) if count > 0)));
    let got = match deadline {
        None => reading.await,
        Some(deadline) => match tokio::time::timeout_at(deadline.into(), reading).await {
            Ok(got) => got,
            Err(_) => return Read::Timeout,
        },
    };
    if got { Read::Some } else { Read::End }
}

/// Why nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// The connection ended.
    Ended,
    /// It took too long.
    TooLong,
}

/// Whether an HTTP connection begins with the preface of HTTP/2; a `limit` of zero is none.
///
/// # Errors
/// When nothing came.
pub(super) async fn is_http2<IO: AsyncRead + Unpin>(
    io: &mut IO,
    first: &mut Buffer,
    limit: Duration,
) -> Result<bool, Silence> {
    let deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
    loop {
        // No method begins with these letters followed by a blank.
        let count = first.len().min(4);
        if first.bytes()[..count] != PREFACE[..count] {
            return Ok(false);
        }
        if count == 4 {
            return Ok(true);
        }
        let empty = first.is_empty();
        match read(io, first, deadline).await {
            Read::Some => {}
            Read::End if empty => return Err(Silence::Ended),
            Read::Timeout if empty => return Err(Silence::TooLong),
            Read::End | Read::Timeout => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_when_first_bytes_come_then_the_version_is_known() {
        for (bytes, want) in [
            (&b""[..], Http::More),
            (b"G", Http::More),
            (b"GET / HTTP/1.1\r\n", Http::Http11),
            (b"GET / HTTP/1.0\r\n", Http::Http10),
            (b"GET / HTTP/1.1\n", Http::Http11),
            (b"PRI * HTT", Http::More),
            (PREFACE, Http::Http2),
            (b"\x16\x03\x01", Http::Not),
            (b"SSH-2.0-OpenSSH\r\n", Http::Not),
            (b"EHLO example.com\r\n", Http::Not),
            (b"*1\r\n$4\r\nPING\r\n", Http::Not),
            (b"\x00\x00\x00", Http::Not),
            (b"PROPFIND /x HTTP/1.1\r\n", Http::Http11),
        ] {
            assert_eq!(http(bytes), want, "{}", bytes.escape_ascii());
        }
        assert_eq!(http(&[b'a'; 100]), Http::Not);
    }
}
