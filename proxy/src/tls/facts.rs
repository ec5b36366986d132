//! What a certificate says, read once when somebody asks: names, subject, serial number, times, fingerprints.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// URI names.
    pub uris: Vec<Box<str>>,
    /// DNS names.
    pub dns: Vec<Box<str>>,
    /// E-mail names.
    pub emails: Vec<Box<str>>,
    /// Names of other kinds that are texts.
    pub other_names: Vec<Box<str>>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// The common name of the subject.
    pub common_name: Option<Box<str>>,
    /// The subject in the form of RFC 2253.
    pub subject: Box<str>,
    /// The issuer in the form of RFC 2253.
    pub issuer: Box<str>,
    /// The serial number: hexadecimal, lower case, without leading zeros in front of the first byte.
    pub serial: Box<str>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Its key may sign, as a handshake wants it: `keyUsage` is not there or has `digitalSignature`.
    pub may_sign: bool,
    /// It may sign other certificates, or does not say what its key is for.
    pub may_be_authority: bool,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub spki_sha256: [u8; 32],
}

impl CertificateFacts {
    /// Reads a certificate; `None` when it cannot be parsed. Nothing is verified.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate.as_ref()).ok()?;
        let mut facts = Self {
            uris: Vec::new(),
            dns: Vec::new(),
            emails: Vec::new(),
            other_names: Vec::new(),
            ips: Vec::new(),
            common_name: parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(Into::into),
            subject: rfc2253(parsed.subject()).into(),
            issuer: rfc2253(parsed.issuer()).into(),
            serial: hex(strip(parsed.raw_serial())).into(),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            may_sign: parsed.key_usage().ok()?.is_none_or(|usage| usage.value.digital_signature()),
            may_be_authority: parsed.is_ca()
                || parsed.key_usage().ok()?.is_none_or(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()),
            sha256: sha256(certificate.as_ref()),
            spki_sha256: sha256(parsed.public_key().raw),
        };
        let names = parsed.subject_alternative_name().ok()?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).into()),
                GeneralName::DNSName(name) => facts.dns.push((*name).into()),
                GeneralName::RFC822Name(name) => facts.emails.push((*name).into()),
                GeneralName::OtherName(_, value) => facts.other_names.extend(other_name(value)),
                GeneralName::IPAddress(bytes) => facts.ips.extend(address(bytes)),
                _ => {}
            }
        }
        Some(facts)
    }

    /// Whether it is valid at this moment.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Whether a server name is one of its DNS names, or of its common name where it has none (RFC 6125, section 6.4).
    pub fn is_for(&self, server_name: &str) -> bool {
        let covers = |name: &str| super::sans::dns_matches(name, server_name);
        if self.dns.is_empty() {
            self.common_name.as_deref().is_some_and(covers)
        } else {
            self.dns.iter().any(|n| covers(n))
        }
    }
}

/// Whether a certificate's key may sign others: `keyUsage` is not there or has `keyCertSign` (RFC 5280, section 4.2.1.3). What cannot
/// be parsed may not.
fn may_sign_others(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate.as_ref());
    let usage = parsed.as_ref().ok().and_then(|(_, parsed)| parsed.key_usage().ok());
    usage.is_some_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// Those of a chain that may stand between a leaf and its root. webpki looks at `basicConstraints`, and not at what keys are for.
pub(super) fn signers<'c>(intermediates: &'c [CertificateDer<'_>]) -> Vec<CertificateDer<'c>> {
    let signers = intermediates.iter().filter(|certificate| may_sign_others(certificate));
    signers.map(|certificate| CertificateDer::from(certificate.as_ref())).collect()
}

/// A certificate as PEM text.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate.as_ref());
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(64) {
        pem.push_str(&text[at..(at + 64).min(text.len())]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The same as a URL may carry it, which is how Envoy writes it into headers and logs.
pub fn url_pem(certificate: &CertificateDer<'_>) -> String {
    let pem = pem(certificate);
    let mut out = String::with_capacity(pem.len() + pem.len() / 8);
    for c in pem.chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out
}

/// Bytes in hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hashes what a context is made of, so that equal ones are known as equal.
pub struct Hasher(aws_lc_rs::digest::Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }
}

impl Hasher {
    /// Adds one part.
    pub fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    /// The hash of all parts.
    pub fn end(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

/// SHA-1, by which old programs know certificates; nothing is trusted because of it.
pub(crate) fn sha1(bytes: &[u8]) -> [u8; 20] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let mut out = [0; 20];
    out.copy_from_slice(digest.as_ref());
    out
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

fn strip(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros.min(serial.len().saturating_sub(1))..]
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The text that a name of another kind is, if it is one: a string of ASN.1, most likely within a tag of its own.
fn other_name(value: &[u8]) -> Option<Box<str>> {
    let (tag, content) = element(value)?;
    let (tag, content) = if tag == 0xa0 { element(content)? } else { (tag, content) };
    // UTF-8, numeric, printable, T61, IA5, visible.
    let text = matches!(tag, 0x0c | 0x12 | 0x13 | 0x14 | 0x16 | 0x1a);
    std::str::from_utf8(content).ok().filter(|_| text).map(Into::into)
}

/// The tag and the content of an element of DER.
fn element(der: &[u8]) -> Option<(u8, &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = match length {
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        short => (usize::from(*short), rest),
    };
    Some((*tag, rest.get(..length)?))
}

/// A distinguished name as RFC 2253 writes it: the last part first, without blanks between the parts.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for part in name.iter_rdn().collect::<Vec<_>>().into_iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            match oid2abbrev(attribute.attr_type(), oid_registry()) {
                // As OpenSSL and its kin have it.
                Ok("Email") => text.push_str("emailAddress"),
                Ok(short) => text.push_str(short),
                Err(_) => text.push_str(&attribute.attr_type().to_id_string()),
            }
            text.push('=');
            escape(attribute.as_str().unwrap_or_default(), &mut text);
        }
    }
    text
}

/// RFC 2253, section 2.4.
fn escape(value: &str, out: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        let edge = index == 0 && (c == ' ' || c == '#') || index == last && c == ' ';
        if c.is_ascii_control() || !c.is_ascii() {
            // Bytes that are no ASCII text, as OpenSSL writes them.
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "\\{byte:02X}");
            }
            continue;
        }
        if edge || ",+\"\\<>;".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    #[test]
    fn certificate_when_read_then_its_names_are_known_in_the_forms_of_the_standards() {
        let mut params = CertificateParams::new(vec!["a.example".into(), "*.b.example".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "CH");
        params.distinguished_name.push(DnType::OrganizationName, "A, \"B\" \u{fc}");
        params.distinguished_name.push(DnType::CommonName, "test");
        params.serial_number = Some(vec![0, 0x0a, 0xff].into());
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let facts = CertificateFacts::read(certificate.der()).unwrap();
        assert_eq!(&*facts.subject, r#"CN=test,O=A\, \"B\" \C3\BC,C=CH"#);
        assert_eq!(&*facts.serial, "0aff");
        assert_eq!(facts.uris, ["spiffe://td/ns/a/sa/b".into()]);
        assert_eq!(facts.ips, [IpAddr::from([127, 0, 0, 1])]);
        assert!(facts.is_for("A.example") && facts.is_for("x.b.example"));
        assert!(!facts.is_for("b.example") && !facts.is_for("x.y.b.example"));
        assert_eq!(pem(certificate.der()), certificate.pem().replace('\r', ""));
    }
}
