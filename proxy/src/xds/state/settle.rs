//! Bringing into force: a new form waits for what it needs, for a bounded time.

use super::{Kind, Sockets, State};
use crate::config::{Action, ClusterId, Listeners, Root, RouteTable};
use crate::xds::convert::cluster::Assignment;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

impl State {
    /// Brings into force what can be. True when something changed, and [`Self::root`] would give a new root.
    pub fn settle(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.look_at_files(now);
        let mut late = Vec::new();
        for (name, entry) in &mut self.clusters {
            if entry.built.is_none() && now >= entry.deadline {
                tracing::warn!(cluster = %name, "what it needs did not come in time; using the cluster without");
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

    /// Removes what its server has not said to be good for too long, and stops waiting for what never came.
    fn expire(&mut self, now: Instant) {
        let over = self.expiries.iter().filter(|(_, until)| now >= **until);
        for (kind, name) in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            tracing::warn!(kind = kind.noun(), %name, "its time to live is over, and its server has not said more");
            self.remove(kind, &name);
        }
        self.expected.retain(|kind, until| {
            let late = until.is_some_and(|until| now >= until);
            if late {
                tracing::warn!(kind = kind.noun(), "nothing came in time; beginning without");
            }
            !late
        });
    }

    fn settle_listeners(&mut self, now: Instant) {
        let due: Vec<String> = self
            .listeners
            .iter()
            .filter(|(_, entry)| match entry.deadline {
                None => entry.stale,
                Some(deadline) => {
                    now >= deadline
                        || entry.parts.secrets.iter().all(|name| self.context.secrets.has(name))
                            && entry.parts.clusters.iter().all(|id| !self.warming.contains(id))
                            && entry.parts.routes.iter().all(|name| self.has_table(name))
                            && entry.parts.extensions.iter().all(|used| !used.warms || self.is_decided(&used.name))
                }
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(mut entry) = self.listeners.remove(&name) else { continue };
            // Again, because route tables and configurations of filters have come since it was first converted.
            if !entry.parts.routes.is_empty() || !entry.parts.extensions.is_empty() {
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

    /// Whether the configuration of a filter has come, good or bad: a bad one is not waited for.
    fn is_decided(&self, name: &str) -> bool {
        self.extensions.contains_key(name) || self.refusals.contains_key(&(Kind::Extension, name.to_owned()))
    }

    /// Whether a resource has come whose newest form is not in force yet.
    pub fn waits(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Listener => self.listeners.get(name).is_some_and(|entry| entry.deadline.is_some()),
            Kind::Routes => self.routes.get(name).is_some_and(|entry| entry.pending.is_some()),
            Kind::Cluster | Kind::Endpoints | Kind::Secret | Kind::Extension => false,
        }
    }

    /// When [`Self::settle`] should be called again, if nothing comes before.
    pub fn deadline(&self) -> Option<Instant> {
        let clusters = self.clusters.values().filter(|entry| entry.built.is_none()).map(|entry| entry.deadline);
        let routes = self.routes.values().filter_map(|entry| entry.pending.as_ref().map(|pending| pending.2));
        let listeners = self.listeners.values().filter_map(|entry| entry.deadline);
        let first = self.expected.values().filter_map(|until| *until);
        let expiries = self.expiries.values().copied();
        clusters.chain(routes).chain(listeners).chain(first).chain(expiries).chain(self.files.due()).min()
    }

    /// Whether anything waits for what it needs.
    fn warming(&self) -> bool {
        self.clusters.values().any(|entry| entry.built.is_none())
            || self.routes.values().any(|entry| entry.pending.is_some())
            || self.listeners.values().any(|entry| entry.deadline.is_some())
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
            ..Root::default()
        }))
    }
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
