//! Taking responses in: what converts is kept, what does not is refused by name.

use super::kind::Named;
use super::settle::{clusters_of, mirrors_of};
use super::{Applied, Kind, Raw, Refusal, State, Update};
use super::{ClusterEntry, ListenerEntry, RouteEntry, Sockets, WARMING_LIMIT};
use crate::config::{ClusterId, Listener};
use crate::xds::bootstrap::check_listener;
use crate::xds::convert::common::unpack;
use crate::xds::convert::filter::discovery;
use crate::xds::convert::listener::{Parts, listener};
use crate::xds::convert::{Refused, Within as _, route, secret as secrets};
use leno_xds::envoy::config::core::v3::{DataSource, data_source};
use leno_xds::envoy::config::route::v3::RouteConfiguration;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret};
use leno_xds::envoy::service::discovery::v3::Resource;
use leno_xds::envoy::service::runtime::v3::Runtime;
use prost::Message as _;
use prost_types::Any;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Refusals of one response that are told to the control plane; more are only counted.
const MAX_REFUSALS_TOLD: usize = 16;

impl State {
    /// Takes resources in that are there from the start: no server can change or remove them.
    ///
    /// # Errors
    /// When one is refused; it says which and why.
    pub fn load(&mut self, kind: Kind, resources: Vec<Resource>, now: Instant, time: SystemTime) -> Result<(), String> {
        let names: Vec<_> = resources.iter().map(|resource| (kind, resource.name.clone())).collect();
        let mut seen = BTreeSet::new();
        if let Some((_, twice)) = names.iter().find(|(_, name)| !seen.insert(name)) {
            return Err(format!("{} {twice}: is there twice; give each its own name", kind.noun()));
        }
        match self.take_in(kind, resources.into(), now, time).0.refused {
            Some(refused) => Err(refused),
            None => {
                self.fixed.extend(names);
                Ok(())
            }
        }
    }

    /// Makes ready the TLS that is spoken with servers of resources, when what was there from the start has been loaded.
    ///
    /// # Errors
    /// Names the cluster of the server, and what is wrong with it.
    pub fn prepare_servers(&mut self) -> Result<(), String> {
        for server in self.context.sources.servers() {
            let prepared = server.prepare(&mut self.context);
            prepared.map_err(|refused| format!("cluster {}: {refused}", server.cluster))?;
        }
        Ok(())
    }

    /// Takes a response in. Call [`Self::settle`] afterwards.
    pub fn apply(&mut self, kind: Kind, update: impl Into<Update>, now: Instant, time: SystemTime) -> Applied {
        let mut update = update.into();
        if kind.by_name() {
            self.pass_over_unasked(kind, &mut update);
        }
        let names: BTreeSet<String> = update.names().cloned().collect();
        let version = std::mem::take(&mut update.version);
        // Each layer of the runtime is asked for by itself.
        let mut unanswered = if kind == Kind::Runtime { self.wanted(kind) } else { BTreeSet::new() };
        unanswered.retain(|name| !names.contains(name) && !update.removed.contains(name));
        let (applied, refused) = self.take_in(kind, update, now, time);
        self.count_update(kind, &version, &names, &refused);
        // Whatever it says: the server has answered.
        if unanswered.iter().all(|name| self.has_layer(name)) {
            self.expected.remove(&kind);
        }
        if applied.refused.is_none() {
            self.versions.insert(kind, version);
        }
        applied
    }

    /// Takes out of a response what nothing here uses: it may be anything, and would stay for ever. What has no name, or is of another
    /// kind, is left in, to be refused.
    fn pass_over_unasked(&self, kind: Kind, update: &mut Update) {
        let wanted = match kind {
            Kind::Endpoints => BTreeSet::new(),
            _ => self.wanted(kind),
        };
        let asked = |name: &str| {
            let wanted = match kind {
                Kind::Endpoints => self.users.contains_key(name),
                _ => wanted.contains(name),
            };
            wanted || name.is_empty() || self.is_fixed(kind, name)
        };
        update.resources.retain(|resource| {
            let asked = asked(&resource.name) || foreign(kind, resource).is_some();
            if !asked {
                tracing::debug!(kind = kind.noun(), name = resource.name, "came and was not asked for; passed over");
            }
            asked
        });
        update.unreadable.retain(|(name, _)| asked(name));
    }

