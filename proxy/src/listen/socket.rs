//! Listening sockets, made as a listener wants them.

use crate::config::{OptionTime, SocketOption, SocketSettings};
use socket2::{Domain, Socket, Type};
use std::{io, net::SocketAddr, os::fd::AsRawFd};

/// Binds a socket; it does not listen yet.
///
/// # Errors
/// When the address cannot be had or an option cannot be set.
pub fn bind(address: SocketAddr, settings: &SocketSettings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!settings.both_families)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if settings.freebind {
        if address.is_ipv4() { socket.set_freebind_v4(true)? } else { socket.set_freebind_v6(true)? }
    }
    set_all(&socket, settings, OptionTime::Unbound)?;
    socket.bind(&address.into())?;
    set_all(&socket, settings, OptionTime::Bound)?;
    Ok(socket)
}

/// Lets a bound socket listen.
///
/// # Errors
/// When it cannot, or an option cannot be set.
pub fn begin(socket: &Socket, settings: &SocketSettings) -> io::Result<()> {
    socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
    set_all(socket, settings, OptionTime::Listening)
}

fn set_all(socket: &Socket, settings: &SocketSettings, now: OptionTime) -> io::Result<()> {
    settings
        .options
        .iter()
        .filter(|(time, ..)| *time == now)
        .try_for_each(|(_, level, name, value)| set(socket, *level, *name, value))
}

/// Sets an option of a socket.
///
/// # Errors
/// When the kernel does not take it.
pub(crate) fn set(socket: &impl AsRawFd, level: i32, name: i32, value: &SocketOption) -> io::Result<()> {
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
        let keepalive = (OptionTime::Unbound, libc::SOL_SOCKET, libc::SO_KEEPALIVE, SocketOption::Int(1));
        let no_delay = (OptionTime::Listening, libc::IPPROTO_TCP, libc::TCP_NODELAY, SocketOption::Int(1));
        let settings =
            SocketSettings { freebind: true, options: vec![keepalive, no_delay], ..SocketSettings::default() };
        let socket = bind(address, &settings).unwrap();
        assert!(socket.keepalive().unwrap() && socket.freebind_v4().unwrap());
        assert!(!socket.tcp_nodelay().unwrap());
        begin(&socket, &settings).unwrap();
        assert!(socket.tcp_nodelay().unwrap());
        let unknown = (OptionTime::Bound, libc::SOL_SOCKET, 9999, SocketOption::Int(1));
        assert!(bind(address, &SocketSettings { options: vec![unknown], ..SocketSettings::default() }).is_err());
        let both = SocketSettings { both_families: true, ..SocketSettings::default() };
        let socket = bind("[::]:0".parse().unwrap(), &both).unwrap();
        begin(&socket, &both).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        // An address that nobody has can be had.
        bind("198.18.254.254:0".parse().unwrap(), &settings).unwrap();
    }
}
