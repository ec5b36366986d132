//! Endpoints that are found by name.

use super::super::common::{maybe_duration, socket};
use super::super::{Converted, Refused, Within as _, refuse};
use crate::config::{Dns, DnsFamily};
use leno_xds::envoy::config::cluster::v3::cluster::{DnsLookupFamily, RefreshRate};
use leno_xds::envoy::config::core::v3::{
    Address, DnsResolutionConfig, DnsResolverOptions, TypedExtensionConfig, address,
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
}

/// How names are looked up; the names themselves come with the load assignment.
pub(super) fn dns(fields: Fields, logical: bool) -> Converted<Dns> {
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
    } = fields;
    if let Some(TypedExtensionConfig { name, typed_config: _ }) = typed_resolver {
        // Which library asks makes no difference; whom it asks would.
        return Err(Refused::new("typed_dns_resolver_config", format!("`{name}` is not supported; leave it out")));
    }
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
    if only_tcp && servers.is_empty() {
        return Err(Refused::new("use_tcp_for_dns_lookups", "is only supported together with resolvers"));
    }
    let refresh = maybe_duration(refresh_rate, "dns_refresh_rate")?.unwrap_or(Duration::from_secs(5));
    let failure_refresh = match failure_refresh_rate {
        None => None,
        Some(RefreshRate { base_interval, max_interval }) => {
            let field = "dns_failure_refresh_rate";
            let base = maybe_duration(base_interval, "base_interval").within(field)?;
            let base = base.ok_or_else(|| Refused::new(format!("{field}.base_interval"), "is missing"))?;
            let most = maybe_duration(max_interval, "max_interval").within(field)?.unwrap_or(base * 10);
            if most < base {
                return Err(Refused::new(format!("{field}.max_interval"), "is not below base_interval"));
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
        logical,
        names: Vec::new(),
        refresh: refresh.max(LEAST_REFRESH),
        jitter: maybe_duration(jitter, "dns_jitter")?.unwrap_or_default(),
        failure_refresh,
        respect_ttl,
        family,
        servers,
        tcp: only_tcp,
    })
}

/// Refuses settings of look-ups where nothing is looked up by name.
pub(super) fn none(fields: Fields) -> Converted<()> {
    // Envoy ignores the times there; a list of servers was meant for something.
    let Fields {
        refresh_rate: _,
        jitter: _,
        failure_refresh_rate: _,
        respect_ttl: _,
        family: _,
        resolvers: dns_resolvers,
        tcp: _,
        resolution: _,
        typed_resolver: _,
    } = fields;
    refuse!(dns_resolvers);
    Ok(())
}
