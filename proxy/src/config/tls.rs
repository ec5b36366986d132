//! What TLS a filter chain ends or an endpoint is talked to with. Certificates are not here: they live in the credential
//! store and in the slots of secrets, and change without a new configuration.

use super::PassTlvs;
use crate::tls::{ClientContext, ServerContext};
use std::{fmt, sync::Arc};

/// TLS that a filter chain ends.
#[derive(Debug, Clone)]
pub enum ServerTls {
    /// With the workload's certificate, for clients of the mesh.
    Mesh {
        /// Whether the client must show a certificate of the mesh.
        require_client_certificate: bool,
        /// ALPN names in order of preference.
        alpn: Vec<Arc<str>>,
    },
    /// With certificates of the configuration's own.
    Own(Arc<ServerContext>),
}

/// How a filter chain tells who its clients are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Secured {
    /// Plain text.
    Not,
    /// TLS.
    Tls,
    /// TLS, and the client shows a certificate.
    Mutual,
}

impl Secured {
    /// What this TLS is.
    pub fn by(tls: Option<&ServerTls>) -> Self {
        let mutual = match tls {
            None => return Self::Not,
            Some(ServerTls::Mesh { require_client_certificate, .. }) => *require_client_certificate,
            Some(ServerTls::Own(context)) => context.requires_certificate(),
        };
        if mutual { Self::Mutual } else { Self::Tls }
    }

    /// Whether a connection that was made so may go on where it would be made `now` so.
    pub fn suffices(self, now: Self) -> bool {
        self >= now && (self == Self::Not) == (now == Self::Not)
    }
}

/// TLS to an endpoint.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientTls {
    /// With the workload's certificate, to a server of the mesh.
    Mesh(MeshTls),
    /// With certificates and trust of the configuration's own.
    Own(Arc<ClientContext>),
    /// The PROXY protocol, and then plain text or TLS.
    Proxied(ProxiedTls),
}

/// What is said before anything else to an endpoint that wants to know who its clients are.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxiedTls {
    /// Version 2 of the PROXY protocol; else version 1.
    pub v2: bool,
    /// Extensions that a client's own header brought and that are passed on (version 2).
    pub pass: PassTlvs,
    /// Extensions that are always added (version 2).
    pub add: Vec<(u8, Box<[u8]>)>,
    /// TLS after it.
    pub inner: Option<Arc<ClientTls>>,
}

/// TLS to an endpoint of the mesh.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MeshTls {
    /// The SPIFFE ids of which the server must have one; what ends in `/` stands for all that begin so
    /// (`spiffe://<trust domain>/ns/<namespace>/sa/`: any workload of that namespace).
    pub expected: Vec<Arc<str>>,
    /// The server name to send; none is sent when empty.
    pub sni: Arc<str>,
    /// ALPN names in order of preference. On a cluster that carries HTTP `leno` becomes the HTTP name that is spoken.
    pub alpn: Vec<Arc<str>>,
}

impl ServerTls {
    /// The secrets that must have come before it can serve.
    pub fn secrets(&self) -> Vec<String> {
        match self {
            Self::Mesh { .. } => Vec::new(),
            Self::Own(context) => context.secrets().map(str::to_owned).collect(),
        }
    }
}

impl ClientTls {
    /// The secrets that must have come before it can connect.
    pub fn secrets(&self) -> Vec<String> {
        match self {
            Self::Mesh(_) => Vec::new(),
            Self::Own(context) => context.secrets().map(str::to_owned).collect(),
            Self::Proxied(proxied) => proxied.inner.iter().flat_map(|inner| inner.secrets()).collect(),
        }
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(mesh) => mesh.fmt(f),
            Self::Own(context) => write!(f, "ClientTls({})", context.settings().sni),
            Self::Proxied(proxied) => write!(f, "PROXY protocol, then {:?}", proxied.inner),
        }
    }
}

impl fmt::Debug for MeshTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({} as {}, alpn {})", self.sni, self.expected.join("|"), self.alpn.join(","))
    }
}
