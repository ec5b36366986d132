//! The accepting side of TLS with certificates of the configuration's own, not the mesh's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, HandshakeKind, ServerConfig};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;

use super::facts::Hasher;
use super::info::TlsInfo;
use super::material::{KeyPair, TrustSettings};
use super::own_client::same;
use super::params::TlsParams;
use super::secrets::{Source, TrustSource, UNNAMED_PAIR};
use super::server::BUFFER_LIMIT;
use super::ticket_keys::{SharedTickets, TicketKeys};
use super::tickets::{Lasting, Remembered};
use super::trust::Verifier;
use super::{Pace, Secured, TlsError};

/// Sessions of clients without tickets that are remembered.
const SESSIONS: usize = 1024;
/// How long they are where nothing is said, as in Envoy.
const SESSION_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// What a server does and shows.
#[derive(Debug, Default)]
pub struct ServerSettings {
    /// Versions and ciphers.
    pub params: TlsParams,
    /// Protocols inside, best first. A client with none of them in common goes on without.
    pub alpn: Vec<Arc<str>>,
    /// Clients must show a certificate.
    pub require_client_certificate: bool,
    /// The client's order of ciphers counts, not ours.
    pub prefer_client_ciphers: bool,
    /// No sessions by memory (TLS 1.2).
    pub disable_stateful_resumption: bool,
    /// Sessions by tickets.
    pub tickets: Tickets,
    /// How long a session is good; where nothing is said, a ticket as long as the keys live that seal it, and two hours by memory.
    pub session_lifetime: Option<Duration>,
    /// Where no certificate is for the server name all are looked through for one that fits the client's algorithms best,
    /// not only the first.
    pub full_scan_on_mismatch: bool,
    /// A client that names no server is refused.
    pub require_sni: bool,
}

/// What seals the tickets by which clients resume sessions.
#[derive(Debug, Default)]
pub enum Tickets {
    /// Keys of this process' own that change.
    #[default]
    Own,
    /// Keys that others have as well.
    Shared(Source<TicketKeys>),
    /// There are none.
    Disabled,
}

/// TLS that a filter chain ends with certificates of its own.
#[derive(Debug)]
pub struct ServerContext {
    fingerprint: [u8; 32],
    settings: ServerSettings,
    key_pairs: Vec<Source<KeyPair>>,
    trust: TrustSource,
    ready: ArcSwapOption<Ready>,
}

/// A context with the certificates of a moment.
#[derive(Debug)]
struct Ready {
    key_pairs: Vec<Arc<KeyPair>>,
    trust: Option<Arc<TrustSettings>>,
    ticket_keys: Option<Arc<TicketKeys>>,
    with_alpn: Arc<ServerConfig>,
    /// For clients that speak none of our protocols.
    without_alpn: Arc<ServerConfig>,
    choice: Arc<Choice>,
    verifier: Option<Arc<Verifier>>,
}

impl ServerContext {
    /// Whether clients must show a certificate.
    pub fn requires_certificate(&self) -> bool {
        self.settings.require_client_certificate
    }

    /// A context. Contexts with equal fingerprints are interchangeable.
    pub fn new(
        fingerprint: [u8; 32],
        settings: ServerSettings,
        key_pairs: Vec<Source<KeyPair>>,
        trust: TrustSource,
    ) -> Self {
        Self { fingerprint, settings, key_pairs, trust, ready: ArcSwapOption::empty() }
    }

    /// What it was made of, as a hash.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The trust of its own beside that of this secret, if it uses that.
    pub fn combined_with(&self, secret: &str) -> Option<&TrustSettings> {
        self.trust.combined_with(secret)
    }

    /// The certificates that it shows now.
    pub fn key_pairs(&self) -> Vec<Arc<KeyPair>> {
        self.key_pairs.iter().filter_map(Source::get).collect()
    }

