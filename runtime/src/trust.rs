//! What signs and what is trusted, as it lies in a Secret or a mounted folder, and the fingerprints by which processes tell
//! each other which of it they use.
//!
//! A rotation of the mesh's authority waits for acknowledgements, not for time: proxies and control planes say the fingerprint
//! of the roots that they trust ([`roots_sha256`]) and of what signed the certificate that they show ([`issuer_sha256`]), and
//! the operator compares them with those of the Secret ([`Signing::fingerprint`]).

use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certs::{Authority, CertError, Keypair, LeafSpec, certificates_from_pem, root_store};
use crate::tls::provider;

/// A SHA-256.
pub type Fingerprint = [u8; 32];

/// The line in front of the roots in the mesh's ConfigMap that says what signs now, so that proxies renew when that changes.
/// PEM (RFC 7468) allows text outside of its blocks.
const SIGNER_LINE: &str = "signer-sha256: ";

/// The fingerprint of a set of roots: over their DER forms, sorted, each once, one after the other.
pub fn roots_sha256(roots: &[CertificateDer<'_>]) -> Fingerprint {
    let mut sorted: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
    sorted.sort_unstable();
    sorted.dedup();
    sha256(&sorted)
}

/// The fingerprint of what signed a leaf: over the issuer's name, its key identifier, and the intermediates that come with
/// the leaf. `chain` begins with the leaf.
///
/// # Errors
///
/// [`CertError::Parse`].
pub fn issuer_sha256(chain: &[CertificateDer<'_>]) -> Result<Fingerprint, CertError> {
    let (leaf, intermediates) =
        chain.split_first().ok_or_else(|| unreadable("the chain holds no certificate".to_owned()))?;
    let leaf = parsed(leaf)?;
    let key = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(identifier) => identifier.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    });
    Ok(fingerprint(leaf.issuer().as_raw(), key.unwrap_or_default(), intermediates))
}

/// The roots of a ConfigMap: what signs now in front, then the roots.
pub fn announce(signer: &Fingerprint, roots: &str) -> String {
    format!("{SIGNER_LINE}{}\n{roots}", hex(signer))
}

/// What signs now, by the roots of a ConfigMap; `None` when they do not say.
pub fn announced(roots: &str) -> Option<Fingerprint> {
    let text = roots.lines().next()?.strip_prefix(SIGNER_LINE)?.trim();
    let mut fingerprint = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in fingerprint.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(fingerprint)
}

/// The roots of a ConfigMap without what stands in front of them.
pub fn without_announcement(roots: &str) -> &str {
    match roots.split_once('\n') {
        Some((line, rest)) if line.starts_with(SIGNER_LINE) => rest,
        _ => roots,
    }
}

/// A fingerprint in hexadecimal digits.
pub fn hex(fingerprint: &[u8]) -> String {
    use std::fmt::Write;
    fingerprint.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Signs, with the chain that its certificates need and the roots that the mesh trusts.
pub struct Signing {
    /// Signs.
    pub authority: Authority,
    /// What follows a leaf in its chain: empty when the authority is itself a root.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// All trusted roots.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Signing {
    /// Reads PEM texts: the authority's certificate and what leads from it to a root, its key, and the trusted roots.
    ///
    /// # Errors
    ///
    /// [`CertError`].
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, CertError> {
        let authority = Authority::from_pem(chain, key)?;
        let roots = certificates_from_pem(roots)?;
        let intermediates = intermediates(chain, &roots)?;
        Ok(Signing { authority, intermediates, roots })
    }

    /// Issues a certificate for a new key, with its whole chain.
    ///
    /// # Errors
    ///
    /// [`CertError`].
    pub fn issue(&self, spec: &LeafSpec, now: SystemTime) -> Result<Keypair, CertError> {
        let mut own = self.authority.issue(spec, now)?;
        own.chain.extend(self.intermediates.iter().cloned());
        Ok(own)
    }

    /// What [`issuer_sha256`] says of every certificate that this signs.
    ///
    /// # Errors
    ///
    /// [`CertError::Parse`].
    pub fn fingerprint(&self) -> Result<Fingerprint, CertError> {
        signer_fingerprint(self.authority.certificate(), &self.intermediates)
    }

    /// Whether the key is that of the certificate.
    pub fn owns_its_key(&self) -> bool {
        parsed(self.authority.certificate()).is_ok_and(|certificate| {
            certificate.public_key().subject_public_key.data.as_ref() == self.authority.public_key()
        })
    }

    /// Issues a certificate for `identity` and verifies it against `roots` as a peer would: that the key fits the certificate,
    /// that the chain is complete and in its time, that it may sign for this identity.
    ///
    /// # Errors
    ///
    /// [`CertError`], which says what a peer would say.
    pub fn prove(&self, identity: &str, roots: &[CertificateDer<'static>], now: SystemTime) -> Result<(), CertError> {
        let spec = LeafSpec {
            identity: identity.to_owned(),
            common_name: "probe".to_owned(),
            lifetime: std::time::Duration::from_secs(60),
            ..LeafSpec::default()
        };
        let own = self.issue(&spec, now)?;
        let (leaf, intermediates) =
            own.chain.split_first().ok_or_else(|| unreadable("the chain holds no certificate".to_owned()))?;
        let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let algorithms = provider().signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, root_store(roots)?.as_ref(), intermediates, time, algorithms)?;
        Ok(())
    }
}

/// Whether a certificate says of itself that it may sign others.
pub fn may_sign(der: &CertificateDer<'_>) -> bool {
    let Ok(certificate) = parsed(der) else { return false };
    let usage = certificate.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
    certificate.is_ca() && usage
}

/// Whether a certificate names itself as its issuer.
pub fn is_self_signed(der: &CertificateDer<'_>) -> bool {
    parsed(der).is_ok_and(|certificate| certificate.issuer().as_raw() == certificate.subject().as_raw())
}

/// What follows a leaf in its chain, by the authority's certificate with what leads to a root (PEM) and the trusted roots.
///
/// # Errors
///
/// [`CertError::Parse`].
pub fn intermediates(
    chain: &[u8],
    roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let mut intermediates = certificates_from_pem(chain)?;
    intermediates.retain(|certificate| !roots.contains(certificate));
    Ok(intermediates)
}

/// What [`issuer_sha256`] says of every certificate that an authority signs.
///
/// # Errors
///
/// [`CertError::Parse`].
pub fn signer_fingerprint(
    authority: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Fingerprint, CertError> {
    let authority = parsed(authority)?;
    let key = authority.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0.to_vec()),
        _ => None,
    });
    // Without one, the identifier is RFC 7093's first form, which is what is written into leaves.
    let key = key.unwrap_or_else(|| sha256(&[authority.public_key().raw])[..20].to_vec());
    Ok(fingerprint(authority.subject().as_raw(), &key, intermediates))
}

