//! The mesh's nouns and rules as plain data: no Kubernetes, no gRPC, no sockets, no clock.

pub mod finding;
pub mod mesh;
pub mod object;

pub use finding::{Condition, Finding, Reason, Severity};
pub use mesh::{MeshSettings, MtlsMode, OutboundMode};
pub use object::{ObjectKey, ObjectRef};
