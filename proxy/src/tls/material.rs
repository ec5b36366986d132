//! What certificates and keys are made of: a chain with its key, and what a peer's certificate must satisfy. Both are read
//! when the configuration or a secret arrives, never in a handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureAlgorithm;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};

use super::facts::{CertificateFacts, Hasher};
use super::sans::SanMatch;

/// Certificates in one chain, or roots in one bundle, at most.
pub const MAX_CERTIFICATES: usize = 1024;

/// A chain with its key: what this proxy shows.
#[derive(Debug)]
pub struct KeyPair {
    certified: Arc<CertifiedKey>,
    facts: CertificateFacts,
}

impl KeyPair {
    /// Reads PEM: the chain (leaf first) and the private key of the leaf (PKCS #8, PKCS #1 or SEC 1, not encrypted).
    ///
    /// # Errors
    /// When a part does not parse, the algorithm is not supported, or key and leaf do not belong together; in words.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = certificates(chain).map_err(|error| format!("certificate chain: {error}"))?;
        let leaf = chain.first().ok_or("certificate chain: holds no certificate")?;
        let facts = CertificateFacts::read(leaf).ok_or("certificate chain: its first certificate cannot be parsed")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("private key: {error}"))?;
        let certified = CertifiedKey::from_der(chain, key, provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => "the private key does not belong to the certificate".to_owned(),
            other => format!("private key: {other}"),
        })?;
        Ok(Self { certified: Arc::new(certified), facts })
    }

    /// The chain and the key, as the TLS library takes them.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// What the leaf says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Whether the key is an elliptic curve's.
    pub fn is_ecdsa(&self) -> bool {
        self.certified.key.algorithm() == SignatureAlgorithm::ECDSA
    }

    /// Until when the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }
}

/// What the certificate of a peer must satisfy. Every part may be missing; without any, every certificate will do.
#[derive(Debug, Default, Clone)]
pub struct TrustSettings {
    /// The roots; each is trusted whatever signed it, as is a leaf that is one of them.
    pub roots: Option<Arc<Roots>>,
    /// Roots by the trust domain that a certificate's SPIFFE ID names; where they are set, they count instead of
    /// [`Self::roots`], and certificates of other trust domains, or without such a name, are refused.
    pub domains: Option<Arc<BTreeMap<Box<str>, Roots>>>,
    /// Revocation lists; with any, each certificate of a path needs one that does not name it.
    pub crls: Option<Arc<Vec<webpki::CertRevocationList<'static>>>>,
    /// Only the leaf is looked up in the revocation lists.
    pub only_leaf_crl: bool,
    /// Certificates whose time is over, or has not come, are taken.
    pub allow_expired: bool,
    /// Certificates that fail the conditions are taken, and known as such.
    pub accept_untrusted: bool,
    /// Conditions on the names of the leaf, of which one must hold.
    pub names: Vec<SanMatch>,
    /// SHA-256 of leaves, of which it must be one (or have one of [`Self::spki`]).
    pub hashes: Vec<[u8; 32]>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo).
    pub spki: Vec<[u8; 32]>,
    /// Intermediate certificates in a path at most; `None` is the library's bound.
    pub max_depth: Option<u32>,
    /// Clients are not told whom we trust.
    pub suppress_client_ca_list: bool,
    /// A hash of what it was made of.
    pub fingerprint: [u8; 32],
}

impl TrustSettings {
    /// These settings with what `other` says more or otherwise, as protocol buffers are merged.
    pub fn merged(&self, other: &TrustSettings) -> TrustSettings {
        let mut both = Hasher::default();
        both.add(&self.fingerprint);
        both.add(&other.fingerprint);
        let list = |a: &[[u8; 32]], b: &[[u8; 32]]| a.iter().chain(b).copied().collect();
        TrustSettings {
            roots: other.roots.clone().or_else(|| self.roots.clone()),
            domains: other.domains.clone().or_else(|| self.domains.clone()),
            crls: other.crls.clone().or_else(|| self.crls.clone()),
            only_leaf_crl: self.only_leaf_crl || other.only_leaf_crl,
            allow_expired: self.allow_expired || other.allow_expired,
            accept_untrusted: self.accept_untrusted || other.accept_untrusted,
            names: self.names.iter().chain(&other.names).cloned().collect(),
            hashes: list(&self.hashes, &other.hashes),
            spki: list(&self.spki, &other.spki),
            max_depth: other.max_depth.or(self.max_depth),
            suppress_client_ca_list: self.suppress_client_ca_list || other.suppress_client_ca_list,
            fingerprint: both.end(),
        }
    }

    /// Whether not every certificate that a root vouches for will do.
    pub fn is_particular(&self) -> bool {
        !self.names.is_empty() || !self.hashes.is_empty() || !self.spki.is_empty()
    }

    /// Whether anything is looked at in a certificate.
    pub fn verifies(&self) -> bool {
        self.has_roots() || self.is_particular()
    }

    /// Whether a path to a root is asked for.
    pub fn has_roots(&self) -> bool {
        self.roots.is_some() || self.domains.is_some()
    }
}

/// Trusted certificates.
#[derive(Debug)]
pub struct Roots {
    /// As paths end in them.
    pub anchors: Vec<TrustAnchor<'static>>,
    /// Whole.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Reads PEM.
    ///
    /// # Errors
    /// When it does not parse or holds no certificate; in words.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        Self::new(certificates(pem)?)
    }

    /// Trusts these.
    ///
    /// # Errors
    /// When one does not parse or there is none; in words.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        if certificates.is_empty() {
            return Err("holds no certificate".into());
        }
        let anchor = |certificate: &CertificateDer<'static>| {
            webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned()).map_err(|e| e.to_string())
        };
        let anchors = certificates.iter().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { anchors, certificates })
    }

    /// Until when the first of them is good.
    pub fn first_end(&self) -> Option<SystemTime> {
        self.certificates.iter().filter_map(|one| Some(CertificateFacts::read(one)?.not_after)).min()
    }
}

/// Reads revocation lists in PEM.
///
/// # Errors
/// When one does not parse or there is none; in words.
pub fn revocation_lists(pem: &[u8]) -> Result<Vec<webpki::CertRevocationList<'static>>, String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|list| {
            let list = list.map_err(|error| error.to_string())?;
            let list = webpki::OwnedCertRevocationList::from_der(&list).map_err(|error| error.to_string())?;
            Ok(webpki::CertRevocationList::from(list))
        })
        .collect::<Result<Vec<_>, String>>()?;
    if lists.is_empty() { Err("holds no revocation list".into()) } else { Ok(lists) }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if all.len() > MAX_CERTIFICATES { Err(format!("holds more than {MAX_CERTIFICATES} certificates")) } else { Ok(all) }
}

/// The provider of cryptography with all its algorithms, in our order.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> = std::sync::LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: super::params::ORDER.iter().map(|suite| suite.suite).collect(),
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}
