//! Addresses of the ends of connections.

use super::FormatError;
use super::operator::{Operator, Written};
use super::value::{Given, number, own};
use crate::config::pipe;
use crate::telemetry::LogEntry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// An address that is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The chosen endpoint.
    UpstreamHost,
    /// The endpoint that is connected.
    UpstreamRemote,
    UpstreamLocal,
    DownstreamLocal,
    DownstreamDirectLocal,
    DownstreamRemote,
    DownstreamDirectRemote,
}

/// What of an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Port,
    /// The address alone.
    Ip,
    /// Its network of so many bits; of all bits, where it has fewer.
    Network(u8),
    /// Nothing, of an address that is known: what Envoy writes of a network of fewer bits than none.
    Nothing,
}

/// An address without its port, or its network of as many bits as the argument says.
pub(super) fn ip(w: &Written<'_>, end: End) -> Result<Operator, FormatError> {
    // What is no number asks for nothing.
    let part = match w.argument.and_then(|text| text.trim().parse::<i32>().ok()) {
        None => Part::Ip,
        Some(bits) if bits < 0 => Part::Nothing,
        Some(bits) => Part::Network(u8::try_from(bits).unwrap_or(u8::MAX)),
    };
    match w.length {
        None => Ok(Operator::Address(end, part)),
        Some(_) => Err(w.malformed()),
    }
}

/// The address of an end.
pub(super) fn end_of<Q, S>(end: End, entry: &LogEntry<'_, Q, S>) -> Option<SocketAddr> {
    match end {
        End::UpstreamHost => entry.upstream_host,
        End::UpstreamRemote => entry.upstream_remote.or(entry.upstream_host).filter(|_| entry.upstream_connected),
        End::UpstreamLocal => entry.upstream_local,
        End::DownstreamLocal => entry.downstream_local,
        End::DownstreamDirectLocal => entry.downstream_direct_local.or(entry.downstream_local),
        End::DownstreamRemote => entry.downstream_remote,
        End::DownstreamDirectRemote => entry.downstream_direct_remote.or(entry.downstream_remote),
    }
}

/// The path of an endpoint that is a Unix socket.
pub(super) fn pipe_of<Q, S>(end: End, entry: &LogEntry<'_, Q, S>) -> Option<Arc<str>> {
    match end {
        End::UpstreamHost | End::UpstreamRemote => end_of(end, entry).and_then(pipe::path),
        _ => None,
    }
}

/// Appends what is wanted of an address.
pub(super) fn address(address: Option<SocketAddr>, part: Part, out: &mut Vec<u8>) -> Given {
    let Some(address) = address else { return Given::Nothing };
    match part {
        Part::Whole => own(Some(address), out),
        Part::Port => number(u64::from(address.port()), out),
        Part::Ip => own(Some(address.ip()), out),
        Part::Network(bits) => own(Some(network(address.ip(), bits)), out),
        Part::Nothing => Given::Own,
    }
}

/// The network of so many bits in which an address is; of as many as it has, where that is fewer.
fn network(ip: IpAddr, bits: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(ip, bits).unwrap_or_else(|_| ip.into()).trunc()
}
