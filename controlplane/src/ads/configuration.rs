//! What the proxies of one scope should hold, with the versions that go over the wire.
//!
//! A stock Envoy that gets a changed cluster waits for its endpoints before it uses it, and does not ask for them again when it
//! has them already; likewise a listener and its routes. So the version of endpoints on the wire contains the version of
//! their cluster, and the version of routes those of the listeners that name them: a changed cluster changes its
//! endpoints too, whether or not their content did, and after a reconnect as well, since a proxy tells what versions it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::ObjectRef;
use leno_xds::envoy::config::listener::v3::{Listener, filter};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};

use crate::translate::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resource, Resources, SECRET};

/// How many types are served.
pub const KINDS: usize = 5;

/// The types that are served, in the order in which additions are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Clusters (CDS).
    Cluster,
    /// Endpoints (EDS).
    Endpoints,
    /// Secrets (SDS).
    Secret,
    /// Listeners (LDS).
    Listener,
    /// Route configurations (RDS).
    Route,
}

impl Kind {
    /// All kinds, in the order in which additions are sent.
    pub const ALL: [Kind; KINDS] = [Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Listener, Kind::Route];

    /// The kind with this type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => CLUSTER,
            Kind::Endpoints => ENDPOINTS,
            Kind::Secret => SECRET,
            Kind::Listener => LISTENER,
            Kind::Route => ROUTE,
        }
    }

    /// A short name for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Cluster => "cds",
            Kind::Endpoints => "eds",
            Kind::Secret => "sds",
            Kind::Listener => "lds",
            Kind::Route => "rds",
        }
    }

    /// Whether a first request without names means all of them.
    pub fn has_wildcard(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }
}

/// One resource with its version on the wire.
#[derive(Debug)]
pub struct Entry {
    /// The version on the wire.
    pub version: String,
    /// The resource.
    pub resource: Arc<Resource>,
    /// Of a listener: the route configurations that it names.
    routes: Vec<Arc<str>>,
}

/// Resources of one kind by name.
pub type Entries = BTreeMap<Arc<str>, Arc<Entry>>;

/// What the proxies of one scope should hold. Immutable; the proxies of a scope share it.
#[derive(Debug, Default)]
pub struct Configuration {
    /// Tells configurations of this process apart; grows with time.
    pub id: u64,
    entries: [Entries; KINDS],
    /// Which listeners name a route configuration.
    users: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    affected: Arc<BTreeSet<ObjectRef>>,
}

impl Configuration {
    /// Gives resources their versions on the wire. Entries that did not change are shared with the configuration before.
    pub fn assemble(id: u64, resources: &Resources, previous: Option<&Configuration>) -> Self {
        let mut made = Configuration { id, ..Configuration::default() };
        made.fill(Kind::Cluster, resources, previous, |_, resource| resource.version.to_owned());
        made.fill(Kind::Secret, resources, previous, |_, resource| resource.version.to_owned());
        made.fill(Kind::Listener, resources, previous, |_, resource| resource.version.to_owned());
        for (name, entry) in &made.entries[Kind::Listener as usize] {
            for route in &entry.routes {
                made.users.entry(route.clone()).or_default().push(name.clone());
            }
        }
        made.fill(Kind::Endpoints, resources, previous, |made, resource| {
            versions(resource, made.get(Kind::Cluster, resource.name).into_iter())
        });
        made.fill(Kind::Route, resources, previous, |made, resource| {
            let listeners = made.users.get(resource.name).map(Vec::as_slice).unwrap_or_default();
            versions(resource, listeners.iter().filter_map(|name| made.get(Kind::Listener, name)))
        });
        made.affected = Arc::new(
            made.entries
                .iter()
                .flat_map(|entries| entries.values())
                .flat_map(|entry| entry.resource.origins.clone())
                .collect(),
        );
        made
    }

    fn fill(
        &mut self,
        kind: Kind,
        resources: &Resources,
        previous: Option<&Configuration>,
        version: impl Fn(&Self, Named<'_>) -> String,
    ) {
        let mut entries = Entries::new();
        for (name, resource) in resources.of(kind.type_url()).into_iter().flatten() {
            let version = version(self, Named { name, version: &resource.version });
            let known = previous.and_then(|previous| previous.entries[kind as usize].get_key_value(name.as_str()));
            let (name, entry) = match known {
                Some((name, entry)) if entry.version == version && entry.resource.origins == resource.origins => {
                    (name.clone(), entry.clone())
                }
                _ => {
                    let routes = if kind == Kind::Listener { routes_of(resource) } else { Vec::new() };
                    (Arc::from(name.as_str()), Arc::new(Entry { version, resource: resource.clone(), routes }))
                }
            };
            entries.insert(name, entry);
        }
        self.entries[kind as usize] = entries;
    }

    /// All resources of a kind.
    pub fn of(&self, kind: Kind) -> &Entries {
        &self.entries[kind as usize]
    }

    /// One resource.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Entry>> {
        self.entries[kind as usize].get(name)
    }

    /// The listeners that name a route configuration.
    pub fn listeners_with(&self, route: &str) -> &[Arc<str>] {
        self.users.get(route).map(Vec::as_slice).unwrap_or_default()
    }

    /// The objects that any of it was made from.
    pub fn affected(&self) -> &Arc<BTreeSet<ObjectRef>> {
        &self.affected
    }

    /// Whether both hold the same resources in the same versions, made from the same objects.
    pub fn equals(&self, other: &Configuration) -> bool {
        self.entries.iter().zip(&other.entries).all(|(one, two)| {
            one.len() == two.len()
                && one.iter().zip(two).all(|((name, entry), (other_name, other))| {
                    Arc::ptr_eq(entry, other)
                        || name == other_name
                            && entry.version == other.version
                            && entry.resource.origins == other.resource.origins
                })
        })
    }
}

/// A resource while its version on the wire is worked out.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'a str,
    version: &'a str,
}

/// A version that changes with the resource and with each of `others`.
fn versions<'a>(resource: Named<'_>, others: impl Iterator<Item = &'a Arc<Entry>>) -> String {
    // FNV-1a: short, and the same on every replica and in every release.
    let hash = others.fold(0xcbf2_9ce4_8422_2325_u64, |hash, entry| {
        entry.version.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    });
    format!("{}-{hash:016x}", resource.version)
}

/// The route configurations that a listener asks for by name, sorted.
fn routes_of(listener: &Resource) -> Vec<Arc<str>> {
    let Ok(Some(listener)) = leno_xds::unpack::<Listener>(&listener.body) else { return Vec::new() };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let configs = chains.flat_map(|chain| &chain.filters).filter_map(|filter| filter.config_type.as_ref());
    let names: BTreeSet<Arc<str>> = configs
        .filter_map(|config| match config {
            filter::ConfigType::TypedConfig(any) => leno_xds::unpack::<HttpConnectionManager>(any).ok().flatten(),
            filter::ConfigType::ConfigDiscovery(_) => None,
        })
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(Arc::from(rds.route_config_name)),
            _ => None,
        })
        .collect();
    names.into_iter().collect()
}
