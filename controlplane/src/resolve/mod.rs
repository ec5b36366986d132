//! Snapshot and scope to the intermediate form: which rules hold for this proxy, and what they come to. Pure.

mod findings;
mod index;
mod ir;
mod outbound;
mod scope;

use std::sync::Arc;

use leno_core::policy::DestinationPolicy;
use leno_core::{Finding, Snapshot};

pub use findings::findings;
pub use ir::{
    Action, Cluster, ClusterName, Forward, HttpRoute, Ir, Outbound, OutboundHost, OutboundPort, OutboundService,
    Target, TcpTarget,
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
    Ir { mesh: snapshot.mesh.clone(), workload: scope.workload.clone(), outbound }
}

/// The labels that the endpoints of a cluster carry, as the client sees it; `None` when the client has no such cluster.
pub fn labels_of(snapshot: &Snapshot, client: &ClientScope, name: &ClusterName) -> Option<leno_core::service::Labels> {
    let service = snapshot.services.get(&name.host)?;
    service.ports.get(&name.port)?;
    if name.subset.is_empty() {
        return Some(leno_core::service::Labels::new());
    }
    let index = index::Index::new(snapshot);
    let policy: Option<&Arc<DestinationPolicy>> = index.policy(service, client);
    index::subsets(policy).iter().find(|subset| subset.name == name.subset).map(|subset| subset.labels.clone())
}
