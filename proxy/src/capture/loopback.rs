//! The IPv6 address from which the proxy connects to the app.
//!
//! For IPv4 that is 127.0.0.6, which the loopback device has as it has all of 127.0.0.0/8. IPv6 has one loopback address
//! only, so `::6` must be added, or the app's answers would find no way back. Formats: `linux/rtnetlink.h`,
//! `linux/if_addr.h`.

use super::CaptureError;
use super::netlink::{ANSWER_LIMIT_SECONDS, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, answers};
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd as _;

/// The address.
const SOURCE: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// The loopback device's index in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

const NLM_F_REPLACE: u16 = 0x100;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 0x02;
const SEQUENCE: u32 = 1;

/// Gives the loopback device `::6/128`, unless it has it or there is no IPv6.
pub(super) fn add_source() -> Result<(), CaptureError> {
    let failed = |doing| move |errno: nix::Error| CaptureError::Socket { doing, source: io::Error::from(errno) };
    let socket =
        socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .map_err(failed("opening"))?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_SECONDS))
        .map_err(failed("setting a time limit"))?;
    socket::sendto(socket.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .map_err(failed("sending"))?;
    let mut buffer = [0; 4096];
    loop {
        let length = match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            other => other.map_err(failed("waiting for the kernel's answer"))?,
        };
        for (sequence, error) in answers(&buffer[..length]) {
            if sequence != SEQUENCE as usize {
                continue;
            }
            return match error {
                0 => Ok(()),
                // No IPv6 in the kernel, or not on this device.
                libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES | libc::EADDRNOTAVAIL => {
                    tracing::info!("no IPv6 here; the loopback device does not get {SOURCE}");
                    Ok(())
                }
                error => Err(CaptureError::Kernel {
                    what: format!("the address `{SOURCE}/128` of the device `lo`"),
                    source: io::Error::from_raw_os_error(error),
                }),
            };
        }
    }
}

fn request() -> Vec<u8> {
    let mut body = vec![libc::AF_INET6 as u8, 128, IFA_F_NODAD, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(20u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(SOURCE.octets());
    }
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(RTM_NEWADDR.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}
