//! TLS: mutual between the workloads of a mesh, and with whatever certificates a configuration brings ([`ServerContext`],
//! [`ClientContext`]).
//!
//! Between workloads: who we are, who may speak to us, and whom we meant to reach.
//!
//! An identity is a SPIFFE id in a certificate that one of the mesh's roots vouches for. A server accepts every identity
//! of its trust domain (policy decides later); a client accepts exactly the identity that the endpoint should have.
//! Host names play no part.
//!
//! Everything that depends on our certificate hangs on one [`Credentials`] value. Rotation swaps it: new handshakes use
//! the new one, established connections live on, and sessions of the old one cannot be resumed with the new one.

pub mod client;
pub mod client_hello;
mod contexts;
pub mod credentials;
pub mod facts;
pub mod identity;
mod info;
pub mod material;
mod own_client;
mod own_server;
#[cfg(test)]
pub(crate) mod own_tests;
mod pace;
mod params;
pub mod sans;
mod secrets;
pub mod server;
#[cfg(test)]
mod tests;
mod ticket_keys;
mod tickets;
mod trust;
mod verify;

pub use client::Connector;
pub use client_hello::{ClientHello, Inspect};
pub use contexts::Contexts;
pub use credentials::{CredentialStore, Credentials};
pub use facts::CertificateFacts;
pub use identity::{IdentityError, PeerIdentity};
pub use info::TlsInfo;
pub use material::KeyPair;
pub use own_client::{ClientContext, ClientSettings};
pub use own_server::{ServerContext, ServerSettings, Tickets};
pub use pace::Pace;
pub use params::TlsParams;
pub use secrets::{SecretValue, Secrets, Slot, Source, TrustSource, UNNAMED_PAIR, UNNAMED_ROOTS};
pub use ticket_keys::TicketKeys;

use std::time::Duration;

/// A TLS connection of either side. Boxed: the state of a connection is over a KiB, which would otherwise lie in every
/// task's future.
pub type TlsStream<IO> = Box<tokio_rustls::TlsStream<IO>>;

/// A finished handshake.
pub struct Established<IO> {
    /// The connection.
    pub stream: TlsStream<IO>,
    /// Who is at the other end.
    pub peer: PeerIdentity,
    /// What both agreed to speak; `None` when the client offered nothing.
    pub alpn: Option<Alpn>,
    /// Server name that the client sent, whichever side that is.
    pub server_name: Option<Box<str>>,
}

/// A finished handshake with certificates of the configuration's own.
pub struct Secured<IO> {
    /// The connection.
    pub stream: TlsStream<IO>,
    /// What it is known by.
    pub info: TlsInfo,
    /// Server name that the client sent, whichever side that is.
    pub server_name: Option<Box<str>>,
}

/// What the mesh speaks inside TLS. The names are not the registered ones, so that a mesh connection is told from an
/// application's own TLS by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alpn {
    /// `leno-http/1.1`.
    Http1,
    /// `leno-h2`.
    H2,
    /// `leno`: bytes.
    Tcp,
}

impl Alpn {
    /// Every protocol, in the order in which a server prefers them.
    pub const ALL: [Alpn; 3] = [Alpn::H2, Alpn::Http1, Alpn::Tcp];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Alpn::Http1 => "leno-http/1.1",
            Alpn::H2 => "leno-h2",
            Alpn::Tcp => "leno",
        }
    }

    /// Reads a name from the wire.
    pub fn parse(name: &[u8]) -> Option<Alpn> {
        Self::ALL.into_iter().find(|alpn| alpn.as_str().as_bytes() == name)
    }

    /// What a registered protocol name means here.
    pub fn registered(name: &str) -> Alpn {
        match name {
            "h2" => Alpn::H2,
            "http/1.1" | "http/1.0" => Alpn::Http1,
            _ => Alpn::Tcp,
        }
    }
}

/// Default bound on a handshake, both sides.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Before the first certificate has come.
    #[error("this workload has no certificate yet; the control plane has not signed one")]
    NoCertificate,
    /// Before a secret has come.
    #[error("the secret `{0}` has not come yet")]
    NoSecret(String),
    /// The peer was too slow.
    #[error("TLS handshake not finished after {0:?}")]
    Timeout(Duration),
    /// The handshake failed: an untrusted, expired or wrong certificate, no common protocol, a broken connection.
    #[error("TLS handshake failed: {}", cause(.0))]
    Handshake(#[source] std::io::Error),
    /// The peer's certificate does not name a usable identity.
    #[error("TLS peer refused: {0}")]
    Identity(#[from] IdentityError),
    /// Certificates or keys that cannot be used.
    #[error("workload credentials unusable: {0}")]
    Credentials(String),
    /// The TLS library refused a configuration.
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
}

/// Why a certificate of the peer's is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// There is none.
    NoCertificate,
    /// Its names are not those that are expected.
    Names,
    /// It is none of the listed ones.
    Fingerprint,
    /// No root vouches for it, its time is over, it is revoked, it cannot be read.
    Path,
}

impl TlsError {
    /// What is wrong with the peer's certificate, if that is the reason.
    pub fn distrust(&self) -> Option<Distrust> {
        use rustls::{CertificateError, Error};
        let error = match self {
            Self::Identity(_) => return Some(Distrust::Names),
            Self::Handshake(error) => error.get_ref()?.downcast_ref::<Error>()?,
            _ => return None,
        };
        match error {
            Error::NoCertificatesPresented => Some(Distrust::NoCertificate),
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                let trust = other.0.downcast_ref::<trust::Untrusted>();
                let names = other.0.is::<IdentityError>();
                Some(match trust {
                    Some(trust::Untrusted::Names | trust::Untrusted::ServerName(_)) => Distrust::Names,
                    Some(trust::Untrusted::Fingerprint) => Distrust::Fingerprint,
                    _ if names => Distrust::Names,
                    _ => Distrust::Path,
                })
            }
            Error::InvalidCertificate(_) => Some(Distrust::Path),
            _ => None,
        }
    }

    /// Whether one side broke the rules of TLS, or would not agree.
    pub fn is_of_protocol(&self) -> bool {
        matches!(self, Self::Handshake(error) if error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()))
    }
}

/// What failed in a handshake, in words; our own verdict on an identity is wrapped twice.
fn cause(error: &std::io::Error) -> String {
    use rustls::{CertificateError, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        _ => error.to_string(),
    }
}
