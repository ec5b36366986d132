//! Brings a request into the form in which everything after sees it: host and path in one form, what concerns one connection
//! taken away, and who asks told. The order is Envoy's.

use super::{
    call::Call,
    client,
    head::{RequestHead, Version},
    headers::{Headers, Known},
    path::{self, Outcome},
    pipeline::Stop,
    reply::{self, Reply},
};
use crate::{
    balance,
    config::{Action, Direction, HttpManager, StringMatch, StripPort, Underscores, Upgrade},
    route::Selected,
    telemetry::ResponseFlags,
};

/// Does so, or says how the request is answered instead.
pub(super) fn admit(call: &mut Call<'_>) -> Result<(), Stop> {
    let manager = call.manager;
    if manager.direction == Direction::Inbound {
        call.tally.source = Some(call.conn.source(call.request.headers.known(Known::Peer)));
    }
    call.request.headers.join_of_request();
    if call.request.version == Version::Http10 {
        http_10(call.request, manager)?;
    }
    if !call.request.has_authority() {
        return Err(reply::MISSING_HOST.into());
    }
    if manager.underscores != Underscores::Allow {
        underscores(call)?;
    }
    // Only CONNECT asks for something that is no path.
    if call.request.path().first() != Some(&b'/') && !call.request.is_connect() {
        call.request.headers.remove_hop_by_hop(true);
        return Err(reply::NO_PATH.into());
    }
    // What is asked is in the body, whose form has to be told (draft-ietf-httpbis-safe-method-w-body).
    if call.request.method() == b"QUERY" && call.request.headers.known(Known::ContentType).is_none() {
        return Err(reply::UNTYPED_QUERY.into());
    }
    paths(call)?;
    hosts(call.request, manager, call.conn.local.port());
    // A wish for HTTP/2 is none: it may always be passed over (RFC 9113, 3.1).
    if call.request.version != Version::Http2 {
        pass_over_upgrades(call.request, &manager.ignored_upgrades);
    }
    if call.request.upgrade().is_some_and(|wanted| wanted.eq_ignore_ascii_case(b"h2c")) {
        call.request.set_upgrade(None);
    }
    match call.request.upgrade() {
        None => call.request.headers.remove_hop_by_hop(true),
        Some(_) => call.request.headers.remove_hop_by_hop_of_upgrade(),
    }
    if call.request.expects_continue {
        match manager.proxy_100_continue {
            true => call.request.headers.push(b"expect", b"100-continue"),
            // Until there is another, that is the answer.
            false => call.tally.code = 100,
        }
    }
    if call.request.headers.may_have(Known::Referer) {
        referer(&mut call.request.headers);
    }
    let edge = client::find(call)?;
    if manager.generate_request_id {
        let headers = &mut call.request.headers;
        if edge || !headers.may_have(Known::RequestId) || headers.known(Known::RequestId).is_none_or(<[u8]>::is_empty) {
            headers.remove_known(Known::RequestId);
            headers.push(b"x-request-id", uuid(bits(&call.worker.rng)).as_bytes());
        }
    }
    Ok(())
}

/// Brings host and path that an internal redirect has given to a request into the form of all others: what decides about it must not
/// see them otherwise.
pub(super) fn again(call: &mut Call<'_>) -> Result<(), Stop> {
    let cleaned = paths(call);
    hosts(call.request, call.manager, call.conn.local.port());
    cleaned
}

/// Takes those protocols out of a wish for other ones that are to be passed over.
fn pass_over_upgrades(request: &mut RequestHead, ignored: &[StringMatch]) {
    let Some(wanted) = request.upgrade().filter(|_| !ignored.is_empty()) else { return };
    let all = || wanted.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let stays = |one: &&[u8]| !ignored.iter().any(|ignored| ignored.matches(one));
    if all().all(|one| stays(&one)) {
        return;
    }
    let rest = all().filter(stays).collect::<Vec<_>>().join(&b","[..]);
    request.set_upgrade(Some(&rest[..]).filter(|rest| !rest.is_empty()));
}

fn http_10(request: &mut RequestHead, manager: &HttpManager) -> Result<(), Reply> {
    if !manager.accept_http_10 {
        return Err(reply::LOW_VERSION);
    }
    if let (false, Some(host)) = (request.has_authority(), &manager.default_host_for_http_10) {
        request.set_authority(host.as_bytes());
    }
    Ok(())
}

