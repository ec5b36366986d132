//! How a cluster chooses among its endpoints, as configured.

use super::ClusterId;
use prost_types::{Struct, Value, value::Kind};
use std::{sync::Arc, time::Duration};

/// How an endpoint is chosen among the ones that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LbPolicy {
    /// One after the other, by weight.
    RoundRobin,
    /// The one with the fewest active requests among some chosen at random; by weight where weights differ.
    LeastRequest {
        /// How many are looked at; at least 2.
        choices: u32,
    },
    /// The one with the fewest active requests of all.
    LeastOfAll,
    /// At random; weights do not count, as in Envoy.
    Random,
    /// By the request's hash, on a ring of hashes (ketama).
    RingHash(RingHash),
    /// By the request's hash, in a Maglev table (Eisenbud et al., NSDI 2016).
    Maglev {
        /// Places in the table; a prime of at most 5,000,011.
        table_size: u32,
    },
}

impl LbPolicy {
    /// Whether the request's hash decides.
    pub fn is_hashed(self) -> bool {
        matches!(self, Self::RingHash(_) | Self::Maglev { .. })
    }
}

/// The ring of [`LbPolicy::RingHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingHash {
    /// Places at least; default 1024.
    pub min_size: u64,
    /// Places at most; default and bound 8 Mi.
    pub max_size: u64,
    /// What places are hashed with.
    pub function: HashFunction,
}

/// What the places of a ring are hashed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashFunction {
    /// xxHash, 64 bits.
    XxHash,
    /// MurmurHash 2, 64 bits, with the seed of libstdc++.
    Murmur2,
}

/// What belongs to choosing beside the policy. The defaults are Envoy's.
#[derive(Debug, Clone, PartialEq)]
pub struct Balancing {
    /// How much active requests count in [`LbPolicy::LeastRequest`] where weights differ: a weight is divided by the number of
    /// active requests (plus one) to this power. Default 1.
    pub active_request_bias: f64,
    /// New endpoints get their share little by little.
    pub slow_start: Option<SlowStart>,
    /// Percent of a priority's endpoints that must be usable; with fewer, all of them get traffic, usable or not. Default 50, 0 is
    /// never.
    pub panic_threshold: u8,
    /// With too few usable endpoints, none is chosen.
    pub fail_on_panic: bool,
    /// Endpoints that were not health-checked yet do not count as unusable.
    pub ignore_unchecked: bool,
    /// Localities are chosen by their weight before an endpoint in it is.
    pub by_locality: bool,
    /// How requests stay in the zone of this proxy.
    pub zones: ZoneAware,
    /// With a hash, an endpoint gets at most this percentage of the average load; 0 is no limit, else at least 100.
    pub hash_balance_factor: u32,
    /// Endpoints are hashed by their host name instead of their address.
    pub hash_by_hostname: bool,
    /// Groups of endpoints by their labels.
    pub subsets: Option<Subsets>,
    /// Endpoints that could not be connected lately are chosen only when there is nobody else, and repeats of what could not be sent
    /// do not count for the retry budget. Envoy gives such endpoints their turn, and counts all repeats; a cluster's metadata asks for this (`leno`, `skip_unreachable`), as those of the mesh do.
    pub skip_unreachable: bool,
    /// When endpoints come or go, connections to the others are closed as soon as they are idle: clients that a hash leads to
    /// an endpoint are then not served by an earlier one.
    pub drain_on_change: bool,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            active_request_bias: 1.0,
            slow_start: None,
            panic_threshold: 50,
            fail_on_panic: false,
            ignore_unchecked: false,
            by_locality: false,
            zones: ZoneAware::default(),
            hash_balance_factor: 0,
            hash_by_hostname: false,
            subsets: None,
            skip_unreachable: false,
            drain_on_change: false,
        }
    }
}

/// How requests stay in the zone of this proxy; it counts where the proxy knows a cluster of its own ([`Home`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneAware {
    /// Percent of requests for which zones count; default 100.
    pub enabled: u64,
    /// Healthy endpoints that the cluster must have at least; default 6.
    pub min_size: u64,
    /// With so many healthy endpoints in the proxy's zone every request stays in it, whatever the part that they are.
    pub force: Option<u64>,
    /// A zone's part is that of the weights, not that of the endpoints.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { enabled: 100, min_size: 6, force: None, by_weight: false }
    }
}

impl ZoneAware {
    /// These, where nothing else is said for all clusters.
    pub fn changed_by(self, changes: ZoneChanges) -> Self {
        Self {
            enabled: changes.enabled.unwrap_or(self.enabled),
            min_size: changes.min_size.unwrap_or(self.min_size),
            force: changes.force.or(self.force),
            by_weight: self.by_weight,
        }
    }
}

/// What the runtime says of [`ZoneAware`] for all clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneChanges {
    /// See [`ZoneAware::enabled`].
    pub enabled: Option<u64>,
    /// See [`ZoneAware::min_size`].
    pub min_size: Option<u64>,
    /// See [`ZoneAware::force`].
    pub force: Option<u64>,
}

/// Where this proxy belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The cluster whose endpoints are this proxy and those like it.
    pub cluster: ClusterId,
    /// Where the proxy is, if it knows.
    pub locality: Option<Locality>,
    /// What the runtime says.
    pub changes: ZoneChanges,
}

