//! Limits of rates that this process enforces by itself.

use super::{
    HeaderOp, HeaderText,
    matcher::{HeaderMatch, QueryMatch},
};
use crate::rbac::Source;
use crate::telemetry::counters::RateLimitStats;
use lru::LruCache;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A limit of rates.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// The status of an answer to what is refused; default 429.
    pub status: u16,
    /// What is taken from; forms of a limit that follow each other without a change of its own share it.
    pub buckets: Arc<Buckets>,
    /// Each connection has buckets of its own.
    pub per_connection: bool,
    /// Say when to come again in `retry-after`.
    pub retry_after: bool,
    /// The share of requests that are counted, in millionths.
    pub enabled: u32,
    /// The share of requests that are refused when they are too many, in millionths.
    pub enforced: u32,
    /// On requests that would have been refused but were not.
    pub request_headers: Vec<HeaderOp>,
    /// On answers to what is refused.
    pub response_headers: Vec<HeaderOp>,
    /// The number of the policies that count here.
    pub stage: u32,
    /// Own policies, which replace those of routes; empty is none.
    pub policies: Vec<RateLimitPolicy>,
    /// Which policies of the virtual host count beside those of the route.
    pub host_policies: HostPolicies,
    /// The default bucket is taken from although a descriptor fits.
    pub default_too: bool,
    /// Say how much is left in `x-ratelimit-limit`, `x-ratelimit-remaining`, `x-ratelimit-reset`.
    pub headers: bool,
    /// A gRPC client is told `RESOURCE_EXHAUSTED` and not `UNAVAILABLE`.
    pub resource_exhausted: bool,
    /// What it counts.
    pub stats: RateLimitStats,
}

/// Which policies of the virtual host count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostPolicies {
    /// When the route has none.
    #[default]
    Override,
    /// Always.
    Include,
    /// Never.
    Ignore,
}

/// The buckets of a limit.
#[derive(Debug, Default)]
pub struct Buckets {
    /// Their number, unlike that of any other limit of this process.
    pub id: u64,
    /// What is taken from when no descriptor fits, and beside a descriptor's own unless `default_too` says otherwise. `None`:
    /// nothing is limited that fits no descriptor.
    pub bucket: Option<TokenBucket>,
    /// Buckets for requests that count as one of these.
    pub descriptors: Vec<LimitedDescriptor>,
}

impl Buckets {
    /// The same, full.
    pub fn fresh(&self) -> Self {
        Self {
            id: self.id,
            bucket: self.bucket.as_ref().map(TokenBucket::fresh),
            descriptors: self.descriptors.iter().map(LimitedDescriptor::fresh).collect(),
        }
    }
}

/// A bucket for requests that count as this.
#[derive(Debug)]
pub struct LimitedDescriptor {
    /// Keys and values in order; a `None` value is any.
    pub entries: Vec<(Box<str>, Option<Box<str>>)>,
    /// What is taken from where every value is named; what the others begin with.
    pub bucket: Arc<TokenBucket>,
    /// Nobody is refused because of it.
    pub shadow: bool,
    /// One bucket for each combination of values, where a value is any.
    pub dynamic: Option<Dynamic>,
}

impl LimitedDescriptor {
    fn fresh(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            bucket: Arc::new(self.bucket.fresh()),
            shadow: self.shadow,
            dynamic: self.dynamic.as_ref().map(|dynamic| Dynamic::new(dynamic.most)),
        }
    }
}

/// Buckets by values that requests bring: so many at most, those that were not used for longest go first.
#[derive(Debug)]
pub struct Dynamic {
    most: usize,
    used: Mutex<LruCache<Box<[u8]>, Arc<TokenBucket>>>,
}

impl Dynamic {
    /// None yet.
    pub fn new(most: usize) -> Self {
        // Not told how many there may be, since it would make room for all of them now.
        Self { most: most.max(1), used: Mutex::new(LruCache::unbounded()) }
    }

    /// The bucket of these values, which begins as `like`, full.
    pub fn of(&self, values: Box<[u8]>, like: &TokenBucket) -> Arc<TokenBucket> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = used.get(&values) {
            return bucket.clone();
        }
        if used.len() >= self.most {
            used.pop_lru();
        }
        let bucket = Arc::new(like.fresh());
        used.put(values, bucket.clone());
        bucket
    }
}

/// What a request counts as.
#[derive(Debug)]
pub struct RateLimitPolicy {
    /// For limits with this number.
    pub stage: u32,
    /// Tokens that a request takes from the bucket of its descriptor; default 1.
    pub hits: u32,
    /// The entries of the descriptor; when one of them does not come about, there is none.
    pub actions: Vec<RateLimitAction>,
}

/// The value of an entry.
#[derive(Debug)]
pub struct DescriptorValue {
    /// What it is.
    pub text: HeaderText,
    /// What it is where that is empty; without one there is no descriptor then.
    pub default: Box<str>,
}

