//! The mesh's nouns and rules as plain data: no Kubernetes, no gRPC, no sockets, no clock.
//!
//! [`snapshot::Snapshot`] is the mesh at one moment; everything else here is a part of it, or of what is said about it.

pub mod credential;
pub mod finding;
pub mod host;
pub mod identity;
pub mod mesh;
pub mod object;
pub mod policy;
pub mod protocol;
pub mod re2;
pub mod route;
pub mod service;
pub mod snapshot;

pub use finding::{Condition, Finding, Reason, Severity};
pub use host::{Host, HostPattern};
pub use identity::Identity;
pub use mesh::{MeshSettings, MtlsMode, OutboundMode};
pub use object::{ObjectKey, ObjectRef};
pub use protocol::Protocol;
pub use snapshot::Snapshot;
