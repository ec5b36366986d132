//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): who the client is and where it wanted to connect, told before
//! its bytes by whoever passed it on.

use super::detect::{Read, read as read_more};
use crate::{
    config::{PassTlvs, ProxyProtocol},
    http::buffer::Buffer,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};
use tokio::net::TcpStream;

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8; 6] = b"PROXY ";

/// A line of version 1 is at most so long.
const MAX_V1: usize = 107;

/// What is known of a connection whose client was told by the PROXY protocol.
#[derive(Debug, Clone)]
pub struct Proxied {
    /// The other end of the connection itself.
    pub direct: SocketAddr,
    /// Extensions that are kept for endpoints: type and value.
    pub tlvs: Vec<(u8, Box<[u8]>)>,
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Client and destination; none where the header speaks for the connection itself.
    pub(super) addresses: Option<(SocketAddr, SocketAddr)>,
    pub(super) tlvs: Vec<(u8, Box<[u8]>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    More,
    /// It begins otherwise.
    Not,
    /// So many bytes.
    Header(usize, Said),
}

/// Reads the header. `None`: the connection has none and needs none. What comes after it stays in `first`.
pub(super) async fn read(
    tcp: &mut TcpStream,
    first: &mut Buffer,
    wanted: &ProxyProtocol,
    deadline: Option<Instant>,
    go_on: bool,
) -> Result<Option<Said>, &'static str> {
    loop {
        match parse(first.bytes(), wanted)? {
            Parsed::Header(length, said) => {
                first.consume(length);
                return Ok(Some(said));
            }
            Parsed::Not if wanted.optional => return Ok(None),
            Parsed::Not => return Err("the connection does not begin with it"),
            Parsed::More => {}
        }
        match read_more(tcp, first, deadline).await {
            Read::Some => {}
            Read::End => return Err("the connection ended within it"),
            Read::Timeout if go_on => return Ok(None),
            Read::Timeout => return Err("it did not come in time"),
        }
    }
}

fn parse(bytes: &[u8], wanted: &ProxyProtocol) -> Result<Parsed, &'static str> {
    let begins = |with: &[u8]| {
        let count = bytes.len().min(with.len());
        bytes[..count] == with[..count]
    };
    if bytes.len() < V1.len() && (begins(V1) || begins(V2)) {
        return Ok(Parsed::More);
    }
    if begins(V1) {
        return if wanted.no_v1 { Err("version 1 is not allowed") } else { v1(bytes) };
    }
    if begins(V2) {
        return if wanted.no_v2 { Err("version 2 is not allowed") } else { v2(bytes, &wanted.pass) };
    }
    Ok(Parsed::Not)
}

fn v1(bytes: &[u8]) -> Result<Parsed, &'static str> {
    const BAD: &str = "its line is malformed";
    let Some(end) = bytes.iter().take(MAX_V1).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_V1 { Ok(Parsed::More) } else { Err("its line is too long") };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(BAD)?;
    let line = std::str::from_utf8(&line[V1.len()..]).map_err(|_| BAD)?;
    let parts: Vec<&str> = line.split(' ').collect();
    let addresses = match parts[..] {
        ["UNKNOWN", ..] => None,
        [family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |ip: &str, port: &str| -> Option<SocketAddr> {
                let ip: IpAddr = ip.parse().ok()?;
                let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (digits && ip.is_ipv4() == (family == "TCP4")).then_some(SocketAddr::new(ip, port.parse().ok()?))
            };
            Some(ends(address(source, source_port).ok_or(BAD)?, address(destination, destination_port).ok_or(BAD)?)?)
        }
        _ => return Err(BAD),
    };
    Ok(Parsed::Header(end + 1, Said { addresses, tlvs: Vec::new() }))
}

/// A header of version 2. Its length, two bytes, bounds it.
fn v2(bytes: &[u8], pass: &PassTlvs) -> Result<Parsed, &'static str> {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else { return Ok(Parsed::More) };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let local = match head[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err("its version or command is not known"),
    };
    let Some(rest) = rest.get(..length) else { return Ok(Parsed::More) };
    if local {
        return Ok(Parsed::Header(16 + length, Said { addresses: None, tlvs: Vec::new() }));
    }
    const SHORT: &str = "its header is shorter than its addresses";
    let ((source, destination), rest) = match head[13] {
        // Of streams and of datagrams alike, as Envoy takes them.
        0x11 | 0x12 => {
            let (part, rest) = rest.split_first_chunk::<12>().ok_or(SHORT)?;
            let ip = |at: usize| IpAddr::from(Ipv4Addr::new(part[at], part[at + 1], part[at + 2], part[at + 3]));
            ((socket(ip(0), &part[8..10]), socket(ip(4), &part[10..12])), rest)
        }
        0x21 | 0x22 => {
            let (part, rest) = rest.split_first_chunk::<36>().ok_or(SHORT)?;
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&part[at..at + 16]);
                IpAddr::from(Ipv6Addr::from(octets))
            };
            ((socket(ip(0), &part[32..34]), socket(ip(16), &part[34..36])), rest)
        }
        _ => return Err("its address family is not supported"),
    };
    let addresses = Some(ends(source, destination)?);
    Ok(Parsed::Header(16 + length, Said { addresses, tlvs: tlvs(rest, pass)? }))
}

/// Both ends of a connection, which are of one host each: nobody connects from or to a group of them, or from nowhere.
fn ends(source: SocketAddr, destination: SocketAddr) -> Result<(SocketAddr, SocketAddr), &'static str> {
    let unicast = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    match unicast(source.ip()) && unicast(destination.ip()) {
        true => Ok((source, destination)),
        false => Err("an address in it is none of a host"),
    }
}

