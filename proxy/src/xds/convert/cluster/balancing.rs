//! How endpoints are chosen: `lb_policy` with its settings, or a policy as an extension.

use super::super::common::{duration, optional, percent, unknown_type};
use super::super::{Converted, Refused, Within as _, refuse, refuse_set};
use crate::config::{
    Balancing, ClusterKind, Fallback, HashFunction, Labels, LbPolicy, RingHash, Selector, SlowStart, Subsets, ZoneAware,
};
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::cluster::{
    self, CommonLbConfig, LbConfig, LbSubsetConfig, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig,
    common_lb_config::{ConsistentHashingLbConfig, LocalityConfigSpecifier, ZoneAwareLbConfig},
    lb_subset_config::{
        LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
        lb_subset_selector::LbSubsetSelectorFallbackPolicy,
    },
    ring_hash_lb_config,
};
use leno_xds::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use leno_xds::envoy::extensions::load_balancing_policies as extensions;
use leno_xds::envoy::extensions::load_balancing_policies::common::v3 as common;
use leno_xds::envoy::r#type::v3::Percent;
use std::sync::Arc;

/// Most places of a ring, by Envoy's own bound.
const MAX_RING: u64 = 8 << 20;
/// Most places of a Maglev table, by Envoy's own bound.
const MAX_TABLE: u64 = 5_000_011;
/// Policies inside policies.
const MAX_DEPTH: usize = 4;

/// The fields of a cluster that say how endpoints are chosen.
pub(super) struct Fields {
    pub(super) lb_policy: i32,
    pub(super) lb_config: Option<LbConfig>,
    pub(super) common: Option<CommonLbConfig>,
    pub(super) subsets: Option<LbSubsetConfig>,
    pub(super) extension: Option<xds::LoadBalancingPolicy>,
}

/// The policy and what belongs to it.
pub(super) fn convert(fields: Fields, kind: ClusterKind) -> Converted<(LbPolicy, Balancing)> {
    let Fields { lb_policy, lb_config, common, subsets, extension } = fields;
    let mut balancing = Balancing::default();
    common_settings(&mut balancing, common).within("common_lb_config")?;
    balancing.subsets = subsets.map(subset_settings).transpose().within("lb_subset_config")?;
    if !balancing.by_locality && balancing.subsets.as_ref().is_some_and(|subsets| subsets.by_locality) {
        let reason = "is only for clusters with common_lb_config.locality_weighted_lb_config";
        return Err(Refused::new("lb_subset_config.locality_weight_aware", reason));
    }
    let policy = match extension {
        Some(policy) => by_extension(&mut balancing, policy, kind, 0).within("load_balancing_policy")?,
        None => by_name(&mut balancing, lb_policy, lb_config, kind)?,
    };
    Ok((policy, balancing))
}

fn by_name(
    balancing: &mut Balancing,
    lb_policy: i32,
    config: Option<LbConfig>,
    kind: ClusterKind,
) -> Converted<LbPolicy> {
    use xds::cluster::LbPolicy as Name;
    let name = Name::try_from(lb_policy).map_err(|_| Refused::new("lb_policy", "is not known to this proxy"))?;
    if kind.chooses_itself() {
        return match name {
            Name::ClusterProvided => Ok(LbPolicy::RoundRobin),
            _ => Err(Refused::new(
                "lb_policy",
                "of an aggregate cluster, or one of original destinations, is CLUSTER_PROVIDED",
            )),
        };
    }
    match (name, config) {
        (Name::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let RoundRobinLbConfig { slow_start_config } = config;
            balancing.slow_start =
                slow_start_config.map(slow_start).transpose().within("round_robin_lb_config")?.flatten();
            Ok(LbPolicy::RoundRobin)
        }
        (Name::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = config;
            let within = "least_request_lb_config";
            balancing.active_request_bias = bias(active_request_bias).within(within)?;
            balancing.slow_start = slow_start_config.map(slow_start).transpose().within(within)?.flatten();
            Ok(LbPolicy::LeastRequest { choices: choices(choice_count).within(within)? })
        }
        (Name::Random, _) => Ok(LbPolicy::Random),
        (Name::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            use ring_hash_lb_config::HashFunction as Function;
            let RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = config;
            let function = match Function::try_from(hash_function) {
                Ok(Function::XxHash) => HashFunction::XxHash,
                Ok(Function::MurmurHash2) => HashFunction::Murmur2,
                Err(_) => return Err(Refused::new("ring_hash_lb_config.hash_function", "is not known to this proxy")),
            };
            ring(minimum_ring_size, maximum_ring_size, function).within("ring_hash_lb_config")
        }
        (Name::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size }))) => {
            maglev(table_size).within("maglev_lb_config")
        }
        // Settings of another policy have no effect.
        (Name::RoundRobin, _) => Ok(LbPolicy::RoundRobin),
        (Name::LeastRequest, _) => Ok(LbPolicy::LeastRequest { choices: 2 }),
        (Name::RingHash, _) => ring(None, None, HashFunction::XxHash),
        (Name::Maglev, _) => maglev(None),
        (Name::ClusterProvided, _) => Err(Refused::new(
            "lb_policy",
            "CLUSTER_PROVIDED is only for aggregate clusters and those of original destinations",
        )),
        (Name::LoadBalancingPolicyConfig, _) => Err(Refused::new("load_balancing_policy", "is missing")),
    }
}

