//! Who the client of a request is, and what the next hop is told about it and about this proxy.

use super::HeaderOp;
use ipnet::IpNet;
use std::sync::Arc;

/// The settings of [`super::HttpManager::edge`]. The default trusts an `x-forwarded-for` for logs, and passes on what came.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    /// The other end of the connection is the client: `x-forwarded-for` is appended to, and what a client cannot know is
    /// taken away from its request.
    pub use_remote_address: bool,
    /// So many proxies in front of this one are trusted to have appended to `x-forwarded-for`.
    pub trusted_hops: u32,
    /// Do not append to `x-forwarded-for`.
    pub skip_append: bool,
    /// Add `x-forwarded-port`.
    pub append_port: bool,
    /// How the client is found when the connection's other end is not the client, in order. Empty: by `x-forwarded-for`.
    pub detection: Vec<Detection>,
    /// Addresses of clients that may set the `x-envoy-*` headers.
    pub internal: Vec<IpNet>,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ClientCert,
    /// The scheme of every request, whatever the connection is.
    pub secure: Option<bool>,
    /// The scheme that an endpoint is told is that of the connection to it.
    pub secure_as_endpoint: bool,
    /// Appended to `via` of requests and responses.
    pub via: Option<Arc<str>>,
    /// Name of the node's cluster, and of the node, for `user-agent` and the headers that name the caller.
    pub user_agent: Option<(Arc<str>, Arc<str>)>,
    /// A client's own `x-request-id` is kept.
    pub preserve_request_id: bool,
    /// Such an id says why its request is traced, and is not believed.
    pub disbelieve_request_id: bool,
    /// Responses carry `x-request-id`.
    pub request_id_in_response: bool,
    /// Changes of a request's headers before anything looks at them.
    pub early: Vec<HeaderOp>,
}

/// One way to find the client's address.
#[derive(Debug, Clone)]
pub enum Detection {
    /// The address in `x-forwarded-for` before so many trusted ones, counted from the end.
    Hops {
        /// How many are skipped.
        hops: u32,
        /// Append the connection's other end.
        append: bool,
    },
    /// The last address in `x-forwarded-for` that is not trusted, when the connection's other end is.
    Trusted {
        /// Proxies.
        cidrs: Vec<IpNet>,
        /// Append the connection's other end.
        append: bool,
    },
    /// A header that holds the address.
    Header {
        /// Its name, lower case.
        name: Box<str>,
        /// The address may make the request an internal one.
        trusted: bool,
        /// The status with which a request without an address is refused.
        reject: Option<u16>,
    },
}

/// What becomes of `x-forwarded-client-cert`, which tells an endpoint what certificates the clients on the way had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCert {
    /// It is taken away.
    #[default]
    Sanitize,
    /// It passes when the client has a certificate, and is taken away otherwise.
    ForwardOnly,
    /// The client's certificate is appended; without one it is taken away.
    AppendForward(CertDetails),
    /// It becomes the client's certificate; without one it is taken away.
    SanitizeSet(CertDetails),
    /// It passes.
    AlwaysForwardOnly,
}

/// What is told about a client's certificate beside its hash and our own URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CertDetails {
    /// The certificate itself.
    pub cert: bool,
    /// The whole chain.
    pub chain: bool,
    /// Its subject.
    pub subject: bool,
    /// Its URI names.
    pub uri: bool,
    /// Its DNS names.
    pub dns: bool,
    /// Its issuer.
    pub issuer: bool,
    /// All of it is written as JSON, where no proxy before has begun in another form.
    pub json: bool,
}
