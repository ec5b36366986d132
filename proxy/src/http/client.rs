//! Who a request's client is, and what is told about it: `x-forwarded-*`, `x-envoy-internal`, `x-envoy-external-address`,
//! `x-forwarded-client-cert`, `via`, `user-agent`; and what a client may not say about itself is taken away.

use super::{
    call::Call,
    edit,
    headers::{Headers, Known},
    pipeline::Stop,
    reply, trace, xfcc,
};
use crate::config::{ClientCert, Detection, Edge};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::OnceLock;

/// Headers by which a caller steers a proxy, or names itself to it: only an internal client may.
const INTERNAL_ONLY: &[&str] = &[
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
];
/// What is taken away besides where the mesh begins.
const EDGE_ONLY: &[&str] = &[
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
    "x-envoy-original-host",
];

/// Finds the client and tells about it. Whether the request's id is to be made anew, because it comes from outside.
pub(super) fn find(call: &mut Call<'_>) -> Result<bool, Stop> {
    static DEFAULT: Edge = Edge {
        use_remote_address: false,
        trusted_hops: 0,
        skip_append: false,
        append_port: false,
        detection: Vec::new(),
        internal: Vec::new(),
        client_cert: ClientCert::Sanitize,
        secure: None,
        secure_as_endpoint: false,
        via: None,
        user_agent: None,
        preserve_request_id: false,
        disbelieve_request_id: false,
        request_id_in_response: false,
        early: Vec::new(),
    };
    let edge = call.manager.edge.as_deref().unwrap_or(&DEFAULT);
    if !edge.early.is_empty() {
        edit::request_in_order(call, &edge.early);
    }
    if let Some(secure) = edge.secure {
        call.request.secure = secure;
    }
    if call.request.headers.may_have(Known::Envoy) {
        call.request.headers.remove("x-envoy-internal");
    }
    let (client, may_be_internal) = match edge.use_remote_address {
        true => direct(call, edge),
        false => detected(call, edge)?,
    };
    match call.request.headers.known(Known::ForwardedProto) {
        None | Some(b"") => proto(call),
        // What those in front of us saw is the scheme, where the request itself does not say.
        Some(scheme) if edge.secure.is_none() && !call.request.has_scheme => {
            let (http, https) = (scheme.eq_ignore_ascii_case(b"http"), scheme.eq_ignore_ascii_case(b"https"));
            if http || https {
                call.request.secure = https;
            }
        }
        Some(_) => {}
    }
    call.request.has_scheme = true;
    let headers = &mut call.request.headers;
    if let Some(secure) = edge.secure {
        headers.set("x-forwarded-proto", if secure { b"https" } else { b"http" });
    }
    if edge.append_port && headers.known(Known::ForwardedPort).is_none() {
        port(headers, call.conn.local);
    }
    let internal =
        may_be_internal && client.is_some_and(|client| edge.internal.iter().any(|range| range.contains(&client)));
    let outside = edge.use_remote_address && !internal;
    if internal {
        headers.push(b"x-envoy-internal", b"true");
    } else {
        for name in &call.manager.routes.options.internal_only {
            headers.remove(name);
        }
    }
    if !internal && headers.may_have(Known::Envoy) {
        let named = |name: &[u8], list: &[&str]| list.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        headers.remove_if(|name, _, known| {
            known == Known::Envoy && (named(name, INTERNAL_ONLY) || outside && named(name, EDGE_ONLY))
        });
    }
    if let Some((cluster, node)) = &edge.user_agent {
        headers.set("x-envoy-downstream-service-cluster", cluster.as_bytes());
        if headers.get("user-agent").is_none_or(<[u8]>::is_empty) {
            headers.set("user-agent", cluster.as_bytes());
        }
        if !node.is_empty() {
            headers.set("x-envoy-downstream-service-node", node.as_bytes());
        }
    }
    if let Some(via) = &edge.via {
        headers.append_to("via", b", ", via.as_bytes());
    }
    if outside {
        let address = client.unwrap_or(call.conn.remote.ip());
        headers.set("x-envoy-external-address", address.to_canonical().to_string().as_bytes());
    }
    // As a log shows it: an address that a header named has no port.
    if let Some(client) = client
        && client != call.conn.remote.ip().to_canonical()
    {
        call.tally.client = Some(SocketAddr::new(client, 0));
    }
    xfcc::tell(call, edge.client_cert);
    if outside && edge.disbelieve_request_id {
        trace::disbelieve(&mut call.request.headers);
    }
    Ok(outside && !edge.preserve_request_id)
}