fn choices(count: Option<u32>) -> Converted<u32> {
    match count.unwrap_or(2) {
        count @ 2.. => Ok(count),
        _ => Err(Refused::new("choice_count", "must be at least 2")),
    }
}

/// Runtime keys have nothing that could change them here: the default counts.
fn bias(value: Option<RuntimeDouble>) -> Converted<f64> {
    let Some(RuntimeDouble { default_value, runtime_key: _ }) = value else { return Ok(1.0) };
    if default_value >= 0.0 { Ok(default_value) } else { Err(Refused::new("active_request_bias", "is not below 0")) }
}

fn ring(min: Option<u64>, max: Option<u64>, function: HashFunction) -> Converted<LbPolicy> {
    let (min_size, max_size) = (min.unwrap_or(1024), max.unwrap_or(MAX_RING));
    if min_size == 0 || max_size > MAX_RING || min_size > max_size {
        let reason = format!("must be from 1 to maximum_ring_size, which is at most {MAX_RING}");
        return Err(Refused::new("minimum_ring_size", reason));
    }
    Ok(LbPolicy::RingHash(RingHash { min_size, max_size, function }))
}

fn maglev(size: Option<u64>) -> Converted<LbPolicy> {
    let size = size.unwrap_or(65_537);
    let divides = |divisor: &u64| size.is_multiple_of(*divisor);
    if !(2..=MAX_TABLE).contains(&size)
        || (2..size).take_while(|divisor| divisor * divisor <= size).any(|n| divides(&n))
    {
        return Err(Refused::new("table_size", format!("{size} is not a prime of at most {MAX_TABLE}")));
    }
    Ok(LbPolicy::Maglev { table_size: size as u32 })
}

fn slow_start(value: cluster::SlowStartConfig) -> Converted<Option<SlowStart>> {
    let cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = value;
    new_slow_start(slow_start_window, aggression, min_weight_percent).within("slow_start_config")
}

fn slow_start_of_extension(value: common::SlowStartConfig) -> Converted<Option<SlowStart>> {
    let common::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = value;
    new_slow_start(slow_start_window, aggression, min_weight_percent).within("slow_start_config")
}

/// Without a window nobody starts slowly.
fn new_slow_start(
    window: Option<prost_types::Duration>,
    aggression: Option<RuntimeDouble>,
    min_weight: Option<Percent>,
) -> Converted<Option<SlowStart>> {
    let Some(window) = window else { return Ok(None) };
    Ok(Some(SlowStart {
        window: duration(window, "slow_start_window")?,
        // What makes no sense is 1 for Envoy too.
        aggression: aggression.map(|value| value.default_value).filter(|value| *value > 0.0).unwrap_or(1.0),
        min_weight: percent(min_weight, "min_weight_percent")?.map_or(0.1, |percent| percent / 100.0),
    }))
}

/// A percentage as Envoy rounds it.
fn rounded(percent: f64) -> u8 {
    percent.clamp(0.0, 100.0).round() as u8
}

