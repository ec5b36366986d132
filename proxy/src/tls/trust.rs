//! Whether a peer's certificate is taken: the path to a root, its time, revocation, names and fingerprints.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::facts::{CertificateFacts, signers};
use super::material::{Roots, TrustSettings};
use super::params::algorithms;
use super::sans::{SanKind, SanMatch, dns_matches};

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// No path to a root, a time that is over, a revoked certificate.
    #[error("certificate of the peer: {0}")]
    Path(webpki::Error),
    /// It cannot be read.
    #[error("certificate of the peer: cannot be parsed")]
    Unreadable,
    /// Its key is for something else.
    #[error("certificate of the peer: its keyUsage has no digitalSignature")]
    KeyUsage,
    /// It names no workload of a trusted domain as SPIFFE wants it (SPIFFE X.509-SVID, sections 2 to 5).
    #[error("certificate of the peer: names no workload of a trust domain that is trusted")]
    Domain,
    /// None of the conditions on its names holds.
    #[error("certificate of the peer: none of its names is expected")]
    Names,
    /// It is not for the server name that was asked for.
    #[error("certificate of the peer: not for `{0}`")]
    ServerName(String),
    /// It is none of the listed ones.
    #[error("certificate of the peer: neither its fingerprint nor that of its key is listed")]
    Fingerprint,
}

/// Which side's certificates are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Clients'.
    Clients,
    /// Servers'.
    Servers,
}

/// Verifies the certificates of one side's peers.
#[derive(Debug)]
pub struct Verifier {
    settings: TrustSettings,
    of: Of,
    /// Clients must show a certificate.
    mandatory: bool,
    /// The server name must be among the names; replaces the conditions on names.
    match_server_name: bool,
    hints: Vec<DistinguishedName>,
}

impl Verifier {
    /// A verifier of clients' certificates, which may be missing unless they are `mandatory`.
    pub fn of_clients(settings: TrustSettings, mandatory: bool) -> Self {
        let all = settings.roots.as_deref().into_iter().chain(settings.domains.iter().flat_map(|all| all.values()));
        let told = all.filter(|_| !settings.suppress_client_ca_list).flat_map(|roots| &roots.anchors);
        let hints = told.map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Self { settings, of: Of::Clients, mandatory, match_server_name: false, hints }
    }

    /// A verifier of servers' certificates.
    pub fn of_servers(settings: TrustSettings, match_server_name: bool) -> Self {
        Self { settings, of: Of::Servers, mandatory: true, match_server_name, hints: Vec::new() }
    }

    /// Whether nothing is asked of certificates.
    pub fn takes_all(&self) -> bool {
        !self.settings.verifies() && !self.match_server_name
    }

    /// Itself, where certificates that fail are taken all the same: only a second look tells which they are.
    pub fn is_lenient(&self) -> Option<&Self> {
        (self.settings.accept_untrusted && self.settings.domains.is_none()).then_some(self)
    }

