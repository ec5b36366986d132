//! Conditions on the names in a certificate.

use super::facts::CertificateFacts;
use crate::config::StringMatch;
use std::sync::Arc;

/// The kind of name that a condition looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// DNS names.
    Dns,
    /// URIs.
    Uri,
    /// E-mail addresses.
    Email,
    /// IP addresses, in their usual text form.
    Ip,
    /// All of them (the older form of a condition).
    Any,
}

/// A condition on one kind of name; it holds when one name satisfies it.
#[derive(Debug, Clone)]
pub struct SanMatch {
    /// Which names.
    pub kind: SanKind,
    /// What the name must be.
    pub text: Arc<StringMatch>,
}

impl SanMatch {
    /// Whether one of the certificate's names satisfies it. A DNS name with a wildcard satisfies an exact condition on a name
    /// that it covers.
    pub fn holds(&self, facts: &CertificateFacts) -> bool {
        let text = |name: &str| self.text.matches(name.as_bytes());
        let dns = || {
            facts.dns.iter().any(|name| match &*self.text {
                StringMatch::Exact(wanted) => dns_matches(name, wanted),
                _ => text(name),
            })
        };
        let uri = || facts.uris.iter().any(|name| text(name));
        let email = || facts.emails.iter().any(|name| text(name));
        let ip = || facts.ips.iter().any(|ip| text(&ip.to_string()));
        match self.kind {
            SanKind::Dns => dns(),
            SanKind::Uri => uri(),
            SanKind::Email => email(),
            SanKind::Ip => ip(),
            SanKind::Any => dns() || uri() || email() || ip(),
        }
    }
}

/// Whether a name in a certificate, perhaps with a wildcard as its whole first label, covers a host name.
pub fn dns_matches(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(suffix), Some((first, rest))) => {
            !first.is_empty() && !suffix.is_empty() && rest.eq_ignore_ascii_case(suffix)
        }
        _ => false,
    }
}
