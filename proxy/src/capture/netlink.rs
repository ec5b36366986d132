//! Writes the capture table to the kernel: an encoder for the few nf_tables messages that it takes, and one transaction.
//!
//! Formats follow `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. A batch is one
//! transaction: all of it takes effect at once, or nothing. "New table, delete table, new table" is how the kernel's own
//! tools replace a table that may or may not be there.

use super::CaptureError;
use super::rules::{Action, Match, Rule, Ruleset};
use ipnet::IpNet;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::io;
use std::os::fd::AsRawFd as _;

/// Name of the table.
pub const TABLE: &str = "leno";
/// How long the kernel may take to answer.
pub(super) const ANSWER_LIMIT_SECONDS: i64 = 5;

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DSTNAT: i32 = -100;
const NESTED: u16 = 1 << 15;
const IFNAMSIZ: usize = 16;

/// Replaces the table by one with these rules.
pub(super) fn replace(rules: &Ruleset) -> Result<(), CaptureError> {
    let mut batch = Batch::default();
    batch.table(NEW_TABLE, NLM_F_CREATE, "the table `inet leno`");
    batch.table(DELETE_TABLE, 0, "removing the table `inet leno`");
    batch.table(NEW_TABLE, NLM_F_CREATE, "the table `inet leno`");
    for (name, hook, rules) in
        [("output", HOOK_OUTPUT, &rules.output), ("prerouting", HOOK_PREROUTING, &rules.prerouting)]
    {
        batch.chain(name, hook);
        for rule in rules {
            batch.rule(name, rule);
        }
    }
    batch.commit()
}

/// Removes the table.
pub(super) fn remove() -> Result<(), CaptureError> {
    let mut batch = Batch::default();
    batch.table(NEW_TABLE, NLM_F_CREATE, "the table `inet leno`");
    batch.table(DELETE_TABLE, 0, "removing the table `inet leno`");
    batch.commit()
}

/// A netlink message under construction: attributes are appended, nested ones by closures.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }

    /// One expression of a rule: its name and its own attributes.
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nested(1, |element| {
            element.text(1, name).nested(2, fill);
        });
    }

    /// Loads a property of the packet or socket into register 1.
    fn load_meta(&mut self, key: u32) {
        self.expression("meta", |e| {
            e.number(1, 1).number(2, key);
        });
    }

    /// Loads bytes of the network (`base` 1) or transport (2) header into register 1.
    fn load_payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |e| {
            e.number(1, 1).number(2, base).number(3, offset).number(4, length);
        });
    }

    /// Goes on with the rule only if register 1 is (or is not) the value.
    fn compare(&mut self, equal: bool, value: &[u8]) {
        self.expression("cmp", |e| {
            e.number(1, 1).number(2, u32::from(!equal)).nested(3, |data| {
                data.bytes(1, value);
            });
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.expression("bitwise", |e| {
            e.number(1, 1).number(2, 1).number(3, length);
            e.nested(4, |data| {
                data.bytes(1, mask);
            });
            e.nested(5, |data| {
                data.bytes(1, &vec![0; mask.len()]);
            });
        });
    }

    fn address(&mut self, source: bool, network: &IpNet, is: bool) {
        let (family, offset, address, mask) = match network.trunc() {
            IpNet::V4(network) => (
                NFPROTO_IPV4,
                if source { 12 } else { 16 },
                network.network().octets().to_vec(),
                network.netmask().octets().to_vec(),
            ),
            IpNet::V6(network) => (
                NFPROTO_IPV6,
                if source { 8 } else { 24 },
                network.network().octets().to_vec(),
                network.netmask().octets().to_vec(),
            ),
        };
        self.load_meta(15);
        self.compare(true, &[family]);
        self.load_payload(1, offset, u32::try_from(address.len()).unwrap_or(0));
        if network.prefix_len() != network.max_prefix_len() {
            self.mask(&mask);
        }
        self.compare(is, &address);
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Uid(uid) => {
                self.load_meta(10);
                self.compare(true, &uid.to_ne_bytes());
            }
            Match::OutLoopback => {
                let mut name = [0; IFNAMSIZ];
                name[..2].copy_from_slice(b"lo");
                self.load_meta(7);
                self.compare(true, &name);
            }
            Match::Source(network, is) => self.address(true, network, *is),
            Match::Destination(network, is) => self.address(false, network, *is),
            Match::Tcp => {
                self.load_meta(16);
                self.compare(true, &[6]);
            }
            Match::TcpPort(port) => {
                self.condition(&Match::Tcp);
                self.load_payload(2, 2, 2);
                self.compare(true, &port.to_be_bytes());
            }
        }
    }

    fn action(&mut self, action: Action) {
        match action {
            Action::Accept => self.expression("immediate", |e| {
                e.number(1, 0).nested(2, |data| {
                    data.nested(2, |verdict| {
                        verdict.number(1, 1);
                    });
                });
            }),
            Action::Redirect(port) => {
                self.expression("immediate", |e| {
                    e.number(1, 1).nested(2, |data| {
                        data.bytes(1, &port.to_be_bytes());
                    });
                });
                self.expression("redir", |e| {
                    e.number(1, 1);
                });
            }
        }
    }
}

