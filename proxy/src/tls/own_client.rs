//! The connecting side of TLS with certificates and trust of the configuration's own, not the mesh's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::{DnsName, IpAddr, Ipv4Addr, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::credentials::OneKey;
use super::info::TlsInfo;
use super::material::{KeyPair, TrustSettings};
use super::params::TlsParams;
use super::secrets::{Source, TrustSource, UNNAMED_PAIR};
use super::server::BUFFER_LIMIT;
use super::trust::{Untrusted, Verifier};
use super::{Alpn, Secured, TlsError};

/// What a client asks for.
#[derive(Debug, Default, Clone)]
pub struct ClientSettings {
    /// Versions and ciphers.
    pub params: TlsParams,
    /// Protocols to offer, best first.
    pub alpn: Vec<Arc<str>>,
    /// The server name to send; none when empty.
    pub sni: Arc<str>,
    /// The endpoint's own host name is sent instead, where it has one.
    pub sni_of_host: bool,
    /// The certificate must be for the server name that was sent.
    pub match_server_name: bool,
    /// Sessions that are remembered; 0 is none.
    pub sessions: usize,
}

/// TLS to endpoints with certificates and trust of its own.
#[derive(Debug)]
pub struct ClientContext {
    fingerprint: [u8; 32],
    settings: ClientSettings,
    key_pair: Option<Source<KeyPair>>,
    trust: TrustSource,
    ready: ArcSwapOption<Ready>,
}

#[derive(Debug)]
struct Ready {
    key_pair: Option<Arc<KeyPair>>,
    trust: Option<Arc<TrustSettings>>,
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

impl PartialEq for ClientContext {
    /// Interchangeable: connections made with one are good for the other.
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for ClientContext {}

impl ClientContext {
    /// A context. Contexts with equal fingerprints are interchangeable.
    pub fn new(
        fingerprint: [u8; 32],
        settings: ClientSettings,
        key_pair: Option<Source<KeyPair>>,
        trust: TrustSource,
    ) -> Self {
        Self { fingerprint, settings, key_pair, trust, ready: ArcSwapOption::empty() }
    }

    /// The same, but that the certificate must be for the server name that was sent.
    pub fn matching_server_name(&self) -> Self {
        self.with(ClientSettings { match_server_name: true, ..self.settings.clone() })
    }

    /// The same, but that the server may choose between HTTP/2 and HTTP/1, unless it is said already what is offered.
    pub fn offering_both(&self) -> Self {
        let alpn = match self.settings.alpn.is_empty() {
            true => vec!["h2".into(), "http/1.1".into()],
            false => self.settings.alpn.clone(),
        };
        self.with(ClientSettings { alpn, ..self.settings.clone() })
    }

    fn with(&self, settings: ClientSettings) -> Self {
        let mut fingerprint = self.fingerprint;
        fingerprint[0] ^= u8::from(settings.match_server_name != self.settings.match_server_name);
        fingerprint[1] ^= u8::from(settings.alpn != self.settings.alpn);
        Self::new(fingerprint, settings, self.key_pair.clone(), self.trust.clone())
    }

    /// What it was made of, as a hash.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The settings.
    pub fn settings(&self) -> &ClientSettings {
        &self.settings
    }

    /// The trust of its own beside that of this secret, if it uses that.
    pub fn combined_with(&self, secret: &str) -> Option<&TrustSettings> {
        self.trust.combined_with(secret)
    }

    /// The certificate that it shows now.
    pub fn key_pairs(&self) -> Vec<Arc<KeyPair>> {
        self.key_pair.iter().filter_map(Source::get).collect()
    }

    /// The secrets that it waits for before it can connect.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.key_pair.iter().filter_map(Source::secret).chain(self.trust.secret.iter().map(|slot| slot.name()))
    }

    /// Names of certificates, own ones and roots, with the time until which each is good.
    pub fn ends(&self) -> Vec<(&str, SystemTime)> {
        let own = self
            .key_pair
            .iter()
            .filter_map(|source| Some((source.secret().unwrap_or(UNNAMED_PAIR), source.get()?.not_after())));
        own.chain(self.trust.ends()).collect()
    }

