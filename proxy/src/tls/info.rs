//! What a connection's TLS is known by afterwards, for logs, policy and the headers that tell a back end about a client.

use std::cell::OnceCell;
use std::sync::Arc;

use rustls::CommonState;
use rustls_pki_types::CertificateDer;

use super::facts::CertificateFacts;
use super::material::KeyPair;
use super::params::{group_name, suite_name};

/// A connection's TLS. What the certificates say is read when it is first asked for.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by OpenSSL's name.
    pub cipher: &'static str,
    /// The cipher suite by IANA's number.
    pub cipher_id: u16,
    /// The group in which both agreed on a key.
    pub group: Option<&'static str>,
    /// The protocol that both agreed on (ALPN).
    pub alpn: Option<Box<str>>,
    /// The session is one that both knew before.
    pub resumed: bool,
    /// Whether the peer's certificate satisfies all conditions; it may be taken all the same.
    pub verified: bool,
    /// Our own certificate, where it is known which was shown.
    pub local: Option<Arc<KeyPair>>,
    chain: Vec<CertificateDer<'static>>,
    peer: OnceCell<Option<Box<CertificateFacts>>>,
}

impl TlsInfo {
    /// What a finished handshake is known by.
    pub fn of(state: &CommonState, verified: bool, local: Option<Arc<KeyPair>>) -> Self {
        let chain = state.peer_certificates().unwrap_or_default();
        Self {
            version: match state.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: state.negotiated_cipher_suite().map_or("unknown", suite_name),
            cipher_id: state.negotiated_cipher_suite().map_or(0, |suite| suite.suite().into()),
            group: state.negotiated_key_exchange_group().and_then(|group| group_name(group.name())),
            alpn: state.alpn_protocol().and_then(|name| std::str::from_utf8(name).ok()).map(Into::into),
            resumed: matches!(state.handshake_kind(), Some(rustls::HandshakeKind::Resumed)),
            verified,
            local,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            peer: OnceCell::new(),
        }
    }

    /// The same once more, for who outlives the connection.
    pub fn again(&self) -> Self {
        let Self { version, cipher, cipher_id, group, alpn, resumed, verified, local, chain, peer: _ } = self;
        Self {
            version,
            cipher,
            cipher_id: *cipher_id,
            group: *group,
            alpn: alpn.clone(),
            resumed: *resumed,
            verified: *verified,
            local: local.clone(),
            chain: chain.clone(),
            peer: OnceCell::new(),
        }
    }

    /// The peer's chain, leaf first; empty when it showed none.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What the peer's certificate says, if it showed one.
    pub fn peer(&self) -> Option<&CertificateFacts> {
        let read = || self.chain.first().and_then(CertificateFacts::read).map(Box::new);
        self.peer.get_or_init(read).as_deref()
    }
}