/// A transaction: messages and, for errors, what each of them is.
#[derive(Default)]
struct Batch {
    messages: Vec<(u16, u16, Vec<u8>)>,
    names: Vec<String>,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, attributes: Attributes, name: String) {
        self.messages.push((SUBSYSTEM_NFTABLES << 8 | kind, flags, attributes.0));
        self.names.push(name);
    }

    fn table(&mut self, kind: u16, flags: u16, name: &str) {
        let mut attributes = Attributes::default();
        attributes.text(1, TABLE);
        self.push(kind, flags, attributes, name.to_owned());
    }

    fn chain(&mut self, name: &str, hook: u32) {
        let mut attributes = Attributes::default();
        attributes.text(1, TABLE).text(3, name);
        attributes.nested(4, |e| {
            e.number(1, hook).bytes(2, &PRIORITY_DSTNAT.to_be_bytes());
        });
        attributes.number(5, 1).text(7, "nat");
        self.push(NEW_CHAIN, NLM_F_CREATE, attributes, format!("the chain `{name}`"));
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        let mut attributes = Attributes::default();
        attributes.text(1, TABLE).text(2, chain);
        attributes.nested(4, |expressions| {
            for condition in &rule.matches {
                expressions.condition(condition);
            }
            expressions.action(rule.action);
        });
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, attributes, format!("the rule `{rule}` in `{chain}`"));
    }

    /// The bytes to send. Sequence numbers count from 0, the opening message; only the last message before the closing
    /// one asks for an answer (errors are answered anyway).
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |kind: u16, flags: u16, sequence: usize, family: u8, resource: u16, body: &[u8]| {
            let length = u32::try_from(16 + 4 + body.len()).unwrap_or(u32::MAX);
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
            bytes.extend(u32::try_from(sequence).unwrap_or(u32::MAX).to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend([family, 0]);
            bytes.extend(resource.to_be_bytes());
            bytes.extend(body);
        };
        put(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM_NFTABLES, &[]);
        let last = self.messages.len();
        for (index, (kind, flags, body)) in self.messages.iter().enumerate() {
            let sequence = index + 1;
            let ack = if sequence == last { NLM_F_ACK } else { 0 };
            put(*kind, flags | ack, sequence, NFPROTO_INET, 0, body);
        }
        put(BATCH_END, 0, last + 1, 0, SUBSYSTEM_NFTABLES, &[]);
        bytes
    }

    fn commit(&self) -> Result<(), CaptureError> {
        let failed = |doing| move |errno: nix::Error| CaptureError::Socket { doing, source: io::Error::from(errno) };
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("opening"))?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("binding"))?;
        let bytes = self.encode();
        // The whole transaction is one datagram; twice its size leaves room for the kernel's bookkeeping.
        socket::setsockopt(&socket, sockopt::SndBufForce, &(bytes.len() * 2).max(1 << 16)).map_err(failed("sizing"))?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_SECONDS))
            .map_err(failed("setting a time limit"))?;
        socket::sendto(socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())
            .map_err(failed("sending"))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(failed("waiting for the kernel's answer"))?,
            };
            for (sequence, error) in answers(&buffer[..length]) {
                if error != 0 {
                    let what = match sequence.checked_sub(1).and_then(|index| self.names.get(index)) {
                        Some(name) => name.clone(),
                        None => "the transaction".to_owned(),
                    };
                    return Err(CaptureError::Kernel { what, source: io::Error::from_raw_os_error(error) });
                }
                if sequence == self.messages.len() {
                    return Ok(());
                }
            }
        }
    }
}

/// Sequence number and error number (0: acknowledged) of each answer in a datagram of the kernel.
pub(super) fn answers(mut datagram: &[u8]) -> Vec<(usize, i32)> {
    let number = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4)?.try_into().ok().map(|bytes: [u8; 4]| u32::from_ne_bytes(bytes))
    };
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(sequence)) =
        (number(datagram, 0), datagram.get(4..6), number(datagram, 8))
    {
        if kind == NLMSG_ERROR.to_ne_bytes()
            && let Some(code) = number(datagram, 16)
        {
            found.push((usize::try_from(sequence).unwrap_or(usize::MAX), code.cast_signed().wrapping_neg()));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < 16 {
            break;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_when_the_datagram_is_cut_short_gives_what_is_whole() {
        let mut datagram = Vec::new();
        for (sequence, code) in [(3u32, -1i32), (7, 0)] {
            datagram.extend(36u32.to_ne_bytes());
            datagram.extend(NLMSG_ERROR.to_ne_bytes());
            datagram.extend(0u16.to_ne_bytes());
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend(0u32.to_ne_bytes());
            datagram.extend(code.to_ne_bytes());
            datagram.extend([0; 16]);
        }
        assert_eq!(answers(&datagram), [(3, 1), (7, 0)]);
        assert_eq!(answers(&datagram[..40]), [(3, 1)]);
        assert_eq!(answers(&[0; 64]), []);
    }
}
