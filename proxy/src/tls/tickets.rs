//! Sessions that a client may resume, by tickets and by memory, good for as long as a configuration says.

use rustls::server::{ProducesTickets, StoresServerSessions};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of the time at the end of what is sealed or kept, in seconds since 1970.
const TIME: usize = 8;

/// Makes tickets that end after a time of their own.
#[derive(Debug)]
pub struct Lasting {
    /// What seals them; its keys live for a time as well.
    pub inner: Arc<dyn ProducesTickets>,
    /// How long one is good, to the second.
    pub lifetime: Duration,
}

/// Sessions that are remembered here and end after a time of their own.
#[derive(Debug)]
pub struct Remembered {
    /// Where they are kept.
    pub inner: Arc<dyn StoresServerSessions>,
    /// How long one is good, to the second.
    pub lifetime: Duration,
}

impl StoresServerSessions for Remembered {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.inner.put(key, [&value[..], &now().to_be_bytes()].concat())
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.get(key).and_then(|value| dated(value, self.lifetime))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.take(key).and_then(|value| dated(value, self.lifetime))
    }

    fn can_cache(&self) -> bool {
        self.inner.can_cache()
    }
}

/// What stands before a time, if that is not longer ago than `lifetime`.
fn dated(mut value: Vec<u8>, lifetime: Duration) -> Option<Vec<u8>> {
    let time = value.split_off(value.len().checked_sub(TIME)?);
    let age = now().checked_sub(u64::from_be_bytes(time.try_into().ok()?))?;
    (age <= lifetime.as_secs()).then_some(value)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl ProducesTickets for Lasting {
    fn enabled(&self) -> bool {
        self.inner.enabled()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX).min(self.inner.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&[plain, &now().to_be_bytes()].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        dated(self.inner.decrypt(cipher)?, self.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{crypto::aws_lc_rs::Ticketer, server::ServerSessionMemoryCache};

    #[test]
    fn ticket_when_its_time_is_over_then_it_is_none_and_clients_are_told_that_time() {
        let inner = Ticketer::new().unwrap();
        let tickets = Lasting { inner: inner.clone(), lifetime: Duration::from_secs(1000) };
        assert_eq!(tickets.lifetime(), 1000);
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let old = inner.encrypt(&[b"session", &(now() - 1001).to_be_bytes()[..]].concat()).unwrap();
        assert_eq!(tickets.decrypt(&old), None);
        assert_eq!(tickets.decrypt(&inner.encrypt(b"short").unwrap()), None);
    }

    #[test]
    fn session_when_its_time_is_over_then_it_is_forgotten() {
        let inner = ServerSessionMemoryCache::new(8);
        let kept = Remembered { inner: inner.clone(), lifetime: Duration::from_secs(1000) };
        assert!(kept.can_cache() && kept.put(b"a".to_vec(), b"session".to_vec()));
        assert_eq!(kept.get(b"a").as_deref(), Some(&b"session"[..]));
        assert_eq!((kept.take(b"a").as_deref(), kept.take(b"a")), (Some(&b"session"[..]), None));
        inner.put(b"b".to_vec(), [b"session", &(now() - 1001).to_be_bytes()[..]].concat());
        assert_eq!((kept.get(b"b"), kept.take(b"b")), (None, None));
    }
}