/// One entry of a descriptor.
#[derive(Debug)]
pub enum RateLimitAction {
    /// The target cluster's name.
    DestinationCluster,
    /// A header's value.
    Header {
        /// Its lower-case name.
        name: Box<str>,
        /// The entry's key.
        key: Box<str>,
        /// Without it the descriptor has no such entry, and is none otherwise.
        skip_if_absent: bool,
    },
    /// The value of a parameter of the query.
    Query {
        /// Its name.
        name: Box<str>,
        /// The entry's key.
        key: Box<str>,
        /// Without it the descriptor has no such entry, and is none otherwise.
        skip_if_absent: bool,
    },
    /// A text in metadata.
    Metadata {
        /// Whose.
        of: Source,
        /// The namespace.
        filter: Box<str>,
        /// The way to it.
        path: Vec<Box<str>>,
        /// The entry's key.
        key: Box<str>,
        /// What counts where there is none; empty is nothing.
        default: Box<str>,
        /// Without one the descriptor has no such entry, and is none otherwise.
        skip_if_absent: bool,
    },
    /// The client's IP address.
    RemoteAddress,
    /// The client's network.
    MaskedRemoteAddress {
        /// Bits of an IPv4 address that are kept.
        v4: u8,
        /// Bits of an IPv6 address that are kept.
        v6: u8,
    },
    /// Always this.
    GenericKey {
        /// The entry's key.
        key: Box<str>,
        /// Its value.
        value: DescriptorValue,
    },
    /// This, if conditions on headers hold.
    HeaderMatch {
        /// The entry's key.
        key: Box<str>,
        /// Its value.
        value: DescriptorValue,
        /// Whether they must hold or must not.
        expect: bool,
        /// The conditions, all of them.
        headers: Vec<HeaderMatch>,
    },
    /// This, if conditions on the query hold.
    QueryMatch {
        /// The entry's key.
        key: Box<str>,
        /// Its value.
        value: DescriptorValue,
        /// Whether they must hold or must not.
        expect: bool,
        /// The conditions, all of them.
        query: Vec<QueryMatch>,
    },
    /// This, if the client is in one of some networks.
    AddressMatch {
        /// The entry's key.
        key: Box<str>,
        /// Its value.
        value: DescriptorValue,
        /// Whether it must be in one or must not.
        expect: bool,
        /// The networks.
        networks: Vec<ipnet::IpNet>,
    },
}

/// Tokens that requests take and time gives back. Shared by all workers: what is limited is the process.
#[derive(Debug)]
pub struct TokenBucket {
    /// The most that there are.
    pub max: u32,
    /// How many come at a time.
    pub fill: u32,
    /// How often.
    pub interval: Duration,
    state: Mutex<(Instant, f64)>,
    left: AtomicU64,
}

impl TokenBucket {
    /// A full bucket. An interval below 1 ms counts as that. Tokens come evenly over the interval, as in Envoy.
    pub fn new(max: u32, fill: u32, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        let state = Mutex::new((Instant::now(), f64::from(max)));
        Self { max, fill, interval, state, left: AtomicU64::new(u64::from(max)) }
    }

    /// The same, full.
    pub fn fresh(&self) -> Self {
        Self::new(self.max, self.fill, self.interval)
    }

    /// Takes so many tokens, if they are there.
    pub fn take(&self, count: u32, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, tokens) = &mut *state;
        let gained = now.saturating_duration_since(*since).as_secs_f64() * self.rate();
        *tokens = (*tokens + gained).min(f64::from(self.max));
        *since = now.max(*since);
        let taken = *tokens >= f64::from(count);
        if taken {
            *tokens -= f64::from(count);
        }
        self.left.store(*tokens as u64, Ordering::Relaxed);
        taken
    }

    /// Tokens that were left when one was last asked for.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Time until there is a token, seen from when one was last asked for.
    pub fn wait(&self) -> Duration {
        let tokens = self.state.lock().unwrap_or_else(PoisonError::into_inner).1;
        Duration::try_from_secs_f64((1.0 - tokens).max(0.0) / self.rate()).unwrap_or(Duration::MAX)
    }

    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.fill.max(1)) / self.interval.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_when_there_are_too_many_values_then_the_one_unused_for_longest_begins_anew() {
        let (dynamic, like, now) = (Dynamic::new(2), TokenBucket::new(1, 1, Duration::from_secs(60)), Instant::now());
        let takes = |value: &[u8]| dynamic.of(value.into(), &like).take(1, now);
        assert!(takes(b"a") && !takes(b"a") && takes(b"b"));
        assert!(!takes(b"a") && takes(b"c"), "a was used after b");
        assert!(!takes(b"a") && takes(b"b"));
    }

    #[test]
    fn bucket_when_empty_then_only_time_fills_it() {
        let bucket = TokenBucket::new(2, 1, Duration::from_secs(1));
        let now = Instant::now();
        assert!(bucket.take(1, now) && bucket.take(1, now) && !bucket.take(1, now));
        assert!(
            bucket.take(1, now + Duration::from_millis(1100)) && !bucket.take(1, now + Duration::from_millis(1200))
        );
        let later = now + Duration::from_secs(60);
        assert!(bucket.take(1, later) && bucket.take(1, later) && !bucket.take(1, later), "never more than the most");
        let full = later + Duration::from_secs(60);
        assert!(!bucket.take(3, full) && bucket.take(2, full), "all or none");
    }
}
