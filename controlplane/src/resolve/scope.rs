//! What the configuration of one proxy may depend on, and nothing else.

use std::collections::BTreeMap;

use leno_core::service::{Engine, InboundPort, Labels, Locality, NODE, REGION, SUBZONE, ZONE};
use leno_core::snapshot::Place;
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
    /// Where it is, as far as that matters to some rule.
    pub locality: Locality,
    /// The node that it runs on, if that matters to some rule.
    pub node: String,
}

impl ClientScope {
    /// A client of a namespace of which nothing else is known.
    pub fn of_namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..Self::default() }
    }

    /// The value of a label, or of the place where it is; empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        match name {
            REGION => &self.locality.region,
            ZONE => &self.locality.zone,
            SUBZONE => &self.locality.subzone,
            NODE => &self.node,
            name => self.labels.get(name).map_or("", String::as_str),
        }
    }
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
    /// What its proxy is: Envoy is told more, since an agent speaks for it.
    pub engine: Engine,
    /// The ports on which services reach it.
    pub inbound: BTreeMap<u16, InboundPort>,
}

/// The scope of a pod; `None` when the snapshot does not know it.
pub fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<Scope> {
    let workload = snapshot.workloads.get(pod)?;
    let asked = |(name, _): &(&String, &String)| snapshot.client_labels.contains(*name);
    let labels = workload.labels.iter().filter(asked).map(|(name, value)| (name.clone(), value.clone())).collect();
    let place = snapshot.client_place;
    Some(Scope {
        client: ClientScope {
            namespace: workload.pod.namespace.clone(),
            labels,
            locality: if place >= Place::Locality { workload.locality.clone() } else { Locality::default() },
            node: if place == Place::Node { workload.node.clone() } else { String::new() },
        },
        workload: WorkloadScope {
            name: workload.name.clone(),
            app: workload.app.clone(),
            version: workload.version.clone(),
            identity: workload.identity.clone(),
            node: workload.node.clone(),
            engine: workload.engine,
            inbound: workload.inbound.clone(),
        },
    })
}
