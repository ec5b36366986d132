//! Listening sockets, made as a listener wants them.

use crate::config::{SocketOption, SocketSettings};
use socket2::{Domain, Socket, Type};
use std::{io, net::SocketAddr, os::fd::AsRawFd};

/// Binds a socket; it does not listen yet.
///
/// # Errors
/// When the address cannot be had or an option cannot be set.
pub fn bind(address: SocketAddr, settings: &SocketSettings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if settings.freebind {
        if address.is_ipv4() { socket.set_freebind_v4(true)? } else { socket.set_freebind_v6(true)? }
    }
    for (level, name, value) in &settings.options {
        set(&socket, *level, *name, value)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn set(socket: &Socket, level: i32, name: i32, value: &SocketOption) -> io::Result<()> {
    let number;
    let bytes: &[u8] = match value {
        SocketOption::Int(value) => {
            number = value.to_ne_bytes();
            &number
        }
        SocketOption::Bytes(bytes) => bytes,
    };
    let length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length are those of one slice that outlives the call, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, bytes.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_when_options_are_wanted_then_it_has_them() {
        let address = ([127, 0, 0, 1], 0).into();
        let keepalive = (libc::SOL_SOCKET, libc::SO_KEEPALIVE, SocketOption::Int(1));
        let settings = SocketSettings { freebind: true, options: vec![keepalive], ..SocketSettings::default() };
        let socket = bind(address, &settings).unwrap();
        assert!(socket.keepalive().unwrap() && socket.freebind_v4().unwrap());
        let unknown = (libc::SOL_SOCKET, 9999, SocketOption::Int(1));
        assert!(bind(address, &SocketSettings { options: vec![unknown], ..SocketSettings::default() }).is_err());
        // An address that nobody has can be had.
        bind("198.18.254.254:0".parse().unwrap(), &settings).unwrap();
    }
}