/// The other end of the connection is the client, or the proxies that are trusted name it.
fn direct(call: &mut Call<'_>, edge: &Edge) -> (Option<IpAddr>, bool) {
    let remote = call.conn.remote.ip().to_canonical();
    let headers = &call.request.headers;
    let may_be_internal = headers.known(Known::ForwardedFor).is_none();
    let named = edge.trusted_hops.checked_sub(1).and_then(|skip| nth_from_end(headers, skip).map(|(ip, _)| ip));
    if !edge.skip_append {
        append(call, remote);
    }
    let overwrite = edge.trusted_hops == 0;
    if overwrite {
        proto(call);
        if edge.append_port {
            port(&mut call.request.headers, call.conn.local);
        }
    }
    (Some(named.unwrap_or(remote)), may_be_internal)
}

/// Somebody in front of us is expected to have named the client.
fn detected(call: &mut Call<'_>, edge: &Edge) -> Result<(Option<IpAddr>, bool), Stop> {
    let remote = call.conn.remote.ip().to_canonical();
    if edge.detection.is_empty() {
        if !call.request.headers.may_have(Known::ForwardedFor) {
            return Ok((None, false));
        }
        let found = nth_from_end(&call.request.headers, edge.trusted_hops);
        return Ok(found.map_or((None, false), |(ip, single)| (Some(ip), single)));
    }
    for way in &edge.detection {
        let headers = &call.request.headers;
        let (found, append_remote) = match way {
            Detection::Hops { hops, append } => (nth_from_end(headers, *hops), *append),
            Detection::Trusted { cidrs, append } => (untrusted(headers, remote, cidrs), *append),
            Detection::Header { name, trusted, reject } => {
                let found = headers.get(name).and_then(address).map(|ip| (ip, *trusted));
                if let (None, Some(status)) = (found, *reject) {
                    return Err(reply::undetected(status).into());
                }
                (found, false)
            }
        };
        if append_remote {
            append(call, remote);
        }
        if let Some((ip, trusted)) = found {
            return Ok((Some(ip), trusted));
        }
    }
    Ok((None, false))
}

/// The address in `x-forwarded-for` that has so many behind it, and whether it is the only one.
fn nth_from_end(headers: &Headers, skip: u32) -> Option<(IpAddr, bool)> {
    let mut all = 0usize;
    for value in headers.known_values(Known::ForwardedFor) {
        all += value.split(|&b| b == b',').count();
    }
    let wanted = all.checked_sub(1)?.checked_sub(skip as usize)?;
    let mut entries = headers.known_values(Known::ForwardedFor).flat_map(|value| value.split(|&b| b == b','));
    Some((address(entries.nth(wanted)?)?, all == 1))
}

/// The last address in `x-forwarded-for` that is not trusted, if the other end of the connection is.
fn untrusted(headers: &Headers, remote: IpAddr, trusted: &[IpNet]) -> Option<(IpAddr, bool)> {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|range| range.contains(ip));
    if !is_trusted(&remote) {
        return None;
    }
    let (mut last, mut broken) = (None, false);
    for value in headers.known_values(Known::ForwardedFor) {
        for entry in value.split(|&b| b == b',') {
            match address(entry) {
                // Who stands before something that is no address is not known, and nobody else is taken for him.
                None => (last, broken) = (None, true),
                Some(ip) if !is_trusted(&ip) => (last, broken) = (Some(ip), false),
                Some(ip) if !broken => drop(last.get_or_insert(ip)),
                Some(_) => {}
            }
        }
    }
    last.map(|ip| (ip, false))
}

