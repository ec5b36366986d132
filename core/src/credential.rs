//! What Secrets hold that clients speak TLS with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::object::ObjectKey;

/// The end of the name of a Secret with the authorities alone, which stands beside one without, as in Istio.
pub const AUTHORITIES_SUFFIX: &str = "-cacert";

/// Certificates and a key, as PEM; what is not there is empty. Debug output tells only what there is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// The client's certificate and its intermediates.
    pub chain: String,
    /// Its key.
    pub key: String,
    /// The authorities that a server's certificate must come from.
    pub authorities: String,
    /// Certificates that are revoked.
    pub revoked: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain, key, authorities, revoked } = self;
        f.debug_struct("Credential")
            .field("chain", &!chain.is_empty())
            .field("key", &!key.is_empty())
            .field("authorities", &!authorities.is_empty())
            .field("revoked", &!revoked.is_empty())
            .finish()
    }
}

/// What is known of the Secrets that are asked for: what they hold, or why that cannot be had.
pub type Credentials = BTreeMap<ObjectKey, Result<Arc<Credential>, String>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_when_printed_then_tells_nothing_of_its_key() {
        let credential = Credential { key: "very secret".to_owned(), ..Credential::default() };
        let text = format!("{credential:?}");
        assert!(text.contains("key: true") && !text.contains("secret"), "{text}");
    }
}
