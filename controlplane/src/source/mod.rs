//! Where objects come from: Kubernetes, or a folder of YAML. Both keep a [`Stores`] up to date and tell when it changed.

mod credentials;
pub mod folder;
pub mod kubernetes;

use std::future::Future;

use leno_core::{MeshSettings, MtlsMode, OutboundMode};
use leno_crds::meshinstall::{self, MeshInstallSpec};

use crate::stores::Stores;

pub use folder::Folder;
pub use kubernetes::Kubernetes;

/// How soon a change should be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Endpoints and pods: traffic goes to something that is gone until it is.
    Endpoints,
    /// Everything else.
    All,
}

/// Where objects come from.
pub trait Source: Send + 'static {
    /// Waits until something changed since the last call; `None` when the source has ended. Returns for the first time when
    /// everything has been read once. Nothing is lost when the future is dropped.
    fn changed(&mut self) -> impl Future<Output = Option<Lane>> + Send;

    /// All objects as they are now.
    fn stores(&mut self) -> &Stores;
}

/// What a MeshInstall says about the mesh as a whole.
pub fn mesh_settings(spec: &MeshInstallSpec) -> MeshSettings {
    MeshSettings {
        trust_domain: spec.trust_domain().to_owned(),
        mtls: match spec.mtls() {
            meshinstall::MtlsMode::Permissive => MtlsMode::Permissive,
            meshinstall::MtlsMode::Strict => MtlsMode::Strict,
        },
        outbound: match spec.outbound() {
            meshinstall::OutboundMode::AllowAny => OutboundMode::AllowAny,
            meshinstall::OutboundMode::RegistryOnly => OutboundMode::RegistryOnly,
        },
        system_namespace: spec.system_namespace().to_owned(),
        ..MeshSettings::default()
    }
}