fn fingerprint(issuer: &[u8], key: &[u8], intermediates: &[CertificateDer<'_>]) -> Fingerprint {
    let mut parts = vec![issuer, key];
    parts.extend(intermediates.iter().map(AsRef::<[u8]>::as_ref));
    sha256(&parts)
}

fn sha256(parts: &[&[u8]]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|error| unreadable(error.to_string()))
}

fn unreadable(reason: String) -> CertError {
    CertError::Parse { what: "the certificate", reason }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certs::certificate_to_pem;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn root() -> (String, String) {
        Authority::create("cluster.local", Duration::from_secs(3600), SystemTime::now()).unwrap()
    }

    fn spec() -> LeafSpec {
        LeafSpec { identity: WEB.to_owned(), lifetime: Duration::from_secs(60), ..LeafSpec::default() }
    }

    #[test]
    fn roots_when_in_another_order_or_twice_then_have_the_same_fingerprint() {
        let (one, two) = (root().0, root().0);
        let of = |pem: String| roots_sha256(&certificates_from_pem(pem.as_bytes()).unwrap());
        assert_eq!(of(format!("{one}{two}")), of(format!("{two}{one}{two}")));
        assert_ne!(of(format!("{one}{two}")), of(one));
    }

    #[test]
    fn leaf_when_signed_by_a_root_then_its_issuer_is_the_signer() {
        let (certificate, key) = root();
        let signing = Signing::from_pem(certificate.as_bytes(), key.as_bytes(), certificate.as_bytes()).unwrap();
        let own = signing.issue(&spec(), SystemTime::now()).unwrap();
        assert_eq!(own.chain.len(), 1);
        assert_eq!(issuer_sha256(&own.chain).unwrap(), signing.fingerprint().unwrap());
        let (other, key) = root();
        let other = Signing::from_pem(other.as_bytes(), key.as_bytes(), other.as_bytes()).unwrap();
        assert_ne!(other.fingerprint().unwrap(), signing.fingerprint().unwrap());
    }

    #[test]
    fn leaf_when_signed_by_an_intermediate_then_brings_it_and_is_trusted_by_the_root() {
        let (certificate, key) = root();
        let lifetime = Duration::from_secs(1800);
        let (chain, key) = crate::certs::new_intermediate(&certificate, &key, "an intermediate", lifetime).unwrap();
        let signing = Signing::from_pem(chain.as_bytes(), key.as_bytes(), certificate.as_bytes()).unwrap();
        let own = signing.issue(&spec(), SystemTime::now()).unwrap();
        assert_eq!(own.chain.len(), 2);
        assert_eq!(issuer_sha256(&own.chain).unwrap(), signing.fingerprint().unwrap());
        signing.prove(WEB, &signing.roots, SystemTime::now()).unwrap();
    }

    #[test]
    fn authority_when_its_key_or_root_is_anothers_then_proves_nothing() {
        let ((certificate, key), (other, other_key)) = (root(), root());
        let mixed = Signing::from_pem(certificate.as_bytes(), other_key.as_bytes(), certificate.as_bytes()).unwrap();
        assert!(!mixed.owns_its_key());
        assert!(mixed.prove(WEB, &mixed.roots, SystemTime::now()).is_err());
        let signing = Signing::from_pem(certificate.as_bytes(), key.as_bytes(), other.as_bytes()).unwrap();
        assert!(signing.owns_its_key());
        assert!(signing.prove(WEB, &signing.roots, SystemTime::now()).is_err());
    }

    #[test]
    fn announcement_when_written_and_read_then_is_the_same_and_the_roots_stay_pem() {
        let (certificate, _) = root();
        let signer = [7; 32];
        let text = announce(&signer, &certificate);
        assert_eq!(announced(&text), Some(signer));
        assert_eq!(without_announcement(&text), certificate);
        let roots = certificates_from_pem(text.as_bytes()).unwrap();
        assert_eq!(certificate_to_pem(&roots[0]).trim(), certificate.replace("\r\n", "\n").trim());
        assert_eq!((announced(&certificate), without_announcement(&certificate)), (None, certificate.as_str()));
    }
}
