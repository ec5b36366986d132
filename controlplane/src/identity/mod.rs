//! Certificates: the mesh's authority, this process's own certificate, and the service that signs for workloads.
//!
//! What a workload may call itself is decided here and nowhere else: the identity, the pod and the lifetime in a certificate
//! come from a reviewed token or from the certificate that is being renewed, compared with the pod as the control plane sees
//! it. A request carries a public key and nothing more that counts.

pub mod ca;
pub mod serving;
pub mod sign;
pub mod tokens;

pub use ca::{Ca, Fingerprints};
pub use serving::Serving;
pub use sign::{Directory, Signer};
pub use tokens::{TokenError, TokenPod, Tokens};
