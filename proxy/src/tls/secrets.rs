//! Certificates and trust by name, as secrets come and change. What uses a secret holds its slot; a new value is seen by the next
//! handshake, without a new configuration, and connections that are open live on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::material::{KeyPair, TrustSettings};

/// The place of one secret.
#[derive(Debug)]
pub struct Slot<T> {
    name: Arc<str>,
    value: ArcSwapOption<T>,
}

impl<T> Slot<T> {
    /// The secret's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest value; `None` until the first has come.
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }
}

/// Either written in the configuration or in a slot.
#[derive(Debug, Clone)]
pub enum Source<T> {
    /// Written in the configuration.
    Inline(Arc<T>),
    /// A secret.
    Slot(Arc<Slot<T>>),
}

impl<T> Source<T> {
    /// The newest value.
    pub fn get(&self) -> Option<Arc<T>> {
        match self {
            Self::Inline(value) => Some(value.clone()),
            Self::Slot(slot) => slot.get(),
        }
    }
}

/// A secret's value.
#[derive(Debug)]
pub enum SecretValue {
    /// A chain with its key.
    KeyPair(KeyPair),
    /// Whom to trust.
    Trust(TrustSettings),
}

/// Every secret that has come or is waited for. One writer, the control thread; its slots are read by workers.
#[derive(Debug, Default)]
pub struct Secrets {
    key_pairs: HashMap<Arc<str>, Arc<Slot<KeyPair>>>,
    trust: HashMap<Arc<str>, Arc<Slot<TrustSettings>>>,
    /// What the values were made of, as hashes.
    fingerprints: HashMap<Arc<str>, [u8; 32]>,
}

fn slot<T>(slots: &mut HashMap<Arc<str>, Arc<Slot<T>>>, name: &str) -> Arc<Slot<T>> {
    if let Some(slot) = slots.get(name) {
        return slot.clone();
    }
    let name: Arc<str> = name.into();
    let slot = Arc::new(Slot { name: name.clone(), value: ArcSwapOption::empty() });
    slots.insert(name, slot.clone());
    slot
}

impl Secrets {
    /// The slot of a chain with its key.
    pub fn key_pair(&mut self, name: &str) -> Arc<Slot<KeyPair>> {
        slot(&mut self.key_pairs, name)
    }

    /// The slot of whom to trust.
    pub fn trust(&mut self, name: &str) -> Arc<Slot<TrustSettings>> {
        slot(&mut self.trust, name)
    }

    /// Whether those who use the secret of that name take values of another kind.
    pub fn is_of_other_kind(&self, name: &str, value: &SecretValue) -> bool {
        let pair = self.key_pairs.get(name).is_some_and(|slot| Arc::strong_count(slot) > 1);
        let trust = self.trust.get(name).is_some_and(|slot| Arc::strong_count(slot) > 1);
        match value {
            SecretValue::KeyPair(_) => trust && !pair,
            SecretValue::Trust(_) => pair && !trust,
        }
    }

    /// Takes a new value in that is made of what has this hash. One that is as it was changes nothing, and no session ends.
    pub fn set(&mut self, name: &str, value: SecretValue, fingerprint: [u8; 32]) {
        if self.fingerprints.insert(name.into(), fingerprint) == Some(fingerprint) && self.has(name) {
            return;
        }
        match value {
            SecretValue::KeyPair(pair) => self.key_pair(name).value.store(Some(Arc::new(pair))),
            SecretValue::Trust(trust) => self.trust(name).value.store(Some(Arc::new(trust))),
        }
    }

    /// Forgets a secret; what uses it can make no connection until it comes again.
    pub fn remove(&mut self, name: &str) {
        self.fingerprints.remove(name);
        if let Some(slot) = self.key_pairs.get(name) {
            slot.value.store(None);
        }
        if let Some(slot) = self.trust.get(name) {
            slot.value.store(None);
        }
    }

    /// Whether a value of that name has come.
    pub fn has(&self, name: &str) -> bool {
        self.key_pairs.get(name).is_some_and(|slot| slot.value.load().is_some())
            || self.trust.get(name).is_some_and(|slot| slot.value.load().is_some())
    }

    /// Names that something in force, or about to be, uses. Slots that nothing uses and that hold nothing are dropped.
    pub fn used(&mut self) -> BTreeSet<String> {
        self.key_pairs.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.value.load().is_some());
        self.trust.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.value.load().is_some());
        let pairs = self.key_pairs.iter().filter(|(_, slot)| Arc::strong_count(slot) > 1).map(|(name, _)| name);
        let trust = self.trust.iter().filter(|(_, slot)| Arc::strong_count(slot) > 1).map(|(name, _)| name);
        pairs.chain(trust).map(ToString::to_string).collect()
    }
}
