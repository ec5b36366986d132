//! Bringing into force: a new form waits for what it needs, for a bounded time.

use super::{ClusterEntry, Kind, ListenerEntry, Sockets, State, WARMING_LIMIT};
use crate::config::{Action, ClusterId, Listeners, Root, RouteTable};
use crate::xds::convert::cluster::Assignment;
use crate::xds::convert::filter::discovery::Discovered;
use crate::xds::convert::listener::Parts;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

impl State {
    /// Brings into force what can be. True when something changed, and [`Self::root`] would give a new root.
    pub fn settle(&mut self, now: Instant) -> bool {
        self.settled = Some(now);
        self.expire(now);
        self.look_at_files(now);
        let missed: Vec<_> =
            self.clusters.iter().filter(|(_, entry)| self.misses(entry, now)).map(|(name, _)| name.clone()).collect();
        for name in missed {
            tracing::warn!(cluster = %name, "what it needs did not come in time, or was refused; using the cluster without");
            // While it is still there: by its name it is counted.
            let lacking = self.clusters.get(&name).into_iter().flat_map(|entry| self.lacks_of(entry));
            let lacking = lacking.filter(|(kind, name)| !self.is_refused(*kind, name));
            let lacking = lacking.map(|(kind, name)| (kind, name.to_owned())).collect::<Vec<_>>();
            lacking.into_iter().for_each(|(kind, name)| self.count_late(kind, &name));
            let Some(mut entry) = self.clusters.remove(&name) else { continue };
            let assignment = self.assignment(&entry.form).ok().flatten().unwrap_or_default();
            let built = entry.form.template.build(assignment, &self.own);
            self.bring_into_force(&name, &mut entry, Some(built));
            self.warming.remove(&entry.id);
            self.clusters.insert(name, entry);
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
            let stale = entry.all_parts().any(|parts| parts.routes.iter().any(|name| changed.contains(name)));
            entry.stale |= stale;
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

    /// Removes what its server has not said to be good for too long, and stops waiting for what never came.
    fn expire(&mut self, now: Instant) {
        let over = self.expiries.iter().filter(|(_, until)| now >= **until);
        for (kind, name) in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            tracing::warn!(kind = kind.noun(), %name, "its time to live is over, and its server has not said more");
            self.remove(kind, &name, now);
        }
        let mut late_kinds = Vec::new();
        self.expected.retain(|kind, until| {
            let late = until.is_some_and(|until| now >= until);
            if late {
                tracing::warn!(kind = kind.noun(), "nothing came in time; beginning without");
                late_kinds.push(*kind);
            }
            !late
        });
        late_kinds.into_iter().for_each(|kind| self.count_late(kind, ""));
    }

    fn settle_listeners(&mut self, now: Instant) {
        let due = |entry: &ListenerEntry| match entry.since {
            None => entry.stale,
            Some(since) => self.is_warm(entry, since, now),
        };
        let (due, follow): (Vec<_>, Vec<_>) = self
            .listeners
            .iter()
            .map(|(name, entry)| (name.clone(), due(entry), entry.stale && entry.active.is_some()))
            .filter(|(_, due, follow)| *due || *follow)
            .partition(|(_, due, _)| *due);
        for (name, ..) in follow {
            self.follow_active(name);
        }
        for (name, ..) in due {
            let entry = self.listeners.get(&name).filter(|entry| entry.since.is_some());
            let lacking = entry.into_iter().flat_map(|entry| self.lacks(&entry.parts));
            let lacking = lacking.map(|(kind, name)| (kind, name.to_owned())).collect::<Vec<_>>();
            lacking.into_iter().for_each(|(kind, name)| self.count_late(kind, &name));
            let Some(mut entry) = self.listeners.remove(&name) else { continue };
            // Again, because route tables and configurations of filters have come since it was first converted.
            if !entry.parts.routes.is_empty() || !entry.parts.extensions.is_empty() {
                match self.convert_listener(&entry.raw) {
                    Ok(parts) => entry.parts = parts,
                    Err(reason) => tracing::error!(listener = %name, %reason, "converted before and not now"),
                }
            }
            entry.current = Some(entry.parts.listener.clone());
            entry.active = None;
            entry.since = None;
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

    /// The form of a listener that is in force follows what it uses, while a newer one waits.
    fn follow_active(&mut self, name: String) {
        let Some(mut entry) = self.listeners.remove(&name) else { return };
        entry.stale = false;
        if let Some((raw, parts)) = &mut entry.active {
            match self.convert_listener(raw) {
                Ok(converted) => {
                    *parts = converted;
                    entry.current = Some(parts.listener.clone());
                    self.dirty = true;
                }
                Err(reason) => tracing::error!(listener = %name, %reason, "converted before and not now"),
            }
        }
        self.listeners.insert(name, entry);
    }

    /// Whether everything is there that the newest form of a listener needs, or has been waited for long enough.
    fn is_warm(&self, entry: &ListenerEntry, since: Instant, now: Instant) -> bool {
        let ListenerEntry { parts, current, .. } = entry;
        let first = current.is_none();
        self.lacks(parts).all(|(kind, name)| self.is_over(first, kind, name, since, now))
            // A table that has come and waits for clusters does so for a bounded time.
            && parts.routes.iter().all(|name| self.has_table(name) || !self.routes.contains_key(name))
            && (now >= since + WARMING_LIMIT || parts.clusters.iter().all(|id| !self.warming.contains(id)))
    }

    /// What a form of a listener asks for by name and has not come.
    fn lacks<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = (Kind, &'a str)> {
        let secrets = parts.secrets.iter().filter(|name| !self.context.secrets.has(name));
        let routes = parts.routes.iter().filter(|name| !self.routes.contains_key(*name));
        let undecided = |used: &&Discovered| used.warms && !self.is_decided(&used.name);
        let extensions = parts.extensions.iter().filter(undecided).map(|used| &used.name);
        let kinds = [Kind::Secret, Kind::Routes, Kind::Extension];
        let named = |kind: Kind| move |name: &'a String| (kind, name.as_str());
        let [secret, table, extension] = kinds.map(named);
        secrets.map(secret).chain(routes.map(table)).chain(extensions.map(extension))
    }

    /// What the newest form of a cluster asks for by name and has not come.
    fn lacks_of<'a>(&'a self, entry: &'a ClusterEntry) -> impl Iterator<Item = (Kind, &'a str)> {
        let secrets = entry.form.secrets.iter().filter(|name| !self.context.secrets.has(name));
        let endpoints = entry.form.template.endpoints.iter().filter(|name| !self.endpoints.contains_key(*name));
        secrets.map(|name| (Kind::Secret, name.as_str())).chain(endpoints.map(|name| (Kind::Endpoints, name.as_str())))
    }

    /// Whether a cluster has waited long enough for what it lacks.
    fn misses(&self, entry: &ClusterEntry, now: Instant) -> bool {
        let Some(since) = entry.since else { return false };
        let first = entry.built.is_none();
        // What lacks nothing waits for something that is not refused, and not for time to pass.
        let mut lacks = self.lacks_of(entry).peekable();
        lacks.peek().is_some() && lacks.all(|(kind, name)| self.is_over(first, kind, name, since, now))
    }

    /// Until when something is waited for, by what was said where it comes from; `None` is without limit.
    fn limit(&self, kind: Kind, name: &str, since: Instant) -> Option<Instant> {
        self.context.sources.limit(kind, name).map(|limit| since + limit)
    }

    /// Whether the wait for something is over. A `first` form does not wait for what has come and was refused: one that is bad is not
    /// to keep the others from serving.
    fn is_over(&self, first: bool, kind: Kind, name: &str, since: Instant, now: Instant) -> bool {
        first && self.is_refused(kind, name) || self.is_late(kind, name, since, now)
    }

    fn is_late(&self, kind: Kind, name: &str, since: Instant, now: Instant) -> bool {
        self.limit(kind, name, since).is_some_and(|limit| now >= limit)
    }

    /// Clusters carry the workload that inbound traffic is for.
    fn rebuild_clusters(&mut self) {
        for entry in self.clusters.values_mut() {
            if let Some(built) = &entry.built {
                let endpoints = built.endpoints.clone();
                let assignment = Assignment { endpoints, spread: built.spread, names: Vec::new() };
                let form = entry.active.as_ref().unwrap_or(&entry.form);
                entry.built = Some(form.template.build(assignment, &self.own));
            }
        }
    }

    fn has_table(&self, name: &str) -> bool {
        self.routes.get(name).is_some_and(|entry| entry.current.is_some())
    }

    /// Whether the configuration of a filter has come, good or bad: a bad one is not waited for.
    fn is_decided(&self, name: &str) -> bool {
        self.extensions.contains_key(name) || self.is_refused(Kind::Extension, name)
    }

    /// Whether what came by that name was refused, as Envoy sees it an end of waiting as good as any other.
    pub(super) fn is_refused(&self, kind: Kind, name: &str) -> bool {
        self.refusals.contains_key(&(kind, name.to_owned()))
    }

    /// Whether a resource has come whose newest form is not in force yet, though it may be soon. What waits for longer, as a server
    /// may have said, is not worth leaving that server without an answer.
    pub fn waits(&self, kind: Kind, name: &str) -> bool {
        let soon = |since: Instant| self.settled.is_none_or(|settled| settled < since + WARMING_LIMIT);
        match kind {
            Kind::Listener => self.listeners.get(name).and_then(|entry| entry.since).is_some_and(soon),
            Kind::Routes => self.routes.get(name).is_some_and(|entry| entry.pending.is_some()),
            Kind::Runtime | Kind::Cluster | Kind::Endpoints | Kind::Secret | Kind::Extension => false,
        }
    }

    /// When [`Self::settle`] should be called again, if nothing comes before.
    pub fn deadline(&self) -> Option<Instant> {
        // What is over has been looked at.
        let ahead = |until: &Instant| self.settled.is_none_or(|settled| *until > settled);
        let clusters = self.clusters.values().filter_map(|entry| Some((entry, entry.since?)));
        let clusters = clusters.flat_map(|(entry, since)| {
            self.lacks_of(entry).filter_map(move |(kind, name)| self.limit(kind, name, since)).filter(ahead)
        });
        let routes = self.routes.values().filter_map(|entry| entry.pending.as_ref().map(|pending| pending.2));
        let listeners = self.listeners.values().filter_map(|entry| Some((entry, entry.since?)));
        let listeners = listeners.flat_map(|(entry, since)| {
            let limits = self.lacks(&entry.parts).filter_map(move |(kind, name)| self.limit(kind, name, since));
            limits.chain(std::iter::once(since + WARMING_LIMIT)).filter(ahead)
        });
        let first = self.expected.values().filter_map(|until| *until);
        let expiries = self.expiries.values().copied();
        clusters.chain(routes).chain(listeners).chain(first).chain(expiries).chain(self.files.due()).min()
    }

    /// Whether clusters have not come yet, or wait for what they need, before anything is in force.
    pub fn begins(&self) -> bool {
        !self.published && (self.expected.contains_key(&Kind::Cluster) || !self.warming.is_empty())
    }

    /// Whether anything waits for what it needs.
    fn warming(&self) -> bool {
        self.clusters.values().any(|entry| entry.built.is_none())
            || self.routes.values().any(|entry| entry.pending.is_some())
            || self.listeners.values().any(|entry| entry.since.is_some())
    }

    /// The new root, if there is one to publish. The first is given only when everything that came is in force.
    pub fn root(&mut self) -> Option<Arc<Root>> {
        if !self.published {
            let complete = self.expected.is_empty() && !self.warming();
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
            most_connections: self.most_connections,
            drain: self.drain,
            home: self.context.home(),
            ..Root::default()
        }))
    }
}

/// Every cluster that gets copies of a table's requests, as far as the table names it.
pub(super) fn mirrors_of(table: &RouteTable) -> BTreeSet<ClusterId> {
    let routes = table.hosts().iter().flat_map(|host| &host.routes);
    let mirrors = routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(&forward.mirrors),
        Action::Redirect(_) | Action::Direct(_) => None,
    });
    mirrors.flatten().filter(|mirror| mirror.cluster_header.is_none()).map(|mirror| mirror.cluster).collect()
}

/// Every cluster that a table can send a request to.
pub(super) fn clusters_of(table: &RouteTable) -> BTreeSet<ClusterId> {
    let routes = table.hosts().iter().flat_map(|host| &host.routes);
    routes
        .filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(forward.targets.iter().map(|target| target.cluster)),
            Action::Redirect(_) | Action::Direct(_) => None,
        })
        .flatten()
        .collect()
}