fn common_settings(balancing: &mut Balancing, value: Option<CommonLbConfig>) -> Converted<()> {
    let Some(CommonLbConfig {
        healthy_panic_threshold,
        // Changes take force at once; they are never merged for longer.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        // Which endpoints a stateful session may name; that filter is refused.
        override_host_status: _,
        locality_config_specifier,
    }) = value
    else {
        return Ok(());
    };
    balancing.ignore_unchecked = ignore_new_hosts_until_first_hc;
    balancing.drain_on_change = close_connections_on_host_set_change;
    if let Some(percent) = percent(healthy_panic_threshold, "common_lb_config.healthy_panic_threshold")? {
        balancing.panic_threshold = rounded(percent);
    }
    if let Some(ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor }) =
        consistent_hashing_lb_config
    {
        balancing.hash_by_hostname = use_hostname_for_hashing;
        balancing.hash_balance_factor = balance_factor(hash_balance_factor)?;
    }
    match locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => balancing.by_locality = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let ZoneAwareLbConfig { routing_enabled, min_cluster_size, fail_traffic_on_panic } = config;
            balancing.zones = zones(routing_enabled, min_cluster_size).within("zone_aware_lb_config")?;
            balancing.fail_on_panic = fail_traffic_on_panic;
        }
    }
    Ok(())
}

fn zones(enabled: Option<Percent>, min_size: Option<u64>) -> Converted<ZoneAware> {
    let usual = ZoneAware::default();
    let enabled = percent(enabled, "routing_enabled")?.map_or(usual.enabled, |percent| rounded(percent).into());
    Ok(ZoneAware { enabled, min_size: min_size.unwrap_or(usual.min_size), ..usual })
}

fn balance_factor(value: Option<u32>) -> Converted<u32> {
    match value.unwrap_or(0) {
        value @ (0 | 100..) => Ok(value),
        _ => Err(Refused::new("consistent_hashing_lb_config.hash_balance_factor", "must be at least 100")),
    }
}

fn subset_settings(value: LbSubsetConfig) -> Converted<Subsets> {
    let LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = value;
    use LbSubsetMetadataFallbackPolicy as Alternatives;
    let alternatives = match Alternatives::try_from(metadata_fallback_policy) {
        Ok(policy) => policy == Alternatives::FallbackList,
        Err(_) => return Err(Refused::new("metadata_fallback_policy", "is not known to this proxy")),
    };
    let fallback = match LbSubsetFallbackPolicy::try_from(fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => Fallback::None,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::Any,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::Default,
        Err(_) => return Err(Refused::new("fallback_policy", "is not known to this proxy")),
    };
    let mut selectors = Vec::with_capacity(subset_selectors.len());
    for (index, value) in subset_selectors.into_iter().enumerate() {
        selectors.push(selector(value).within(format_args!("subset_selectors[{index}]"))?);
    }
    Ok(Subsets {
        selectors,
        fallback,
        default: default_subset.as_ref().map(Labels::of).unwrap_or_default(),
        list_as_any,
        alternatives,
        panic_any: panic_mode_any,
        by_locality: locality_weight_aware,
        scale_localities: scale_locality_weight,
    })
}

