//! The kinds of resources, and responses of either form of the protocol made one.

use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource, ResourceError, ResourceName,
};
use prost::Message as _;
use prost_types::Any;

/// A kind of resource, in the order in which they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Layers of the runtime: those that the bootstrap names.
    Runtime,
    /// Clusters: all of them.
    Cluster,
    /// Endpoints: those of the clusters.
    Endpoints,
    /// Certificates, keys and trust: those that clusters and listeners name.
    Secret,
    /// Listeners: all of them.
    Listener,
    /// Route configurations: those that listeners name.
    Routes,
    /// Configurations of filters: those that listeners name.
    Extension,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Kind; 7] =
        [Kind::Runtime, Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Listener, Kind::Routes, Kind::Extension];
    /// The kinds that are asked for by name.
    pub const BY_NAME: [Kind; 5] = [Kind::Runtime, Kind::Endpoints, Kind::Secret, Kind::Routes, Kind::Extension];

    /// The type on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The kind of a type on the wire.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// What a person calls it.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Runtime => "layer of the runtime",
            Kind::Cluster => "cluster",
            Kind::Endpoints => "endpoints",
            Kind::Secret => "secret",
            Kind::Listener => "listener",
            Kind::Routes => "route configuration",
            Kind::Extension => "extension configuration",
        }
    }

    /// Whether resources are asked for by name; else all are wanted, and one that is not sent any more is gone.
    pub fn by_name(self) -> bool {
        Self::BY_NAME.contains(&self)
    }
}

/// What a response says, in either form of the protocol.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The version of all of it, as the server names it.
    pub version: String,
    /// Resources that are new or have changed.
    pub resources: Vec<Resource>,
    /// Names of those that are gone.
    pub removed: Vec<String>,
    /// Whether what is not among them is gone as well, for kinds of which all are wanted.
    pub whole: bool,
    /// Those that are none, by name, with the reason: what was there before stays.
    pub unreadable: Vec<(String, String)>,
}

impl Update {
    /// Of all that is sent, readable or not.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        let unreadable = self.unreadable.iter().map(|(name, _)| name);
        self.resources.iter().map(|resource| &resource.name).chain(unreadable)
    }
}

impl From<DeltaDiscoveryResponse> for Update {
    fn from(value: DeltaDiscoveryResponse) -> Self {
        let DeltaDiscoveryResponse {
            system_version_info: version,
            resources,
            type_url: _,
            mut removed_resources,
            removed_resource_names,
            nonce: _,
            control_plane: _,
            resource_errors,
        } = value;
        log(&resource_errors);
        let name = |ResourceName { name, dynamic_parameter_constraints: _ }| name;
        removed_resources.extend(removed_resource_names.into_iter().map(name));
        Self { version, resources, removed: removed_resources, whole: false, unreadable: Vec::new() }
    }
}

impl From<DiscoveryResponse> for Update {
    fn from(value: DiscoveryResponse) -> Self {
        let DiscoveryResponse {
            version_info,
            resources,
            canary: _,
            type_url: _,
            nonce: _,
            control_plane: _,
            resource_errors,
        } = value;
        log(&resource_errors);
        let resources = resources.into_iter().map(|body| named(body, &version_info)).collect();
        Self { version: version_info, resources, removed: Vec::new(), whole: true, unreadable: Vec::new() }
    }
}

impl From<Vec<Resource>> for Update {
    fn from(resources: Vec<Resource>) -> Self {
        Self { resources, ..Self::default() }
    }
}

fn log(errors: &[ResourceError]) {
    for error in errors {
        let name = error.resource_name.as_ref().map(|name| name.name.as_str()).unwrap_or_default();
        let detail = error.error_detail.as_ref().map(|status| status.message.as_str()).unwrap_or_default();
        tracing::warn!(name, detail, "the server cannot send a resource");
    }
}

/// The first field of every kind of resource.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// A resource as state of the world sends it: bare, or in an envelope with its name.
fn named(body: Any, version: &str) -> Resource {
    let mut resource = match leno_xds::unpack::<Resource>(&body) {
        Ok(Some(envelope)) => envelope,
        _ => Resource { resource: Some(body), ..Default::default() },
    };
    if resource.name.is_empty()
        && let Some(body) = &resource.resource
        && let Ok(Named { name }) = Named::decode(body.value.as_slice())
    {
        resource.name = name;
    }
    if resource.version.is_empty() {
        version.clone_into(&mut resource.version);
    }
    resource
}
