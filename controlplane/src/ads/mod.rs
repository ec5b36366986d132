//! Serving configuration to proxies: the aggregated discovery service.
//!
//! Three parts, so that most of it needs neither a socket nor a cluster to test. [`configuration`] is what the proxies of
//! one scope should hold, with the versions that go over the wire. [`session`] is the protocol with one proxy as a pure
//! state machine: requests and configurations in, responses out; [`state_of_the_world`] puts the older variant of the
//! protocol on top of it. [`server`] is the thin part that moves its messages over
//! gRPC, one task a stream; [`spread`] ends streams so that the replicas hold equally many. Where configurations come from, and who is told what a proxy has acknowledged, is behind the
//! trait [`Configs`].

pub mod configuration;
pub mod server;
pub mod session;
pub mod spread;
pub mod state_of_the_world;
mod variant;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::{ObjectKey, ObjectRef};
use tokio::sync::watch;

pub use configuration::{Configuration, Kind};

/// The pod at the other end of a connection, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIdentity {
    /// The pod.
    pub pod: ObjectKey,
    /// The pod's uid: a name is used again, a uid is not.
    pub uid: String,
    /// The service account that the pod runs as.
    pub service_account: String,
}

/// What a proxy should hold.
#[derive(Clone, Debug, Default)]
pub enum Target {
    /// The control plane has not seen the pod yet.
    #[default]
    Unknown,
    /// There is a pod of that name, but it is another one.
    Foreign,
    /// Its configuration.
    Ready(Arc<Configuration>),
}

/// How far one stream is; each replaces the one before.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// [`Configuration::id`] that the stream works towards.
    pub configuration: u64,
    /// Objects that the configuration was made from.
    pub affected: Arc<BTreeSet<ObjectRef>>,
    /// Those of them, and of what came before, that the proxy has not acknowledged all of.
    pub outstanding: BTreeSet<ObjectRef>,
    /// Objects with a resource that the proxy refused, with the reason that it gave.
    pub rejected: BTreeMap<ObjectRef, String>,
}

/// Where configurations come from, and where acknowledgements go to.
pub trait Configs: Send + Sync + 'static {
    /// Begins to follow what this pod should hold. The pod counts as connected as long as the receiver lives.
    fn follow(&self, peer: &PodIdentity) -> watch::Receiver<Target>;
    /// A stream (its number is unique in this process) is this far.
    fn progress(&self, stream: u64, peer: &PodIdentity, progress: Progress);
    /// A stream is gone.
    fn gone(&self, stream: u64);
}
