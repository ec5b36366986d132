//! What TLS a filter chain ends or an endpoint is talked to with. Certificates are not here: they live in the credential
//! store and change without a new configuration.

use std::{fmt, sync::Arc};

/// TLS that a filter chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Whether the client must show a certificate of the mesh.
    pub require_client_certificate: bool,
    /// ALPN names in order of preference.
    pub alpn: Vec<Arc<str>>,
}

/// TLS to an endpoint.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// The SPIFFE ids of which the server must have one; what ends in `/` stands for all that begin so
    /// (`spiffe://<trust domain>/ns/<namespace>/sa/`: any workload of that namespace).
    pub expected: Vec<Arc<str>>,
    /// The server name to send; none is sent when empty.
    pub sni: Arc<str>,
    /// ALPN names in order of preference. On a cluster that carries HTTP `leno` becomes the HTTP name that is spoken.
    pub alpn: Vec<Arc<str>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({} as {}, alpn {})", self.sni, self.expected.join("|"), self.alpn.join(","))
    }
}
