//! Operators about certificates.

use super::FormatError;
use super::operator::{Operator, Written};
use super::times::TimeFormat;
use super::value::{Given, foreign};
use crate::telemetry::LogEntry;
use crate::tls::KeyPair;
use crate::tls::facts::{CertificateFacts, hex, sha1, sha256, url_pem};

/// A certificate's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Peer,
    Local,
    /// The endpoint's, as it showed it.
    Endpoint,
    /// Ours on the connection to the endpoint.
    Own,
}

/// What of a certificate is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Certificate {
    Uris,
    Dns,
    Emails,
    OtherNames,
    Ips,
    Subject,
    Issuer,
    Serial,
    Sha256,
    Sha1,
    Pem,
    NotBefore(TimeFormat),
    NotAfter(TimeFormat),
    /// Of every certificate that was shown.
    Serials,
    Sha256s,
    Sha1s,
}

/// The operator that is written so, if it is about a certificate.
pub(super) fn operator(w: &Written<'_>) -> Option<Result<Operator, FormatError>> {
    const OWNERS: [(&str, Owner); 4] = [
        ("DOWNSTREAM_LOCAL_", Owner::Local),
        ("DOWNSTREAM_PEER_", Owner::Peer),
        ("UPSTREAM_PEER_", Owner::Endpoint),
        ("UPSTREAM_LOCAL_", Owner::Own),
    ];
    let (owner, part) = OWNERS.iter().find_map(|(begin, owner)| Some((*owner, w.name.strip_prefix(begin)?)))?;
    let part = match (part, owner) {
        ("URI_SAN", _) => Certificate::Uris,
        ("DNS_SAN", _) => Certificate::Dns,
        ("EMAIL_SAN", Owner::Peer | Owner::Local) => Certificate::Emails,
        ("OTHERNAME_SAN", Owner::Peer | Owner::Local) => Certificate::OtherNames,
        ("IP_SAN", _) => Certificate::Ips,
        ("SUBJECT", Owner::Peer | Owner::Local | Owner::Endpoint) => Certificate::Subject,
        ("ISSUER", Owner::Peer | Owner::Endpoint) => Certificate::Issuer,
        ("SERIAL", Owner::Peer) => Certificate::Serial,
        ("FINGERPRINT_256", Owner::Peer) => Certificate::Sha256,
        ("FINGERPRINT_1", Owner::Peer) => Certificate::Sha1,
        ("CERT", Owner::Peer | Owner::Endpoint) => Certificate::Pem,
        ("CHAIN_SERIALS", Owner::Peer) => Certificate::Serials,
        ("CHAIN_FINGERPRINTS_256", Owner::Peer) => Certificate::Sha256s,
        ("CHAIN_FINGERPRINTS_1", Owner::Peer) => Certificate::Sha1s,
        ("CERT_V_START", Owner::Peer | Owner::Endpoint) => return Some(time(w, owner, Certificate::NotBefore)),
        ("CERT_V_END", Owner::Peer | Owner::Endpoint) => return Some(time(w, owner, Certificate::NotAfter)),
        _ => return None,
    };
    Some(w.plain(Operator::Certificate(owner, part)))
}

fn time(w: &Written<'_>, owner: Owner, part: fn(TimeFormat) -> Certificate) -> Result<Operator, FormatError> {
    Ok(Operator::Certificate(owner, part(w.time(false, TimeFormat::CERTIFICATE)?)))
}

/// Appends what it says.
pub(super) fn give<Q, S>(owner: Owner, part: &Certificate, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) -> Given {
    // The identity of a peer of the mesh is known without its certificate being read again.
    if let (Owner::Peer, Certificate::Uris, Some(uri)) = (owner, part, entry.downstream_peer) {
        return foreign(Some(uri.as_bytes()), out);
    }
    let tls = match owner {
        Owner::Own => {
            let birth = entry.observed.and_then(|observed| observed.birth.as_deref());
            let shown = birth.and_then(|birth| birth.shown.as_deref());
            return names(part, shown.map(KeyPair::facts), out);
        }
        Owner::Endpoint => entry.observed.and_then(|observed| observed.tls.as_deref()),
        Owner::Peer | Owner::Local => entry.tls,
    };
    let Some(tls) = tls else { return Given::Nothing };
    let facts: Option<&CertificateFacts> = match owner {
        Owner::Peer | Owner::Endpoint => tls.peer(),
        Owner::Local | Owner::Own => tls.local.as_ref().map(|local| local.facts()),
    };
    let Some(facts) = facts else { return Given::Nothing };
    let each = |what: &dyn Fn(&[u8]) -> String| {
        let texts: Vec<Box<str>> = tls.chain().iter().map(|shown| what(shown.as_ref()).into()).collect();
        list(&texts)
    };
    let text = match part {
        Certificate::Uris | Certificate::Dns | Certificate::Emails | Certificate::OtherNames | Certificate::Ips => {
            return names(part, Some(facts), out);
        }
        Certificate::Subject => Some(facts.subject.to_string()).filter(|subject| !subject.is_empty()),
        Certificate::Issuer => Some(facts.issuer.to_string()).filter(|issuer| !issuer.is_empty()),
        Certificate::Serial => Some(facts.serial.to_string()),
        Certificate::Sha256 => Some(hex(&facts.sha256)),
        Certificate::Sha1 => tls.chain().first().map(|leaf| hex(&sha1(leaf.as_ref()))),
        Certificate::Pem => tls.chain().first().map(|leaf| url_pem(leaf)),
        Certificate::Serials => {
            let read = tls.chain().iter().filter_map(CertificateFacts::read);
            let serials: Vec<Box<str>> = read.map(|facts| facts.serial).collect();
            list(&serials)
        }
        Certificate::Sha256s => each(&|shown| hex(&sha256(shown))),
        Certificate::Sha1s => each(&|shown| hex(&sha1(shown))),
        Certificate::NotBefore(format) => {
            format.write(facts.not_before, out);
            return Given::Own;
        }
        Certificate::NotAfter(format) => {
            format.write(facts.not_after, out);
            return Given::Own;
        }
    };
    foreign(text.as_deref().map(str::as_bytes), out)
}

fn list(names: &[Box<str>]) -> Option<String> {
    Some(names.join(",")).filter(|names| !names.is_empty())
}

/// Appends the names of one kind in a certificate.
fn names(part: &Certificate, facts: Option<&CertificateFacts>, out: &mut Vec<u8>) -> Given {
    let names = facts.and_then(|facts| match part {
        Certificate::Uris => list(&facts.uris),
        Certificate::Dns => list(&facts.dns),
        Certificate::Emails => list(&facts.emails),
        Certificate::OtherNames => list(&facts.other_names),
        Certificate::Ips => {
            let ips: Vec<Box<str>> = facts.ips.iter().map(|ip| ip.to_string().into()).collect();
            list(&ips)
        }
        _ => None,
    });
    foreign(names.as_deref().map(str::as_bytes), out)
}
