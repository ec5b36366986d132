//! Snapshot and scope to the intermediate form: which rules hold for this proxy, and what they come to. Pure.

mod clusters;
mod findings;
mod index;
mod ir;
mod outbound;
mod scope;
mod secrets;
mod silence;

use std::sync::Arc;

use leno_core::{Finding, ObjectKey, Snapshot};

pub(crate) use clusters::lies_in;
pub use findings::findings;
pub use ir::{
    Action, Cluster, ClusterName, ConnectionRoute, Discovery, Forward, HttpRoute, Ir, Outbound, OutboundHost,
    OutboundPort, OutboundService, Spread, SpreadBy, Target, TcpTarget,
};
pub use scope::{ClientScope, Scope, WorkloadScope, scope_of};

/// What one proxy is to do, and what was found on the way. [`findings`] has these and all others, for every object,
/// whether or not any proxy uses it.
pub fn resolve(snapshot: &Snapshot, scope: &Scope) -> (Ir, Vec<Finding>) {
    let (outbound, findings) = outbound(snapshot, &scope.client);
    (with_outbound(snapshot, scope, Arc::new(outbound)), findings)
}

/// What a client can reach: equal for all scopes with an equal client scope, so that it can be shared.
pub fn outbound(snapshot: &Snapshot, client: &ClientScope) -> (Outbound, Vec<Finding>) {
    outbound::outbound(&index::Index::new(snapshot), client)
}

/// What one proxy is to do, given what it can reach.
pub fn with_outbound(snapshot: &Snapshot, scope: &Scope, outbound: Arc<Outbound>) -> Ir {
    let own = |(secret, _): &(&ObjectKey, _)| secret.namespace == scope.client.namespace;
    let credentials = snapshot.credentials.iter().filter(own).map(|(name, held)| (name.clone(), held.clone()));
    Ir { mesh: snapshot.mesh.clone(), workload: scope.workload.clone(), credentials: credentials.collect(), outbound }
}

/// The cluster of a name as the client sees it; `None` when the client has no such cluster.
pub fn cluster_of(snapshot: &Snapshot, client: &ClientScope, name: &ClusterName) -> Option<Cluster> {
    let service = snapshot.services.get(&name.host)?;
    let port = service.ports.get(&name.port)?;
    let index = index::Index::new(snapshot);
    let policy = index.policy(service, client);
    clusters::of_port(snapshot, client, service, port, policy).into_iter().find(|cluster| cluster.name == *name)
}
