//! Envoy's messages become the configuration tree.
//!
//! Every message is taken apart with all of its fields named (never `..`), so that a field which a later version of the
//! API adds does not compile until somebody has decided about it. There are three decisions: the field is used; it makes
//! no difference to traffic (bound to `_`: names of statistics, settings of Envoy's own machinery); or it is refused
//! when it is set, because the control plane would otherwise believe that it is in force. What the generated types do
//! not know at all is noticed by the length of what they decode to, and named by walking the bytes.

// Deprecated fields are named like all others: a control plane may still set them.
#![allow(deprecated)]

pub mod access_log;
mod action;
pub mod cluster;
pub mod common;
mod direct;
mod edge;
pub mod filter;
mod grpc_log;
pub mod http;
#[cfg(test)]
mod http_tests;
pub mod limits;
pub mod listener;
pub mod listener_filters;
#[cfg(test)]
mod listener_tests;
mod local_reply;
pub mod matcher;
pub mod network;
mod own_tls;
pub mod rbac;
mod rbac_matching;
pub mod retry;
pub mod route;
pub mod secret;
pub(crate) mod spiffe;
#[cfg(test)]
mod tests;
pub mod tls;
#[cfg(test)]
mod tls_tests;
mod tracing;

use crate::config::{ClusterId, Home, Locality};
use crate::telemetry::counters::Counters;
use crate::telemetry::{LogFormat, LogSink, LogSinks, ServiceLabels, WorkloadLabels};
use crate::tls::{Contexts, Secrets};
use crate::xds::bootstrap::Layers;
use crate::xds::source::Sources;
use leno_xds::envoy::config::core::v3::Node;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

/// Names of clusters that a process may ever see; beyond it new ones are refused. An index is never given to another
/// name, because workers keep pools by it.
pub const MAX_CLUSTER_NAMES: usize = 1 << 20;

/// Different access log formats kept compiled.
const MAX_LOG_FORMATS: usize = 64;

/// Why a resource is not taken: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: {reason}")]
pub struct Refused {
    /// Path of the field in the resource, e.g. `virtual_hosts[0].routes[2].route.hash_policy`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl Refused {
    /// A refusal of that field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// The same, seen from the message around it.
    pub fn within(self, outer: impl std::fmt::Display) -> Self {
        let field = if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        Self { field, reason: self.reason }
    }
}

/// What a conversion gives.
pub type Converted<T> = Result<T, Refused>;

/// Adds the place to a refusal.
pub(crate) trait Within<T> {
    /// Prefixes the field's path.
    fn within(self, outer: impl std::fmt::Display) -> Converted<T>;
}

impl<T> Within<T> for Converted<T> {
    fn within(self, outer: impl std::fmt::Display) -> Converted<T> {
        self.map_err(|refused| refused.within(outer))
    }
}

/// Refuses each of the named local variables (fields taken out of a message) that is not its type's default.
macro_rules! refuse {
    ($($field:ident),+ $(,)?) => {
        $(crate::xds::convert::refuse_set(&$field, stringify!($field))?;)+
    };
}
pub(crate) use refuse;

/// Refuses a field that is set.
pub(crate) fn refuse_set<T: Default + PartialEq>(value: &T, field: &str) -> Converted<()> {
    if *value == T::default() {
        Ok(())
    } else {
        Err(Refused::new(field.trim_start_matches("r#"), "is not supported by this proxy; leave it out"))
    }
}

/// What conversions share: stable cluster indices, and objects that must be the same object wherever they are equal.
#[derive(Debug, Default)]
pub struct Context {
    /// The trust domain of this proxy's own identity; empty when it has none, and secrets come by configuration alone.
    pub trust_domain: String,
    /// Secrets that have come or are waited for.
    pub secrets: Secrets,
    /// Configurations of filters that have come by name, the last good form of each.
    pub extensions: BTreeMap<String, prost_types::Any>,
    /// Counts and buckets that the forms of a filter share which follow each other.
    pub limits: limits::SharedLimits,
    /// TLS contexts in use.
    pub(crate) tls_contexts: Contexts,
    /// Values by which runtime fractions are changed.
    pub runtime: Layers,
    /// Who is asked for the names of endpoints where their cluster does not say.
    pub resolvers: cluster::dns::Resolvers,
    /// How sockets to endpoints are made where their cluster does not say.
    pub sockets: cluster::Sockets,
    /// Where resources come from.
    pub sources: Sources,
    ids: HashMap<Arc<str>, ClusterId>,
    /// The cluster of this proxy and those like it, and where the proxy is.
    pub home: Option<(ClusterId, Option<Locality>)>,
    /// This proxy's name, as spans tell it.
    pub node: String,
    /// The name of the cluster that it belongs to.
    pub node_cluster: String,
    /// How this proxy introduces itself.
    pub introduced: Node,
    /// Streams of access logs.
    pub log_streams: grpc_log::LogStreams,
    /// Numbers that filters, checks and the like count.
    pub counters: Counters,
    /// Places to which is logged.
    pub sinks: LogSinks,
    /// Where is written which endpoints outlier detection takes out.
    pub outlier_log: Option<Arc<LogSink>>,
    /// Something that was converted asks for what filters find out. Whoever converts what must know takes it.
    pub asks_dynamic: bool,
    formats: BTreeMap<(String, bool), Arc<LogFormat>>,
    workloads: Shared<WorkloadLabels>,
    services: Shared<ServiceLabels>,
}

