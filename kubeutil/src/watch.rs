//! Watches that a bad object cannot end, kept as sorted stores.
//!
//! Somebody can write past a schema (an older definition, a webhook, etcd itself). Such an object is reported under its
//! name in [`Contents::malformed`] and left out; all others go on. Connections that end are opened again with backoff; what
//! is in the store stays until a new list is complete.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace and name. The namespace of cluster-scoped objects is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of<K: ResourceExt>(object: &K) -> Self {
        Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Everything that a watch has seen.
#[derive(Clone, Debug)]
pub struct Contents<K> {
    /// The objects.
    pub objects: BTreeMap<Key, Arc<K>>,
    /// Objects that do not parse, with what is wrong.
    pub malformed: BTreeMap<Key, String>,
}

impl<K> Default for Contents<K> {
    fn default() -> Self {
        Contents { objects: BTreeMap::new(), malformed: BTreeMap::new() }
    }
}

/// A store that a watch keeps up to date. Cheap to clone.
#[derive(Debug)]
pub struct Store<K> {
    contents: Arc<RwLock<Contents<K>>>,
    changes: watch::Receiver<Version>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Store { contents: self.contents.clone(), changes: self.changes.clone() }
    }
}

/// How often a store changed, and whether its first list is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Counts changes.
    pub changes: u64,
    /// Whether the first list is complete.
    pub synced: bool,
}

impl<K> Store<K> {
    /// A store that holds `contents` and never changes, for tests and for folders.
    pub fn fixed(contents: Contents<K>) -> Self {
        let (_, changes) = watch::channel(Version { changes: 1, synced: true });
        Store { contents: Arc::new(RwLock::new(contents)), changes }
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        self.changes.borrow().synced
    }

    /// Waits for the first list. Returns false when the watch ended before.
    pub async fn synced(&self) -> bool {
        self.changes.clone().wait_for(|version| version.synced).await.is_ok()
    }

    /// Tells of changes: a receiver that is marked as changed by each.
    pub fn subscribe(&self) -> watch::Receiver<Version> {
        self.changes.clone()
    }

    /// Runs `read` on the contents. It must not wait for anything.
    pub fn read<T>(&self, read: impl FnOnce(&Contents<K>) -> T) -> T {
        read(&self.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All objects; the objects themselves are shared, not copied.
    pub fn objects(&self) -> BTreeMap<Key, Arc<K>> {
        self.read(|contents| contents.objects.clone())
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|contents| contents.objects.get(key).cloned())
    }

    /// Objects that do not parse, with what is wrong.
    pub fn malformed(&self) -> BTreeMap<Key, String> {
        self.read(|contents| contents.malformed.clone())
    }
}

/// An API whose objects may be malformed.
pub type TolerantApi<K> = Api<DeserializeGuard<K>>;

/// Watches a kind in all namespaces until `shutdown`. `config` selects by labels or fields. `trim` may drop what nobody
/// reads, to save memory; managed fields are always dropped.
pub fn spawn<K>(client: Client, config: watcher::Config, trim: fn(&mut K), shutdown: CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    spawn_api(&K::kind(&()), Api::all(client), config, trim, shutdown)
}

/// As [`spawn`], of any API: one namespace, or a kind that is only known at run time. `kind` is for the log.
pub fn spawn_api<K>(
    kind: &str,
    api: TolerantApi<K>,
    config: watcher::Config,
    trim: fn(&mut K),
    shutdown: CancellationToken,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Debug + Send + Sync + 'static,
{
    let kind = kind.to_owned();
    let contents: Arc<RwLock<Contents<K>>> = Arc::default();
    let (announce, changes) = watch::channel(Version::default());
    let store = Store { contents: contents.clone(), changes };
    tokio::spawn(async move {
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listing = Contents::default();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::warn!(kind, %error, "a watch failed; trying again"),
                Some(Ok(event)) => {
                    let change = {
                        let mut guard = contents.write().unwrap_or_else(PoisonError::into_inner);
                        take_in(&kind, event, trim, &mut guard, &mut listing)
                    };
                    if let Some(listed) = change {
                        announce.send_modify(|version| {
                            version.changes += 1;
                            version.synced |= listed;
                        });
                    }
                }
            }
        }
    });
    store
}

