//! Heads between the `http` crate's types, in which `h2` speaks, and the shared ones.

use bytes::Bytes;
use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::body::SideError;
use crate::http::head::{BodyLength, RequestHead, ResponseHead, Version};
use crate::http::headers::{Headers, Known};
use crate::http::parse::{HeadError, check_authority};

/// Reads a request's head. `ended` says that no body follows, `tls` that the connection is protected.
pub(super) fn request(
    parts: &http::request::Parts,
    ended: bool,
    tls: bool,
    max_headers: usize,
) -> Result<RequestHead, HeadError> {
    if parts.headers.len() > max_headers {
        return Err(HeadError::TooMany);
    }
    let mut head = RequestHead::default();
    head.version = Version::Http2;
    head.keep_alive = true;
    head.secure = tls || parts.uri.scheme() == Some(&Scheme::HTTPS);
    // Extended CONNECT is seen as the upgrade of HTTP/1 that it stands for (RFC 8441, section 5), CONNECT as it is.
    let protocol =
        parts.extensions.get::<Protocol>().map(Protocol::as_str).filter(|protocol| *protocol != "bytestream");
    let connect = parts.method == http::Method::CONNECT && protocol.is_none();
    head.set_method(if protocol.is_some() { b"GET" } else { parts.method.as_str().as_bytes() });
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let whole_server = path == "*" && parts.method == http::Method::OPTIONS;
    if !path.starts_with('/') && !whole_server {
        return Err(HeadError::Malformed("the path does not begin with a slash"));
    }
    head.set_path(if connect { b"" } else { path.as_bytes() });
    let authority = match parts.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => {
            let mut hosts = parts.headers.get_all(http::header::HOST).iter();
            let host = hosts.next().map(HeaderValue::as_bytes);
            if hosts.next().is_some() {
                return Err(HeadError::Malformed("there must be exactly one host"));
            }
            host
        }
    };
    if let Some(authority) = authority {
        check_authority(authority)?;
        head.set_authority(authority);
    }
    headers_into(&parts.headers, &mut head.headers);
    head.headers.remove_known(Known::Host);
    if head.headers.known(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue")) {
        head.headers.remove_known(Known::Expect);
        head.expects_continue = true;
    }
    if connect || protocol.is_some() {
        head.set_upgrade(protocol.map(str::as_bytes));
        // What follows is the tunnel's.
        head.body = BodyLength::Empty;
        return Ok(head);
    }
    head.body = if ended { BodyLength::Empty } else { length(&head.headers)? };
    Ok(head)
}

/// Reads a response's head; `ended` says that no body follows.
pub(super) fn response(parts: &http::response::Parts, ended: bool, head: &mut ResponseHead) -> Result<(), SideError> {
    head.clear();
    if parts.headers.len() > super::MAX_HEADERS {
        return Err(SideError::Limit("headers of a response"));
    }
    head.status = parts.status.as_u16();
    head.keep_alive = true;
    headers_into(&parts.headers, &mut head.headers);
    head.body = if ended { BodyLength::Empty } else { length(&head.headers)? };
    Ok(())
}

/// The length that the headers promise. `h2` itself checks that as many bytes come.
fn length(headers: &Headers) -> Result<BodyLength, HeadError> {
    let mut values = headers.known_values(Known::ContentLength);
    let Some(value) = values.next() else { return Ok(BodyLength::Unknown) };
    let number =
        std::str::from_utf8(value).ok().filter(|text| text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit()));
    match (number.and_then(|text| text.parse().ok()), values.next()) {
        (Some(count), None) => Ok(BodyLength::Exact(count)),
        _ => Err(HeadError::Framing("a content-length that is not a number")),
    }
}

/// Copies headers. Cookies, which HTTP/2 may split, become one header again (RFC 9113, section 8.2.3).
pub(super) fn headers_into(map: &HeaderMap, headers: &mut Headers) {
    for (name, value) in map {
        if name != http::header::COOKIE {
            headers.push(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let mut crumbs = map.get_all(http::header::COOKIE).iter();
    let Some(first) = crumbs.next() else { return };
    match crumbs.next() {
        None => headers.push(b"cookie", first.as_bytes()),
        Some(second) => {
            let mut all = first.as_bytes().to_vec();
            for crumb in std::iter::once(second).chain(crumbs) {
                all.extend_from_slice(b"; ");
                all.extend_from_slice(crumb.as_bytes());
            }
            headers.push(b"cookie", &all);
        }
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

/// Copies headers or trailers; what cannot be a header in HTTP/2 is left out.
pub(super) fn map_of(headers: &Headers, peer_may_know: bool) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value, known) in headers.iter() {
        if !passes(known, value) || known == Known::Peer && !peer_may_know {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

/// Writes a request's head for an endpoint; `tls` says that the connection to it is protected.
pub(super) fn request_to(head: &RequestHead, tls: bool) -> Result<http::Request<()>, SideError> {
    let malformed = |what: &'static str| SideError::Head(HeadError::Malformed(what));
    let method = match head.upgrade() {
        Some(_) => http::Method::CONNECT,
        None => http::Method::from_bytes(head.method()).map_err(|_| malformed("the method"))?,
    };
    let connect = head.is_connect();
    let mut uri = http::uri::Parts::default();
    if !connect {
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.path()));
        uri.path_and_query = Some(path.map_err(|_| malformed("the path"))?);
    }
    if !head.authority().is_empty() {
        let authority = Bytes::copy_from_slice(head.authority());
        uri.authority = Some(Authority::from_maybe_shared(authority).map_err(|_| malformed("the host"))?);
        uri.scheme = (!connect).then_some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    }
    let mut request = http::Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_parts(uri).map_err(|_| malformed("the target"))?;
    // Who we are is told only to those who can keep it: proxies of the mesh.
    let mut headers = map_of(&head.headers, tls);
    if let BodyLength::Exact(count) = head.body {
        headers.insert(http::header::CONTENT_LENGTH, count.into());
    }
    *request.headers_mut() = headers;
    if let Some(protocol) = head.upgrade() {
        let protocol = std::str::from_utf8(protocol).map_err(|_| malformed("the protocol of the upgrade"))?;
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    Ok(request)
}

/// Writes a response's head for a client; `to_head` says that it answers a HEAD request.
pub(super) fn response_to(head: &ResponseHead, to_head: bool) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    // An upgrade is granted by 200 here (RFC 8441, section 5).
    let status = if head.status == 101 { 200 } else { head.status };
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = map_of(&head.headers, true);
    match head.body {
        BodyLength::Exact(count) => {
            headers.insert(http::header::CONTENT_LENGTH, count.into());
        }
        // What a GET would have been told is told for HEAD and 304 as well.
        _ if to_head || head.status == 304 => {
            let length = head.headers.known(Known::ContentLength).and_then(|text| HeaderValue::from_bytes(text).ok());
            if let Some(length) = length {
                headers.insert(http::header::CONTENT_LENGTH, length);
            }
        }
        _ => {}
    }
    *response.headers_mut() = headers;
    response
}

/// What an error of `h2` means to the pipeline.
pub(super) fn side_error(error: h2::Error) -> SideError {
    // A GOAWAY fails only the streams above the last one that the peer took up: nothing was done for them.
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)) {
        return SideError::Refused;
    }
    if error.is_io() {
        return match error.into_io() {
            Some(error) => SideError::Broken(error),
            None => SideError::Ended,
        };
    }
    SideError::Broken(std::io::Error::new(std::io::ErrorKind::ConnectionReset, error))
}
