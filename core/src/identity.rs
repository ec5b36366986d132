//! Workload identities: SPIFFE IDs (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest SPIFFE ID that is accepted, in bytes, as its standard says.
const MAX_LEN: usize = 2048;

/// Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The trust domain, for example `cluster.local`.
    pub trust_domain: String,
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
}

/// Why a text is no identity of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct IdentityError(String);

impl Identity {
    /// An identity from its parts.
    pub fn new(
        trust_domain: impl Into<String>,
        namespace: impl Into<String>,
        service_account: impl Into<String>,
    ) -> Self {
        Self { trust_domain: trust_domain.into(), namespace: namespace.into(), service_account: service_account.into() }
    }

    /// The identity without its scheme, as Istio's metrics name a principal: `cluster.local/ns/default/sa/reviews`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || IdentityError(text.chars().take(128).collect());
        if text.len() > MAX_LEN {
            return Err(error());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(error)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [trust_domain, "ns", namespace, "sa", account]
                if [trust_domain, namespace, account].iter().all(|part| is_segment(part)) =>
            {
                Ok(Self::new(*trust_domain, *namespace, *account))
            }
            _ => Err(error()),
        }
    }
}

/// Letters, digits, dots, dashes and underscores, and not `.` or `..`: what the standard allows in a path segment.
fn is_segment(text: &&str) -> bool {
    !text.is_empty()
        && *text != "."
        && *text != ".."
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_when_written_and_read_then_the_same() {
        let identity = Identity::new("cluster.local", "default", "reviews");
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }

    #[test]
    fn identity_when_of_another_form_then_refused() {
        for text in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a%2fb/sa/b",
            "spiffe:///ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