    fn ready(&self) -> Result<Arc<Ready>, TlsError> {
        let key_pair = self.key_pair.as_ref().map(Source::ready).transpose()?;
        let trust = self.trust.of_secret()?;
        if let Some(ready) = self.ready.load_full().filter(|ready| {
            same(ready.key_pair.as_ref(), key_pair.as_ref()) && same(ready.trust.as_ref(), trust.as_ref())
        }) {
            return Ok(ready);
        }
        let settings = &self.settings;
        let all = self.trust.with(trust.as_deref()).unwrap_or_default();
        let verifier = Arc::new(Verifier::of_servers(all, settings.match_server_name));
        let builder = ClientConfig::builder_with_provider(settings.params.provider().clone())
            .with_protocol_versions(settings.params.versions())?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut config = match &key_pair {
            Some(pair) => builder.with_client_cert_resolver(Arc::new(OneKey(pair.certified().clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.resumption = match settings.sessions {
            0 => Resumption::disabled(),
            count => Resumption::in_memory_sessions(count),
        };
        let ready = Arc::new(Ready { key_pair, trust, config: Arc::new(config), verifier });
        self.ready.store(Some(ready.clone()));
        Ok(ready)
    }

    /// Performs a handshake as client. `host` is the endpoint's own name, `sni` a server name that goes before the configured one
    /// (it may come from a request), `inside` what will be spoken: it is offered where the configuration offers nothing.
    ///
    /// # Errors
    /// When a secret has not come, the handshake takes longer than `timeout`, it fails (the server's certificate is not what
    /// was asked for), or the connection breaks.
    pub async fn connect<IO>(
        &self,
        io: IO,
        host: Option<&str>,
        sni: Option<&str>,
        inside: Alpn,
        timeout: Duration,
    ) -> Result<Secured<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let ready = self.ready()?;
        let of_host = host.filter(|_| self.settings.sni_of_host);
        let name = sni.or(of_host).unwrap_or(&self.settings.sni);
        let wire = match (DnsName::try_from(name.to_owned()), name.parse::<std::net::IpAddr>()) {
            (Ok(name), _) => ServerName::DnsName(name),
            // An address is not sent as server name (RFC 6066, section 3).
            (_, Ok(address)) => ServerName::IpAddress(address.into()),
            (Err(_), Err(_)) if self.settings.match_server_name && !name.is_empty() => {
                return Err(TlsError::Handshake(std::io::Error::other(Untrusted::ServerName(name.to_owned()))));
            }
            (Err(_), Err(_)) => ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0]))),
        };
        let sent = sent(&wire);
        let connector = TlsConnector::from(ready.config.clone());
        let offered = match inside {
            Alpn::H2 if self.settings.alpn.is_empty() => Some(&b"h2"[..]),
            Alpn::Http1 if self.settings.alpn.is_empty() => Some(&b"http/1.1"[..]),
            _ => None,
        };
        let limited = |connection: &mut rustls::ClientConnection| connection.set_buffer_limit(Some(BUFFER_LIMIT));
        let handshake = Box::pin(match offered {
            Some(name) => connector.with_alpn(vec![name.to_vec()]).connect_with(wire, io, limited),
            None => connector.connect_with(wire, io, limited),
        });
        let stream = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| TlsError::Timeout(timeout))?
            .map_err(TlsError::Handshake)?;
        let (_, connection) = stream.get_ref();
        let asked = Some(name).filter(|name| !name.is_empty());
        let verified = match connection.peer_certificates() {
            Some([leaf, intermediates @ ..]) => ready
                .verifier
                .is_lenient()
                .is_none_or(|strict| strict.check(leaf, intermediates, asked, UnixTime::now()).is_ok()),
            _ => false,
        };
        let info = TlsInfo::of(connection, verified && !ready.verifier.takes_all(), ready.key_pair.clone());
        Ok(Secured { stream: Box::new(stream.into()), info, server_name: sent })
    }
}

/// The server name that is sent for one that is asked for.
pub(super) fn sent(name: &ServerName<'_>) -> Option<Box<str>> {
    match name {
        ServerName::DnsName(name) => Some(name.as_ref().into()),
        _ => None,
    }
}

/// Whether both are the same value, or none.
pub(super) fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}