fn selector(value: LbSubsetSelector) -> Converted<Selector> {
    use LbSubsetSelectorFallbackPolicy as Policy;
    let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = value;
    let sorted = |keys: Vec<String>| {
        let mut keys: Vec<Arc<str>> = keys.into_iter().map(Into::into).collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let keys = sorted(keys);
    let fallback = match Policy::try_from(fallback_policy) {
        Ok(Policy::NotDefined) => None,
        Ok(Policy::NoFallback) => Some(Fallback::None),
        Ok(Policy::AnyEndpoint) => Some(Fallback::Any),
        Ok(Policy::DefaultSubset) => Some(Fallback::Default),
        Ok(Policy::KeysSubset) => {
            let fewer = sorted(fallback_keys_subset);
            if fewer.is_empty() || fewer.len() >= keys.len() || !fewer.iter().all(|key| keys.contains(key)) {
                return Err(Refused::new("fallback_keys_subset", "is some of `keys`, and not all"));
            }
            Some(Fallback::Keys(fewer))
        }
        Err(_) => return Err(Refused::new("fallback_policy", "is not known to this proxy")),
    };
    Ok(Selector { keys, single: single_host_per_subset, fallback })
}

/// The first policy that this proxy knows, as Envoy takes it.
fn by_extension(
    balancing: &mut Balancing,
    value: xds::LoadBalancingPolicy,
    kind: ClusterKind,
    depth: usize,
) -> Converted<LbPolicy> {
    let xds::LoadBalancingPolicy { policies } = value;
    let mut unknown = None;
    for (index, xds::load_balancing_policy::Policy { typed_extension_config }) in policies.into_iter().enumerate() {
        let within = format!("policies[{index}].typed_extension_config");
        let Some(TypedExtensionConfig { name: _, typed_config: Some(any) }) = typed_extension_config else {
            return Err(Refused::new(within, "is missing"));
        };
        match one_extension(balancing, &any, kind, depth).within(format_args!("{within}.typed_config"))? {
            Some(policy) => return Ok(policy),
            None => unknown = Some(unknown_type(&any).within(format_args!("{within}.typed_config"))),
        }
    }
    Err(unknown.unwrap_or_else(|| Refused::new("policies", "is empty")))
}

fn one_extension(
    balancing: &mut Balancing,
    any: &prost_types::Any,
    kind: ClusterKind,
    depth: usize,
) -> Converted<Option<LbPolicy>> {
    if let Some(config) = optional::<extensions::cluster_provided::v3::ClusterProvided>(any)? {
        let extensions::cluster_provided::v3::ClusterProvided {} = config;
        return match kind {
            kind if kind.chooses_itself() => Ok(Some(LbPolicy::RoundRobin)),
            _ => Err(Refused::new("", "is only for aggregate clusters and those of original destinations")),
        };
    }
    if kind.chooses_itself() {
        return Err(Refused::new("", "of an aggregate cluster, or one of original destinations, is ClusterProvided"));
    }
    if let Some(config) = optional::<extensions::round_robin::v3::RoundRobin>(any)? {
        let extensions::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = config;
        balancing.slow_start = slow_start_config.map(slow_start_of_extension).transpose()?.flatten();
        locality(balancing, locality_lb_config)?;
        return Ok(Some(LbPolicy::RoundRobin));
    }
    if let Some(config) = optional::<extensions::least_request::v3::LeastRequest>(any)? {
        use extensions::least_request::v3::{LeastRequest, least_request::SelectionMethod};
        let LeastRequest {
            choice_count,
            active_request_bias,
            slow_start_config,
            locality_lb_config,
            enable_full_scan,
            selection_method,
        } = config;
        balancing.active_request_bias = bias(active_request_bias)?;
        balancing.slow_start = slow_start_config.map(slow_start_of_extension).transpose()?.flatten();
        locality(balancing, locality_lb_config)?;
        let all = enable_full_scan.unwrap_or(false) || selection_method == SelectionMethod::FullScan as i32;
        return Ok(Some(match all {
            true => LbPolicy::LeastOfAll,
            false => LbPolicy::LeastRequest { choices: choices(choice_count)? },
        }));
    }
    if let Some(config) = optional::<extensions::random::v3::Random>(any)? {
        let extensions::random::v3::Random { locality_lb_config } = config;
        locality(balancing, locality_lb_config)?;
        return Ok(Some(LbPolicy::Random));
    }
    if let Some(config) = optional::<extensions::ring_hash::v3::RingHash>(any)? {
        use extensions::ring_hash::v3::{RingHash, ring_hash::HashFunction as Function};
        let RingHash {
            hash_function,
            minimum_ring_size,
            maximum_ring_size,
            use_hostname_for_hashing,
            hash_balance_factor,
            consistent_hashing_lb_config,
            locality_weighted_lb_config,
        } = config;
        balancing.by_locality = locality_weighted_lb_config.is_some();
        balancing.hash_by_hostname = use_hostname_for_hashing;
        balancing.hash_balance_factor = balance_factor(hash_balance_factor)?;
        consistent(balancing, consistent_hashing_lb_config)?;
        let function = match Function::try_from(hash_function) {
            Ok(Function::DefaultHash | Function::XxHash) => HashFunction::XxHash,
            Ok(Function::MurmurHash2) => HashFunction::Murmur2,
            Err(_) => return Err(Refused::new("hash_function", "is not known to this proxy")),
        };
        return ring(minimum_ring_size, maximum_ring_size, function).map(Some);
    }
    if let Some(config) = optional::<extensions::maglev::v3::Maglev>(any)? {
        use extensions::maglev::v3::Maglev;
        let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = config;
        balancing.by_locality = locality_weighted_lb_config.is_some();
        consistent(balancing, consistent_hashing_lb_config)?;
        return maglev(table_size).map(Some);
    }
    if let Some(config) = optional::<extensions::wrr_locality::v3::WrrLocality>(any)? {
        let extensions::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = config;
        let inner = endpoint_picking_policy.ok_or_else(|| Refused::new("endpoint_picking_policy", "is missing"))?;
        if depth >= MAX_DEPTH {
            return Err(Refused::new("endpoint_picking_policy", "is too deep"));
        }
        let policy = by_extension(balancing, inner, kind, depth + 1).within("endpoint_picking_policy")?;
        balancing.by_locality = true;
        return Ok(Some(policy));
    }
    if let Some(config) = optional::<extensions::subset::v3::Subset>(any)? {
        return by_subset(balancing, config, kind, depth).map(Some);
    }
    Ok(None)
}

/// The newer form of [`LbSubsetConfig`], with the policy that chooses in a subset.
fn by_subset(
    balancing: &mut Balancing,
    value: extensions::subset::v3::Subset,
    kind: ClusterKind,
    depth: usize,
) -> Converted<LbPolicy> {
    use extensions::subset::v3::{Subset, subset::LbSubsetSelector as NewSelector};
    let Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy,
    } = value;
    refuse!(allow_redundant_keys);
    let inner = subset_lb_policy.ok_or_else(|| Refused::new("subset_lb_policy", "is missing"))?;
    if depth >= MAX_DEPTH {
        return Err(Refused::new("subset_lb_policy", "is too deep"));
    }
    // The same numbers mean the same in both forms.
    let older = |value: NewSelector| {
        let NewSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = value;
        LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    };
    balancing.subsets = Some(subset_settings(LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors: subset_selectors.into_iter().map(older).collect(),
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    })?);
    by_extension(balancing, inner, kind, depth + 1).within("subset_lb_policy")
}

