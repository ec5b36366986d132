//! What the control plane has sent, and which of it is in force: a state machine without sockets or a clock of its own.
//!
//! The unit of failure is the resource. One that does not convert is refused by name and its last good form stays;
//! everything else of the same response is taken. A new form takes force when what it needs is there ("warm"): a route
//! table when the clusters that it names have their endpoints, a listener when its route tables and its filters' configurations
//! have come as well. Until
//! then the old form serves, and follows what it uses itself; how long that may take is said where the rest comes from
//! (`initial_fetch_timeout`).

mod clusters;
#[cfg(test)]
mod extension_tests;
mod figures;
mod files;
mod kind;
mod settle;
mod take;
#[cfg(test)]
mod take_tests;

pub use kind::{Kind, Update};

use super::convert::cluster::Template;
use super::convert::listener::Parts;
use super::convert::{Context, Refused};
use super::rejections::Rejections;
use super::source::{SourceId, Sources};
use crate::config::{Cluster, ClusterId, Drain, Listener, Locality, RouteTable, SocketSettings};
use crate::telemetry::WorkloadLabels;
use crate::telemetry::counters::Counters;
use crate::tls::material::KeyPair;
use leno_xds::envoy::config::core::v3::Node;
use prost_types::Any;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// How long routes and listeners wait for the clusters that they name. What they ask for by name has limits of its own.
pub const WARMING_LIMIT: Duration = Duration::from_secs(5);

/// A resource as it came.
#[derive(Debug, Clone)]
pub struct Raw {
    /// The version that the control plane gave it.
    pub version: String,
    /// The resource itself.
    pub body: Any,
    /// When it came.
    pub since: SystemTime,
}

/// A resource whose newest form was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The version that was refused.
    pub version: String,
    /// Why.
    pub reason: Refused,
    /// When.
    pub since: SystemTime,
}

/// Where listeners get their sockets.
pub trait Bind: std::fmt::Debug + Send {
    /// Binds that address for a listener that has come, unless it is bound already.
    ///
    /// # Errors
    /// When the address cannot be had.
    fn bind(&self, address: SocketAddr, settings: &SocketSettings) -> std::io::Result<()>;

    /// Gives back what was bound for none of these addresses and is not in force.
    fn keep(&self, wanted: &BTreeSet<SocketAddr>);
}

/// Which addresses listeners may have.
#[derive(Debug)]
enum Sockets {
    /// Any; nobody binds them here.
    Any,
    /// Only these.
    Only(BTreeSet<SocketAddr>),
    /// Those that can be bound.
    Live(Box<dyn Bind>),
}

/// What became of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Why some of it was refused, for the control plane; empty when all was taken.
    pub refused: Option<String>,
    /// Resources that must be in force before the response is acknowledged.
    pub waits: BTreeSet<(Kind, String)>,
}

/// A form of a cluster: what came, and what became of it.
#[derive(Debug)]
struct ClusterForm {
    raw: Raw,
    template: Template,
    /// The secrets that its TLS needs.
    secrets: BTreeSet<String>,
}

#[derive(Debug)]
struct ClusterEntry {
    /// The newest form that was taken.
    form: ClusterForm,
    /// The form in force, while the newest waits for what it needs.
    active: Option<ClusterForm>,
    built: Option<Arc<Cluster>>,
    id: ClusterId,
    /// Since when the newest form waits; `None` when it is in force.
    since: Option<Instant>,
}

impl ClusterEntry {
    /// What is in force, or waits to be.
    fn forms(&self) -> impl Iterator<Item = &ClusterForm> {
        std::iter::once(&self.form).chain(&self.active)
    }

    /// The names of what it asks for its endpoints.
    fn endpoints(&self) -> impl Iterator<Item = &String> {
        self.forms().filter_map(|form| form.template.endpoints.as_ref())
    }
}

#[derive(Debug)]
struct RouteEntry {
    raw: Raw,
    current: Option<Arc<RouteTable>>,
    pending: Option<(Arc<RouteTable>, BTreeSet<ClusterId>, Instant)>,
}

#[derive(Debug)]
struct ListenerEntry {
    /// The newest form that was taken.
    raw: Raw,
    parts: Parts,
    /// The form in force, while the newest waits for what it needs.
    active: Option<(Raw, Parts)>,
    current: Option<Arc<Listener>>,
    /// Since when the newest form waits; `None` when it is in force.
    since: Option<Instant>,
    /// One of its route tables, or the configuration of one of its filters, has changed.
    stale: bool,
}

impl ListenerEntry {
    /// What is in force, or waits to be.
    fn all_parts(&self) -> impl Iterator<Item = &Parts> {
        std::iter::once(&self.parts).chain(self.active.as_ref().map(|(_, parts)| parts))
    }
}