    /// What a source has for these is not there, or of no use: they are waited for no longer, nor is a first response of their kind.
    /// What came earlier stays.
    pub fn fail(&mut self, kind: Kind, names: impl IntoIterator<Item = String>, why: &str, time: SystemTime) {
        for name in names {
            self.refuse(kind, &name, String::new(), &Refused::new("", why), time);
        }
        if kind != Kind::Runtime || self.wanted(kind).iter().all(|name| self.has_layer(name)) {
            self.expected.remove(&kind);
        }
    }

    /// Whether a layer of the runtime has come, good or bad.
    fn has_layer(&self, name: &str) -> bool {
        self.layers.contains_key(name) || self.is_refused(Kind::Runtime, name)
    }

    /// Remembers why a resource is not taken.
    pub(super) fn refuse(&mut self, kind: Kind, name: &str, version: String, reason: &Refused, time: SystemTime) {
        tracing::warn!(kind = kind.noun(), name, version, %reason, "refused a resource; its last good form stays");
        let key = (kind, name.to_owned());
        if self.refusals.get(&key).is_none_or(|held| held.version != version || held.reason != *reason) {
            let what = format!("{} {name}: {reason}", kind.noun());
            self.rejections.send_modify(|rejections| rejections.add(&what));
        }
        self.refusals.insert(key, Refusal { version, reason: reason.clone(), since: time });
    }

