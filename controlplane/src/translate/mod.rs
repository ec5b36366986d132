//! Intermediate form to xDS: pure, and the only place that knows Envoy's messages.
//!
//! What comes out is a set of named resources, sorted and with a version that is a hash of the content: equal input gives
//! equal bytes. Endpoints are translated apart from all else ([`endpoints`]).

pub mod amend;
mod cluster_options;
mod clusters;
mod endpoints;
mod envoy;
mod filters;
mod forwards;
mod harmless;
mod inbound;
mod outbound;
mod proof;
mod resources;
mod routes;
mod secrets;
mod tls;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::policy::ClientTls;
use leno_core::service::{Addressing, Engine};
use leno_core::{ObjectRef, Protocol, Snapshot};
use leno_xds::any;
use leno_xds::envoy::config::listener::v3::Listener;
use leno_xds::envoy::config::route::v3::RouteConfiguration;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::resolve::{Cluster, ClusterName, Discovery, Ir, Outbound, OutboundService, Scope, cluster_of};

pub use proof::{Refusal, refused_policy, refused_rules};
pub use resources::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resource, Resources, SECRET, TypeUrl};

/// Everything that a proxy is sent but endpoints: listeners, clusters, the secrets that these name, and routes.
pub fn translate(ir: &Ir) -> Resources {
    let by_type = [(LISTENER, listeners(ir)), (CLUSTER, clusters(ir)), (SECRET, secrets(ir)), (ROUTE, routes(ir))];
    Resources { by_type: by_type.into() }
}

/// The names of the clusters whose endpoints a proxy asks for.
pub fn endpoint_names(ir: &Ir) -> impl Iterator<Item = ClusterName> {
    with_endpoints(&ir.outbound).map(|cluster| cluster.name.clone())
}

fn all_clusters(outbound: &Outbound) -> impl Iterator<Item = &Cluster> {
    outbound.services.iter().flat_map(|service| &service.ports).flat_map(|port| &port.clusters)
}

/// The clusters whose endpoints the control plane sends.
fn with_endpoints(outbound: &Outbound) -> impl Iterator<Item = &Cluster> {
    all_clusters(outbound).filter(|cluster| cluster.discovery == Discovery::Endpoints)
}

/// Clusters by name: what is said about a cluster and holds for the connections and requests that lead to it.
type Clusters<'a> = BTreeMap<&'a ClusterName, &'a Cluster>;

fn by_name(outbound: &Outbound) -> Clusters<'_> {
    all_clusters(outbound).map(|cluster| (&cluster.name, cluster)).collect()
}

/// The endpoints of one cluster as one client sees it; `None` when it has no such cluster. A change of endpoints needs
/// nothing but this.
pub fn endpoints(snapshot: &Snapshot, scope: &Scope, cluster_name: &str) -> Option<Resource> {
    let name = ClusterName::parse(cluster_name)?;
    let cluster = cluster_of(snapshot, &scope.client, &name)?;
    if cluster.discovery != Discovery::Endpoints {
        return None;
    }
    let assignment = endpoints::assignment(snapshot, &scope.client, &cluster);
    Some(Resource::new(any(&assignment), BTreeSet::new()))
}

/// The endpoints of all clusters of a proxy: the same as [`endpoints`] for each of [`endpoint_names`], in one go.
pub fn all_endpoints(snapshot: &Snapshot, scope: &Scope, ir: &Ir) -> BTreeMap<String, Arc<Resource>> {
    with_endpoints(&ir.outbound)
        .map(|cluster| {
            let assignment = endpoints::assignment(snapshot, &scope.client, cluster);
            (cluster.name.to_string(), resource(&assignment, BTreeSet::new()))
        })
        .collect()
}

type Named = BTreeMap<String, Arc<Resource>>;

fn resource<M: prost::Message + prost::Name>(message: &M, origins: BTreeSet<ObjectRef>) -> Arc<Resource> {
    Arc::new(Resource::new(any(message), origins))
}

fn listeners(ir: &Ir) -> Named {
    let for_envoy = ir.workload.engine == Engine::Envoy;
    let made = |mut listener: Listener, origins, inbound| {
        if for_envoy {
            envoy::listener(&mut listener, ir, inbound);
        }
        (listener.name.clone(), resource(&listener, origins))
    };
    let mut listeners: Named = outbound::services(&ir.outbound, &by_name(&ir.outbound))
        .into_values()
        .map(|(listener, origins)| made(listener, origins, false))
        .collect();
    let by_host = outbound::http_ports(&ir.outbound).into_iter().map(|port| outbound::by_host(ir, port));
    listeners.extend(by_host.chain([outbound::capture(ir)]).map(|listener| made(listener, BTreeSet::new(), false)));
    listeners.extend([made(inbound::listener(ir), BTreeSet::new(), true)]);
    listeners
}

fn clusters(ir: &Ir) -> Named {
    let mut named = Named::new();
    for service in &ir.outbound.services {
        for cluster in service.ports.iter().flat_map(|port| &port.clusters) {
            let mut message = clusters::outbound(cluster, &service.service, &ir.mesh);
            if ir.workload.engine == Engine::Envoy {
                envoy::cluster(&mut message, &cluster.policy);
            }
            let origins = cluster.origin.iter().chain(&cluster.others).cloned().collect();
            named.insert(message.name.clone(), resource(&message, origins));
        }
    }
    for (name, cluster) in inbound::clusters(ir) {
        named.insert(name, resource(&cluster, BTreeSet::new()));
    }
    let passthrough = clusters::original_destination(clusters::PASSTHROUGH, Protocol::Auto);
    for cluster in [passthrough, clusters::black_hole()] {
        named.insert(cluster.name.clone(), resource(&cluster, BTreeSet::new()));
    }
    named
}

fn secrets(ir: &Ir) -> Named {
    let mut named: BTreeMap<String, (Secret, BTreeSet<ObjectRef>)> = BTreeMap::new();
    for cluster in all_clusters(&ir.outbound) {
        let Some(ClientTls::Simple(settings)) = &cluster.policy.tls else { continue };
        for secret in secrets::of(settings, &ir.credentials) {
            let (_, origins) = named.entry(secret.name.clone()).or_insert_with(|| (secret, BTreeSet::new()));
            origins.extend(cluster.origin.iter().chain(&cluster.others).cloned());
        }
    }
    named.into_iter().map(|(name, (secret, origins))| (name, resource(&secret, origins))).collect()
}

fn routes(ir: &Ir) -> Named {
    let keys = by_name(&ir.outbound);
    let for_envoy = ir.workload.engine == Engine::Envoy;
    let mut named = Named::new();
    let mut put = |mut message: RouteConfiguration, origins| {
        if for_envoy {
            envoy::routes(&mut message, ir, &keys);
        }
        named.insert(message.name.clone(), resource(&message, origins));
    };
    // What has no address of its own is reached by host alone.
    let addressed = |service: &&OutboundService| !matches!(service.service.addressing, Addressing::Alias(_));
    for service in ir.outbound.services.iter().filter(addressed) {
        for port in service.ports.iter().filter(|port| !port.protocol.is_opaque()) {
            let (message, origins) = routes::of_service(ir, service, port, &keys);
            put(message, origins);
        }
    }
    for port in outbound::http_ports(&ir.outbound) {
        let (message, origins) = routes::by_host(ir, port, &keys);
        put(message, origins);
    }
    named
}
