//! Endpoints that are found by name.

use super::super::common::{maybe_duration, optional, socket};
use super::super::{Converted, Refused, Within as _, refuse};
use crate::config::{Dns, DnsFamily};
use crate::telemetry::counters::LookupStats;
use leno_xds::envoy::config::cluster::v3::cluster::{DnsLookupFamily, RefreshRate};
use leno_xds::envoy::config::core::v3::{
    Address, DnsResolutionConfig, DnsResolverOptions, TypedExtensionConfig, address,
};
use leno_xds::envoy::extensions::clusters::{
    common::dns::v3::DnsLookupFamily as ExtensionFamily,
    dns::v3::{DnsCluster, dns_cluster},
};
use leno_xds::envoy::extensions::network::dns_resolver::{
    cares::v3::CaresDnsResolverConfig, getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
};
use std::net::SocketAddr;
use std::time::Duration;

/// Least time between two look-ups: what is set lower is taken for this.
const LEAST_REFRESH: Duration = Duration::from_millis(1);

/// The fields of a cluster that say how names are looked up.
pub(super) struct Fields {
    pub(super) refresh_rate: Option<prost_types::Duration>,
    pub(super) jitter: Option<prost_types::Duration>,
    pub(super) failure_refresh_rate: Option<RefreshRate>,
    pub(super) respect_ttl: bool,
    pub(super) family: i32,
    pub(super) resolvers: Vec<Address>,
    pub(super) tcp: bool,
    pub(super) resolution: Option<DnsResolutionConfig>,
    pub(super) typed_resolver: Option<TypedExtensionConfig>,
    /// Least time between two look-ups when answers say how long they are good.
    pub(super) least: Option<prost_types::Duration>,
}

/// The fields of the extension for clusters that are found by name.
pub(super) fn of_extension(value: DnsCluster) -> Converted<Fields> {
    let DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint: _,
        dns_min_refresh_rate,
    } = value;
    let family = match ExtensionFamily::try_from(dns_lookup_family) {
        Ok(ExtensionFamily::Unspecified | ExtensionFamily::Auto) => DnsLookupFamily::Auto,
        Ok(ExtensionFamily::V4Only) => DnsLookupFamily::V4Only,
        Ok(ExtensionFamily::V6Only) => DnsLookupFamily::V6Only,
        Ok(ExtensionFamily::V4Preferred) => DnsLookupFamily::V4Preferred,
        Ok(ExtensionFamily::All) => DnsLookupFamily::All,
        Err(_) => return Err(Refused::new("dns_lookup_family", "is not known to this proxy")),
    };
    let failure = dns_failure_refresh_rate
        .map(|dns_cluster::RefreshRate { base_interval, max_interval }| RefreshRate { base_interval, max_interval });
    Ok(Fields {
        refresh_rate: dns_refresh_rate,
        jitter: dns_jitter,
        failure_refresh_rate: failure,
        respect_ttl: respect_dns_ttl,
        family: family.into(),
        resolvers: Vec::new(),
        tcp: false,
        resolution: None,
        typed_resolver: typed_dns_resolver_config,
        least: dns_min_refresh_rate,
    })
}

/// Which servers are asked, and how, as the extension of a resolver says. Which library asks makes no difference; so do the
/// settings of its own machinery not.
fn typed(value: TypedExtensionConfig) -> Converted<DnsResolutionConfig> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    if let Some(GetAddrInfoDnsResolverConfig { num_retries: _, num_resolver_threads: _ }) = optional(&any)? {
        return Ok(DnsResolutionConfig::default());
    }
    let Some(value) = optional::<CaresDnsResolverConfig>(&any)? else {
        return Err(Refused::new("", format!("`{name}` is not supported; use c-ares or getaddrinfo, or leave it out")));
    };
    let CaresDnsResolverConfig {
        resolvers,
        use_resolvers_as_fallback,
        filter_unroutable_families,
        dns_resolver_options,
        udp_max_queries: _,
        query_timeout_seconds,
        query_tries,
        rotate_nameservers: _,
        edns0_max_payload_size: _,
        max_udp_channel_duration: _,
        reinit_channel_on_timeout: _,
        qcache_max_ttl: _,
    } = value;
    refuse!(use_resolvers_as_fallback, filter_unroutable_families, query_timeout_seconds, query_tries);
    Ok(DnsResolutionConfig { resolvers, dns_resolver_options })
}

/// Who is asked for names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// These instead of the system's.
    pub servers: Vec<SocketAddr>,
    /// Only by TCP.
    pub only_tcp: bool,
}