fn locality(balancing: &mut Balancing, value: Option<common::LocalityLbConfig>) -> Converted<()> {
    use common::locality_lb_config::zone_aware_lb_config::{ForceLocalZone, LocalityBasis};
    use common::locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    match value.and_then(|value| value.locality_config_specifier) {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => balancing.by_locality = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let ZoneAwareLbConfig {
                routing_enabled,
                min_cluster_size,
                fail_traffic_on_panic,
                force_locality_direct_routing,
                force_local_zone,
                locality_basis,
            } = config;
            let within = "locality_lb_config.zone_aware_lb_config";
            let usual = zones(routing_enabled, min_cluster_size).within(within)?;
            let least = force_local_zone.map(|ForceLocalZone { min_size }| u64::from(min_size.unwrap_or(1)));
            let by_weight = match LocalityBasis::try_from(locality_basis) {
                Ok(basis) => basis == LocalityBasis::HealthyHostsWeight,
                Err(_) => return Err(Refused::new("locality_basis", "is not known to this proxy").within(within)),
            };
            balancing.zones =
                ZoneAware { force: least.or(force_locality_direct_routing.then_some(1)), by_weight, ..usual };
            balancing.fail_on_panic = fail_traffic_on_panic;
        }
    }
    Ok(())
}

fn consistent(balancing: &mut Balancing, value: Option<common::ConsistentHashingLbConfig>) -> Converted<()> {
    let Some(common::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy }) = value
    else {
        return Ok(());
    };
    refuse_set(&hash_policy, "consistent_hashing_lb_config.hash_policy")?;
    balancing.hash_by_hostname = use_hostname_for_hashing;
    balancing.hash_balance_factor = balance_factor(hash_balance_factor)?;
    Ok(())
}
