//! The listening sockets of a pod's proxy, and how they travel from slot to slot (`SCM_RIGHTS`, unix(7)).

use super::{MAX_LINE_BYTES, SlotError};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Most sockets that travel; the kernel's own limit is 253.
pub const MAX_SOCKETS: usize = 64;
/// Connections that may wait in a socket's queue (the kernel bounds it further by `net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How long the other slot may take to read or write the message.
const LIMIT: Duration = Duration::from_secs(2);
/// First word of the message.
const WORD: &str = "SOCKETS";

/// Listening sockets by address, all of them not blocking.
#[derive(Debug, Default)]
pub struct Sockets(BTreeMap<SocketAddr, TcpListener>);

impl Sockets {
    /// Listens on each address that is not there yet. IPv6 addresses are left out where the pod has no IPv6.
    ///
    /// # Errors
    /// When another process listens there.
    pub fn add(&mut self, addresses: &[SocketAddr]) -> Result<(), SlotError> {
        for address in addresses {
            if self.0.contains_key(address) {
                continue;
            }
            match bind(*address) {
                Ok(socket) => drop(self.0.insert(*address, socket)),
                Err(error)
                    if address.is_ipv6()
                        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
                {
                    tracing::info!(%address, "no IPv6 here; not listening on it");
                }
                Err(source) => return Err(SlotError::Listen { address: *address, source }),
            }
        }
        Ok(())
    }

    /// A copy of the socket of that address.
    ///
    /// # Errors
    /// When there is no such socket, or no file descriptor left.
    pub fn copy(&self, address: SocketAddr) -> Result<TcpListener, SlotError> {
        match self.0.get(&address) {
            Some(socket) => Ok(socket.try_clone()?),
            None => Err(SlotError::Protocol(format!("the other slot handed over no socket for {address}"))),
        }
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies of all of them.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub fn try_clone(&self) -> Result<Self, SlotError> {
        let copies = self.0.iter().map(|(address, socket)| Ok((*address, socket.try_clone()?)));
        Ok(Self(copies.collect::<Result<_, SlotError>>()?))
    }

    /// Sends copies over the stream. Blocks for at most two seconds.
    ///
    /// # Errors
    /// When the other side is gone or does not read.
    pub fn send(&self, stream: &UnixStream) -> Result<(), SlotError> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(LIMIT))?;
        let addresses: Vec<String> = self.0.keys().map(ToString::to_string).collect();
        let line = format!("{WORD} {}\n", addresses.join(","));
        if self.0.len() > MAX_SOCKETS || line.len() > MAX_LINE_BYTES {
            return Err(SlotError::Protocol(format!("{} sockets are too many to hand over", self.0.len())));
        }
        let descriptors: Vec<_> = self.0.values().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<()>(stream.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(std::io::Error::from)?;
        if sent == line.len() {
            Ok(())
        } else {
            Err(SlotError::Protocol("the list of sockets was cut short".to_owned()))
        }
    }

    /// Receives what [`Self::send`] sent. Blocks for at most two seconds.
    ///
    /// # Errors
    /// When nothing comes, or something else.
    pub fn receive(stream: &UnixStream) -> Result<Self, SlotError> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut text = [0; MAX_LINE_BYTES];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; MAX_SOCKETS]);
        let mut bytes = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(std::io::Error::from)?;
        let length = message.bytes;
        let mut descriptors = Vec::new();
        for control in message.cmsgs().map_err(std::io::Error::from)? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else owns them.
                descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let line = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
        let wrong = || SlotError::Protocol(format!("{} sockets came with {line:?}", descriptors.len()));
        let list = line.strip_prefix(WORD).and_then(|rest| rest.strip_suffix('\n')).ok_or_else(wrong)?.trim();
        let addresses: Vec<SocketAddr> = list
            .split(',')
            .filter(|address| !address.is_empty())
            .map(|address| address.parse().map_err(|_| wrong()))
            .collect::<Result<_, _>>()?;
        if addresses.len() != descriptors.len() {
            return Err(wrong());
        }
        Ok(Self(addresses.into_iter().zip(descriptors.into_iter().map(TcpListener::from)).collect()))
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