/// Everything that was received.
#[derive(Debug)]
pub struct State {
    context: Context,
    figures: figures::Figures,
    most_connections: Option<u64>,
    drain: Drain,
    /// How often values of the runtime were taken.
    runtime_loads: u64,
    bootstrap: Option<Raw>,
    clusters: BTreeMap<String, ClusterEntry>,
    /// The clusters that use an assignment of endpoints, by its name.
    users: BTreeMap<String, BTreeSet<String>>,
    endpoints: BTreeMap<String, Raw>,
    secrets: BTreeMap<String, Raw>,
    files: files::Files,
    listeners: BTreeMap<String, ListenerEntry>,
    /// Newest forms of listeners that are refused since a cluster is not there that their own routes name: order between streams and
    /// files is nobody's.
    too_early: BTreeMap<String, Raw>,
    routes: BTreeMap<String, RouteEntry>,
    extensions: BTreeMap<String, Raw>,
    /// Layers of the runtime that came from servers.
    layers: BTreeMap<String, Raw>,
    refusals: BTreeMap<(Kind, String), Refusal>,
    rejections: watch::Sender<Rejections>,
    /// Clusters that exist and have no endpoints yet.
    warming: HashSet<ClusterId>,
    /// Resources that were there from the start.
    fixed: BTreeSet<(Kind, String)>,
    /// Until when resources are good of which their server says so.
    expiries: BTreeMap<(Kind, String), Instant>,
    /// How many resources were to be asked for when that was last looked through.
    swept: usize,
    /// Kinds of which a first response is waited for before anything is in force, and until when.
    expected: BTreeMap<Kind, Option<Instant>>,
    own: Arc<WorkloadLabels>,
    sockets: Sockets,
    /// The version of the last response of each kind that was taken as a whole.
    versions: BTreeMap<Kind, String>,
    version: u64,
    /// When it was last looked at what can be in force.
    settled: Option<Instant>,
    published: bool,
    dirty: bool,
    /// A listener came, changed or went since sockets were last looked at.
    addresses_changed: bool,
}

impl State {
    /// What the parts of the configuration count.
    pub fn counters(&self) -> Counters {
        self.context.counters.clone()
    }

    /// Nothing received yet. `trust_domain` is that of this proxy's own identity.
    pub fn new(trust_domain: &str) -> Self {
        let context = Context::new(trust_domain);
        Self {
            figures: figures::Figures::new(&context.counters),
            context,
            most_connections: None,
            drain: Drain::default(),
            // As Envoy counts those of the beginning.
            runtime_loads: 2,
            bootstrap: None,
            clusters: BTreeMap::new(),
            users: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            secrets: BTreeMap::new(),
            files: files::Files::default(),
            listeners: BTreeMap::new(),
            too_early: BTreeMap::new(),
            routes: BTreeMap::new(),
            extensions: BTreeMap::new(),
            layers: BTreeMap::new(),
            refusals: BTreeMap::new(),
            rejections: watch::Sender::default(),
            warming: HashSet::new(),
            fixed: BTreeSet::new(),
            expiries: BTreeMap::new(),
            swept: 0,
            expected: BTreeMap::from([(Kind::Cluster, None), (Kind::Listener, None)]),
            own: WorkloadLabels::unknown(),
            sockets: Sockets::Any,
            versions: BTreeMap::new(),
            version: 0,
            settled: None,
            published: false,
            dirty: false,
            addresses_changed: false,
        }
    }

    /// Refuses listeners that want sockets elsewhere than at these addresses: nobody would serve them.
    pub fn only_at(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.sockets = Sockets::Only(addresses.into_iter().collect());
        self
    }

    /// With values that change runtime fractions.
    pub fn with_runtime(mut self, runtime: super::bootstrap::Layers) -> Self {
        self.context.runtime = runtime;
        self
    }

    /// At most so many open connections of clients.
    pub fn limiting_connections(mut self, most: Option<u64>) -> Self {
        self.most_connections = most;
        self
    }

    /// With how connections end whose listener or filter chain is gone.
    pub fn draining(mut self, drain: Drain) -> Self {
        self.drain = drain;
        self
    }

    /// With how sockets to endpoints are made where their cluster does not say.
    pub fn connecting(mut self, sockets: super::convert::cluster::Sockets) -> Self {
        self.context.sockets = sockets;
        self
    }

    /// With who is asked for the names of endpoints where their cluster does not say.
    pub fn asking(mut self, resolvers: super::convert::cluster::dns::Resolvers) -> Self {
        self.context.resolvers = resolvers;
        self
    }