    /// The same without counting the response; and the names of what is refused.
    fn take_in(&mut self, kind: Kind, update: Update, now: Instant, time: SystemTime) -> (Applied, BTreeSet<String>) {
        let Update { version: _, resources, mut removed, whole, unreadable } = update;
        let mut applied = Applied::default();
        let mut refused = Vec::new();
        let unusable = match whole {
            // What comes as changes is taken as a whole or not at all, where it contradicts itself.
            false => twice(&resources, &removed),
            // Nothing tells what such a resource stands for: what is not in the response may be meant by it.
            true => resources.iter().find_map(|resource| foreign(kind, resource)),
        };
        if let Some((name, reason)) = unusable {
            self.rejections.send_modify(|rejections| rejections.add(&format!("{} {name}: {reason}", kind.noun())));
            refused.push((name, reason));
            applied.refused = tell(kind, &refused);
            return (applied, refused.into_iter().map(|(name, _)| name).collect());
        }
        let mut seen = BTreeSet::new();
        if whole && !kind.by_name() {
            let unreadable = unreadable.iter().map(|(name, _)| name.as_str());
            let sent: BTreeSet<&str> =
                resources.iter().map(|resource| resource.name.as_str()).chain(unreadable).collect();
            removed
                .extend(self.raws(kind).map(|(name, _)| name).filter(|name| !sent.contains(name)).map(str::to_owned));
            if kind == Kind::Listener {
                self.too_early.retain(|name, _| sent.contains(name.as_str()));
            }
        }
        // Another listener may have the address of one that goes; its socket stays open meanwhile.
        if kind == Kind::Listener {
            self.take_out(kind, std::mem::take(&mut removed), now);
        }
        for resource in resources {
            let Resource { name, resource_name: _, aliases: _, version, resource, ttl, cache_control: _, metadata: _ } =
                resource;
            if self.fixed.contains(&(kind, name.clone())) {
                tracing::warn!(kind = kind.noun(), %name, "is written in the bootstrap; what a server sends is passed over");
                continue;
            }
            if whole && !seen.insert(name.clone()) {
                // The first one counts. Where everything is asked for, the server is told.
                if !kind.by_name() {
                    refused.push((name, Refused::new("", "is there more than once in one response")));
                }
                continue;
            }
            self.lives(kind, &name, ttl, now);
            if kind == Kind::Listener && resource.is_some() {
                // Whatever becomes of this form, that one is no longer meant.
                self.too_early.remove(&name);
            }
            let Some(body) = resource else {
                // A sign of life for a resource that is known.
                if self.raws(kind).all(|(known, _)| known != name) {
                    refused.push((name, Refused::new("resource", "is missing")));
                }
                continue;
            };
            if self.holds(kind, &name, (!whole).then_some(&version), &body) {
                // State of the world repeats what has not changed.
                self.refusals.remove(&(kind, name.clone()));
                applied.waits.insert((kind, name));
                continue;
            }
            let known = match kind {
                Kind::Cluster => self.clusters.contains_key(&name),
                _ => self.listeners.contains_key(&name),
            };
            let raw = Raw { version, body, since: time };
            let version = raw.version.clone();
            let taken = named_so(kind, &name, &raw.body).and_then(|()| match kind {
                Kind::Runtime => self.take_layer(&name, raw, now),
                Kind::Cluster => self.take_cluster(&name, raw, now),
                Kind::Endpoints => self.take_endpoints(&name, raw),
                Kind::Secret => self.take_secret(&name, raw),
                Kind::Listener => self.take_listener(&name, raw, now),
                Kind::Routes => self.take_routes(&name, raw, now),
                Kind::Extension => self.take_extension(&name, raw),
            });
            self.figures.came(kind, known, taken.is_ok());
            match taken {
                Ok(()) => {
                    self.refusals.remove(&(kind, name.clone()));
                    self.count_reload(kind, &name);
                    if matches!(kind, Kind::Listener | Kind::Routes) {
                        applied.waits.insert((kind, name));
                    }
                }
                Err(reason) => {
                    self.refuse(kind, &name, version, &reason, time);
                    refused.push((name, reason));
                }
            }
        }
        for (name, reason) in unreadable {
            let reason = Refused::new("", reason);
            self.refuse(kind, &name, String::new(), &reason, time);
            refused.push((name, reason));
        }
        if whole && !kind.by_name() {
            // What was refused and is not even sent any more is nobody's concern.
            let told: BTreeSet<&String> = refused.iter().map(|(name, _)| name).collect();
            let held: BTreeSet<String> = self.raws(kind).map(|(name, _)| name.to_owned()).collect();
            self.refusals.retain(|(of, name), _| *of != kind || told.contains(name) || held.contains(name));
        }
        self.take_out(kind, removed, now);
        if kind == Kind::Cluster {
            self.take_early_listeners(now, time);
        }
        self.sweep_sources();
        applied.refused = tell(kind, &refused);
        (applied, refused.into_iter().map(|(name, _)| name).collect())
    }

    /// Removes what a response says to be gone.
    fn take_out(&mut self, kind: Kind, names: Vec<String>, now: Instant) {
        for name in names {
            if !self.fixed.contains(&(kind, name.clone())) {
                self.refusals.remove(&(kind, name.clone()));
                self.remove(kind, &name, now);
            }
        }
    }

    /// Whether that very resource is held already; it then has that version, if one is given: in state of the world the version
    /// is the response's, and a resource keeps the one with which it changed last.
    fn holds(&mut self, kind: Kind, name: &str, version: Option<&String>, body: &Any) -> bool {
        let held = match kind {
            Kind::Cluster => self.clusters.get_mut(name).map(|entry| &mut entry.form.raw),
            Kind::Runtime => self.layers.get_mut(name),
            Kind::Endpoints => self.endpoints.get_mut(name),
            Kind::Listener => self.listeners.get_mut(name).map(|entry| &mut entry.raw),
            Kind::Routes => self.routes.get_mut(name).map(|entry| &mut entry.raw),
            Kind::Extension => self.extensions.get_mut(name),
            // Keys are not kept to be compared.
            Kind::Secret => None,
        };
        let Some(raw) = held.filter(|raw| raw.body == *body) else { return false };
        if let Some(version) = version {
            version.clone_into(&mut raw.version);
        }
        true
    }