/// Applies one event. `None`: nothing to announce; `Some(true)`: a list is complete.
fn take_in<K: Resource + Clone>(
    kind: &str,
    event: Event<DeserializeGuard<K>>,
    trim: fn(&mut K),
    contents: &mut Contents<K>,
    listing: &mut Contents<K>,
) -> Option<bool> {
    match event {
        Event::Init => {
            *listing = Contents::default();
            None
        }
        Event::InitApply(guard) => {
            put(kind, guard, trim, listing);
            None
        }
        Event::InitDone => {
            *contents = std::mem::take(listing);
            Some(true)
        }
        Event::Apply(guard) => {
            put(kind, guard, trim, contents);
            Some(false)
        }
        Event::Delete(guard) => {
            let key = key_of(&guard);
            contents.objects.remove(&key);
            contents.malformed.remove(&key);
            Some(false)
        }
    }
}

fn key_of<K: Resource>(guard: &DeserializeGuard<K>) -> Key {
    let meta = guard.meta();
    Key { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

fn put<K: Resource + Clone>(kind: &str, guard: DeserializeGuard<K>, trim: fn(&mut K), contents: &mut Contents<K>) {
    let key = key_of(&guard);
    match guard.0 {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            trim(&mut object);
            contents.malformed.remove(&key);
            contents.objects.insert(key, Arc::new(object));
        }
        Err(invalid) => {
            tracing::warn!(kind, object = %key, error = invalid.error, "an object does not parse and is skipped");
            contents.objects.remove(&key);
            contents.malformed.insert(key, invalid.error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    fn guard(value: Value) -> DeserializeGuard<ConfigMap> {
        serde_json::from_value(value).unwrap()
    }

    fn good(name: &str) -> DeserializeGuard<ConfigMap> {
        guard(json!({ "metadata": { "name": name, "namespace": "shop" }, "data": { "a": "b" } }))
    }

    fn bad(name: &str) -> DeserializeGuard<ConfigMap> {
        guard(json!({ "metadata": { "name": name, "namespace": "shop" }, "data": 7 }))
    }

    #[test]
    fn store_when_an_object_does_not_parse_then_the_others_are_there_and_it_is_named() {
        let (mut contents, mut listing) = (Contents::default(), Contents::default());
        let mut see = |event| take_in("ConfigMap", event, |_| {}, &mut contents, &mut listing);
        assert_eq!(see(Event::Init), None);
        assert_eq!(see(Event::InitApply(good("one"))), None);
        assert_eq!(see(Event::InitApply(bad("two"))), None);
        assert_eq!(see(Event::InitDone), Some(true));
        assert_eq!(contents.objects.keys().map(Key::to_string).collect::<Vec<_>>(), ["shop/one"]);
        assert_eq!(contents.malformed.keys().map(Key::to_string).collect::<Vec<_>>(), ["shop/two"]);
    }

    #[test]
    fn store_when_an_object_turns_bad_and_good_again_then_is_in_one_list_only() {
        let (mut contents, mut listing) = (Contents::default(), Contents::default());
        let mut see = |event| take_in("ConfigMap", event, |_| {}, &mut contents, &mut listing);
        see(Event::Apply(good("one")));
        see(Event::Apply(bad("one")));
        see(Event::Apply(good("two")));
        see(Event::Delete(good("two")));
        assert!(contents.objects.is_empty() && contents.malformed.len() == 1);
    }

    #[test]
    fn store_when_the_watch_restarts_then_keeps_the_old_until_the_new_list_is_complete() {
        let (mut contents, mut listing) = (Contents::default(), Contents::default());
        take_in("ConfigMap", Event::Apply(good("one")), |_| {}, &mut contents, &mut listing);
        take_in("ConfigMap", Event::Init, |_| {}, &mut contents, &mut listing);
        assert_eq!(contents.objects.len(), 1);
        take_in("ConfigMap", Event::InitApply(good("two")), |_| {}, &mut contents, &mut listing);
        assert!(contents.objects.contains_key(&Key::new("shop", "one")));
        take_in("ConfigMap", Event::InitDone, |_| {}, &mut contents, &mut listing);
        assert!(!contents.objects.contains_key(&Key::new("shop", "one")));
    }
}
