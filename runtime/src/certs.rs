//! Certificates: making an authority, issuing leaves, reading and checking SPIFFE identities.
//!
//! Pure functions over bytes; the time is handed in. Keys are ECDSA P-256. Identities follow the X.509-SVID standard of
//! SPIFFE: exactly one URI name, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. TLS on top of it is in
//! [`crate::tls`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How far in the past a certificate begins, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(300);
/// The object identifier of the subject's `serialNumber` attribute.
const SERIAL_NUMBER_OID: [u64; 4] = [2, 5, 4, 5];

/// Something about a certificate or a key is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A certificate, key or request could not be made or signed.
    #[error("cannot make {what}: {source}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// What the library said.
        source: rcgen::Error,
    },
    /// Bytes that do not parse.
    #[error("{what} does not parse: {reason}")]
    Parse {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A certificate without an identity, or with more than one.
    #[error("the certificate has {0} URI names; an identity is exactly one")]
    NotOneIdentity(usize),
    /// A certificate of somebody else.
    #[error("the certificate is of {found}, not of {expected}")]
    OtherIdentity {
        /// The identity that it has.
        found: String,
        /// The identity that was wanted.
        expected: String,
    },
    /// The roots are unusable.
    #[error("the trusted roots are unusable: {0}")]
    Roots(String),
    /// rustls refused the certificate or the key.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes aws-lc-rs the crypto provider of the process. Call it once at start; a second call changes nothing.
pub fn install_crypto_provider() {
    // The only error is that one is installed already.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

/// A certificate chain (leaf first) and its private key.
pub struct Keypair {
    /// The leaf and its intermediates, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl Keypair {
    /// Reads both from PEM.
    ///
    /// # Errors
    ///
    /// [`CertError::Parse`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertError::Parse { what: "the private key", reason: error.to_string() })?;
        Ok(Keypair { chain: certificates_from_pem(chain)?, key })
    }
}

impl Clone for Keypair {
    fn clone(&self) -> Self {
        Keypair { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// The certificates in a PEM text: at least one.
///
/// # Errors
///
/// [`CertError::Parse`], when there is none or one does not parse.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let what = "the PEM certificate list";
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| CertError::Parse { what, reason: error.to_string() })?;
    if certificates.is_empty() {
        return Err(CertError::Parse { what, reason: "it holds no certificate".to_owned() });
    }
    Ok(certificates)
}

/// The PEM text of one certificate.
pub fn certificate_to_pem(der: &[u8]) -> String {
    to_pem(der, "CERTIFICATE")
}

/// A PKCS#8 key as PEM, to be handed to another process and never to a file.
pub fn key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    to_pem(key.secret_der(), "PRIVATE KEY")
}

fn to_pem(der: &[u8], label: &str) -> String {
    use std::fmt::Write;
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::with_capacity(der.len() * 4 / 3 + 4);
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            if position <= chunk.len() {
                base64.push(char::from(ALPHABET[(bits >> (18 - 6 * position)) as usize & 63]));
            } else {
                base64.push('=');
            }
        }
    }
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        writeln!(pem, "{line}").ok();
        rest = tail;
    }
    writeln!(pem, "-----END {label}-----").ok();
    pem
}

/// A store of trusted roots.
///
/// # Errors
///
/// [`CertError::Roots`], when there is none or one is unusable.
pub fn root_store(roots: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, CertError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| CertError::Roots(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(CertError::Roots("there is none".to_owned()));
    }
    Ok(Arc::new(store))
}

/// What a leaf certificate says.
#[derive(Clone, Debug, Default)]
pub struct LeafSpec {
    /// The SPIFFE identity, the only URI name.
    pub identity: String,
    /// DNS names, for servers that stock clients dial by name.
    pub dns_names: Vec<String>,
    /// CN of the subject, for people and for binding to a pod.
    pub common_name: String,
    /// O of the subject.
    pub organization: Option<String>,
    /// The `serialNumber` attribute of the subject (not the certificate's own serial number).
    pub subject_serial: Option<String>,
    /// How long it lasts from now.
    pub lifetime: Duration,
}