/// Who is asked, as the older and the newer fields say it.
pub fn resolvers(
    resolvers: Vec<Address>,
    tcp: bool,
    resolution: Option<DnsResolutionConfig>,
    typed_resolver: Option<TypedExtensionConfig>,
) -> Converted<Resolvers> {
    // The newer of both goes first.
    let typed = typed_resolver.map(typed).transpose().within("typed_dns_resolver_config")?;
    let resolution = typed.or(resolution);
    let mut servers = Vec::new();
    let mut only_tcp = tcp;
    let mut listed = resolvers;
    if let Some(DnsResolutionConfig { resolvers, dns_resolver_options }) = resolution {
        listed = resolvers;
        if let Some(DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain: _ }) = dns_resolver_options
        {
            only_tcp |= use_tcp_for_dns_lookups;
        }
    }
    for (index, Address { address }) in listed.into_iter().enumerate() {
        let within = format!("dns_resolvers[{index}]");
        let Some(address::Address::SocketAddress(value)) = address else {
            return Err(Refused::new(within, "is no socket address"));
        };
        let found = socket(value).within(&within)?;
        servers.push(if found.port() == 0 { SocketAddr::new(found.ip(), 53) } else { found });
    }
    Ok(Resolvers { servers, only_tcp })
}

/// A time between look-ups, if it is set.
fn refresh_time(value: Option<prost_types::Duration>, field: &str) -> Converted<Option<Duration>> {
    match maybe_duration(value, field)? {
        Some(time) if time <= LEAST_REFRESH => Err(Refused::new(field, "must be more than a millisecond")),
        time => Ok(time),
    }
}

/// How names are looked up; the names themselves come with the load assignment. `usual` is who is asked where nothing is said.
pub(super) fn dns(fields: Fields, logical: bool, usual: &Resolvers) -> Converted<Dns> {
    let Fields {
        refresh_rate,
        jitter,
        failure_refresh_rate,
        respect_ttl,
        family,
        resolvers,
        tcp,
        resolution,
        typed_resolver,
        least,
    } = fields;
    let own = !resolvers.is_empty() || tcp || resolution.is_some() || typed_resolver.is_some();
    let Resolvers { servers, only_tcp } = match own {
        true => self::resolvers(resolvers, tcp, resolution, typed_resolver)?,
        false => usual.clone(),
    };
    let refresh = refresh_time(refresh_rate, "dns_refresh_rate")?.unwrap_or(Duration::from_secs(5));
    let failure_refresh = match failure_refresh_rate {
        None => None,
        Some(RefreshRate { base_interval, max_interval }) => {
            let field = "dns_failure_refresh_rate";
            let base = refresh_time(base_interval, "base_interval").within(field)?;
            let base = base.ok_or_else(|| Refused::new(format!("{field}.base_interval"), "is missing"))?;
            let most = refresh_time(max_interval, "max_interval").within(field)?.unwrap_or(base * 10);
            if most < base {
                return Err(Refused::new(format!("{field}.max_interval"), "must not be below base_interval"));
            }
            Some((base.max(LEAST_REFRESH), most.max(LEAST_REFRESH)))
        }
    };
    let family = match DnsLookupFamily::try_from(family) {
        Ok(DnsLookupFamily::Auto) => DnsFamily::Auto,
        Ok(DnsLookupFamily::V4Only) => DnsFamily::V4Only,
        Ok(DnsLookupFamily::V6Only) => DnsFamily::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(DnsLookupFamily::All) => DnsFamily::All,
        Err(_) => return Err(Refused::new("dns_lookup_family", "is not known to this proxy")),
    };
    Ok(Dns {
        stats: LookupStats::default(),
        logical,
        names: Vec::new(),
        refresh: refresh.max(LEAST_REFRESH),
        jitter: maybe_duration(jitter, "dns_jitter")?.unwrap_or_default(),
        failure_refresh,
        respect_ttl,
        family,
        servers,
        tcp: only_tcp,
        least: maybe_duration(least, "dns_min_refresh_rate")?.unwrap_or_default(),
    })
}

/// Refuses settings of look-ups where nothing is looked up by name.
pub(super) fn none(fields: Fields) -> Converted<()> {
    // Envoy ignores the times there, though not what they may be; a list of servers was meant for something.
    let Fields {
        refresh_rate,
        jitter: _,
        failure_refresh_rate: _,
        respect_ttl: _,
        family,
        resolvers: dns_resolvers,
        tcp: _,
        resolution: _,
        typed_resolver: _,
        least: _,
    } = fields;
    refresh_time(refresh_rate, "dns_refresh_rate")?;
    if DnsLookupFamily::try_from(family).is_err() {
        return Err(Refused::new("dns_lookup_family", "is not known to this proxy"));
    }
    refuse!(dns_resolvers);
    Ok(())
}