fn underscores(call: &mut Call<'_>) -> Result<(), Stop> {
    let has_one = |name: &[u8]| name.contains(&b'_');
    if !call.request.headers.iter().any(|(name, _, _)| has_one(name)) {
        return Ok(());
    }
    if call.manager.underscores == Underscores::Reject {
        // Of HTTP/1 it was refused with the head; a stream of HTTP/2 is reset.
        let version = call.request.version;
        call.request.clear();
        call.request.version = version;
        return Err(Stop::Abort(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "http2.unexpected_underscore"));
    }
    if let Some(stats) = call.conn.http_stats() {
        let dropped = call.request.headers.iter().filter(|(name, _, _)| has_one(name)).count();
        stats.codecs.underscores_dropped[usize::from(call.is_http2())].add(dropped as u64);
    }
    call.request.headers.remove_if(|name, _, _| has_one(name));
    call.tally.underscored = call.is_http2();
    Ok(())
}

fn paths(call: &mut Call<'_>) -> Result<(), Stop> {
    let manager = call.manager;
    let rules = path::Rules {
        normalize: manager.normalize_path,
        merge_slashes: manager.merge_slashes,
        escaped_slashes: manager.escaped_slashes,
    };
    // CONNECT has no path.
    if !call.request.path().starts_with(b"/") {
        return Ok(());
    }
    match path::clean(call.request.path(), rules) {
        Ok(Outcome::Unchanged) => Ok(()),
        Ok(Outcome::Changed(path)) => {
            call.request.set_path(&path);
            Ok(())
        }
        Ok(Outcome::Redirect(path)) => {
            call.request.set_path(&path);
            // A client of gRPC follows no redirect.
            Err(if call.request.is_grpc() { reply::BAD_PATH } else { reply::ELSEWHERE }.into())
        }
        // Logs and answers tell what was understood.
        Ok(Outcome::Refused(path)) => {
            call.request.set_path(&path);
            Err(reply::BAD_PATH.into())
        }
        Err(_) => Err(reply::BAD_PATH.into()),
    }
}

fn hosts(request: &mut RequestHead, manager: &HttpManager, local_port: u16) {
    if manager.strip_port == StripPort::Never && !manager.strip_trailing_dot {
        return;
    }
    let mut host = request.authority().to_vec();
    if manager.strip_trailing_dot {
        let end = port_start(&host).map_or(host.len(), |(start, _)| start);
        if end > 0 && host[end - 1] == b'.' {
            host.remove(end - 1);
        }
    }
    if let Some((start, port)) = port_start(&host)
        && (manager.strip_port == StripPort::Any
            || manager.strip_port == StripPort::Matching && port == u32::from(local_port))
    {
        host.truncate(start);
        // Without it nobody can be connected to: it is put back when a route is found.
        let connects = request.is_connect() || request.version == Version::Http2 && request.wants_tunnel();
        request.connect_port = connects.then_some(port);
    }
    if host != request.authority() {
        request.set_authority(&host);
    }
}

/// Where the colon before a host's port is, and the port.
pub(super) fn port_start(host: &[u8]) -> Option<(usize, u32)> {
    let colon = host.iter().rposition(|&b| b == b':')?;
    let digits = &host[colon + 1..];
    // Inside of brackets is an address.
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((colon, digits.iter().fold(0, |port, &digit| port * 10 + u32::from(digit - b'0'))))
}

/// A wish for a tunnel (an upgrade, or CONNECT) that is not offered is refused: what follows the head could be taken for the
/// other protocol by one server and for a request by the next. What a route says goes before what the manager does. One that is
/// offered may have filters of its own.
pub(super) fn tunnels(call: &mut Call<'_>, selected: Option<Selected<'_>>, needs_tls: bool) -> Result<(), Reply> {
    let request = &*call.request;
    let wanted = match request.upgrade() {
        Some(protocol) => protocol,
        None if request.is_connect() => b"connect",
        None => return Ok(()),
    };
    // Where there is no route, that is the answer.
    if selected.is_none() && !needs_tls {
        return Ok(());
    }
    let of_route = match selected.map(|selected| &selected.route.action) {
        Some(Action::Forward(forward)) => {
            forward.upgrades.iter().find(|(name, _)| wanted.eq_ignore_ascii_case(name.as_bytes()))
        }
        _ => None,
    };
    let of_route = of_route.map(|(_, on)| *on);
    let manager = call.manager;
    let own = manager.upgrades.iter().find(|own| wanted.eq_ignore_ascii_case(own.kind.as_bytes()));
    if !of_route.unwrap_or(own.is_some_and(|own| own.offered)) {
        return Err(reply::UPGRADE_REFUSED);
    }
    if let Some(Upgrade { chain: Some(chain), .. }) = own {
        (call.filters, call.router) = (&chain.filters, &chain.router);
    }
    Ok(())
}