    /// The secrets that it waits for before it can serve.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let pairs = self.key_pairs.iter().filter_map(Source::secret);
        let tickets = self.ticket_keys().and_then(Source::secret);
        pairs.chain(tickets).chain(self.trust.secret.iter().map(|slot| slot.name()))
    }

    /// Names of certificates, own ones and roots, with the time until which each is good.
    pub fn ends(&self) -> Vec<(&str, SystemTime)> {
        let own = self
            .key_pairs
            .iter()
            .filter_map(|source| Some((source.secret().unwrap_or(UNNAMED_PAIR), source.get()?.not_after())));
        own.chain(self.trust.ends()).collect()
    }

    fn ticket_keys(&self) -> Option<&Source<TicketKeys>> {
        match &self.settings.tickets {
            Tickets::Shared(keys) => Some(keys),
            Tickets::Own | Tickets::Disabled => None,
        }
    }

    /// The form with the newest certificates; made anew when one of them has changed.
    fn ready(&self) -> Result<Arc<Ready>, TlsError> {
        let key_pairs = self.key_pairs.iter().map(Source::ready).collect::<Result<Vec<_>, _>>()?;
        let trust = self.trust.of_secret()?;
        let tickets = self.ticket_keys().map(Source::ready).transpose()?;
        let known = self.ready.load_full();
        if let Some(ready) = known.filter(|ready| ready.is_of(&key_pairs, trust.as_ref(), tickets.as_ref())) {
            return Ok(ready);
        }
        let ready = Arc::new(self.make(key_pairs, trust, tickets)?);
        self.ready.store(Some(ready.clone()));
        Ok(ready)
    }

    fn make(
        &self,
        key_pairs: Vec<Arc<KeyPair>>,
        secret: Option<Arc<TrustSettings>>,
        ticket_keys: Option<Arc<TicketKeys>>,
    ) -> Result<Ready, TlsError> {
        let settings = &self.settings;
        let trust = self.trust.with(secret.as_deref());
        let bound_to = self.bound_to(&key_pairs, trust.as_ref());
        let asks = settings.require_client_certificate || trust.as_ref().is_some_and(TrustSettings::verifies);
        // Whoever asks for names or for certificates of his own wants one, unless any is taken.
        // So does the SPIFFE validator, whatever else is said.
        let mandatory = settings.require_client_certificate
            || trust.as_ref().is_some_and(|trust| trust.domains.is_some())
            || trust.as_ref().is_some_and(|trust| trust.is_particular() && !trust.accept_untrusted);
        let verifier = asks.then(|| Arc::new(Verifier::of_clients(trust.unwrap_or_default(), mandatory)));
        let choice = Arc::new(Choice {
            key_pairs: key_pairs.clone(),
            full_scan_on_mismatch: settings.full_scan_on_mismatch,
            tls13: settings.params.speaks_tls13(),
        });
        let builder = ServerConfig::builder_with_provider(settings.params.provider().clone())
            .with_protocol_versions(settings.params.versions())?;
        let mut config = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        }
        .with_cert_resolver(choice.clone());
        config.ignore_client_order = !settings.prefer_client_ciphers;
        // Keys of this form's own are made anew: no session outlives a change of certificates or trust.
        let ticketer = match (&settings.tickets, &ticket_keys) {
            (Tickets::Disabled, _) => None,
            (_, Some(keys)) => {
                let inner = Arc::new(SharedTickets { keys: keys.clone(), bound_to });
                Some(Arc::new(Lasting { inner, lifetime: settings.session_lifetime.unwrap_or(SESSION_LIFETIME) }) as _)
            }
            (_, None) => Some(match settings.session_lifetime {
                Some(lifetime) => Arc::new(Lasting { inner: aws_lc_rs::Ticketer::new()?, lifetime }) as _,
                None => aws_lc_rs::Ticketer::new()?,
            }),
        };
        config.send_tls13_tickets = usize::from(ticketer.is_some());
        if let Some(ticketer) = ticketer {
            config.ticketer = ticketer;
        }
        config.session_storage = match settings.disable_stateful_resumption {
            true => Arc::new(NoServerSessionStorage {}),
            false => Arc::new(Remembered {
                inner: ServerSessionMemoryCache::new(SESSIONS),
                lifetime: settings.session_lifetime.unwrap_or(SESSION_LIFETIME),
            }),
        };
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Ready { key_pairs, trust: secret, ticket_keys, with_alpn: Arc::new(config), without_alpn, choice, verifier })
    }

    /// A hash of who is let in and what is shown. Certificates that are renewed under the same names are the same here, so that
    /// sessions live on.
    fn bound_to(&self, key_pairs: &[Arc<KeyPair>], trust: Option<&TrustSettings>) -> [u8; 32] {
        let mut hash = Hasher::default();
        hash.add(&[u8::from(self.settings.require_client_certificate)]);
        hash.add(trust.map(|trust| &trust.fingerprint[..]).unwrap_or_default());
        for pair in key_pairs {
            let facts = pair.facts();
            hash.add(facts.issuer.as_bytes());
            hash.add(facts.subject.as_bytes());
            let names = facts.dns.iter().chain(&facts.uris).chain(&facts.emails);
            names.for_each(|name| hash.add(name.as_bytes()));
            facts.ips.iter().for_each(|ip| hash.add(ip.to_string().as_bytes()));
        }
        hash.end()
    }

    /// Performs a handshake as server.
    ///
    /// # Errors
    /// When a secret has not come, the handshake takes longer than `timeout`, or it fails.
    pub async fn accept<IO>(&self, io: IO, timeout: Duration, pace: &Pace) -> Result<Secured<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let ready = self.ready()?;
        // Boxed: the state of a handshake would otherwise lie in the connection's future for its whole life.
        let handshake = Box::pin(async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
            let hello = start.client_hello();
            if self.settings.require_sni && hello.server_name().is_none() {
                return Err(std::io::Error::other("the client names no server"));
            }
            let local = ready.choice.choose(&hello).cloned();
            let offered = hello.alpn();
            let common = offered.is_none_or(|mut names| {
                names.any(|name| ready.with_alpn.alpn_protocols.iter().any(|ours| ours == name))
            });
            let config = if common { ready.with_alpn.clone() } else { ready.without_alpn.clone() };
            let limited = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(BUFFER_LIMIT));
            Ok::<_, std::io::Error>((pace.run(start.into_stream_with(config, limited)).await?, local))
        });
        let (stream, local) = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| TlsError::Timeout(timeout))?
            .map_err(TlsError::Handshake)?;
        let (_, connection) = stream.get_ref();
        let verified = match (&ready.verifier, connection.peer_certificates()) {
            (Some(verifier), Some([leaf, intermediates @ ..])) => {
                let check = |by: &Verifier| by.check(leaf, intermediates, None, UnixTime::now());
                match verifier.is_lenient() {
                    Some(strict) => check(strict).is_ok(),
                    // Its certificate may have ended since; nobody has looked at it in this handshake.
                    None if connection.handshake_kind() == Some(HandshakeKind::Resumed) => {
                        check(verifier).map_err(|error| TlsError::Handshake(std::io::Error::other(error)))?;
                        true
                    }
                    None => true,
                }
            }
            _ => false,
        };
        let info = TlsInfo::of(connection, verified, local);
        let server_name = connection.server_name().map(Into::into);
        Ok(Secured { stream: Box::new(stream.into()), info, server_name })
    }
}

