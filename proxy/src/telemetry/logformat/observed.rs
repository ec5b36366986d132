//! Operators about what is only kept where a line asks for it: bytes on the wire, every endpoint that was tried, and the connection
//! to the last one.

use super::FormatError;
use super::operator::{Operator, Written};
use super::value::{Given, foreign, number, own};
use crate::config::pipe::{self, Shown};
use crate::telemetry::{LogEntry, Observed, Wire};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Bytes on the client's side, or the endpoint's.
    Wire {
        up: bool,
        of: Bytes,
    },
    /// Every endpoint that was tried: its name or its address, with the port or without.
    Attempted {
        name: bool,
        port: bool,
    },
    TlsVersion,
    TlsCipher,
    TlsGroup,
    /// How long it took until there was a connection.
    Ready,
    /// The server name that the endpoint was sent.
    ServerName,
    /// The number of the connection.
    Connection,
    /// The numbers of all connections on which attempts went.
    Connections,
}

/// Which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    Received,
    Sent,
    HeadReceived,
    HeadSent,
    PlainReceived,
    PlainSent,
}

/// The operator that is written so, if it is about these.
pub(super) fn operator(w: &Written<'_>) -> Option<Result<Operator, FormatError>> {
    let (up, rest) = match w.name.strip_prefix("UPSTREAM_") {
        Some(rest) => (true, rest),
        None => (false, w.name.strip_prefix("DOWNSTREAM_")?),
    };
    let wire = |of| Seen::Wire { up, of };
    let attempted = |name, port| Seen::Attempted { name, port };
    let seen = match (rest, up) {
        ("WIRE_BYTES_RECEIVED", _) => wire(Bytes::Received),
        ("WIRE_BYTES_SENT", _) => wire(Bytes::Sent),
        ("HEADER_BYTES_RECEIVED", _) => wire(Bytes::HeadReceived),
        ("HEADER_BYTES_SENT", _) => wire(Bytes::HeadSent),
        ("DECOMPRESSED_HEADER_BYTES_RECEIVED", _) => wire(Bytes::PlainReceived),
        ("DECOMPRESSED_HEADER_BYTES_SENT", _) => wire(Bytes::PlainSent),
        ("SERVER_NAME", true) => Seen::ServerName,
        ("CONNECTION_ID", true) => Seen::Connection,
        ("CONNECTION_IDS_ATTEMPTED", true) => Seen::Connections,
        ("HOSTS_ATTEMPTED", true) => attempted(false, true),
        ("HOSTS_ATTEMPTED_WITHOUT_PORT", true) => attempted(false, false),
        ("HOST_NAMES_ATTEMPTED", true) => attempted(true, true),
        ("HOST_NAMES_ATTEMPTED_WITHOUT_PORT", true) => attempted(true, false),
        ("TLS_VERSION", true) => Seen::TlsVersion,
        ("TLS_CIPHER", true) => Seen::TlsCipher,
        ("TLS_GROUP", true) => Seen::TlsGroup,
        ("CONNECTION_POOL_READY_DURATION", true) => Seen::Ready,
        _ => return None,
    };
    Some(w.plain(Operator::Observed(seen)))
}

/// Appends what it says.
pub(super) fn give<Q, S>(seen: Seen, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) -> Given {
    let observed = entry.observed;
    let tls = || observed?.tls.as_deref();
    let birth = || observed?.birth.as_deref();
    match seen {
        Seen::Wire { up, of } => {
            let wire = observed.map_or_else(Wire::default, |observed| if up { observed.up } else { observed.down });
            let bytes = match of {
                Bytes::Received => wire.received,
                Bytes::Sent => wire.sent,
                Bytes::HeadReceived => wire.head_received,
                Bytes::HeadSent => wire.head_sent,
                Bytes::PlainReceived => wire.plain_received,
                Bytes::PlainSent => wire.plain_sent,
            };
            number(bytes, out)
        }
        Seen::Attempted { name, port } => match observed {
            Some(observed) => attempted(observed, name, port, out),
            None => Given::Nothing,
        },
        Seen::ServerName => foreign(birth().and_then(|birth| birth.server_name.as_deref()).map(str::as_bytes), out),
        Seen::Connection => number(birth().map_or(0, |birth| birth.id), out),
        Seen::Connections => {
            let all: Vec<String> =
                observed.iter().flat_map(|observed| &observed.connections).map(u64::to_string).collect();
            own((!all.is_empty()).then(|| all.join(",")), out)
        }
        Seen::TlsVersion => own(tls().map(|tls| tls.version), out),
        Seen::TlsCipher => own(tls().map(|tls| tls.cipher), out),
        Seen::TlsGroup => own(tls().and_then(|tls| tls.group), out),
        Seen::Ready => match observed.and_then(|observed| observed.ready) {
            Some(time) => number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), out),
            None => Given::Nothing,
        },
    }
}

fn attempted(observed: &Observed, name: bool, port: bool, out: &mut Vec<u8>) -> Given {
    let text = |(address, known): &(std::net::SocketAddr, Option<std::sync::Arc<str>>)| match known.as_deref() {
        Some(known) if name && port => known.to_owned(),
        Some(known) if name => String::from_utf8_lossy(crate::route::without_port(known.as_bytes())).into_owned(),
        _ if port => Shown(*address).to_string(),
        _ => pipe::path(*address).map_or_else(|| address.ip().to_string(), |path| path.to_string()),
    };
    let all: Vec<String> = observed.attempted.iter().map(text).collect();
    if all.is_empty() {
        return Given::Nothing;
    }
    foreign(Some(all.join(",").as_bytes()), out)
}
