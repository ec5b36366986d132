//! What translation results in: named resources with a version each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::ObjectRef;
use prost_types::Any;
use sha2::{Digest, Sha256};

/// The type URL of an xDS resource, for example `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
pub type TypeUrl = &'static str;

/// Listeners (LDS).
pub const LISTENER: TypeUrl = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Clusters (CDS).
pub const CLUSTER: TypeUrl = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Route configurations (RDS).
pub const ROUTE: TypeUrl = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Endpoints (EDS).
pub const ENDPOINTS: TypeUrl = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Secrets (SDS).
pub const SECRET: TypeUrl = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// One xDS resource. Behind an [`Arc`] everywhere: scopes share what is equal for them.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The message.
    pub body: Any,
    /// A hash of the message: 16 hexadecimal digits. Equal content, equal version, on every replica.
    pub version: String,
    /// The configuration objects that it was made from, besides Services, endpoints and pods.
    pub origins: BTreeSet<ObjectRef>,
}

impl Resource {
    /// A resource from its encoded message.
    pub fn new(body: Any, origins: BTreeSet<ObjectRef>) -> Self {
        use std::fmt::Write as _;
        let body = super::amend::amended(body);
        let digest = Sha256::digest(&body.value);
        let version = digest.iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { body, version, origins }
    }
}

/// All resources of one scope, by type and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// The resources. Types without a resource may be absent.
    pub by_type: BTreeMap<TypeUrl, BTreeMap<String, Arc<Resource>>>,
}

impl Resources {
    /// The resources of one type, by name.
    pub fn of(&self, type_url: &str) -> Option<&BTreeMap<String, Arc<Resource>>> {
        self.by_type.get(type_url)
    }
}