impl Context {
    /// Nothing known yet.
    pub fn new(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.to_owned(), ..Self::default() }
    }

    /// Where this proxy belongs to, with what the runtime says of zones now.
    pub fn home(&self) -> Option<Home> {
        let (cluster, locality) = self.home.clone()?;
        Some(Home { cluster, locality, changes: self.runtime.zones() })
    }

    /// The zone that this proxy is in; empty where that is not known.
    pub fn zone(&self) -> &str {
        self.introduced.locality.as_ref().map_or("", |at| &at.zone)
    }

    /// The index of a cluster's name; the same for as long as the process lives.
    ///
    /// # Errors
    /// After [`MAX_CLUSTER_NAMES`] names.
    pub fn cluster(&mut self, name: &str) -> Converted<ClusterId> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        if name.is_empty() {
            return Err(Refused::new("", "names no cluster"));
        }
        let id = match u32::try_from(self.ids.len()) {
            Ok(id) if self.ids.len() < MAX_CLUSTER_NAMES => ClusterId(id),
            _ => {
                let reason = format!("this proxy has seen {MAX_CLUSTER_NAMES} cluster names; restart it");
                return Err(Refused::new("", reason));
            }
        };
        self.ids.insert(name.into(), id);
        Ok(id)
    }

    /// The name of a cluster by its index.
    pub fn cluster_name(&self, id: ClusterId) -> Option<&str> {
        self.ids.iter().find(|(_, known)| **known == id).map(|(name, _)| &**name)
    }

    /// How many names have an index.
    pub fn cluster_count(&self) -> usize {
        self.ids.len()
    }

    /// The compiled form of a text format; with `omit` what is not known is nothing instead of `-`. An empty text is Envoy's
    /// default format.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn log_format(&mut self, text: &str, omit: bool) -> Converted<Arc<LogFormat>> {
        let key = (text.to_owned(), omit);
        if let Some(format) = self.formats.get(&key) {
            return Ok(format.clone());
        }
        let format = LogFormat::text(text, omit).map_err(access_log::refused)?;
        if self.formats.len() >= MAX_LOG_FORMATS {
            self.formats.clear();
        }
        let format = Arc::new(format);
        self.formats.insert(key, format.clone());
        Ok(format)
    }

    /// As [`Self::log_format`], for texts that are no lines of a log: operators whose answers are only found out for
    /// lines are refused in them.
    ///
    /// # Errors
    /// When it does not compile, or has such an operator.
    pub fn text_format(&mut self, text: &str, omit: bool) -> Converted<Arc<LogFormat>> {
        let format = self.log_format(text, omit)?;
        access_log::answered_anywhere(self, format)
    }

    /// The one object for these labels: telemetry knows a workload by its address.
    pub fn workload(&mut self, labels: Arc<WorkloadLabels>) -> Arc<WorkloadLabels> {
        self.workloads.one(labels)
    }

    /// The one object for these labels.
    pub fn service(&mut self, labels: Arc<ServiceLabels>) -> Arc<ServiceLabels> {
        self.services.one(labels)
    }
}

/// Equal objects made one object, for as long as somebody else holds it: when the set has doubled since the last sweep,
/// what nobody holds any more is left out.
#[derive(Debug)]
struct Shared<T> {
    objects: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { objects: HashSet::new(), sweep_at: 256 }
    }
}

impl<T: Hash + Eq> Shared<T> {
    fn one(&mut self, object: Arc<T>) -> Arc<T> {
        if let Some(known) = self.objects.get(&object) {
            return known.clone();
        }
        if self.objects.len() >= self.sweep_at {
            self.objects.retain(|object| Arc::strong_count(object) > 1);
            self.sweep_at = (self.objects.len() * 2).max(256);
        }
        self.objects.insert(object.clone());
        object
    }
}
