//! The connecting side of mutual TLS.
//!
//! A client configuration exists for every pair of expected identity and offered protocols. That is also what makes
//! resumption safe: a session is only ever resumed towards the identity with which it was made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::{DnsName, IpAddr, Ipv4Addr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::credentials::OneKey;
use super::server::BUFFER_LIMIT;
use super::verify::{ExactServer, check};
use super::{Alpn, CredentialStore, Credentials, Established, IdentityError, PeerIdentity, TlsError};

/// Most configurations a worker keeps (about 2 KiB each); when they are more, all are made anew on demand.
pub const MAX_CONFIGS: usize = 1024;

/// Server names for which a configuration remembers sessions.
const SESSIONS: usize = 8;

type ConfigKey = (Vec<Arc<str>>, Alpn);

/// A worker's TLS client. Not shared between threads.
pub struct Connector {
    store: CredentialStore,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    credentials: Option<Arc<Credentials>>,
    configs: HashMap<ConfigKey, Arc<ClientConfig>>,
}

impl Connector {
    /// A client that uses the newest credentials of `store`.
    pub fn new(store: CredentialStore) -> Self {
        Self { store, state: RefCell::default() }
    }

    /// Performs a handshake as client: the server must be one of `expected` (SPIFFE ids, compared whole; what ends in `/`,
    /// as the beginning of one), whatever its address; an empty list means anybody of our trust domain.
    /// `server_name` is what is told to the server; a cluster name such as `outbound|80||a.b.svc.cluster.local` is sent
    /// in its DNS form, a name that has none is not sent.
    ///
    /// # Errors
    /// When there are no credentials yet, the handshake takes longer than `timeout`, it fails (the server is somebody
    /// else, is not trusted, speaks another protocol), or the connection breaks.
    pub async fn connect<IO>(
        &self,
        io: IO,
        expected: &[Arc<str>],
        server_name: &str,
        alpn: Alpn,
        timeout: Duration,
    ) -> Result<Established<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, trust_domain) = self.config(expected, alpn)?;
        let name = wire_name(server_name);
        let server_name = super::own_client::sent(&name);
        let connector = TlsConnector::from(config);
        let handshake =
            Box::pin(connector.connect_with(name, io, |connection| connection.set_buffer_limit(Some(BUFFER_LIMIT))));
        let stream = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| TlsError::Timeout(timeout))?
            .map_err(TlsError::Handshake)?;
        let (_, connection) = stream.get_ref();
        let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(IdentityError::Missing)?;
        // A resumed session was verified when it was made; time has passed since.
        let peer = PeerIdentity::of_valid_certificate(leaf, SystemTime::now())?;
        check(&peer, expected, &trust_domain)?;
        let alpn = connection.alpn_protocol().and_then(Alpn::parse);
        Ok(Established { stream: Box::new(stream.into()), peer, alpn, server_name })
    }

    fn config(&self, expected: &[Arc<str>], alpn: Alpn) -> Result<(Arc<ClientConfig>, Arc<str>), TlsError> {
        let newest = self.store.get().ok_or(TlsError::NoCertificate)?;
        let mut state = self.state.borrow_mut();
        let same = state.credentials.as_ref().is_some_and(|known| Arc::ptr_eq(known, &newest));
        if !same || state.configs.len() >= MAX_CONFIGS {
            state.configs.clear();
            state.credentials = Some(newest.clone());
        }
        let trust_domain = newest.shared_trust_domain();
        let key = (expected.to_vec(), alpn);
        if let Some(config) = state.configs.get(&key) {
            return Ok((config.clone(), trust_domain));
        }
        let config = Arc::new(client_config(&newest, expected, alpn)?);
        state.configs.insert(key, config.clone());
        Ok((config, trust_domain))
    }
}

fn client_config(credentials: &Credentials, expected: &[Arc<str>], alpn: Alpn) -> Result<ClientConfig, TlsError> {
    let provider = credentials.provider();
    let verifier = ExactServer {
        roots: credentials.roots(),
        expected: expected.to_vec(),
        trust_domain: credentials.shared_trust_domain(),
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(OneKey(credentials.certified())));
    config.alpn_protocols = vec![alpn.as_str().into()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// The form in which Istio writes cluster names as server names: `outbound_.80_._.a.b.svc.cluster.local`.
fn wire_name(name: &str) -> ServerName<'static> {
    let dns = name.replace('|', "_.");
    match DnsName::try_from(dns) {
        Ok(name) => ServerName::DnsName(name),
        // An address is not sent as server name (RFC 6066, section 3).
        Err(_) => ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_name_when_it_is_a_cluster_name_then_it_is_sent_in_dns_form() {
        let name = wire_name("outbound|9080|v2|reviews.default.svc.cluster.local");
        assert_eq!(name.to_str(), "outbound_.9080_.v2_.reviews.default.svc.cluster.local");
        assert!(matches!(wire_name("outbound|9080||reviews.default.svc.cluster.local"), ServerName::DnsName(_)));
        assert!(matches!(wire_name("no name"), ServerName::IpAddress(_)));
    }
}
