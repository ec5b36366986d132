//! What this workload shows to others and whom it trusts, as one immutable value that rotation replaces.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::MeshClients;
use super::{Alpn, PeerIdentity, TlsError};

/// Most root certificates that are trusted at a time (rotation needs two).
pub const MAX_ROOTS: usize = 32;

/// A certificate chain with its key, and the mesh's roots.
pub struct Credentials {
    identity: PeerIdentity,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    root_certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity.uri())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads PEM: the chain (leaf first), its private key, and the trusted roots.
    ///
    /// # Errors
    /// When a part does not parse, key and leaf do not belong together, the leaf names no identity, or there is no root.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, TlsError> {
        let bad = |what: &str, error: rustls_pki_types::pem::Error| TlsError::Credentials(format!("{what}: {error}"));
        let chain =
            CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|e| bad("chain", e))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("private key", e))?;
        let roots =
            CertificateDer::pem_slice_iter(roots).collect::<Result<Vec<_>, _>>().map_err(|e| bad("roots", e))?;
        Self::new(chain, key, roots)
    }

    /// As [`Credentials::from_pem`], from DER.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`].
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::Credentials("the chain is empty".into()))?;
        let identity = PeerIdentity::of_certificate(leaf)?;
        let (_, parsed) = X509Certificate::from_der(leaf.as_ref())
            .map_err(|error| TlsError::Credentials(format!("leaf certificate: {error}")))?;
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let not_before = time(parsed.validity().not_before.timestamp());
        let not_after = time(parsed.validity().not_after.timestamp());
        let serial = parsed.raw_serial_as_string();
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(TlsError::Credentials(format!("{} roots, between 1 and {MAX_ROOTS} are needed", roots.len())));
        }
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone()).map_err(|error| TlsError::Credentials(format!("root certificate: {error}")))?;
        }
        let store = Arc::new(store);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certified = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        let server = server_config(&provider, &store, &certified, identity.trust_domain())?;
        Ok(Self {
            identity,
            certified,
            roots: store,
            root_certificates: roots,
            provider,
            server: Arc::new(server),
            not_before,
            not_after,
            serial,
        })
    }

    /// Who we are.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// From when the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Names of the leaf and of the roots, as secrets of the mesh, with the time until which each is good.
    pub fn ends(&self) -> Vec<(&'static str, SystemTime)> {
        let end = |root: &CertificateDer<'_>| Some(super::CertificateFacts::read(root)?.not_after);
        let roots = self.root_certificates.iter().filter_map(end).min();
        [("default", self.not_after)].into_iter().chain(roots.map(|end| ("ROOTCA", end))).collect()
    }

    /// Serial number of the leaf, hexadecimal with colons.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The trusted roots.
    pub fn root_certificates(&self) -> &[CertificateDer<'static>] {
        &self.root_certificates
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    pub(super) fn shared_trust_domain(&self) -> Arc<str> {
        self.identity.trust_domain().into()
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.clone()
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

/// Shows one certificate whatever the client asks for.
#[derive(Debug)]
pub(super) struct OneKey(pub(super) Arc<CertifiedKey>);

impl ResolvesServerCert for OneKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for OneKey {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    certified: &Arc<CertifiedKey>,
    trust_domain: &str,
) -> Result<ServerConfig, TlsError> {
    let clients = MeshClients::new(roots.clone(), provider.clone(), trust_domain)?;
    // TLS 1.3 first; 1.2 stays because a stock Envoy's clients speak it unless told otherwise.
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(Arc::new(OneKey(certified.clone())));
    config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.as_str().into()).collect();
    // Tickets are sealed with a key of this value's own: no memory per client, and no resumption after a rotation.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Where the newest credentials are found. Clones are the same store; one writer (the identity task), many readers.
#[derive(Clone, Default)]
pub struct CredentialStore(Arc<ArcSwapOption<Credentials>>);

impl CredentialStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the credentials; handshakes that begin from now on use them.
    pub fn set(&self, credentials: Credentials) {
        self.0.store(Some(Arc::new(credentials)));
    }

    /// The newest credentials; `None` until the first have come.
    pub fn get(&self) -> Option<Arc<Credentials>> {
        self.0.load_full()
    }
}
