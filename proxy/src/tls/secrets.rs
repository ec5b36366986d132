//! Certificates and trust by name, as secrets come and change. What uses a secret holds its slot; a new value is seen by the next
//! handshake, without a new configuration, and connections that are open live on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;

use super::TlsError;
use super::material::{KeyPair, TrustSettings};
use super::ticket_keys::TicketKeys;

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
#[derive(Debug)]
pub enum Source<T> {
    /// Written in the configuration.
    Inline(Arc<T>),
    /// A secret.
    Slot(Arc<Slot<T>>),
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Inline(value) => Self::Inline(value.clone()),
            Self::Slot(slot) => Self::Slot(slot.clone()),
        }
    }
}

impl<T> Source<T> {
    /// The newest value.
    pub fn get(&self) -> Option<Arc<T>> {
        match self {
            Self::Inline(value) => Some(value.clone()),
            Self::Slot(slot) => slot.get(),
        }
    }

    /// The name of the secret, if it is one.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Self::Slot(slot) => Some(slot.name()),
            Self::Inline(_) => None,
        }
    }

    /// The newest value.
    ///
    /// # Errors
    /// When the secret has not come.
    pub fn ready(&self) -> Result<Arc<T>, TlsError> {
        self.get().ok_or_else(|| TlsError::NoSecret(self.secret().unwrap_or_default().to_owned()))
    }
}

/// Whom to trust: what is written, what a secret says, or the secret laid over what is written.
#[derive(Debug, Clone, Default)]
pub struct TrustSource {
    /// As written.
    pub own: Option<TrustSettings>,
    /// By name.
    pub secret: Option<Arc<Slot<TrustSettings>>>,
}

impl TrustSource {
    /// Whether anybody has to be trusted.
    pub fn is_none(&self) -> bool {
        self.own.is_none() && self.secret.is_none()
    }

    /// What is written beside this secret, if that is used.
    pub fn combined_with(&self, secret: &str) -> Option<&TrustSettings> {
        self.own.as_ref().filter(|_| self.secret.as_ref().is_some_and(|slot| slot.name() == secret))
    }

    /// The newest value of the secret, where there is one.
    ///
    /// # Errors
    /// When it has not come.
    pub fn of_secret(&self) -> Result<Option<Arc<TrustSettings>>, TlsError> {
        let missing = |slot: &Slot<_>| TlsError::NoSecret(slot.name().to_owned());
        self.secret.as_ref().map(|slot| slot.get().ok_or_else(|| missing(slot))).transpose()
    }

    /// All of it, with this value of the secret.
    pub fn with(&self, secret: Option<&TrustSettings>) -> Option<TrustSettings> {
        match (&self.own, secret) {
            (Some(own), Some(secret)) => Some(own.merged(secret)),
            (own, secret) => own.as_ref().or(secret).cloned(),
        }
    }

    /// Names of roots with the time until which the first of them is good; what has no name has [`UNNAMED_ROOTS`].
    pub fn ends(&self) -> Vec<(&str, SystemTime)> {
        let secret =
            self.secret.as_ref().and_then(|slot| Some((slot.name(), slot.get()?.roots.as_ref()?.first_end()?)));
        let own = self.own.as_ref().and_then(|own| Some((UNNAMED_ROOTS, own.roots.as_ref()?.first_end()?)));
        own.into_iter().chain(secret).collect()
    }
}

/// How statistics name a certificate that is no secret; as Envoy does.
pub const UNNAMED_PAIR: &str = "unnamed_cert_e3b0c442";
/// How statistics name roots that are no secret; as Envoy does.
pub const UNNAMED_ROOTS: &str = "unnamed_ca_cert_e3b0c442";

/// A secret's value.
#[derive(Debug)]
pub enum SecretValue {
    /// A chain with its key.
    KeyPair(KeyPair),
    /// Whom to trust.
    Trust(TrustSettings),
    /// Keys for tickets.
    TicketKeys(TicketKeys),
}

/// Every secret that has come or is waited for. One writer, the control thread; its slots are read by workers.
#[derive(Debug, Default)]
pub struct Secrets {
    key_pairs: Slots<KeyPair>,
    trust: Slots<TrustSettings>,
    ticket_keys: Slots<TicketKeys>,
    /// What the values were made of, as hashes.
    fingerprints: HashMap<Arc<str>, [u8; 32]>,
}

fn slot<T>(slots: &mut Slots<T>, name: &str) -> Arc<Slot<T>> {
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

    /// The slot of keys for tickets.
    pub fn ticket_keys(&mut self, name: &str) -> Arc<Slot<TicketKeys>> {
        slot(&mut self.ticket_keys, name)
    }

    /// Whether those who use the secret of that name take values of another kind.
    pub fn is_of_other_kind(&self, name: &str, value: &SecretValue) -> bool {
        let used = [in_use(&self.key_pairs, name), in_use(&self.trust, name), in_use(&self.ticket_keys, name)];
        let kind = match value {
            SecretValue::KeyPair(_) => 0,
            SecretValue::Trust(_) => 1,
            SecretValue::TicketKeys(_) => 2,
        };
        used.contains(&true) && !used[kind]
    }

    /// Takes a new value in that is made of what has this hash. One that is as it was changes nothing, and no session ends.
    pub fn set(&mut self, name: &str, value: SecretValue, fingerprint: [u8; 32]) {
        if self.fingerprints.insert(name.into(), fingerprint) == Some(fingerprint) && self.has(name) {
            return;
        }
        match value {
            SecretValue::KeyPair(pair) => self.key_pair(name).value.store(Some(Arc::new(pair))),
            SecretValue::Trust(trust) => self.trust(name).value.store(Some(Arc::new(trust))),
            SecretValue::TicketKeys(keys) => self.ticket_keys(name).value.store(Some(Arc::new(keys))),
        }
    }

    /// Forgets a secret; what uses it can make no connection until it comes again.
    pub fn remove(&mut self, name: &str) {
        self.fingerprints.remove(name);
        forget(&self.key_pairs, name);
        forget(&self.trust, name);
        forget(&self.ticket_keys, name);
    }

    /// Whether a value of that name has come.
    pub fn has(&self, name: &str) -> bool {
        holds(&self.key_pairs, name) || holds(&self.trust, name) || holds(&self.ticket_keys, name)
    }

    /// Names that something in force, or about to be, uses. Slots that nothing uses and that hold nothing are dropped.
    pub fn used(&mut self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        sweep(&mut self.key_pairs, &mut used);
        sweep(&mut self.trust, &mut used);
        sweep(&mut self.ticket_keys, &mut used);
        used
    }
}

type Slots<T> = HashMap<Arc<str>, Arc<Slot<T>>>;

fn in_use<T>(slots: &Slots<T>, name: &str) -> bool {
    slots.get(name).is_some_and(|slot| Arc::strong_count(slot) > 1)
}

fn holds<T>(slots: &Slots<T>, name: &str) -> bool {
    slots.get(name).is_some_and(|slot| slot.value.load().is_some())
}

fn forget<T>(slots: &Slots<T>, name: &str) {
    if let Some(slot) = slots.get(name) {
        slot.value.store(None);
    }
}

fn sweep<T>(slots: &mut Slots<T>, used: &mut BTreeSet<String>) {
    slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.value.load().is_some());
    used.extend(slots.iter().filter(|(_, slot)| Arc::strong_count(slot) > 1).map(|(name, _)| name.to_string()));
}
