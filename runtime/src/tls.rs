//! TLS between Leno's own processes and between workloads: who the peer is counts, not what name was dialled.
//!
//! A certificate's chain is verified against the mesh's roots as usual; then its SPIFFE identity takes the place of the
//! host name. TLS 1.2 and 1.3, aws-lc-rs.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certs::{CertError, Keypair, describe, root_store, verify_spiffe};

/// Whose certificate a client accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedPeer {
    /// Exactly this SPIFFE identity.
    Identity(String),
    /// Any of these SPIFFE identities.
    AnyOf(Vec<String>),
    /// Any identity that the roots vouch for; the caller looks at the peer's certificate after the handshake.
    AnyTrusted,
}

/// What a server wants to see of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None is asked for.
    None,
    /// Verified when given; the caller decides about clients without.
    Optional,
    /// A client without one is refused.
    Required,
}

/// The crypto provider of all of Leno's TLS.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client's configuration: trusts `roots`, accepts `peer`, shows `own` when given. ALPN is left to the caller.
///
/// # Errors
///
/// [`CertError`], when roots or own certificate are unusable.
pub fn client_config(
    roots: &[CertificateDer<'static>],
    own: Option<Keypair>,
    peer: ExpectedPeer,
) -> Result<ClientConfig, CertError> {
    let provider = provider();
    let verifier = Arc::new(PeerVerifier { roots: root_store(roots)?, peer, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
        None => builder.with_no_client_auth(),
    })
}

/// A server's configuration that shows `own`. ALPN is left to the caller; who a client is, [`peer_identity`] says after
/// the handshake.
///
/// # Errors
///
/// [`CertError`], when roots or own certificate are unusable.
pub fn server_config(
    roots: &[CertificateDer<'static>],
    own: Keypair,
    clients: ClientCertificates,
) -> Result<ServerConfig, CertError> {
    server_config_with(roots, Arc::new(SingleCertAndKey::from(certified_key(own)?)), clients)
}

/// As [`server_config`], with a certificate that may change while the server runs.
///
/// # Errors
///
/// [`CertError`], when the roots are unusable.
pub fn server_config_with(
    roots: &[CertificateDer<'static>],
    own: Arc<dyn ResolvesServerCert>,
    clients: ClientCertificates,
) -> Result<ServerConfig, CertError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        ClientCertificates::None => builder.with_no_client_auth(),
        ClientCertificates::Optional | ClientCertificates::Required => {
            let verifier = WebPkiClientVerifier::builder_with_provider(root_store(roots)?, provider);
            let verifier =
                if clients == ClientCertificates::Optional { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| CertError::Roots(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    Ok(builder.with_cert_resolver(own))
}

/// A certificate with its key, checked to fit each other, as rustls takes it.
///
/// # Errors
///
/// [`CertError::Tls`], when they do not fit.
pub fn certified_key(own: Keypair) -> Result<CertifiedKey, CertError> {
    Ok(CertifiedKey::from_der(own.chain, own.key, &provider())?)
}

/// The SPIFFE identity that a verified peer showed; `None` when it showed no certificate.
///
/// # Errors
///
/// [`CertError`], when its certificate names no identity or more than one.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Option<String>, CertError> {
    match certificates.and_then(|certificates| certificates.first()) {
        None => Ok(None),
        Some(leaf) => Ok(Some(describe(leaf)?.identity()?.to_owned())),
    }
}

/// Verifies a server's chain, and its identity instead of its host name.
#[derive(Debug)]
pub struct PeerVerifier {
    roots: Arc<RootCertStore>,
    peer: ExpectedPeer,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    /// A verifier for a [`ClientConfig`] that is built by hand.
    pub fn new(roots: Arc<RootCertStore>, peer: ExpectedPeer) -> Self {
        PeerVerifier { roots, peer, provider: provider() }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let accepted = match &self.peer {
            ExpectedPeer::AnyTrusted => true,
            ExpectedPeer::Identity(expected) => verify_spiffe(end_entity, expected).is_ok(),
            ExpectedPeer::AnyOf(expected) => expected.iter().any(|one| verify_spiffe(end_entity, one).is_ok()),
        };
        if accepted {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::certs::{Authority, LeafSpec, spiffe_id};

    struct Mesh {
        authority: Authority,
        roots: Vec<CertificateDer<'static>>,
    }

    fn mesh() -> Mesh {
        let (certificate, key) =
            Authority::create("cluster.local", Duration::from_secs(3600), SystemTime::now()).unwrap();
        let authority = Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let roots = vec![authority.certificate().clone()];
        Mesh { authority, roots }
    }

    fn leaf(mesh: &Mesh, account: &str) -> Keypair {
        let identity = spiffe_id("cluster.local", "shop", account);
        let spec = LeafSpec { identity, lifetime: Duration::from_secs(60), ..LeafSpec::default() };
        mesh.authority.issue(&spec, SystemTime::now()).unwrap()
    }

    /// Passes bytes between a client and a server in memory until both are done or one refuses.
    fn handshake(client: ClientConfig, server: ServerConfig) -> Result<rustls::ServerConnection, Error> {
        let name = ServerName::try_from("any.name").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(Arc::new(server))?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut input = wire.as_slice();
            while !input.is_empty() {
                server.read_tls(&mut input).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut input = wire.as_slice();
            while !input.is_empty() {
                client.read_tls(&mut input).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(server)
    }

    #[test]
    fn handshake_when_identities_fit_then_the_server_knows_its_client() {
        let mesh = mesh();
        let expected = ExpectedPeer::Identity(spiffe_id("cluster.local", "shop", "reviews"));
        let client = client_config(&mesh.roots, Some(leaf(&mesh, "web")), expected).unwrap();
        let server = server_config(&mesh.roots, leaf(&mesh, "reviews"), ClientCertificates::Required).unwrap();
        let server = handshake(client, server).unwrap();
        assert_eq!(
            peer_identity(server.peer_certificates()).unwrap().as_deref(),
            Some("spiffe://cluster.local/ns/shop/sa/web")
        );
    }

    #[test]
    fn handshake_when_the_server_is_an_impostor_then_the_client_refuses() {
        let mesh = mesh();
        let expected = ExpectedPeer::Identity(spiffe_id("cluster.local", "shop", "reviews"));
        let client = client_config(&mesh.roots, None, expected).unwrap();
        let server = server_config(&mesh.roots, leaf(&mesh, "impostor"), ClientCertificates::None).unwrap();
        assert!(handshake(client, server).is_err());
    }

    #[test]
    fn handshake_when_the_root_is_another_then_the_client_refuses() {
        let (ours, theirs) = (mesh(), mesh());
        let expected = ExpectedPeer::Identity(spiffe_id("cluster.local", "shop", "reviews"));
        let client = client_config(&ours.roots, None, expected).unwrap();
        let server = server_config(&theirs.roots, leaf(&theirs, "reviews"), ClientCertificates::None).unwrap();
        assert!(handshake(client, server).is_err());
    }

    #[test]
    fn handshake_when_a_client_has_no_certificate_then_only_required_refuses() {
        let mesh = mesh();
        for (clients, accepted) in [(ClientCertificates::Optional, true), (ClientCertificates::Required, false)] {
            let client = client_config(&mesh.roots, None, ExpectedPeer::AnyTrusted).unwrap();
            let server = server_config(&mesh.roots, leaf(&mesh, "reviews"), clients).unwrap();
            assert_eq!(handshake(client, server).is_ok(), accepted, "{clients:?}");
        }
    }
}