/// An authority that signs certificates: a root, or an intermediate under one.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Authority {
    /// Makes a new self-signed root. Returns its certificate and key as PEM texts.
    ///
    /// # Errors
    ///
    /// [`CertError::Make`].
    pub fn create(trust_domain: &str, lifetime: Duration, now: SystemTime) -> Result<(String, String), CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|source| CertError::Make { what: "the key of the root", source })?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("Leno root of {trust_domain}"));
        name.push(DnType::OrganizationName, trust_domain);
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + lifetime);
        let certificate =
            params.self_signed(&key).map_err(|source| CertError::Make { what: "the root certificate", source })?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Reads an authority: its certificate and key, PEM.
    ///
    /// # Errors
    ///
    /// [`CertError`], when either does not parse.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let certificate = certificates_from_pem(certificate)?.swap_remove(0);
        let text = std::str::from_utf8(key)
            .map_err(|error| CertError::Parse { what: "the authority's key", reason: error.to_string() })?;
        let key = KeyPair::from_pem(text)
            .map_err(|source| CertError::Parse { what: "the authority's key", reason: source.to_string() })?;
        let not_after = describe(&certificate)?.not_after;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|source| CertError::Make { what: "an issuer of the authority's certificate", source })?;
        Ok(Authority { certificate, issuer, not_after })
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The public key that goes with the key that signs, as it stands in a certificate.
    pub fn public_key(&self) -> &[u8] {
        self.issuer.key().der_bytes()
    }

    /// When the authority's own certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues a certificate for a new key.
    ///
    /// # Errors
    ///
    /// [`CertError`].
    pub fn issue(&self, spec: &LeafSpec, now: SystemTime) -> Result<Keypair, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|source| CertError::Make { what: "a leaf key", source })?;
        let leaf = self.sign(spec, &key, now)?;
        Ok(Keypair { chain: vec![leaf], key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// Issues a certificate for the key in a PKCS#10 request, whose signature is checked and whose other content is
    /// ignored.
    ///
    /// # Errors
    ///
    /// [`CertError::Parse`], when the request does not parse or is not signed by its own key.
    pub fn issue_for_request(
        &self,
        request: &[u8],
        spec: &LeafSpec,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, CertError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| CertError::Parse { what: "the certificate request", reason: error.to_string() })?;
        self.sign(spec, &request.public_key, now)
    }

    /// A leaf never outlives its authority: past the end of it, clients would refuse the chain anyway.
    fn sign(
        &self,
        spec: &LeafSpec,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, CertError> {
        let failed = |source| CertError::Make { what: "a leaf certificate", source };
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, spec.common_name.as_str());
        if let Some(organization) = &spec.organization {
            name.push(DnType::OrganizationName, organization.as_str());
        }
        if let Some(serial) = &spec.subject_serial {
            name.push(DnType::from_oid(&SERIAL_NUMBER_OID), serial.as_str());
        }
        params.distinguished_name = name;
        let identity = Ia5String::try_from(spec.identity.as_str()).map_err(failed)?;
        params.subject_alt_names.push(SanType::URI(identity));
        for host in &spec.dns_names {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(host.as_str()).map_err(failed)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from((now + spec.lifetime).min(self.not_after));
        let leaf = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok(leaf.der().clone())
    }
}

/// Makes an authority under another one, for meshes whose root is kept elsewhere. Gives its certificate and its key, PEM.
///
/// # Errors
///
/// [`CertError`].
pub fn new_intermediate(
    above: &str,
    above_key: &str,
    name: &str,
    lifetime: Duration,
) -> Result<(String, String), CertError> {
    let failed = |source| CertError::Make { what: "an intermediate", source };
    let above = Authority::from_pem(above.as_bytes(), above_key.as_bytes())?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from((now + lifetime).min(above.not_after));
    let certificate = params.signed_by(&key, &above.issuer).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Makes a new key and a certificate request for it (DER). Only the public key in it means anything to the signer.
///
/// # Errors
///
/// [`CertError::Make`].
pub fn new_request() -> Result<(PrivateKeyDer<'static>, Vec<u8>), CertError> {
    let key =
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| CertError::Make { what: "a key", source })?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request =
        params.serialize_request(&key).map_err(|source| CertError::Make { what: "a certificate request", source })?;
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), request.der().to_vec()))
}

/// What a certificate says, as far as Leno cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// The URI names.
    pub uris: Vec<String>,
    /// CN of the subject.
    pub common_name: Option<String>,
    /// O of the subject.
    pub organization: Option<String>,
    /// The `serialNumber` attribute of the subject.
    pub subject_serial: Option<String>,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

impl CertInfo {
    /// The SPIFFE identity.
    ///
    /// # Errors
    ///
    /// [`CertError::NotOneIdentity`], unless there is exactly one URI name.
    pub fn identity(&self) -> Result<&str, CertError> {
        match self.uris.as_slice() {
            [only] => Ok(only),
            uris => Err(CertError::NotOneIdentity(uris.len())),
        }
    }

    /// When half of its life is over: the time to renew.
    pub fn half_life(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }
}

