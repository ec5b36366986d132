//! What the configuration of one proxy may depend on, and nothing else.

use std::collections::BTreeMap;

use leno_core::service::{InboundPort, Labels};
use leno_core::{Identity, ObjectKey, Snapshot};

/// Everything that translation may depend on besides the snapshot: the only key of its caches. Pods of one workload on one
/// node have the same scope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The proxy as a client of services.
    pub client: ClientScope,
    /// The workload that the proxy serves.
    pub workload: WorkloadScope,
}

/// What outbound configuration depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientScope {
    /// The client's namespace.
    pub namespace: String,
    /// Those of its labels that some rule asks for.
    pub labels: Labels,
}

/// What inbound configuration and telemetry depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadScope {
    /// The workload's name.
    pub name: String,
    /// Its application; may be empty.
    pub app: String,
    /// Its version; may be empty.
    pub version: String,
    /// Who it is.
    pub identity: Identity,
    /// The node that it runs on.
    pub node: String,
    /// The ports on which services reach it.
    pub inbound: BTreeMap<u16, InboundPort>,
}

/// The scope of a pod; `None` when the snapshot does not know it.
pub fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<Scope> {
    let workload = snapshot.workloads.get(pod)?;
    let asked = |(name, _): &(&String, &String)| snapshot.client_labels.contains(*name);
    let labels = workload.labels.iter().filter(asked).map(|(name, value)| (name.clone(), value.clone())).collect();
    Some(Scope {
        client: ClientScope { namespace: workload.pod.namespace.clone(), labels },
        workload: WorkloadScope {
            name: workload.name.clone(),
            app: workload.app.clone(),
            version: workload.version.clone(),
            identity: workload.identity.clone(),
            node: workload.node.clone(),
            inbound: workload.inbound.clone(),
        },
    })
}