impl Ready {
    fn is_of(
        &self,
        key_pairs: &[Arc<KeyPair>],
        trust: Option<&Arc<TrustSettings>>,
        ticket_keys: Option<&Arc<TicketKeys>>,
    ) -> bool {
        self.key_pairs.iter().zip(key_pairs).all(|(a, b)| Arc::ptr_eq(a, b))
            && same(self.trust.as_ref(), trust)
            && same(self.ticket_keys.as_ref(), ticket_keys)
    }
}

/// Chooses the certificate to show: by server name (whole, then by wildcard), and among those by what the client's algorithms
/// allow, elliptic curves first.
#[derive(Debug)]
struct Choice {
    key_pairs: Vec<Arc<KeyPair>>,
    full_scan_on_mismatch: bool,
    tls13: bool,
}

impl Choice {
    fn choose(&self, hello: &ClientHello<'_>) -> Option<&Arc<KeyPair>> {
        let only = match &self.key_pairs[..] {
            [] => return None,
            [only] => Some(only),
            _ => None,
        };
        if only.is_some() {
            return only;
        }
        let curves = takes_curves(hello, self.tls13);
        if let Some(name) = hello.server_name() {
            let named = |exact: bool| {
                let fits = move |pair: &&Arc<KeyPair>| {
                    let facts = pair.facts();
                    let whole = facts.dns.iter().any(|own| own.eq_ignore_ascii_case(name))
                        || facts.dns.is_empty() && facts.common_name.as_deref() == Some(name);
                    if exact { whole } else { facts.is_for(name) }
                };
                best(self.key_pairs.iter().filter(fits), curves)
            };
            if let Some(found) = named(true).or_else(|| named(false)) {
                return Some(found);
            }
            if !self.full_scan_on_mismatch {
                return self.key_pairs.first();
            }
        }
        best(self.key_pairs.iter(), curves).or(self.key_pairs.first())
    }
}

/// The first one of the kind that the client likes best, else one that it takes.
fn best<'a>(pairs: impl Iterator<Item = &'a Arc<KeyPair>> + Clone, curves: bool) -> Option<&'a Arc<KeyPair>> {
    pairs.clone().find(|pair| pair.is_ecdsa() == curves).or_else(|| pairs.clone().find(|pair| !pair.is_ecdsa()))
}

/// Whether a client takes certificates with keys on elliptic curves.
fn takes_curves(hello: &ClientHello<'_>, tls13: bool) -> bool {
    use rustls::SignatureScheme as Scheme;
    let signs = |scheme: &Scheme| {
        matches!(scheme, Scheme::ECDSA_NISTP256_SHA256 | Scheme::ECDSA_NISTP384_SHA384 | Scheme::ECDSA_NISTP521_SHA512)
    };
    let suite = |suite: &CipherSuite| {
        let code = u16::from(*suite);
        // TLS 1.3, and what rustls has of ECDHE_ECDSA.
        tls13 && (0x1301..=0x1305).contains(&code) || matches!(code, 0xc02b | 0xc02c | 0xcca9)
    };
    hello.signature_schemes().iter().any(signs) && hello.cipher_suites().iter().any(suite)
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(&hello).map(|pair| pair.certified().clone())
    }
}
