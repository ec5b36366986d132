//! Which peers a handshake lets through: webpki checks chain, time, extended key usage and signatures; which keys may sign others,
//! and the identity, is ours.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::facts::signers;
use super::{IdentityError, PeerIdentity, TlsError};

fn refuse(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Whether the peer is one of those that were expected; when none were named, anybody of the trust domain is. What ends in
/// `/` is the beginning of an identity: no identity ends so (SPIFFE-ID, section 2.2).
pub(super) fn check(found: &PeerIdentity, expected: &[Arc<str>], trust_domain: &str) -> Result<(), IdentityError> {
    if expected.is_empty() {
        return match found.trust_domain() == trust_domain {
            true => Ok(()),
            false => Err(IdentityError::TrustDomain { expected: trust_domain.to_owned(), found: found.to_string() }),
        };
    }
    let uri = found.uri();
    match expected.iter().any(|one| &**one == uri || one.ends_with('/') && uri.starts_with(&**one)) {
        true => Ok(()),
        false => Err(IdentityError::Mismatch { expected: expected.join(" or "), found: found.to_string() }),
    }
}

/// Lets through the identities that the endpoint may have.
#[derive(Debug)]
pub(super) struct ExactServer {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) expected: Vec<Arc<str>>,
    pub(super) trust_domain: Arc<str>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExactServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &signers(intermediates), now, algorithms)?;
        let found = PeerIdentity::of_certificate(end_entity).map_err(refuse)?;
        check(&found, &self.expected, &self.trust_domain).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Lets through every identity of our trust domain.
#[derive(Debug)]
pub(super) struct MeshClients {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl MeshClients {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domain: &str,
    ) -> Result<Self, TlsError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| TlsError::Credentials(format!("mesh roots: {error}")))?;
        Ok(Self { chain, trust_domain: trust_domain.to_owned() })
    }
}

impl ClientCertVerifier for MeshClients {
    /// None: the names of the mesh's roots help no peer to choose and cost bytes in every handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, &signers(intermediates), now)?;
        let found = PeerIdentity::of_certificate(end_entity).map_err(refuse)?;
        if found.trust_domain() != self.trust_domain {
            let (expected, found) = (self.trust_domain.clone(), found.to_string());
            return Err(refuse(IdentityError::TrustDomain { expected, found }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
