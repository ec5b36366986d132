//! New connections for the Envoy that takes over, before the one that ends closes its sockets.
//!
//! Two Envoys listen on the same ports with `SO_REUSEPORT`, and the kernel spreads connections over the sockets of both. What waits
//! in the queue of a socket that is closed is reset. So the kernel is told first to choose among the sockets that came
//! last; what the others have by then is accepted, and they close with empty queues.
//!
//! Any socket of such a group may tell it (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)), so one of the agent's joins it for as long as that
//! takes. It drops all that reaches it meanwhile: a client whose SYN was dropped sends it again.

use super::admin;
use hyper::Method;
use serde_json::Value;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Most listening addresses that are looked at.
const MAX_ADDRESSES: usize = 256;
/// A number that no socket of a group has: the kernel then spreads connections as ever.
const NONE: u32 = u32::MAX;

// Instructions of classic BPF, as linux/bpf_common.h puts them together.
/// Load a word at an absolute offset, or at one that stands for something else.
const LOAD: u16 = 0x20;
/// The accumulator modulo a constant.
const MODULO: u16 = 0x94;
/// The accumulator and a constant.
const ADD: u16 = 0x04;
/// Return the accumulator.
const RETURN_ACCUMULATOR: u16 = 0x16;
/// Return a constant.
const RETURN: u16 = 0x06;
/// Where a random number is loaded from (`SKF_AD_OFF + SKF_AD_RANDOM`).
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();

/// Whose sockets get new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those that were bound after the first ones, where both Envoys have so many workers. Where there are none, everybody's.
    Last {
        /// Workers of an Envoy, one socket each for an address.
        workers: usize,
    },
    /// Everybody's, as without having been told.
    All,
}

/// Where an Envoy listens; nowhere, and logged, when it does not tell.
pub async fn addresses(envoy: &Path) -> Vec<SocketAddr> {
    match admin::ask(envoy, Method::GET, "/listeners?format=json").await {
        Ok(page) => read(&page.body),
        Err(error) => {
            tracing::warn!(%error, "Envoy does not tell where it listens");
            Vec::new()
        }
    }
}

/// Steers connections to these addresses. What cannot be steered is spread as ever, and logged.
pub fn steer(addresses: &[SocketAddr], whose: Whose) {
    for &address in addresses {
        if let Err(error) = tell(address, whose) {
            tracing::warn!(%error, %address, "new connections are not kept from the Envoy that ends");
        }
    }
}

/// The addresses in a page of Envoy's listeners.
fn read(page: &[u8]) -> Vec<SocketAddr> {
    let page: Value = serde_json::from_slice(page).unwrap_or_default();
    let listeners = page["listener_statuses"].as_array().into_iter().flatten();
    let all = listeners.flat_map(|listener| {
        let more = listener["additional_local_addresses"].as_array().into_iter().flatten();
        std::iter::once(&listener["local_address"]).chain(more)
    });
    let parsed = |address: &Value| {
        let address = &address["socket_address"];
        let ip: IpAddr = address["address"].as_str()?.parse().ok()?;
        Some(SocketAddr::new(ip, u16::try_from(address["port_value"].as_u64()?).ok()?))
    };
    all.filter_map(parsed).take(MAX_ADDRESSES).collect()
}

fn tell(address: SocketAddr, whose: Whose) -> io::Result<()> {
    if address.is_ipv4() {
        return join_and_tell(address, None, whose);
    }
    // Only sockets that are alike are a group, and Envoy's may or may not take IPv4 as well.
    [true, false].into_iter().try_for_each(|only_v6| join_and_tell(address, Some(only_v6), whose))
}

fn join_and_tell(address: SocketAddr, only_v6: Option<bool>, whose: Whose) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    if let Some(only) = only_v6 {
        socket.set_only_v6(only)?;
    }
    socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    attach(&socket, &program(whose))
}

fn program(whose: Whose) -> Vec<libc::sock_filter> {
    match whose {
        Whose::All => vec![instruction(RETURN, NONE)],
        Whose::Last { workers } => {
            let workers = u32::try_from(workers).unwrap_or(1).max(1);
            vec![
                instruction(LOAD, RANDOM),
                instruction(MODULO, workers),
                instruction(ADD, workers),
                instruction(RETURN_ACCUMULATOR, 0),
            ]
        }
    }
}

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Gives the group of this socket a program that returns the number of one of its sockets, which are numbered as they were bound.
fn attach(socket: &Socket, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `program` and copies the instructions that it points to, which outlive the call;
    // neither is written.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn listen(address: SocketAddr) -> TcpListener {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    }

    /// How many of a hundred connections came to each.
    fn spread(address: SocketAddr, listeners: &[TcpListener]) -> Vec<usize> {
        let _clients: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
        listeners.iter().map(|one| std::iter::from_fn(|| one.accept().ok()).count()).collect()
    }

    #[test]
    fn connections_when_steered_then_come_to_those_that_bound_last_and_to_all_when_these_are_alone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let first = listen(address.parse().unwrap());
            let address = first.local_addr().unwrap();
            let mut listeners = vec![first, listen(address), listen(address), listen(address)];
            let reached = |counts: &[usize]| counts.iter().map(|count| *count > 0).collect::<Vec<_>>();
            assert_eq!(reached(&spread(address, &listeners)), [true; 4], "before");

            tell(address, Whose::Last { workers: 2 }).unwrap();
            let counts = spread(address, &listeners);
            assert_eq!((reached(&counts), counts.iter().sum()), (vec![false, false, true, true], 100));

            // The ones that end close their sockets, and nothing is lost with them.
            drop(listeners.drain(..2));
            let counts = spread(address, &listeners);
            assert_eq!((reached(&counts), counts.iter().sum()), (vec![true; 2], 100));

            // Whoever comes next, with more workers, gets its part once all may have some.
            listeners.extend([listen(address), listen(address), listen(address)]);
            tell(address, Whose::All).unwrap();
            let counts = spread(address, &listeners);
            assert_eq!((reached(&counts), counts.iter().sum()), (vec![true; 5], 100));
        }
    }

    #[test]
    fn addresses_when_listeners_have_several_or_none_then_all_that_are_addresses_are_read() {
        let page = br#"{"listener_statuses": [
            {"name": "a", "local_address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
             "additional_local_addresses": [{"socket_address": {"address": "::", "port_value": 15006}}]},
            {"name": "b", "local_address": {"pipe": {"path": "/x"}}}]}"#;
        let wanted: Vec<SocketAddr> = vec!["0.0.0.0:15006".parse().unwrap(), "[::]:15006".parse().unwrap()];
        assert_eq!(read(page), wanted);
        assert!(read(b"<html>").is_empty());
    }
}
