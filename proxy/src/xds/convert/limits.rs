//! Counts and buckets of limiting filters, which must not begin anew because the configuration around them has changed.

use crate::config::Bucket;
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};

/// Counts and buckets by where they stand, for as long as something uses them.
#[derive(Debug, Default)]
pub struct SharedLimits {
    counts: HashMap<String, Weak<AtomicU32>>,
    buckets: HashMap<String, Weak<Bucket>>,
}

impl SharedLimits {
    /// The count of that place.
    pub fn count(&mut self, key: &str, make: impl FnOnce() -> AtomicU32) -> Arc<AtomicU32> {
        shared(&mut self.counts, key, make)
    }

    /// The bucket of that place.
    pub fn bucket(&mut self, key: &str, make: impl FnOnce() -> Bucket) -> Arc<Bucket> {
        shared(&mut self.buckets, key, make)
    }
}

fn shared<T>(known: &mut HashMap<String, Weak<T>>, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
    if let Some(value) = known.get(key).and_then(Weak::upgrade) {
        return value;
    }
    if known.len() >= 1024 {
        known.retain(|_, value| value.strong_count() > 0);
    }
    let value = Arc::new(make());
    known.insert(key.to_owned(), Arc::downgrade(&value));
    value
}
