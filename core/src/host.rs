//! Host names: of services, and patterns that match them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name of DNS, in bytes.
const MAX_LEN: usize = 255;

/// A full host name in lower case, for example `reviews.default.svc.cluster.local`. Cheap to copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Host(Arc<str>);

impl Host {
    /// The host of a Kubernetes service.
    pub fn of_service(name: &str, namespace: &str, domain: &str) -> Self {
        Self(format!("{name}.{namespace}.svc.{domain}").to_ascii_lowercase().into())
    }

    /// A host from its full name.
    ///
    /// # Errors
    ///
    /// When it is empty, too long, or has characters that no host name or address has.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(HostError::TooLong);
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        if !text.bytes().all(fits) {
            return Err(HostError::Characters(text.to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// A host as a configuration object in `namespace` writes it: a name without dots is a service of that namespace.
    ///
    /// # Errors
    ///
    /// As [`Host::parse`].
    pub fn resolve(text: &str, namespace: &str, domain: &str) -> Result<Self, HostError> {
        let host = Self::parse(text)?;
        if text.contains(['.', ':']) { Ok(host) } else { Ok(Self::of_service(&host.0, namespace, domain)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// There is no text.
    #[error("a host must not be empty; name a service, for example reviews or reviews.default.svc.cluster.local")]
    Empty,
    /// Longer than DNS allows.
    #[error("a host must not be longer than 255 characters")]
    TooLong,
    /// Characters that no host has.
    #[error("\"{0}\" is not a host: only letters, digits, dots and dashes make a host name")]
    Characters(String),
    /// A wildcard that is not in front.
    #[error("\"{0}\" is not a host: a wildcard stands in front, as in *.example.com or *-canary.example.com")]
    Wildcard(String),
}

/// Hosts that a configuration object is for. Ordered so that the more specific comes first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostPattern {
    /// One host.
    Exact(Host),
    /// All hosts that end in this and have more in front.
    Suffix(String),
    /// Every host.
    Any,
}

impl HostPattern {
    /// A pattern as a configuration object in `namespace` writes it: `*`, `*.example.com`, `*-canary.example.com`, or a
    /// host, short or full.
    ///
    /// # Errors
    ///
    /// As [`Host::parse`], and when a wildcard stands anywhere but first.
    pub fn resolve(text: &str, namespace: &str, domain: &str) -> Result<Self, HostError> {
        if text.contains('*') { Self::parse(text) } else { Host::resolve(text, namespace, domain).map(Self::Exact) }
    }

    /// A pattern that is written in full.
    ///
    /// # Errors
    ///
    /// As [`HostPattern::resolve`].
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix('*') {
            Some(rest) if !matches!(rest, "" | ".") && !rest.contains('*') => {
                Host::parse(rest).map(|host| Self::Suffix(host.as_str().to_owned()))
            }
            Some(_) => Err(HostError::Wildcard(text.to_owned())),
            None if text.contains('*') => Err(HostError::Wildcard(text.to_owned())),
            None => Host::parse(text).map(Self::Exact),
        }
    }

    /// Whether every host that `other` means is one of those meant.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (_, Self::Exact(host)) => self.matches(host),
            (Self::Suffix(own), Self::Suffix(suffix)) => suffix.ends_with(own.as_str()),
            (Self::Exact(_), Self::Suffix(_)) => false,
        }
    }

    /// Whether the host is one of those meant.
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(exact) => exact == host,
            Self::Suffix(suffix) => host.as_str().len() > suffix.len() && host.as_str().ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }

    /// How specific the pattern is: the smaller, the more.
    pub fn rank(&self) -> usize {
        match self {
            Self::Exact(_) => 0,
            Self::Suffix(suffix) => MAX_LEN + 1 - suffix.len().min(MAX_LEN),
            Self::Any => MAX_LEN + 2,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<HostPattern, HostError> {
        HostPattern::resolve(text, "shop", "cluster.local")
    }

    #[test]
    fn host_when_short_then_a_service_of_the_namespace() {
        assert_eq!(
            Host::resolve("Reviews", "shop", "cluster.local").unwrap().as_str(),
            "reviews.shop.svc.cluster.local"
        );
        assert_eq!(Host::resolve("reviews.a.svc.x", "shop", "x").unwrap().as_str(), "reviews.a.svc.x");
    }

    #[test]
    fn pattern_when_wildcard_then_matches_below_the_suffix_only() {
        let pattern = resolve("*.shop.svc.cluster.local").unwrap();
        assert!(pattern.matches(&Host::parse("a.shop.svc.cluster.local").unwrap()));
        assert!(!pattern.matches(&Host::parse("a.other.svc.cluster.local").unwrap()));
        assert!(!pattern.matches(&Host::parse(".shop.svc.cluster.local").unwrap()));
        let canary = resolve("*-canary.example.com").unwrap();
        assert!(canary.matches(&Host::parse("a-canary.example.com").unwrap()));
        assert!(!canary.matches(&Host::parse("-canary.example.com").unwrap()));
        assert!(resolve("*").unwrap().rank() > pattern.rank());
        assert!(pattern.rank() > resolve("a").unwrap().rank());
    }

    #[test]
    fn pattern_when_not_a_host_then_refused() {
        for text in ["", "a b", "a.*.b", "**", "*.", "*a*", "x/y"] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }
}
