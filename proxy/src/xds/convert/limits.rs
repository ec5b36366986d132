//! Counts and buckets of limiting filters, which must not begin anew because the configuration around them has changed.

use crate::config::{Bucket, Buckets};
use crate::tls::facts::Hasher;
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};

/// Counts and buckets by where they stand, for as long as something uses them.
#[derive(Debug, Default)]
pub struct SharedLimits {
    counts: HashMap<String, Weak<AtomicU32>>,
    buckets: HashMap<String, Weak<Bucket>>,
    requests: HashMap<String, Weak<Buckets>>,
    /// The resource that is being converted, and how many limits of requests it has had so far.
    place: (String, usize),
}

impl SharedLimits {
    /// From now on this resource is converted: limits that stand at the same place of the same resource go on as they were.
    pub fn begin(&mut self, body: &[u8]) {
        self.place = (hashed(body), 0);
    }

    /// The buckets of the next limit of requests in the resource, which is written so.
    pub fn of_requests(&mut self, written: &[u8], make: impl FnOnce() -> Buckets) -> Arc<Buckets> {
        let (place, number) = &mut self.place;
        *number += 1;
        shared(&mut self.requests, &format!("{place}/{number}/{}", hashed(written)), make)
    }

    /// The count of that place.
    pub fn count(&mut self, key: &str, make: impl FnOnce() -> AtomicU32) -> Arc<AtomicU32> {
        shared(&mut self.counts, key, make)
    }

    /// The bucket of that place.
    pub fn bucket(&mut self, key: &str, make: impl FnOnce() -> Bucket) -> Arc<Bucket> {
        shared(&mut self.buckets, key, make)
    }
}

fn hashed(bytes: &[u8]) -> String {
    let mut hash = Hasher::default();
    hash.add(bytes);
    hash.end().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shared<T>(known: &mut HashMap<String, Weak<T>>, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
    if let Some(value) = known.get(key).and_then(Weak::upgrade) {
        return value;
    }
    // When it would grow: what is left decides when to look again.
    if known.len() >= 1024 && known.len() == known.capacity() {
        known.retain(|_, value| value.strong_count() > 0);
    }
    let value = Arc::new(make());
    known.insert(key.to_owned(), Arc::downgrade(&value));
    value
}