fn address(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Adds the other end of the connection to `x-forwarded-for`; for a client of this machine, this machine.
fn append(call: &mut Call<'_>, remote: IpAddr) {
    // Only these two are the machine itself to Envoy; a client of a mesh may come from another one.
    let itself = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&remote);
    let told = if itself { own_address() } else { remote };
    call.request.headers.append_to("x-forwarded-for", b",", told.to_string().as_bytes());
}

/// The address of this machine in its network: the one from which it would reach a public address (nothing is sent).
pub(super) fn own_address() -> IpAddr {
    static OWN: OnceLock<IpAddr> = OnceLock::new();
    *OWN.get_or_init(|| {
        let local = |from: &str, to: &str| {
            let socket = UdpSocket::bind(from).ok()?;
            socket.connect(to).ok()?;
            socket.local_addr().ok().map(|address| address.ip())
        };
        // The addresses of documentation (RFC 5737, RFC 3849).
        local("0.0.0.0:0", "203.0.113.1:9")
            .or_else(|| local("[::]:0", "[2001:db8::1]:9"))
            .filter(|ip| !ip.is_unspecified())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    })
}

fn proto(call: &mut Call<'_>) {
    let scheme: &[u8] = if call.conn.secure { b"https" } else { b"http" };
    call.request.headers.remove_known(Known::ForwardedProto);
    call.request.headers.push(b"x-forwarded-proto", scheme);
}

fn port(headers: &mut Headers, local: SocketAddr) {
    headers.set("x-forwarded-port", local.port().to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> Headers {
        let mut headers = Headers::default();
        for value in values {
            headers.push(b"X-Forwarded-For", value.as_bytes());
        }
        headers
    }

    #[test]
    fn client_when_hops_are_trusted_then_it_is_the_address_before_them() {
        for (values, skip, want) in [
            (&["10.0.0.1"][..], 0, Some(("10.0.0.1", true))),
            (&["1.2.3.4, 10.0.0.1"], 0, Some(("10.0.0.1", false))),
            (&["1.2.3.4, 10.0.0.1"], 1, Some(("1.2.3.4", false))),
            (&["1.2.3.4", "10.0.0.1"], 1, Some(("1.2.3.4", false))),
            (&["1.2.3.4"], 1, None),
            (&["nonsense"], 0, None),
            (&["::ffff:1.2.3.4"], 0, Some(("1.2.3.4", true))),
            (&[], 0, None),
        ] {
            let want = want.map(|(ip, single)| (ip.parse().unwrap(), single));
            assert_eq!(nth_from_end(&headers(values), skip), want, "{values:?}, {skip} hops");
        }
    }

    #[test]
    fn client_when_networks_are_trusted_then_it_is_the_last_address_outside() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let inside: IpAddr = "10.9.9.9".parse().unwrap();
        for (values, want) in [
            (&["1.2.3.4, 10.0.0.1"][..], Some("1.2.3.4")),
            (&["9.9.9.9, 1.2.3.4, 10.0.0.1, 10.0.0.2"], Some("1.2.3.4")),
            (&["10.0.0.3, 10.0.0.4"], Some("10.0.0.3")),
            (&["1.2.3.4, nonsense, 10.0.0.1"], None),
            (&["nonsense, 1.2.3.4, 10.0.0.1"], Some("1.2.3.4")),
            (&[], None),
        ] {
            let want = want.map(|ip| (ip.parse().unwrap(), false));
            assert_eq!(untrusted(&headers(values), inside, &trusted), want, "{values:?}");
        }
        let outside = "1.1.1.1".parse().unwrap();
        assert_eq!(untrusted(&headers(&["5.5.5.5"]), outside, &trusted), None, "whoever is outside cannot name others");
    }
}
