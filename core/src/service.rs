//! Services, the workloads behind them, and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::identity::Identity;
use crate::object::ObjectKey;
use crate::policy::Nearest;
use crate::protocol::Protocol;

/// Labels of a pod or a selector of them.
pub type Labels = BTreeMap<String, String>;

/// Whether all labels of the selector are among the labels. An empty selector selects everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// The label of a region.
pub const REGION: &str = "topology.kubernetes.io/region";
/// The label of a zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a part of a zone.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// The label of a node.
pub const NODE: &str = "kubernetes.io/hostname";

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its full name.
    pub host: Host,
    /// The Kubernetes Service.
    pub key: ObjectKey,
    /// How clients address it.
    pub addressing: Addressing,
    /// Its TCP ports, by number.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Whether it asks for endpoints near the client, and how that is told.
    pub nearest: Option<Nearest>,
    /// Whether its endpoints take requests before they are ready, and until they are gone.
    pub publish_not_ready: bool,
}

/// How clients address a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Addressing {
    /// By virtual addresses of its own, IPv4 and IPv6; never empty.
    Virtual(Vec<IpAddr>),
    /// By the addresses of its endpoints.
    Headless,
    /// By its name alone, which stands for this one in DNS.
    Alias(String),
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The number that clients use.
    pub number: u16,
    /// Its name; may be empty when there is only one.
    pub name: String,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// What a sidecar runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Leno's own proxy.
    #[default]
    Leno,
    /// Envoy, under Leno's agent.
    Envoy,
}

impl Engine {
    /// The engine of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "leno" => Some(Engine::Leno),
            "envoy" => Some(Engine::Envoy),
            _ => None,
        }
    }

    /// The name of the engine.
    pub const fn as_str(self) -> &'static str {
        match self {
            Engine::Leno => "leno",
            Engine::Envoy => "envoy",
        }
    }

    /// The component whose image holds the engine.
    pub const fn component(self) -> &'static str {
        match self {
            Engine::Leno => "proxy",
            Engine::Envoy => "envoy",
        }
    }
}

/// The annotation by which a pod asks for an engine other than the mesh's.
pub const ENGINE_ANNOTATION: &str = "mesh.leno.dev/engine";
/// The annotation in which injection notes the engine of a pod; a pod without it has Leno's.
pub const INJECTED_ENGINE_ANNOTATION: &str = "mesh.leno.dev/injected-engine";

/// A pod as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The pod.
    pub pod: ObjectKey,
    /// The pod's unique id.
    pub uid: String,
    /// The name of what made the pod (the Deployment, say), or the pod's own.
    pub name: String,
    /// Its application, by the usual labels; may be empty.
    pub app: String,
    /// Its version, by the usual labels; may be empty.
    pub version: String,
    /// Who it is.
    pub identity: Identity,
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node that it runs on; empty while it is not scheduled.
    pub node: String,
    /// Where that node is.
    pub locality: Locality,
    /// Whether it has a proxy of this mesh.
    pub meshed: bool,
    /// What that proxy is.
    pub engine: Engine,
    /// The ports on which services reach it.
    pub inbound: BTreeMap<u16, InboundPort>,
}

/// A port of a workload that at least one service leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InboundPort {
    /// The port of the pod.
    pub number: u16,
    /// What is spoken on it, by the service named here.
    pub protocol: Protocol,
    /// The first of the services that lead to it, in the order of their names.
    pub service: Host,
    /// That service's key.
    pub key: ObjectKey,
    /// Its port that leads here.
    pub service_port: u16,
}

/// Region, zone and part of it of a node, by the well-known labels; empty when not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
    /// The part of the zone.
    pub subzone: String,
}

/// Where one port of a service can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port of the endpoint, which need not be the service's.
    pub port: u16,
    /// The pod behind it, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// Where it is.
    pub locality: Locality,
}

impl Endpoint {
    /// Whether the endpoint belongs to a subset that asks for these labels.
    pub fn is_selected_by(&self, labels: &Labels) -> bool {
        match &self.workload {
            Some(workload) => selects(labels, &workload.labels),
            None => labels.is_empty(),
        }
    }

    /// The value of a label of its pod or of the place where it is; empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        let Locality { region, zone, subzone } = &self.locality;
        match name {
            REGION => region,
            ZONE => zone,
            SUBZONE => subzone,
            NODE => self.workload.as_deref().map_or("", |workload| &workload.node),
            name => self.workload.as_deref().and_then(|workload| workload.labels.get(name)).map_or("", String::as_str),
        }
    }

    /// Whom a client must find there: `None` when it is reached in plain text.
    pub fn identity(&self) -> Option<&Identity> {
        self.workload.as_deref().filter(|workload| workload.meshed).map(|workload| &workload.identity)
    }
}

/// All endpoints of one service port, sorted by address and port.
pub type Endpoints = Arc<Vec<Endpoint>>;

/// The identities that clients may meet behind a service.
pub type Identities = BTreeSet<Identity>;