    /// What refused resources asked for is forgotten when it is more than what is wanted.
    fn sweep_sources(&mut self) {
        if self.context.sources.len() < 2 * self.swept + 1024 {
            return;
        }
        let wanted = Kind::BY_NAME.map(|kind| (kind, self.wanted(kind)));
        let keep = |kind: Kind, name: &str| {
            !kind.by_name() || wanted.iter().any(|(known, names)| *known == kind && names.contains(name))
        };
        self.context.sources.retain(keep);
        self.swept = self.context.sources.len();
    }

    /// Notes until when a resource is good, if its server says so.
    fn lives(&mut self, kind: Kind, name: &str, ttl: Option<prost_types::Duration>, now: Instant) {
        let key = (kind, name.to_owned());
        match ttl.and_then(|ttl| Duration::try_from(ttl).ok()) {
            Some(ttl) => drop(self.expiries.insert(key, now + ttl)),
            None => drop(self.expiries.remove(&key)),
        }
    }

    pub(super) fn take_secret(&mut self, name: &str, raw: Raw) -> Result<(), Refused> {
        let first = !self.context.secrets.has(name);
        self.files.note(name, &raw.version, &raw.body);
        secrets::secret(&mut self.context, name, &raw.body)?;
        self.secrets.insert(name.to_owned(), Raw { body: without_keys(raw.body), ..raw });
        if first {
            let uses = |entry: &ClusterEntry| entry.forms().any(|form| form.secrets.contains(name));
            let users: Vec<_> =
                self.clusters.iter().filter(|(_, entry)| uses(entry)).map(|(name, _)| name.clone()).collect();
            // Each by itself: endpoints that are none hold back their own cluster only.
            for user in users {
                if let Err(reason) = self.rebuild(std::slice::from_ref(&user)) {
                    tracing::error!(secret = %name, cluster = %user, %reason, "a cluster does not convert with its secret");
                }
            }
        }
        Ok(())
    }

