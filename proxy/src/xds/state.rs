//! What the control plane has sent, and which of it is in force: a state machine without sockets or a clock of its own.
//!
//! The unit of failure is the resource. One that does not convert is refused by name and its last good form stays;
//! everything else of the same response is taken. A new form takes force when what it needs is there ("warm"): a route
//! table when the clusters that it names have their endpoints, a listener when its route tables have come as well. Until
//! then the old form serves; a bounded wait ends it, so that a control plane that never sends the rest blocks nothing.

use super::convert::cluster::{Assignment, Template, template};
use super::convert::common::unpack;
use super::convert::listener::{Parts, listener};
use super::convert::{Context, Refused, route};
use crate::config::{Action, Cluster, ClusterId, Listener, Listeners, Root, RouteTable, SocketSettings};
use crate::telemetry::WorkloadLabels;
use leno_xds::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use prost_types::Any;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long a new form waits for what it needs.
pub const WARMING_LIMIT: Duration = Duration::from_secs(5);
/// Refusals of one response that are told to the control plane; more are only counted.
const MAX_REFUSALS_TOLD: usize = 16;

/// A kind of resource, in the order in which they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Clusters: all of them.
    Cluster,
    /// Endpoints: those of the clusters.
    Endpoints,
    /// Listeners: all of them.
    Listener,
    /// Route configurations: those that listeners name.
    Routes,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Kind; 4] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Routes];

    /// The type on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind of a type on the wire.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// What a person calls it.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Cluster => "cluster",
            Kind::Endpoints => "endpoints",
            Kind::Listener => "listener",
            Kind::Routes => "route configuration",
        }
    }
}

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

#[derive(Debug)]
struct ClusterEntry {
    raw: Raw,
    template: Template,
    built: Option<Arc<Cluster>>,
    id: ClusterId,
    deadline: Instant,
}

#[derive(Debug)]
struct RouteEntry {
    raw: Raw,
    current: Option<Arc<RouteTable>>,
    pending: Option<(Arc<RouteTable>, BTreeSet<ClusterId>, Instant)>,
}

#[derive(Debug)]
struct ListenerEntry {
    raw: Raw,
    parts: Parts,
    current: Option<Arc<Listener>>,
    deadline: Option<Instant>,
    /// One of its route tables has changed.
    stale: bool,
}

/// Everything that was received.
#[derive(Debug)]
pub struct State {
    context: Context,
    clusters: BTreeMap<String, ClusterEntry>,
    endpoints: BTreeMap<String, Raw>,
    listeners: BTreeMap<String, ListenerEntry>,
    routes: BTreeMap<String, RouteEntry>,
    refusals: BTreeMap<(Kind, String), Refusal>,
    /// Clusters that exist and have no endpoints yet.
    warming: HashSet<ClusterId>,
    seen: BTreeSet<Kind>,
    own: Arc<WorkloadLabels>,
    sockets: Sockets,
    version: u64,
    published: bool,
    dirty: bool,
    /// A listener came, changed or went since sockets were last looked at.
    addresses_changed: bool,
}

impl State {
    /// Nothing received yet. `trust_domain` is that of this proxy's own identity.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            context: Context::new(trust_domain),
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            refusals: BTreeMap::new(),
            warming: HashSet::new(),
            seen: BTreeSet::new(),
            own: WorkloadLabels::unknown(),
            sockets: Sockets::Any,
            version: 0,
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

    /// Binds the addresses of listeners when they come, and refuses those of which one cannot be had.
    pub fn binding(mut self, sockets: impl Bind + 'static) -> Self {
        self.sockets = Sockets::Live(Box::new(sockets));
        self
    }

    /// Takes a response in. Call [`Self::settle`] afterwards.
    pub fn apply(&mut self, kind: Kind, response: DeltaDiscoveryResponse, now: Instant, time: SystemTime) -> Applied {
        let mut applied = Applied::default();
        let mut refused = Vec::new();
        for resource in response.resources {
            let Resource {
                name,
                resource_name: _,
                aliases: _,
                version,
                resource,
                ttl: _,
                cache_control: _,
                metadata: _,
            } = resource;
            let Some(body) = resource else {
                refused.push((name, Refused::new("resource", "is missing")));
                continue;
            };
            let raw = Raw { version, body, since: time };
            let version = raw.version.clone();
            let taken = match kind {
                Kind::Cluster => self.take_cluster(&name, raw, now),
                Kind::Endpoints => self.take_endpoints(&name, raw),
                Kind::Listener => self.take_listener(&name, raw, now),
                Kind::Routes => self.take_routes(&name, raw, now),
            };
            match taken {
                Ok(()) => {
                    self.refusals.remove(&(kind, name.clone()));
                    if matches!(kind, Kind::Listener | Kind::Routes) {
                        applied.waits.insert((kind, name));
                    }
                }
                Err(reason) => {
                    tracing::warn!(kind = kind.noun(), %name, %version, %reason, "refused a resource; its last good form stays");
                    let refusal = Refusal { version, reason: reason.clone(), since: time };
                    self.refusals.insert((kind, name.clone()), refusal);
                    refused.push((name, reason));
                }
            }
        }
        for name in response.removed_resources {
            self.refusals.remove(&(kind, name.clone()));
            self.remove(kind, &name);
        }
        self.seen.insert(kind);
        applied.refused = tell(kind, &refused);
        applied
    }

