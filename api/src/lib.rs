//! Leno's own gRPC protocols: workload certificates, the acknowledgement stream, and the reports of
//! proxies.
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

/// What proxies count and how they are: `leno.proxies.v1`.
pub mod proxies {
    /// First version of the protocol.
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("leno.proxies.v1");
    }

    /// Upper bounds of the durations that [`v1::Counts`] counts, milliseconds; a request belongs to the first that is not
    /// smaller than its time. What is above the last has a number of its own. Each is a bound of the standard metrics' histograms
    /// too, so that nothing is guessed.
    pub const BOUNDS_MS: [u64; 13] = [1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];
}

/// The audience that a projected service account token must carry to buy a workload certificate.
pub const AUDIENCE: &str = "leno";

/// Metadata key that carries the token, as `Bearer <token>`.
pub const AUTHORIZATION: &str = "authorization";