/// Reads a certificate. Nothing is verified here: TLS did that, or the caller must.
///
/// # Errors
///
/// [`CertError::Parse`].
pub fn describe(der: &[u8]) -> Result<CertInfo, CertError> {
    let parse = |reason: String| CertError::Parse { what: "the certificate", reason };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| parse(error.to_string()))?;
    let mut uris = Vec::new();
    if let Some(names) = certificate.subject_alternative_name().map_err(|error| parse(error.to_string()))? {
        for name in &names.value.general_names {
            if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            }
        }
    }
    let subject = certificate.subject();
    let first = |mut attributes: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>| {
        attributes.next().and_then(|attribute| attribute.as_str().ok()).map(str::to_owned)
    };
    let time = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
    Ok(CertInfo {
        uris,
        common_name: first(Box::new(subject.iter_common_name())),
        organization: first(Box::new(subject.iter_organization())),
        subject_serial: first(Box::new(subject.iter_by_oid(&x509_parser::oid_registry::OID_X509_SERIALNUMBER))),
        not_before: time(certificate.validity().not_before),
        not_after: time(certificate.validity().not_after),
    })
}

/// Checks that a certificate has exactly the identity `expected`.
///
/// # Errors
///
/// [`CertError`] that names what was found instead.
pub fn verify_spiffe(der: &[u8], expected: &str) -> Result<(), CertError> {
    let info = describe(der)?;
    let found = info.identity()?;
    if found == expected {
        return Ok(());
    }
    Err(CertError::OtherIdentity { found: found.to_owned(), expected: expected.to_owned() })
}

/// The SPIFFE identity of a service account.
pub fn spiffe_id(trust_domain: &str, namespace: &str, service_account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Authority {
        let (certificate, key) =
            Authority::create("cluster.local", Duration::from_secs(3600), SystemTime::now()).unwrap();
        Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    fn spec(lifetime: Duration) -> LeafSpec {
        LeafSpec {
            identity: spiffe_id("cluster.local", "shop", "reviews"),
            dns_names: vec!["localhost".to_owned()],
            common_name: "reviews-1".to_owned(),
            organization: Some("shop".to_owned()),
            subject_serial: Some("4a1c-uid".to_owned()),
            lifetime,
        }
    }

    #[test]
    fn leaf_when_issued_for_a_request_then_says_what_the_issuer_wanted() -> Result<(), CertError> {
        let authority = authority();
        let (_, request) = new_request()?;
        let leaf = authority.issue_for_request(&request, &spec(Duration::from_secs(60)), SystemTime::now())?;
        let info = describe(&leaf)?;
        assert_eq!(info.identity()?, "spiffe://cluster.local/ns/shop/sa/reviews");
        assert_eq!(info.common_name.as_deref(), Some("reviews-1"));
        assert_eq!(info.organization.as_deref(), Some("shop"));
        assert_eq!(info.subject_serial.as_deref(), Some("4a1c-uid"));
        verify_spiffe(&leaf, "spiffe://cluster.local/ns/shop/sa/reviews")
    }

    #[test]
    fn leaf_when_longer_than_its_authority_then_ends_with_it() -> Result<(), CertError> {
        let authority = authority();
        let leaf = authority.issue(&spec(Duration::from_secs(9_000_000)), SystemTime::now())?;
        assert_eq!(describe(&leaf.chain[0])?.not_after, authority.not_after());
        Ok(())
    }

    #[test]
    fn identity_when_it_is_another_then_the_error_names_both() -> Result<(), CertError> {
        let leaf = authority().issue(&spec(Duration::from_secs(60)), SystemTime::now())?;
        let error = verify_spiffe(&leaf.chain[0], "spiffe://cluster.local/ns/shop/sa/ratings").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sa/reviews") && text.contains("sa/ratings"), "{text}");
        Ok(())
    }

    #[test]
    fn request_when_it_is_changed_then_is_refused() -> Result<(), CertError> {
        let (_, mut request) = new_request()?;
        if let Some(last) = request.last_mut() {
            *last ^= 1;
        }
        let result = authority().issue_for_request(&request, &spec(Duration::from_secs(60)), SystemTime::now());
        assert!(matches!(result, Err(CertError::Parse { .. })));
        Ok(())
    }

    #[test]
    fn pem_when_written_and_read_then_is_the_same() -> Result<(), CertError> {
        let authority = authority();
        let pem = certificate_to_pem(authority.certificate());
        assert_eq!(certificates_from_pem(pem.as_bytes())?, vec![authority.certificate().clone()]);
        Ok(())
    }
}
