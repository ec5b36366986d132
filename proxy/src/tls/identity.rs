//! SPIFFE ids and how they are read from certificates.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_core::Identity;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A workload's identity as a peer proved it, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: the text for
/// comparisons and logs beside its parts. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIdentity {
    uri: Arc<str>,
    parts: Arc<Identity>,
}

/// Why a certificate or a text names no identity of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the mesh's form.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
    /// The certificate cannot be read.
    #[error("the certificate cannot be parsed")]
    Certificate,
    /// None or several URIs in the certificate.
    #[error("the certificate has {0} URI names, exactly one is needed")]
    UriCount(usize),
    /// Somebody else answered.
    #[error("the peer is {found}, {expected} was expected")]
    Mismatch {
        /// Whom we wanted.
        expected: String,
        /// Who answered.
        found: String,
    },
    /// The identity belongs to another mesh.
    #[error("the peer {found} is not of the trust domain {expected}")]
    TrustDomain {
        /// Ours.
        expected: String,
        /// The peer's SPIFFE id.
        found: String,
    },
    /// Not valid at this time (also checked for resumed sessions).
    #[error("the peer's certificate is not valid now")]
    Expired,
    /// The peer sent no certificate.
    #[error("the peer has no certificate")]
    Missing,
}

impl PeerIdentity {
    /// Reads a SPIFFE id.
    ///
    /// # Errors
    /// When the text is not of the mesh's form.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let parts = uri.parse::<Identity>().map_err(|_| IdentityError::Form(uri.chars().take(300).collect()))?;
        Ok(Self { uri: uri.into(), parts: Arc::new(parts) })
    }

    /// Reads the identity of a certificate: its only URI name. Nothing is verified here.
    ///
    /// # Errors
    /// When the certificate does not parse or does not name exactly one identity of the mesh's form.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(certificate.as_ref()).map_err(|_| IdentityError::Certificate)?;
        identity_in(&certificate)
    }

    /// Reads the identity of a certificate that was verified before, and checks that it is valid at `now`: a resumed
    /// session is not verified anew.
    ///
    /// # Errors
    /// As [`PeerIdentity::of_certificate`], or the certificate is not valid at `now`.
    pub fn of_valid_certificate(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(certificate.as_ref()).map_err(|_| IdentityError::Certificate)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
            return Err(IdentityError::Expired);
        }
        identity_in(&certificate)
    }

    /// The whole SPIFFE id.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The SPIFFE id, shared.
    pub fn shared_uri(&self) -> Arc<str> {
        self.uri.clone()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.parts.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.parts.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.parts.service_account
    }
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.uri)
    }
}

fn identity_in(certificate: &X509Certificate<'_>) -> Result<PeerIdentity, IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris[..] {
        [uri] => PeerIdentity::parse(uri),
        _ => Err(IdentityError::UriCount(uris.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_when_well_formed_then_its_parts_are_known() {
        let id = PeerIdentity::parse("spiffe://cluster.local/ns/shop/sa/front-end").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "front-end"));
    }

    #[test]
    fn identity_when_malformed_then_it_is_refused() {
        for text in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe://cluster.local/ns/a/sa/b\n",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "SPIFFE://cluster.local/ns/a/sa/b",
        ] {
            assert!(PeerIdentity::parse(text).is_err(), "{text:?}");
        }
        assert!(PeerIdentity::parse(&format!("spiffe://{}/ns/a/sa/b", "x".repeat(70_000))).is_err());
    }
}