    fn take_cluster(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let template = template(&mut self.context, unpack(&raw.body)?)?;
        let id = self.context.cluster(name)?;
        let old = self.clusters.get(name).and_then(|entry| entry.built.clone());
        let built = match &template.endpoints {
            None => Some(template.build(Assignment::default(), &self.own)),
            Some(resource) => match self.endpoints.get(resource) {
                Some(raw) => {
                    let endpoints = template.endpoints(&mut self.context, unpack(&raw.body)?)?;
                    Some(template.build(endpoints, &self.own))
                }
                // The old form serves until the endpoints of the new one come.
                None => old,
            },
        };
        if built.is_some() {
            self.warming.remove(&id);
        } else {
            self.warming.insert(id);
        }
        let deadline = now + WARMING_LIMIT;
        self.clusters.insert(name.to_owned(), ClusterEntry { raw, template, built, id, deadline });
        self.dirty = true;
        Ok(())
    }

    fn take_endpoints(&mut self, name: &str, raw: Raw) -> Result<(), Refused> {
        let assignment: leno_xds::envoy::config::endpoint::v3::ClusterLoadAssignment = unpack(&raw.body)?;
        let users: Vec<String> = match self.clusters.get(name) {
            Some(entry) if entry.template.endpoints.as_deref() == Some(name) => vec![name.to_owned()],
            _ => {
                let uses = |entry: &ClusterEntry| entry.template.endpoints.as_deref() == Some(name);
                self.clusters.iter().filter(|(_, entry)| uses(entry)).map(|(name, _)| name.clone()).collect()
            }
        };
        let mut built = Vec::with_capacity(users.len());
        for user in users {
            if let Some(entry) = self.clusters.get(&user) {
                let endpoints = entry.template.endpoints(&mut self.context, assignment.clone())?;
                built.push((user, entry.template.build(endpoints, &self.own)));
            }
        }
        for (user, cluster) in built {
            if let Some(entry) = self.clusters.get_mut(&user) {
                self.warming.remove(&entry.id);
                entry.built = Some(cluster);
                self.dirty = true;
            }
        }
        self.endpoints.insert(name.to_owned(), raw);
        Ok(())
    }

    fn take_routes(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let table = route::table(&mut self.context, unpack(&raw.body)?)?;
        let clusters = clusters_of(&table);
        let pending = Some((Arc::new(table), clusters, now + WARMING_LIMIT));
        match self.routes.get_mut(name) {
            Some(entry) => {
                entry.raw = raw;
                entry.pending = pending;
            }
            None => {
                self.routes.insert(name.to_owned(), RouteEntry { raw, current: None, pending });
            }
        }
        Ok(())
    }

    fn take_listener(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let parts = self.convert_listener(&raw)?;
        self.addresses_changed = true;
        if parts.listener.bind {
            self.claim(name, &parts.listener)?;
        }
        let current = self.listeners.get(name).and_then(|entry| entry.current.clone());
        let deadline = Some(now + WARMING_LIMIT);
        self.listeners.insert(name.to_owned(), ListenerEntry { raw, parts, current, deadline, stale: false });
        Ok(())
    }

    /// Makes sure that there are sockets for a listener.
    fn claim(&self, name: &str, listener: &Listener) -> Result<(), Refused> {
        for address in &listener.addresses {
            match &self.sockets {
                Sockets::Any => {}
                Sockets::Only(sockets) if sockets.contains(address) => {}
                Sockets::Only(sockets) => {
                    let have: Vec<String> = sockets.iter().map(ToString::to_string).collect();
                    let reason = format!(
                        "{address} is none of the addresses on which this proxy listens ({}); set bind_to_port to false",
                        have.join(", ")
                    );
                    return Err(Refused::new("address", reason));
                }
                Sockets::Live(sockets) => {
                    let owns = |entry: &ListenerEntry| {
                        entry.parts.listener.bind && entry.parts.listener.addresses.contains(address)
                    };
                    if let Some((other, _)) = self.listeners.iter().find(|(other, entry)| *other != name && owns(entry))
                    {
                        return Err(Refused::new("address", format!("{address} is that of the listener `{other}`")));
                    }
                    let cannot = |error| Refused::new("address", format!("cannot bind {address}: {error}"));
                    sockets.bind(*address, &listener.socket).map_err(cannot)?;
                }
            }
        }
        Ok(())
    }