/// Takes a `referer` away that is no reference, as Envoy does: one with blanks, a fragment or a user, or a scheme without a host.
fn referer(headers: &mut Headers) {
    let reference = |value: &[u8]| {
        if !value.iter().all(|&b| b.is_ascii_graphic() && b != b'#') {
            return false;
        }
        let end = |text: &[u8]| text.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(text.len());
        let Some(at) = value.windows(3).position(|part| part == b"://") else {
            return !value[..end(value)].contains(&b':');
        };
        let authority = &value[at + 3..][..end(&value[at + 3..])];
        let port = &authority[crate::route::without_port(authority).len()..];
        let host = crate::route::without_port(authority);
        let good = |&b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        (host.starts_with(b"[") || !host.is_empty() && host.iter().all(good))
            && port.iter().skip(1).all(u8::is_ascii_digit)
    };
    if !headers.known(Known::Referer).is_none_or(reference) {
        headers.remove_known(Known::Referer);
    }
}

fn bits(rng: &balance::Rng) -> u128 {
    (u128::from(rng.next()) << 64) | u128::from(rng.next())
}

/// The text of a UUID.
#[derive(Debug, Clone, Copy)]
pub struct Uuid([u8; 36]);

impl Uuid {
    /// Its bytes, which are ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// A UUID (RFC 9562, version 4) of random bits.
pub fn uuid(bits: u128) -> Uuid {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, place) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            shift -= 4;
            *place = HEX[(bits >> shift) as usize & 0xf];
        }
    }
    Uuid(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_when_ports_and_dots_are_stripped_then_as_envoy() {
        let after = |host: &str, strip_port, strip_trailing_dot| {
            let manager = HttpManager { strip_port, strip_trailing_dot, ..HttpManager::default() };
            let mut request = RequestHead::default();
            request.set_authority(host.as_bytes());
            hosts(&mut request, &manager, 8080);
            String::from_utf8_lossy(request.authority()).into_owned()
        };
        for (host, any, matching, dot, both) in [
            ("a.example:80", "a.example", "a.example:80", "a.example:80", "a.example"),
            ("a.example:8080", "a.example", "a.example", "a.example:8080", "a.example"),
            ("a.example.", "a.example.", "a.example.", "a.example", "a.example"),
            ("a.example.:80", "a.example.", "a.example.:80", "a.example:80", "a.example"),
            ("[::1]:80", "[::1]", "[::1]:80", "[::1]:80", "[::1]"),
            ("[::1]", "[::1]", "[::1]", "[::1]", "[::1]"),
            ("a:b:c", "a:b:c", "a:b:c", "a:b:c", "a:b:c"),
            ("h:", "h:", "h:", "h:", "h:"),
            ("h:99999", "h", "h:99999", "h:99999", "h"),
            ("", "", "", "", ""),
            (".", ".", ".", "", ""),
        ] {
            assert_eq!(after(host, StripPort::Any, false), any, "any port of {host}");
            assert_eq!(after(host, StripPort::Matching, false), matching, "the matching port of {host}");
            assert_eq!(after(host, StripPort::Never, true), dot, "the dot of {host}");
            assert_eq!(after(host, StripPort::Any, true), both, "port and dot of {host}");
        }
    }

    #[test]
    fn referer_when_it_is_no_url_then_it_goes() {
        for (values, stays) in [
            (&["http://a.example/x"][..], true),
            (&["HTTPS://a"], true),
            (&["/relative"], true),
            (&["no-url"], true),
            (&["ftp://a/x"], true),
            (&["about:blank"], false),
            (&["http://a:b/x"], false),
            (&["http://u@a/x"], false),
            (&["http://a/x#f"], false),
            (&["a b"], false),
            (&["http://"], false),
            (&["http:///x"], false),
            (&["http://[::1]:80/x"], true),
            (&["http://a,http://b"], false),
            (&["1,2"], true),
        ] {
            let mut headers = Headers::default();
            for value in values {
                headers.push(b"Referer", value.as_bytes());
            }
            referer(&mut headers);
            assert_eq!(headers.get("referer").is_some(), stays, "{values:?}");
        }
    }
}
