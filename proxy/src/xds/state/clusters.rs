//! Clusters and their endpoints: what came of both makes what is in force.

use super::{ClusterEntry, ClusterForm, Raw, State};
use crate::config::Cluster;
use crate::xds::convert::Refused;
use crate::xds::convert::cluster::{Assignment, template};
use crate::xds::convert::common::unpack;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

impl State {
    pub(super) fn take_cluster(&mut self, name: &str, raw: Raw, now: Instant) -> Result<(), Refused> {
        let template = template(&mut self.context, unpack(&raw.body)?)?;
        let id = self.context.cluster(name)?;
        let secrets = template.secrets();
        let form = ClusterForm { raw, template, secrets };
        let built = self.build(&form, false)?;
        let before = self.clusters.remove(name);
        if let Some(before) = &before {
            self.used_no_more(name, before);
        }
        let entry = match (built, before) {
            (Some(built), _) => ClusterEntry { form, active: None, built: Some(built), id, since: None },
            // The form in force serves until what the new one needs has come.
            (None, Some(ClusterEntry { form: old, active, built: Some(built), since, .. })) => {
                let active = active.or_else(|| since.is_none().then_some(old));
                ClusterEntry { form, active, built: Some(built), id, since: Some(now) }
            }
            (None, _) => ClusterEntry { form, active: None, built: None, id, since: Some(now) },
        };
        for resource in entry.endpoints() {
            self.users.entry(resource.clone()).or_default().insert(name.to_owned());
        }
        self.note(&entry);
        self.clusters.insert(name.to_owned(), entry);
        self.dirty = true;
        Ok(())
    }

    /// A cluster's entry goes, or becomes another one.
    pub(super) fn used_no_more(&mut self, name: &str, entry: &ClusterEntry) {
        for resource in entry.endpoints() {
            if let Some(users) = self.users.get_mut(resource) {
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(resource);
                }
            }
        }
    }

    /// The cluster, if everything that it needs is there. One in force may do without secrets: connections that want them fail.
    fn build(&mut self, form: &ClusterForm, in_force: bool) -> Result<Option<Arc<Cluster>>, Refused> {
        if !in_force && !form.secrets.iter().all(|name| self.context.secrets.has(name)) {
            return Ok(None);
        }
        let assignment = self.assignment(form)?;
        Ok(assignment.map(|assignment| form.template.build(assignment, &self.own)))
    }

    /// The endpoints of a cluster, if they have come.
    pub(super) fn assignment(&mut self, form: &ClusterForm) -> Result<Option<Assignment>, Refused> {
        let Some(resource) = &form.template.endpoints else { return Ok(Some(Assignment::default())) };
        let Some(raw) = self.endpoints.get(resource) else { return Ok(None) };
        let mut assignment = form.template.endpoints(&mut self.context, unpack(&raw.body)?)?;
        // An endpoint counts once, where it is named first.
        let mut seen = HashSet::new();
        assignment.endpoints.retain(|endpoint| seen.insert(endpoint.address));
        Ok(Some(assignment))
    }

    fn note(&mut self, entry: &ClusterEntry) {
        if entry.built.is_some() {
            self.warming.remove(&entry.id);
        } else {
            self.warming.insert(entry.id);
        }
    }

    pub(super) fn take_endpoints(&mut self, name: &str, raw: Raw) -> Result<(), Refused> {
        if name.is_empty() {
            return Err(Refused::new("cluster_name", "must not be empty"));
        }
        let users: Vec<String> = self.users.get(name).into_iter().flatten().cloned().collect();
        let before = self.endpoints.insert(name.to_owned(), raw);
        let built = self.rebuild(&users);
        if built.is_err() {
            // The last good form stays.
            match before {
                Some(before) => drop(self.endpoints.insert(name.to_owned(), before)),
                None => drop(self.endpoints.remove(name)),
            }
        }
        built
    }

    /// Builds clusters again: all of them, or none when one is refused.
    pub(super) fn rebuild(&mut self, names: &[String]) -> Result<(), Refused> {
        let mut taken: Vec<_> = names.iter().filter_map(|name| self.clusters.remove_entry(name)).collect();
        let mut build = |entry: &ClusterEntry| {
            let newest = self.build(&entry.form, entry.since.is_none())?;
            let active = match (&newest, &entry.active) {
                (None, Some(active)) => self.build(active, true)?,
                _ => None,
            };
            Ok((newest, active))
        };
        let built: Result<Vec<_>, Refused> = taken.iter().map(|(_, entry)| build(entry)).collect();
        let result = built.map(|built| {
            for ((name, entry), (newest, active)) in taken.iter_mut().zip(built) {
                if newest.is_some() {
                    self.bring_into_force(name, entry, newest);
                } else if active.is_some() {
                    entry.built = active;
                    self.dirty = true;
                }
                self.note(entry);
            }
        });
        self.clusters.extend(taken);
        result
    }

    /// The newest form of a cluster serves from now on; what only the one before used is not asked for any more.
    pub(super) fn bring_into_force(&mut self, name: &str, entry: &mut ClusterEntry, built: Option<Arc<Cluster>>) {
        entry.built = built;
        entry.since = None;
        if entry.active.is_some() {
            self.used_no_more(name, entry);
            entry.active = None;
            for resource in entry.endpoints() {
                self.users.entry(resource.clone()).or_default().insert(name.to_owned());
            }
        }
        self.dirty = true;
    }
}
