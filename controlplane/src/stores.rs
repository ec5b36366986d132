//! Everything that the control plane has read, as it was read: the input of [`crate::build`].
//!
//! A source (Kubernetes, or a folder of YAML) fills it; nothing here is interpreted. Objects are behind an [`Arc`], so that
//! a copy of all of it is cheap and unchanged objects are recognised by their address.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use leno_core::credential::Credentials;
use leno_core::{MeshSettings, ObjectKey, ObjectRef};
use leno_crds::istio::destination_rule::DestinationRule;
use leno_crds::istio::virtual_service::VirtualService;

/// All objects that configuration is made from. Keys of cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    /// Services.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// Endpoint slices; a service has any number of them.
    pub endpoint_slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// Pods.
    pub pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Namespaces.
    pub namespaces: BTreeMap<ObjectKey, Arc<Namespace>>,
    /// Nodes: only their zones are used.
    pub nodes: BTreeMap<ObjectKey, Arc<Node>>,
    /// VirtualServices.
    pub virtual_services: BTreeMap<ObjectKey, Arc<VirtualService>>,
    /// DestinationRules.
    pub destination_rules: BTreeMap<ObjectKey, Arc<DestinationRule>>,
    /// What is known of the Secrets that DestinationRules name, and of no others.
    pub credentials: Credentials,
    /// Settings of the whole mesh.
    pub mesh: MeshSettings,
    /// Objects that could not be read as their kind, with the reason.
    pub malformed: BTreeMap<ObjectRef, String>,
}