    fn take_routes(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let value: RouteConfiguration = unpack(&raw.body)?;
        let validates = value.validate_clusters == Some(true);
        self.context.limits.begin(&raw.body.value);
        let table = route::table(&mut self.context, value)?;
        let clusters = clusters_of(&table);
        if validates {
            let known: HashSet<ClusterId> = self.clusters.values().map(|entry| entry.id).collect();
            let mirrors = mirrors_of(&table);
            if let Some(unknown) = clusters.iter().chain(&mirrors).find(|id| !known.contains(id)) {
                let name = self.context.cluster_name(*unknown).unwrap_or_default();
                let reason = format!("is set, and a route names `{name}`, which is no cluster");
                return Err(Refused::new("validate_clusters", reason));
            }
        }
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

    /// The configuration of a filter: good for every listener that uses it, or refused.
    fn take_extension(&mut self, name: &str, raw: Raw) -> Result<(), Refused> {
        let any = discovery::configuration(&mut self.context, name, unpack(&raw.body)?)?;
        let used = self.parts().flat_map(|parts| &parts.extensions);
        used.filter(|used| used.name == name).try_for_each(|used| used.check(&any))?;
        self.extensions.insert(name.to_owned(), raw);
        self.context.extensions.insert(name.to_owned(), any);
        self.mark_users(name);
        Ok(())
    }

    /// A filter's configuration is gone: its default is in force where each of its users has one. Where one has none, the
    /// last good form stays, since a removal may overtake that of its user.
    fn remove_extension(&mut self, name: &str) {
        let replaceable =
            self.parts().flat_map(|parts| &parts.extensions).all(|used| used.name != name || used.has_default);
        if replaceable {
            self.extensions.remove(name);
            self.context.extensions.remove(name);
            self.mark_users(name);
        }
    }

    fn mark_users(&mut self, extension: &str) {
        for entry in self.listeners.values_mut() {
            let stale = entry.all_parts().any(|parts| parts.extensions.iter().any(|used| used.name == extension));
            entry.stale |= stale;
        }
    }

    /// Values of a layer of the runtime.
    fn take_layer(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let Runtime { name: _, layer } = unpack(&raw.body)?;
        let changed = self.context.runtime.serve(name, layer.unwrap_or_default()).within("layer")?;
        self.layers.insert(name.to_owned(), raw);
        if changed {
            self.runtime_changed(now);
        }
        Ok(())
    }

    /// Converts anew what values of the runtime change: route tables and listeners. Call [`Self::settle`] afterwards.
    pub fn runtime_changed(&mut self, now: Instant) {
        self.runtime_loads += 1;
        let told = |kind: Kind, name: &str, reason: &Refused| {
            tracing::warn!(kind = kind.noun(), %name, %reason, "values of the runtime do not fit; its last good form stays");
        };
        // Where zones are preferred, the workers reckon anew by what the runtime says of them.
        self.dirty |= self.context.home.is_some();
        let tables: Vec<_> = self.routes.iter().map(|(name, entry)| (name.clone(), entry.raw.clone())).collect();
        for (name, raw) in tables {
            if let Err(reason) = self.take_routes(&name, raw, now) {
                told(Kind::Routes, &name, &reason);
            }
        }
        let listeners: Vec<_> = self.listeners.iter().map(|(name, entry)| (name.clone(), entry.raw.clone())).collect();
        for (name, raw) in listeners {
            match (self.convert_listener(&raw), self.listeners.get_mut(&name)) {
                (Ok(parts), Some(entry)) => {
                    entry.parts = parts;
                    entry.stale = true;
                }
                (Err(reason), _) => told(Kind::Listener, &name, &reason),
                (Ok(_), None) => {}
            }
        }
    }

    fn take_listener(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let parts = self.convert_listener(&raw)?;
        // Before clusters have come nothing is known of them.
        if !self.expected.contains_key(&Kind::Cluster) {
            let checked = check_listener(&unpack(&raw.body)?, &|name| self.clusters.contains_key(name));
            checked.inspect_err(|_| drop(self.too_early.insert(name.to_owned(), raw.clone())))?;
        }
        self.addresses_changed = true;
        if parts.listener.bind {
            self.claim(name, &parts.listener)?;
        }
        // The form in force serves until what the new one needs has come.
        let (active, current, stale) = match self.listeners.remove(name) {
            Some(ListenerEntry { raw, parts, active, current: Some(current), since, stale }) => {
                (active.or_else(|| since.is_none().then_some((raw, parts))), Some(current), stale)
            }
            _ => (None, None, false),
        };
        let entry = ListenerEntry { raw, parts, active, current, since: Some(now), stale };
        self.listeners.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Takes the listeners that came before clusters that they name, where these are there now.
    fn take_early_listeners(&mut self, now: Instant, time: SystemTime) {
        for (name, raw) in std::mem::take(&mut self.too_early) {
            let (known, version) = (self.listeners.contains_key(&name), raw.version.clone());
            match self.take_listener(&name, raw, now) {
                Ok(()) => {
                    tracing::info!(listener = %name, "the clusters that it names are there; taken");
                    self.figures.came(Kind::Listener, known, true);
                    self.refusals.remove(&(Kind::Listener, name));
                }
                Err(reason) => self.refuse(Kind::Listener, &name, version, &reason, time),
            }
        }
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

    pub(super) fn convert_listener(&mut self, raw: &Raw) -> Result<Parts, Refused> {
        let routes = &self.routes;
        let tables = |name: &str| routes.get(name).and_then(|entry| entry.current.clone());
        self.context.limits.begin(&raw.body.value);
        listener(&mut self.context, unpack(&raw.body)?, &tables)
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &str, now: Instant) {
        self.expiries.remove(&(kind, name.to_owned()));
        match kind {
            Kind::Cluster => {
                if let Some(entry) = self.clusters.remove(name) {
                    self.used_no_more(name, &entry);
                    self.forget_updates(Kind::Endpoints, name);
                    self.figures.went(kind);
                    self.warming.remove(&entry.id);
                    self.dirty = true;
                }
            }
            Kind::Listener => {
                self.too_early.remove(name);
                if self.listeners.remove(name).is_some() {
                    self.figures.went(kind);
                    self.dirty = true;
                }
                self.addresses_changed = true;
            }
            Kind::Runtime => {
                if self.layers.remove(name).is_some() && self.context.runtime.clear(name) {
                    self.runtime_changed(now);
                }
            }
            Kind::Extension => self.remove_extension(name),
            // What something here still uses stays until that goes (see `forget`): a removal may overtake it.
            Kind::Endpoints | Kind::Secret | Kind::Routes => {}
        }
    }
}

/// A name that is there more than once among what has changed and what is gone.
fn twice(resources: &[Resource], removed: &[String]) -> Option<(String, Refused)> {
    let mut seen = BTreeSet::new();
    let mut names = resources.iter().map(|resource| &resource.name).chain(removed);
    let twice = names.find(|name| !seen.insert(name.as_str()))?;
    Some((twice.clone(), Refused::new("", format!("is there more than once in one response: {twice}"))))
}

/// Why a resource is none of this kind, if it is not.
fn foreign(kind: Kind, resource: &Resource) -> Option<(String, Refused)> {
    let Resource { name, resource: Some(body), .. } = resource else { return None };
    let reason = if let Some(other) = other_type(kind, body) {
        Refused::new("", format!("is a `{other}`; nothing of this response is taken"))
    } else if name.is_empty() && !kind.by_name() {
        Refused::new("name", "is missing, or the message is damaged; nothing of this response is taken")
    } else {
        return None;
    };
    Some((name.clone(), reason))
}

/// What a resource is instead of one of this kind.
fn other_type(kind: Kind, body: &Any) -> Option<String> {
    let held = leno_xds::json::typed_struct(body).ok().flatten();
    let body = held.as_ref().unwrap_or(body);
    (body.type_url != kind.type_url()).then(|| body.type_url.clone())
}

/// Checks that a resource that is asked for by name is the one that it says it is.
fn named_so(kind: Kind, name: &str, body: &Any) -> Result<(), Refused> {
    if let Some(other) = other_type(kind, body) {
        return Err(Refused::new("", format!("is a `{other}`, and no {}", kind.noun())));
    }
    if !kind.by_name() || body.type_url != kind.type_url() {
        return Ok(());
    }
    let own = Named::decode(body.value.as_slice()).map(|named| named.name).unwrap_or_default();
    if own == name {
        return Ok(());
    }
    let field = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
    Err(Refused::new(field, format!("is `{own}`, but the resource was sent as `{name}`; use one name")))
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

/// A secret as it may be shown: keys are kept in one place only, and that is not here.
fn without_keys(body: Any) -> Any {
    let hidden = || DataSource {
        specifier: Some(data_source::Specifier::InlineString("[redacted]".to_owned())),
        ..Default::default()
    };
    let Ok(Some(mut secret)) = leno_xds::unpack::<Secret>(&body) else { return Any::default() };
    match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            let TlsCertificate { private_key, password, pkcs12, .. } = certificate;
            for source in [private_key, password, pkcs12].into_iter().flatten() {
                *source = hidden();
            }
        }
        Some(secret::Type::SessionTicketKeys(keys)) => keys.keys.iter_mut().for_each(|source| *source = hidden()),
        Some(secret::Type::ValidationContext(_)) | None => {}
        Some(secret::Type::GenericSecret(_)) => secret.r#type = None,
    }
    leno_xds::any(&secret)
}