/// How the share of a new endpoint grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// How long an endpoint is new.
    pub window: Duration,
    /// The power by which the share grows over the window: `time^(1/aggression)`; default 1, a straight line.
    pub aggression: f64,
    /// The least share, of 1; default 0.1.
    pub min_weight: f64,
}

/// How load is spread over priorities; comes with the endpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A priority takes all of its traffic as long as its usable share times this percentage is 100; default 140.
    pub overprovisioning: u32,
    /// What is usable is counted by weight, not by number.
    pub weighted_health: bool,
    /// The part of requests that is refused at once, from 0 to 1.
    pub drop: f64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { overprovisioning: 140, weighted_health: false, drop: 0.0 }
    }
}

/// A value of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LabelValue {
    /// Null.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number, by its bits.
    Number(u64),
    /// Text.
    Text(Arc<str>),
    /// A list.
    List(Vec<LabelValue>),
    /// An object.
    Object(Vec<(Arc<str>, LabelValue)>),
}

/// The namespace of metadata whose fields are labels.
pub const LABELS: &str = "envoy.lb";

/// Labels: of an endpoint (what it has), or of a request (what its endpoint must have). Sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Box<[(Arc<str>, LabelValue)]>);

impl Labels {
    /// These labels; the last of those with the same name counts.
    pub fn new(labels: impl IntoIterator<Item = (Arc<str>, LabelValue)>) -> Self {
        let sorted: std::collections::BTreeMap<_, _> = labels.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// Fields of metadata as labels.
    pub fn of(fields: &Struct) -> Self {
        Self::new(fields.fields.iter().map(|(name, value)| (name.as_str().into(), label(value))))
    }

    /// The labels, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &LabelValue)> + Clone {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// One label.
    pub fn get(&self, name: &str) -> Option<&LabelValue> {
        self.0.binary_search_by(|(have, _)| (**have).cmp(name)).ok().map(|at| &self.0[at].1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an endpoint with the labels `have` has all of these. Of a list that it has one entry is enough.
    pub fn are_all_of(&self, have: &Labels) -> bool {
        let has = |(name, wanted): &(Arc<str>, LabelValue)| match have.get(name) {
            Some(LabelValue::List(all)) if !matches!(wanted, LabelValue::List(_)) => all.contains(wanted),
            have => have == Some(wanted),
        };
        self.0.iter().all(has)
    }

    /// These with `more` on top.
    pub fn with(&self, more: &Labels) -> Labels {
        Self::new(self.0.iter().chain(more.0.iter()).cloned())
    }
}

fn label(value: &Value) -> LabelValue {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => LabelValue::Null,
        Some(Kind::BoolValue(value)) => LabelValue::Bool(*value),
        // Both zeros are the same number.
        Some(Kind::NumberValue(value)) => LabelValue::Number((value + 0.0).to_bits()),
        Some(Kind::StringValue(text)) => LabelValue::Text(text.as_str().into()),
        Some(Kind::ListValue(list)) => LabelValue::List(list.values.iter().map(label).collect()),
        Some(Kind::StructValue(fields)) => {
            LabelValue::Object(fields.fields.iter().map(|(name, value)| (name.as_str().into(), label(value))).collect())
        }
    }
}

/// Groups of endpoints by labels, from which a request with the same labels is served.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Subsets {
    /// Which labels make groups.
    pub selectors: Vec<Selector>,
    /// What happens to a request for which there is no group.
    pub fallback: Fallback,
    /// The labels of [`Fallback::Default`].
    pub default: Labels,
    /// A list is each of its elements.
    pub list_as_any: bool,
    /// A request may ask for one thing after the other: for those in its label `fallback_list`, each over its other labels.
    pub alternatives: bool,
    /// When the fallback group is empty, any endpoint serves.
    pub panic_any: bool,
    /// Localities keep their weights within groups.
    pub by_locality: bool,
    /// A locality's weight is less in a group, by the part of its endpoints that are in it.
    pub scale_localities: bool,
}

/// Names of labels whose values make groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    /// The names, sorted.
    pub keys: Vec<Arc<str>>,
    /// Each group has one endpoint, the first.
    pub single: bool,
    /// What happens to a request with these labels for which there is no group; `None` is that of [`Subsets`].
    pub fallback: Option<Fallback>,
}

/// Where a request goes for which there is no group.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Fallback {
    /// Nowhere.
    #[default]
    None,
    /// To any endpoint.
    Any,
    /// To the endpoints with the default labels.
    Default,
    /// As if it had only asked for these labels.
    Keys(Vec<Arc<str>>),
}

/// A place in which endpoints are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Locality {
    /// The region.
    pub region: Box<str>,
    /// The zone in the region.
    pub zone: Box<str>,
    /// The place in the zone.
    pub sub_zone: Box<str>,
    /// Its share of a priority's traffic, relative to the others; `None` gets none where localities are weighed.
    pub weight: Option<u32>,
}

impl Locality {
    /// Region, zone and place in the zone: what tells one from another, whatever its weight.
    pub fn names(&self) -> (&str, &str, &str) {
        (&self.region, &self.zone, &self.sub_zone)
    }

    /// The locality of these names, without a weight.
    pub fn of((region, zone, sub_zone): (&str, &str, &str)) -> Self {
        Self { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into(), weight: None }
    }
}
