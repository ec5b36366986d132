//! Resources from files: looked at again and again, and taken in when they have changed.

use super::client::{Changes, SharedState};
use super::source::SourceId;
use super::state::{Kind, State, Update};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

/// How often a file is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What tells one state of a file from another: what it is, how long, and since when.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

/// A file with resources of a kind.
pub struct File {
    /// Which.
    pub path: PathBuf,
    /// The kind of its resources.
    pub kind: Kind,
    /// Which source it is.
    pub source: SourceId,
}

impl File {
    /// Takes its resources in, now and whenever they change, until `stop`. While it cannot be read, what was read last
    /// stays in force.
    pub async fn follow(self, state: SharedState, changes: Changes, stop: CancellationToken) {
        let mut changed = changes.listen();
        let mut taken: Option<(Stamp, BTreeSet<String>)> = None;
        let mut told = None;
        loop {
            let wanted = {
                let state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.wanted_from(self.kind, self.source)
            };
            match stamp(&self.path) {
                Ok(stamp) => {
                    let now = Some((stamp, wanted));
                    if now != taken {
                        let wanted = now.as_ref().map(|(_, wanted)| wanted.clone()).unwrap_or_default();
                        if let Some((_, before)) = &taken {
                            let gone = before.difference(&wanted).cloned().collect();
                            state.lock().unwrap_or_else(PoisonError::into_inner).forget(self.kind, &gone);
                        }
                        match self.read(&wanted) {
                            Ok(update) => {
                                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                                let missing = self.missing(&mut state, &update, wanted);
                                state.apply(self.kind, update, Instant::now(), SystemTime::now());
                                let why = format!("is not in {}", self.path.display());
                                state.fail(self.kind, missing, &why, SystemTime::now());
                                drop(state);
                                changes.tell();
                                changed.mark_unchanged();
                            }
                            Err(reason) => {
                                let path = self.path.display();
                                tracing::warn!(%path, reason, "cannot use a file");
                                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                                state.count_lost(self.source, &[self.kind]);
                                let why = format!("cannot use {path}: {reason}");
                                state.fail(self.kind, wanted, &why, SystemTime::now());
                                drop(state);
                                changes.tell();
                                changed.mark_unchanged();
                            }
                        }
                        taken = now;
                        told = None;
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!(path = %self.path.display(), reason, "cannot read a file");
                        told = Some(reason);
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// What is to be in the file and is not, or no longer: it stays as it was, and that must not go unseen.
    fn missing(&self, state: &mut State, update: &Update, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.retain(|name| !update.names().any(|sent| sent == name));
        if self.kind == Kind::Secret {
            wanted.iter().for_each(|name| state.count_missing_secret(name));
        }
        wanted
    }

    fn read(&self, wanted: &BTreeSet<String>) -> Result<Update, String> {
        let mut text = String::new();
        let file = std::fs::File::open(&self.path).map_err(|error| error.to_string())?;
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let read = leno_xds::json::response(&text);
        leno_xds::json::release();
        let (response, unreadable) = read.map_err(|error| error.to_string())?;
        let mut update = Update::from(response);
        update.unreadable = unreadable.into_iter().map(|(name, error)| (name, error.to_string())).collect();
        for resource in &update.resources {
            let type_url = resource.resource.as_ref().map(|any| any.type_url.as_str()).unwrap_or_default();
            if type_url != self.kind.type_url() {
                return Err(format!("`{}` is a {type_url} and no {}", resource.name, self.kind.noun()));
            }
        }
        if self.kind.by_name() {
            update.resources.retain(|resource| wanted.contains(&resource.name));
            update.unreadable.retain(|(name, _)| wanted.contains(name));
        }
        Ok(update)
    }
}

pub(super) fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let data = std::fs::metadata(path)?;
    Ok((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}
