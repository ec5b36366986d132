//! The whole mesh at one moment, as plain data: what all configuration is resolved from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::credential::Credentials;
use crate::finding::Finding;
use crate::host::Host;
use crate::mesh::MeshSettings;
use crate::object::ObjectKey;
use crate::policy::DestinationPolicy;
use crate::route::RouteRules;
use crate::service::{Endpoints, Identities, Service, Workload};

/// The mesh at one moment. Never changed once made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Settings of the whole mesh.
    pub mesh: MeshSettings,
    /// Services by host.
    pub services: BTreeMap<Host, Arc<Service>>,
    /// Services that are there and not supported, with the reason.
    pub unsupported: BTreeMap<Host, String>,
    /// What is known of the workloads behind each service, ready or not.
    pub members: BTreeMap<Host, Members>,
    /// Endpoints that take new requests, by service and its port.
    pub endpoints: BTreeMap<Host, BTreeMap<u16, Endpoints>>,
    /// Workloads by pod.
    pub workloads: BTreeMap<ObjectKey, Arc<Workload>>,
    /// Routing rules, the oldest first, then by namespace and name.
    pub routes: Vec<Arc<RouteRules>>,
    /// Destination policies, the oldest first, then by namespace and name.
    pub policies: Vec<Arc<DestinationPolicy>>,
    /// What the Secrets hold that policies name.
    pub credentials: Credentials,
    /// Names of all namespaces.
    pub namespaces: BTreeSet<String>,
    /// Names of the pod labels that some rule asks of its clients: no others matter for what a client is sent.
    pub client_labels: BTreeSet<String>,
    /// How much of where a client is matters for what it is sent.
    pub client_place: Place,
    /// What was found while this was made.
    pub findings: Vec<Finding>,
}

/// How much of where a client is matters for what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nothing.
    #[default]
    Nowhere,
    /// Its region and zone.
    Locality,
    /// Its node, too.
    Node,
}

/// What is known of the workloads behind a service, ready or not: it changes far less often than endpoints do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Identities of those that are part of the mesh.
    pub identities: Identities,
    /// Whether some are not part of it.
    pub plain: bool,
}

impl Snapshot {
    /// Endpoints of a service port; empty when there are none.
    pub fn endpoints_of(&self, host: &Host, port: u16) -> Endpoints {
        self.endpoints.get(host).and_then(|ports| ports.get(&port)).cloned().unwrap_or_default()
    }

    /// Whether nothing but endpoints (and pods) is different, so that only endpoints have to be sent. Headless services
    /// have listeners for each endpoint: theirs do not count as endpoints. Nor does a change in what the pods of this
    /// mesh are or how they are reached, since their own configuration depends on it.
    pub fn differs_only_in_endpoints(&self, other: &Self) -> bool {
        let Self {
            mesh,
            services,
            unsupported,
            members,
            endpoints,
            workloads,
            routes,
            policies,
            credentials,
            namespaces,
            // They follow from routes, policies and services.
            client_labels: _,
            client_place: _,
            findings,
        } = self;
        let headless = |host: &Host| {
            services.get(host).is_some_and(|service| service.addressing == crate::service::Addressing::Headless)
        };
        *mesh == other.mesh
            && *services == other.services
            && *unsupported == other.unsupported
            && *members == other.members
            && *routes == other.routes
            && *policies == other.policies
            && *credentials == other.credentials
            && *namespaces == other.namespaces
            && *findings == other.findings
            && workloads.iter().all(|(key, workload)| {
                other.workloads.get(key).is_none_or(|after| after == workload || !workload.meshed && !after.meshed)
            })
            && endpoints
                .keys()
                .chain(other.endpoints.keys())
                .filter(|host| headless(host))
                .all(|host| endpoints.get(host) == other.endpoints.get(host))
    }
}