fn socket(ip: IpAddr, port: &[u8]) -> SocketAddr {
    SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))
}

fn tlvs(mut rest: &[u8], pass: &PassTlvs) -> Result<Vec<(u8, Box<[u8]>)>, &'static str> {
    let mut kept = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let value = after.get(..length).ok_or("an extension is longer than its header")?;
        if pass.passes(head[0]) {
            kept.push((head[0], value.into()));
        }
        rest = &after[length..];
    }
    if rest.is_empty() { Ok(kept) } else { Err("an extension is malformed") }
}

/// A header for a connection from `source` to `destination`. Addresses of two families become version 1's `UNKNOWN` or version 2's
/// `LOCAL`. Extensions exist in version 2 only; those that do not fit into 64 KiB are left out.
pub fn write_header(v2: bool, source: SocketAddr, destination: SocketAddr, tlvs: &[(u8, Box<[u8]>)]) -> Vec<u8> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (canonical(source), canonical(destination));
    let same = source.is_ipv4() == destination.is_ipv4();
    if !v2 {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = match same {
            true => format!(
                "PROXY {family} {} {} {} {}\r\n",
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            ),
            false => "PROXY UNKNOWN\r\n".to_owned(),
        };
        return line.into_bytes();
    }
    let mut rest = Vec::new();
    let kind = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            rest.extend_from_slice(&from.octets());
            rest.extend_from_slice(&to.octets());
            Some(0x11)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            rest.extend_from_slice(&from.octets());
            rest.extend_from_slice(&to.octets());
            Some(0x21)
        }
        _ => None,
    };
    if kind.is_some() {
        rest.extend_from_slice(&source.port().to_be_bytes());
        rest.extend_from_slice(&destination.port().to_be_bytes());
        for (kind, value) in tlvs {
            if let Ok(length) = u16::try_from(value.len())
                && rest.len() + value.len() + 3 <= usize::from(u16::MAX)
            {
                rest.push(*kind);
                rest.extend_from_slice(&length.to_be_bytes());
                rest.extend_from_slice(value);
            }
        }
    }
    let mut header = V2.to_vec();
    header.push(if kind.is_some() { 0x21 } else { 0x20 });
    header.push(kind.unwrap_or(0));
    header.extend_from_slice(&u16::try_from(rest.len()).unwrap_or(0).to_be_bytes());
    header.extend_from_slice(&rest);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> ProxyProtocol {
        ProxyProtocol { pass: PassTlvs::Some(vec![0xe1]), ..ProxyProtocol::default() }
    }

    fn said(bytes: &[u8]) -> Result<Parsed, &'static str> {
        parse(bytes, &all())
    }

    #[test]
    fn header_when_written_then_it_is_read_as_it_was_and_waits_for_all_of_it() {
        let v4 = ("1.2.3.4:5".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let v6 = ("[2001:db8::1]:5".parse().unwrap(), "[2001:db8::2]:80".parse().unwrap());
        let tlvs: Vec<(u8, Box<[u8]>)> = vec![(0xe0, (*b"no").into()), (0xe1, (*b"yes").into())];
        for (from, to) in [v4, v6] {
            for version2 in [false, true] {
                let mut bytes = write_header(version2, from, to, &tlvs);
                for end in 0..bytes.len() {
                    assert_eq!(said(&bytes[..end]), Ok(Parsed::More), "{end}");
                }
                let length = bytes.len();
                bytes.extend_from_slice(b"GET /");
                let kept = if version2 { vec![(0xe1, (*b"yes").into())] } else { Vec::new() };
                assert_eq!(said(&bytes), Ok(Parsed::Header(length, Said { addresses: Some((from, to)), tlvs: kept })));
            }
        }
        for version2 in [false, true] {
            let bytes = write_header(version2, v4.0, v6.1, &[]);
            assert!(matches!(said(&bytes), Ok(Parsed::Header(_, Said { addresses: None, .. }))));
        }
    }

    #[test]
    fn header_when_malformed_or_not_allowed_then_it_is_an_error() {
        for bytes in [
            &b"PROXY TCP4 1.2.3.4 10.0.0.1 5\r\n"[..],
            b"PROXY TCP6 1.2.3.4 10.0.0.1 5 80\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 5 +80\r\n",
            b"PROXY TCP4 224.0.0.1 10.0.0.1 5 80\r\n",
            b"PROXY TCP4 0.0.0.0 10.0.0.1 5 80\r\n",
            b"PROXY TCP4 1.2.3.4 255.255.255.255 5 80\r\n",
            b"PROXY TCP6 ff02::1 ::1 5 80\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 5 80000\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 5 80\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c............",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04....",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e............\xe1\0",
        ] {
            assert!(said(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(said(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat()).is_err());
        assert_eq!(said(b"GET / HTTP/1.1\r\n"), Ok(Parsed::Not));
        let none = ProxyProtocol { no_v1: true, no_v2: true, ..ProxyProtocol::default() };
        assert!(parse(b"PROXY UNKNOWN\r\n", &none).is_err() && parse(V2, &none).is_err());
    }

    proptest! {
        #[test]
        fn header_when_any_bytes_come_then_it_ends(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3) {
            match kind {
                0 if bytes.len() > 16 => bytes[..12].copy_from_slice(V2),
                1 if bytes.len() > 6 => bytes[..6].copy_from_slice(V1),
                _ => {}
            }
            let _ = said(&bytes);
        }
    }
}
