//! Leno's own gRPC protocols: workload certificates and the acknowledgement stream.
//!
//! The messages, clients and servers are generated from `proto/` at build time. What needs no network lives beside
//! them: the audience of tokens ([`AUDIENCE`]) and the metadata that carries them ([`AUTHORIZATION`]).

/// Workload certificates: `leno.identity.v1`.
pub mod identity {
    /// First version of the protocol.
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("leno.identity.v1");
    }
}

/// What is in force where: `leno.status.v1`.
pub mod status {
    /// First version of the protocol.
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("leno.status.v1");
    }
}

/// The audience that a projected service account token must carry to buy a workload certificate.
pub const AUDIENCE: &str = "leno";

/// Metadata key that carries the token, as `Bearer <token>`.
pub const AUTHORIZATION: &str = "authorization";