    /// Verifies a chain, leaf first. `server_name` is the one that was asked for, if there is one.
    ///
    /// # Errors
    /// When the chain does not satisfy the settings (also where such certificates are taken all the same).
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: Option<&str>,
        now: UnixTime,
    ) -> Result<(), Untrusted> {
        let facts = CertificateFacts::read(leaf);
        if self.of == Of::Clients && facts.as_ref().is_some_and(|facts| !facts.may_sign) {
            return Err(Untrusted::KeyUsage);
        }
        if self.takes_all() {
            return Ok(());
        }
        let facts = facts.ok_or(Untrusted::Unreadable)?;
        let roots = match &self.settings.domains {
            Some(domains) => Some(domain(&facts).and_then(|name| domains.get(name)).ok_or(Untrusted::Domain)?),
            None => self.settings.roots.as_deref(),
        };
        if let Some(roots) = roots {
            self.path(roots, leaf, intermediates, &facts, now)?;
        }
        let spiffe = self.settings.domains.is_some();
        if self.match_server_name
            && let Some(name) = server_name
            && !facts.dns.iter().any(|pattern| dns_matches(pattern, name))
            && !name.parse().is_ok_and(|address: IpAddr| facts.ips.contains(&address))
        {
            return Err(Untrusted::ServerName(name.to_owned()));
        }
        // A SPIFFE ID is the only name that counts beside trust domains.
        let holds = |name: &SanMatch| (!spiffe || name.kind == SanKind::Uri) && name.holds(&facts);
        let names = &self.settings.names;
        if (spiffe || !self.match_server_name) && !names.is_empty() && !names.iter().any(holds) {
            return Err(Untrusted::Names);
        }
        let (hashes, spki) = (&self.settings.hashes, &self.settings.spki);
        let listed = hashes.contains(&facts.sha256) || spki.contains(&facts.spki_sha256);
        let asked = !hashes.is_empty() || !spki.is_empty();
        if asked && !listed {
            return Err(Untrusted::Fingerprint);
        }
        Ok(())
    }

    fn path(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        facts: &CertificateFacts,
        now: UnixTime,
    ) -> Result<(), Untrusted> {
        // A leaf that is trusted itself, such as a self-signed one, needs no path.
        if self.settings.crls.is_none() && roots.certificates.iter().any(|root| root.as_ref() == leaf.as_ref()) {
            let seconds = Duration::from_secs(now.as_secs());
            let valid = self.settings.allow_expired || facts.is_valid_at(SystemTime::UNIX_EPOCH + seconds);
            let late = webpki::Error::CertExpired { time: now, not_after: now };
            return if valid { Ok(()) } else { Err(Untrusted::Path(late)) };
        }
        let signers = signers(intermediates);
        match self.path_at(roots, leaf, &signers, now) {
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
                if self.settings.allow_expired =>
            {
                let moment = common_moment(facts, intermediates);
                self.path_at(roots, leaf, &signers, moment.unwrap_or(now))
            }
            result => result,
        }
        .map_err(Untrusted::Path)
    }

    fn path_at(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        signers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(leaf)?;
        let usage = match self.of {
            Of::Clients => KeyUsage::client_auth(),
            Of::Servers => KeyUsage::server_auth(),
        };
        let lists: Vec<&webpki::CertRevocationList<'_>> =
            self.settings.crls.iter().flat_map(|lists| lists.iter()).collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let depth =
                if self.settings.only_leaf_crl { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
            options
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let path = leaf.verify_for_usage(algorithms().all, &roots.anchors, signers, now, usage, revocation, None)?;
        // Of clients' certificates Envoy counts the one that an intermediate signs as well.
        let most = self.settings.max_depth.map(|depth| match self.of {
            Of::Clients => depth.saturating_sub(1) as usize,
            Of::Servers => depth as usize,
        });
        match most {
            Some(most) if path.intermediate_certificates().count() > most => {
                Err(webpki::Error::MaximumPathDepthExceeded)
            }
            _ => Ok(()),
        }
    }

    fn verdict(&self, result: Result<(), Untrusted>) -> Result<(), Error> {
        match result {
            // A key that may not sign shows nothing, whomever it is shown to.
            Err(error) if self.is_lenient().is_none() || matches!(error, Untrusted::KeyUsage) => Err(refusal(error)),
            _ => Ok(()),
        }
    }
}

/// The trust domain of the workload that a leaf is for; authorities are none, nor is what has several names.
fn domain(facts: &CertificateFacts) -> Option<&str> {
    let [uri] = &facts.uris[..] else { return None };
    let uri = Some(uri).filter(|_| !facts.may_be_authority)?;
    let (domain, _) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    Some(domain)
}

/// A moment at which the leaf and all intermediates are valid, if there is one.
fn common_moment(leaf: &CertificateFacts, intermediates: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let others = intermediates.iter().filter_map(CertificateFacts::read);
    let (from, until) = others.fold((leaf.not_before, leaf.not_after), |(from, until), facts| {
        (from.max(facts.not_before), until.min(facts.not_after))
    });
    let moment = until.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (from <= until).then(|| UnixTime::since_unix_epoch(moment))
}

/// The alert that a peer gets fits the reason.
fn refusal(error: Untrusted) -> Error {
    use webpki::Error as Path;
    Error::InvalidCertificate(match error {
        Untrusted::Path(Path::CertExpired { .. }) => CertificateError::Expired,
        Untrusted::Path(Path::CertNotValidYet { .. }) => CertificateError::NotValidYet,
        Untrusted::Path(Path::CertRevoked) => CertificateError::Revoked,
        Untrusted::Path(Path::UnknownRevocationStatus) => CertificateError::UnknownRevocationStatus,
        Untrusted::Path(Path::UnknownIssuer) => CertificateError::UnknownIssuer,
        Untrusted::Path(Path::BadDer) | Untrusted::Unreadable => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// The name that was asked for; the address that stands for none is none.
fn name_of<'a>(name: &'a ServerName<'_>) -> Option<Cow<'a, str>> {
    match name {
        ServerName::DnsName(name) => Some(name.as_ref().into()),
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address);
            (!address.is_unspecified()).then(|| address.to_string().into())
        }
        _ => None,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verdict(self.check(end_entity, intermediates, name_of(server_name).as_deref(), now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verdict(self.check(end_entity, intermediates, None, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