    fn convert_listener(&mut self, raw: &Raw) -> Result<Parts, Refused> {
        let routes = &self.routes;
        let tables = |name: &str| routes.get(name).and_then(|entry| entry.current.clone());
        listener(&mut self.context, unpack(&raw.body)?, &tables)
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Cluster => {
                if let Some(entry) = self.clusters.remove(name) {
                    self.warming.remove(&entry.id);
                    self.dirty = true;
                }
            }
            Kind::Listener => {
                self.dirty |= self.listeners.remove(name).is_some();
                self.addresses_changed = true;
            }
            // What something here still uses stays until that goes (see `forget`): a removal may overtake it.
            Kind::Endpoints | Kind::Routes => {}
        }
    }

    /// Brings into force what can be. True when something changed, and [`Self::root`] would give a new root.
    pub fn settle(&mut self, now: Instant) -> bool {
        let mut late = Vec::new();
        for (name, entry) in &mut self.clusters {
            if entry.built.is_none() && now >= entry.deadline {
                tracing::warn!(cluster = %name, "no endpoints came in time; using the cluster without any");
                entry.built = Some(entry.template.build(Assignment::default(), &self.own));
                late.push(entry.id);
            }
        }
        for id in late {
            self.warming.remove(&id);
            self.dirty = true;
        }
        let warming = &self.warming;
        let mut changed = BTreeSet::new();
        for (name, entry) in &mut self.routes {
            let ready = entry.pending.as_ref().is_some_and(|(_, clusters, deadline)| {
                now >= *deadline || clusters.iter().all(|id| !warming.contains(id))
            });
            if ready && let Some((table, _, _)) = entry.pending.take() {
                entry.current = Some(table);
                changed.insert(name.clone());
            }
        }
        for entry in self.listeners.values_mut() {
            entry.stale |= entry.parts.routes.iter().any(|name| changed.contains(name));
        }
        self.settle_listeners(now);
        if std::mem::take(&mut self.addresses_changed)
            && let Sockets::Live(sockets) = &self.sockets
        {
            let listeners = self.listeners.values().flat_map(|entry| {
                std::iter::once(&entry.parts.listener).chain(&entry.current).filter(|listener| listener.bind)
            });
            sockets.keep(&listeners.flat_map(|listener| listener.addresses.iter().copied()).collect());
        }
        self.dirty
    }

    fn settle_listeners(&mut self, now: Instant) {
        let due: Vec<String> = self
            .listeners
            .iter()
            .filter(|(_, entry)| match entry.deadline {
                None => entry.stale,
                Some(deadline) => {
                    now >= deadline
                        || entry.parts.clusters.iter().all(|id| !self.warming.contains(id))
                            && entry.parts.routes.iter().all(|name| self.has_table(name))
                }
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(mut entry) = self.listeners.remove(&name) else { continue };
            // Again, because route tables have come since it was first converted.
            if !entry.parts.routes.is_empty() {
                match self.convert_listener(&entry.raw) {
                    Ok(parts) => entry.parts = parts,
                    Err(reason) => tracing::error!(listener = %name, %reason, "converted before and not now"),
                }
            }
            entry.current = Some(entry.parts.listener.clone());
            entry.deadline = None;
            entry.stale = false;
            if let Some(own) = &entry.parts.own
                && *own != self.own
            {
                self.own = own.clone();
                self.rebuild_clusters();
            }
            self.listeners.insert(name, entry);
            self.dirty = true;
        }
    }

    /// Clusters carry the workload that inbound traffic is for.
    fn rebuild_clusters(&mut self) {
        for entry in self.clusters.values_mut() {
            if let Some(built) = &entry.built {
                let endpoints = built.endpoints.clone();
                let assignment = Assignment { endpoints, spread: built.spread, names: Vec::new() };
                entry.built = Some(entry.template.build(assignment, &self.own));
            }
        }
    }

    fn has_table(&self, name: &str) -> bool {
        self.routes.get(name).is_some_and(|entry| entry.current.is_some())
    }

    /// Whether a resource has come whose newest form is not in force yet.
    pub fn waits(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Listener => self.listeners.get(name).is_some_and(|entry| entry.deadline.is_some()),
            Kind::Routes => self.routes.get(name).is_some_and(|entry| entry.pending.is_some()),
            Kind::Cluster | Kind::Endpoints => false,
        }
    }

    /// When [`Self::settle`] should be called again, if nothing comes before.
    pub fn deadline(&self) -> Option<Instant> {
        let clusters = self.clusters.values().filter(|entry| entry.built.is_none()).map(|entry| entry.deadline);
        let routes = self.routes.values().filter_map(|entry| entry.pending.as_ref().map(|pending| pending.2));
        let listeners = self.listeners.values().filter_map(|entry| entry.deadline);
        clusters.chain(routes).chain(listeners).min()
    }

    /// The new root, if there is one to publish. The first is given only when everything that came is in force.
    pub fn root(&mut self) -> Option<Arc<Root>> {
        if !self.published {
            let complete =
                self.seen.contains(&Kind::Cluster) && self.seen.contains(&Kind::Listener) && self.deadline().is_none();
            if !complete {
                return None;
            }
            self.dirty = true;
        }
        if !self.dirty {
            return None;
        }
        self.published = true;
        self.dirty = false;
        self.version += 1;
        let mut clusters = vec![None; self.context.cluster_count()];
        for entry in self.clusters.values() {
            if let Some(slot) = clusters.get_mut(entry.id.0 as usize) {
                slot.clone_from(&entry.built);
            }
        }
        let listeners = self.listeners.values().filter_map(|entry| entry.current.clone()).collect();
        Some(Arc::new(Root {
            version: self.version,
            listeners: Listeners::new(listeners),
            clusters,
            own: self.own.clone(),
            ..Root::default()
        }))
    }

    /// The resources to ask for by name; empty for kinds of which all are wanted.
    pub fn wanted(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Cluster | Kind::Listener => BTreeSet::new(),
            Kind::Endpoints => self.clusters.values().filter_map(|entry| entry.template.endpoints.clone()).collect(),
            Kind::Routes => self.listeners.values().flat_map(|entry| entry.parts.routes.iter().cloned()).collect(),
        }
    }

    /// Drops what came by name and nothing uses any more.
    pub fn forget(&mut self, kind: Kind, names: &BTreeSet<String>) {
        for name in names {
            self.refusals.remove(&(kind, name.clone()));
            match kind {
                Kind::Endpoints => drop(self.endpoints.remove(name)),
                Kind::Routes => drop(self.routes.remove(name)),
                Kind::Cluster | Kind::Listener => {}
            }
        }
    }

    /// The versions held, for a new stream: what has not changed is then not sent again.
    pub fn versions(&self, kind: Kind) -> BTreeMap<String, String> {
        self.raws(kind).map(|(name, raw)| (name.to_owned(), raw.version.clone())).collect()
    }

    /// Every resource of a kind as it came, in the last form that was taken.
    pub fn raws(&self, kind: Kind) -> Box<dyn Iterator<Item = (&str, &Raw)> + '_> {
        match kind {
            Kind::Cluster => Box::new(self.clusters.iter().map(|(name, entry)| (name.as_str(), &entry.raw))),
            Kind::Endpoints => Box::new(self.endpoints.iter().map(|(name, raw)| (name.as_str(), raw))),
            Kind::Listener => Box::new(self.listeners.iter().map(|(name, entry)| (name.as_str(), &entry.raw))),
            Kind::Routes => Box::new(self.routes.iter().map(|(name, entry)| (name.as_str(), &entry.raw))),
        }
    }

    /// Resources whose newest form was refused.
    pub fn refusals(&self) -> &BTreeMap<(Kind, String), Refusal> {
        &self.refusals
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

/// Every cluster that a table can send a request to.
fn clusters_of(table: &RouteTable) -> BTreeSet<ClusterId> {
    let routes = table.hosts().iter().flat_map(|host| &host.routes);
    routes
        .filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(forward.targets.iter().map(|target| target.cluster)),
            Action::Redirect(_) | Action::Direct(_) => None,
        })
        .flatten()
        .collect()
}

/// One line for each refused resource: `<kind> <name>: <reason>`.
fn tell(kind: Kind, refused: &[(String, Refused)]) -> Option<String> {
    if refused.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = refused
        .iter()
        .take(MAX_REFUSALS_TOLD)
        .map(|(name, reason)| format!("{} {name}: {reason}", kind.noun()))
        .collect();
    if refused.len() > MAX_REFUSALS_TOLD {
        lines.push(format!("and {} more", refused.len() - MAX_REFUSALS_TOLD));
    }
    Some(lines.join("\n"))
}