    /// With the name of the cluster whose endpoints are this proxy and those like it, and where the proxy is.
    pub fn at_home(mut self, cluster: Option<&str>, locality: Option<Locality>) -> Self {
        // The first names that a proxy hears of have always room.
        self.context.home = cluster.and_then(|name| self.context.cluster(name).ok()).map(|id| (id, locality));
        self
    }

    /// With a file in which is written which endpoints outlier detection takes out.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn logging_outliers(mut self, path: Option<&str>) -> Result<Self, Refused> {
        let field = "cluster_manager.outlier_detection.event_log_path";
        let open = |path| self.context.sinks.at(path).map_err(|why| Refused::new(field, format!("`{path}` {why}")));
        self.context.outlier_log = path.map(open).transpose()?;
        Ok(self)
    }

    /// Certificates of this proxy's own that are in use: what they say, and what of.
    pub fn certificates(&self) -> Vec<Arc<KeyPair>> {
        self.context.tls_contexts.certificates()
    }

    /// With the bootstrap, but for its resources, to be shown.
    pub fn begun_with(mut self, bootstrap: Any) -> Self {
        self.bootstrap = Some(Raw { version: String::new(), body: bootstrap, since: SystemTime::now() });
        self
    }

    /// The bootstrap without its resources, if this proxy had one.
    pub fn bootstrap(&self) -> Option<&Raw> {
        self.bootstrap.as_ref()
    }

    /// Values that change what resources say.
    pub fn runtime(&self) -> &super::bootstrap::Layers {
        &self.context.runtime
    }

    /// How often values of the runtime were taken.
    pub fn runtime_loads(&self) -> u64 {
        self.runtime_loads
    }

    /// The same, to be changed. Call [`Self::runtime_changed`] afterwards.
    pub fn runtime_mut(&mut self) -> &mut super::bootstrap::Layers {
        &mut self.context.runtime
    }

    /// With how the proxy introduces itself: its own name, as spans tell it, and its cluster's, as answers to health checks and
    /// spans do.
    pub fn with_node(mut self, node: &Node) -> Self {
        node.id.clone_into(&mut self.context.node);
        node.cluster.clone_into(&mut self.context.node_cluster);
        self.context.introduced = node.clone();
        self
    }

    /// With other sources than the aggregated stream.
    pub fn with_sources(mut self, sources: Sources) -> Self {
        self.context.sources = sources;
        self
    }

    /// Waits for a first response of these kinds, each for a time or without limit, before anything is in force. By
    /// default that are clusters and listeners, without limit.
    pub fn expecting(mut self, kinds: impl IntoIterator<Item = (Kind, Option<Instant>)>) -> Self {
        self.expected = kinds.into_iter().collect();
        self.figures.begin(self.expected.keys());
        self
    }

    /// Binds the addresses of listeners when they come, and refuses those of which one cannot be had.
    pub fn binding(mut self, sockets: impl Bind + 'static) -> Self {
        self.sockets = Sockets::Live(Box::new(sockets));
        self
    }

    /// The resources to ask for by name; empty for kinds of which all are wanted.
    pub fn wanted(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Cluster | Kind::Listener => BTreeSet::new(),
            Kind::Runtime => self.context.runtime.served().map(str::to_owned).collect(),
            Kind::Endpoints => self.users.keys().cloned().collect(),
            Kind::Secret => {
                let forms = self.clusters.values().flat_map(ClusterEntry::forms);
                let clusters = forms.flat_map(|form| &form.secrets);
                let listeners = self.parts().flat_map(|parts| &parts.secrets);
                let fixed = |name: &&String| self.fixed.contains(&(Kind::Secret, (*name).clone()));
                clusters.chain(listeners).filter(|name| !fixed(name)).cloned().collect()
            }
            Kind::Routes => self.parts().flat_map(|parts| parts.routes.iter().cloned()).collect(),
            Kind::Extension => self.parts().flat_map(|parts| &parts.extensions).map(|used| used.name.clone()).collect(),
        }
    }

    /// What listeners are, those in force and those that wait to be.
    fn parts(&self) -> impl Iterator<Item = &Parts> {
        self.listeners.values().flat_map(ListenerEntry::all_parts)
    }

    /// As [`Self::wanted`], those of one source.
    pub fn wanted_from(&self, kind: Kind, source: SourceId) -> BTreeSet<String> {
        let mut wanted = self.wanted(kind);
        wanted.retain(|name| self.context.sources.of(kind, name) == source);
        wanted
    }

    /// Where resources come from.
    pub fn sources(&self) -> &Sources {
        &self.context.sources
    }

    /// Drops what came by name and nothing uses any more.
    pub fn forget(&mut self, kind: Kind, names: &BTreeSet<String>) {
        for name in names {
            self.refusals.remove(&(kind, name.clone()));
            // What is counted of endpoints goes with the clusters.
            if kind != Kind::Endpoints {
                self.forget_updates(kind, name);
            }
            self.expiries.remove(&(kind, name.clone()));
            self.context.sources.forget(kind, name);
            match kind {
                Kind::Endpoints => drop(self.endpoints.remove(name)),
                Kind::Secret => {
                    self.secrets.remove(name);
                    self.files.forget(name);
                    self.context.secrets.remove(name);
                }
                Kind::Routes => drop(self.routes.remove(name)),
                Kind::Extension => {
                    self.extensions.remove(name);
                    self.context.extensions.remove(name);
                }
                Kind::Runtime | Kind::Cluster | Kind::Listener => {}
            }
        }
    }

    /// The versions held of what a source sends, for a new stream: what has not changed is then not sent again.
    pub fn versions(&self, kind: Kind, source: SourceId) -> BTreeMap<String, String> {
        self.raws(kind)
            .filter(|(name, _)| !kind.by_name() || self.context.sources.of(kind, name) == source)
            .filter(|(name, _)| !self.fixed.contains(&(kind, (*name).to_owned())))
            .map(|(name, raw)| (name.to_owned(), raw.version.clone()))
            .collect()
    }

    /// Every resource of a kind as it came, in the last form that was taken.
    pub fn raws(&self, kind: Kind) -> Box<dyn Iterator<Item = (&str, &Raw)> + '_> {
        match kind {
            Kind::Cluster => Box::new(self.clusters.iter().map(|(name, entry)| (name.as_str(), &entry.form.raw))),
            Kind::Runtime => Box::new(self.layers.iter().map(|(name, raw)| (name.as_str(), raw))),
            Kind::Endpoints => Box::new(self.endpoints.iter().map(|(name, raw)| (name.as_str(), raw))),
            Kind::Secret => Box::new(self.secrets.iter().map(|(name, raw)| (name.as_str(), raw))),
            Kind::Listener => Box::new(self.listeners.iter().map(|(name, entry)| (name.as_str(), &entry.raw))),
            Kind::Routes => Box::new(self.routes.iter().map(|(name, entry)| (name.as_str(), &entry.raw))),
            Kind::Extension => Box::new(self.extensions.iter().map(|(name, raw)| (name.as_str(), raw))),
        }
    }

    /// Clusters or listeners by name: the form in force, and the one that waits for what it needs.
    pub fn forms(&self, kind: Kind) -> Vec<(&str, Option<&Raw>, Option<&Raw>)> {
        fn form<'a>(
            name: &'a str,
            waits: bool,
            newest: &'a Raw,
            active: Option<&'a Raw>,
        ) -> (&'a str, Option<&'a Raw>, Option<&'a Raw>) {
            if waits { (name, active, Some(newest)) } else { (name, Some(newest), None) }
        }
        match kind {
            Kind::Cluster => {
                let all = self.clusters.iter().map(|(name, entry)| {
                    let active = entry.active.as_ref().map(|form| &form.raw);
                    form(name, entry.since.is_some(), &entry.form.raw, active)
                });
                all.collect()
            }
            Kind::Listener => {
                let all = self.listeners.iter().map(|(name, entry)| {
                    let active = entry.active.as_ref().map(|(raw, _)| raw);
                    form(name, entry.since.is_some(), &entry.raw, active)
                });
                all.collect()
            }
            Kind::Runtime | Kind::Endpoints | Kind::Secret | Kind::Routes | Kind::Extension => Vec::new(),
        }
    }

    /// The version of the last response of a kind that was taken as a whole.
    pub fn accepted(&self, kind: Kind) -> Option<&str> {
        self.versions.get(&kind).map(String::as_str)
    }

    /// Whether a resource was there from the start.
    pub fn is_fixed(&self, kind: Kind, name: &str) -> bool {
        self.fixed.contains(&(kind, name.to_owned()))
    }

    /// Resources whose newest form was refused.
    pub fn refusals(&self) -> &BTreeMap<(Kind, String), Refusal> {
        &self.refusals
    }

    /// Resources refused so far, each version of one once.
    pub fn rejections(&self) -> watch::Receiver<Rejections> {
        self.rejections.subscribe()
    }

    /// The clusters in force, by name.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values().filter_map(|entry| entry.built.as_ref())
    }

    /// The listeners in force, by name.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values().filter_map(|entry| entry.current.as_ref())
    }

    /// How many roots there have been.
    pub fn version(&self) -> u64 {
        self.version
    }
}
