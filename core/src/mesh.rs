//! Settings of the whole mesh.

use serde::{Deserialize, Serialize};

/// Whether workloads accept plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MtlsMode {
    /// Mutual TLS between workloads of the mesh; plain text from others is accepted.
    #[default]
    Permissive,
    /// Only mutual TLS is accepted.
    Strict,
}

/// What happens to connections whose destination no service owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutboundMode {
    /// They pass unchanged.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Settings of the whole mesh that configuration is translated with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshSettings {
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// Whether workloads accept plain text.
    pub mtls: MtlsMode,
    /// What happens to connections to unknown destinations.
    pub outbound: OutboundMode,
    /// The name of the cluster, as it appears in metrics.
    pub cluster: String,
    /// The DNS domain of the cluster's services.
    pub domain: String,
    /// The namespace of the control plane.
    pub system_namespace: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            mtls: MtlsMode::default(),
            outbound: OutboundMode::default(),
            cluster: "Kubernetes".into(),
            domain: "cluster.local".into(),
            system_namespace: "leno-system".into(),
        }
    }
}
