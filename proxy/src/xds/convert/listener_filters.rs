//! Listener filters: what is looked at before a filter chain is chosen.

use super::common::{optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, refuse};
use crate::config::{Inspect, PassTlvs, PortSet, ProxyProtocol};
use crate::telemetry::counters::{HttpInspectorStats, Scope, TlsInspectorStats};
use leno_xds::envoy::config::core::v3::{
    ProxyProtocolPassThroughTlVs, proxy_protocol_config::Version, proxy_protocol_pass_through_tl_vs::PassTlVsMatchType,
};
use leno_xds::envoy::config::listener::v3::{
    ListenerFilter, ListenerFilterChainMatchPredicate, listener_filter,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use leno_xds::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector,
    original_dst::v3::OriginalDst,
    proxy_protocol::v3::{self as proxy, proxy_protocol::TlvLocation},
    tls_inspector::v3::TlsInspector,
};
use leno_xds::envoy::r#type::v3::Int32Range;

/// What the filters of a listener come to.
#[derive(Debug, Default)]
pub struct ListenerFilters {
    /// The inspectors.
    pub inspect: Inspect,
    /// Connections belong to where they wanted to go.
    pub original_dst: bool,
    /// They begin with the PROXY protocol.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// The filters of a listener. The PROXY protocol is always read first.
pub fn listener_filters(context: &Context, values: Vec<ListenerFilter>) -> Converted<ListenerFilters> {
    let mut filters = ListenerFilters::default();
    for (index, value) in values.into_iter().enumerate() {
        let within = format!("listener_filters[{index}]");
        let ListenerFilter { name, filter_disabled, config_type } = value;
        let off =
            filter_disabled.map(|value| disabled(value, 0)).transpose().within("filter_disabled").within(&within)?;
        let off = off.unwrap_or_default();
        if off == PortSet::all() {
            continue;
        }
        let any = match config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => any,
            Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(Refused::new("config_discovery", "is not supported by this proxy").within(within));
            }
            None => return Err(Refused::new("typed_config", format!("of `{name}` is missing")).within(within)),
        };
        if let Some(inspector) = optional::<TlsInspector>(&any).within(&within)? {
            let TlsInspector {
                enable_ja3_fingerprinting,
                enable_ja4_fingerprinting,
                initial_read_buffer_size: _,
                close_connection_on_client_hello_parsing_errors,
                max_client_hello_size,
            } = inspector;
            let enable_ja3_fingerprinting = enable_ja3_fingerprinting.unwrap_or(false);
            let enable_ja4_fingerprinting = enable_ja4_fingerprinting.unwrap_or(false);
            refuse!(
                enable_ja3_fingerprinting,
                enable_ja4_fingerprinting,
                close_connection_on_client_hello_parsing_errors
            );
            filters.inspect.tls = true;
            filters.inspect.most_hello = max_client_hello_size;
            filters.inspect.tls_stats = TlsInspectorStats::new(&context.counters, &[Scope::part("tls_inspector.")]);
            filters.inspect.tls_off = off;
        } else if let Some(HttpInspector {}) = optional(&any).within(&within)? {
            filters.inspect.http = true;
            filters.inspect.http_stats = HttpInspectorStats::new(&context.counters, &[Scope::part("http_inspector.")]);
            filters.inspect.http_off = off;
        } else if let Some(OriginalDst {}) = optional(&any).within(&within)? {
            filters.original_dst = true;
        } else if let Some(value) = optional::<proxy::ProxyProtocol>(&any).within(&within)? {
            if off != PortSet::default() {
                let reason = "is not supported by this proxy for the PROXY protocol";
                return Err(Refused::new("filter_disabled", reason).within(within));
            }
            let proxy = proxy_protocol(value).within(&within)?;
            // An inspector that stands before it sees its header, which is neither TLS nor HTTP.
            let Inspect { tls, http, .. } = std::mem::take(&mut filters.inspect);
            if (tls || http) && proxy.optional {
                let reason = "behind an inspector is not supported by this proxy where connections may begin without it; \
                              put it first";
                return Err(Refused::new("allow_requests_without_proxy_protocol", reason).within(within));
            }
            filters.proxy_protocol = Some(proxy);
        } else {
            return Err(unknown_type(&any).within(within));
        }
    }
    Ok(filters)
}

fn proxy_protocol(value: proxy::ProxyProtocol) -> Converted<ProxyProtocol> {
    let proxy::ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix: _,
        tlv_location,
    } = value;
    refuse!(rules);
    if tlv_location != i32::from(TlvLocation::DynamicMetadata) {
        return Err(Refused::new("tlv_location", "is not supported by this proxy"));
    }
    let banned = |version: Version| disallowed_versions.contains(&i32::from(version));
    Ok(ProxyProtocol {
        optional: allow_requests_without_proxy_protocol,
        no_v1: banned(Version::V1),
        no_v2: banned(Version::V2),
        pass: pass_through_tlvs.map(pass_tlvs).transpose().within("pass_through_tlvs")?.unwrap_or_default(),
    })
}

/// Which extensions of the PROXY protocol are passed on.
pub fn pass_tlvs(value: ProxyProtocolPassThroughTlVs) -> Converted<PassTlvs> {
    let ProxyProtocolPassThroughTlVs { match_type, tlv_type } = value;
    match PassTlVsMatchType::try_from(match_type) {
        Ok(PassTlVsMatchType::IncludeAll) => Ok(PassTlvs::All),
        Ok(PassTlVsMatchType::Include) => tlv_type
            .into_iter()
            .enumerate()
            .map(|(index, kind)| {
                u8::try_from(kind).map_err(|_| Refused::new(format!("tlv_type[{index}]"), "is larger than 255"))
            })
            .collect::<Converted<_>>()
            .map(PassTlvs::Some),
        Err(_) => Err(Refused::new("match_type", "is not known to this proxy")),
    }
}

/// The ports on which a filter is off.
fn disabled(value: ListenerFilterChainMatchPredicate, depth: usize) -> Converted<PortSet> {
    if depth > 16 {
        return Err(Refused::new("", "is nested more than 16 times"));
    }
    let ListenerFilterChainMatchPredicate { rule } = value;
    let union = |rules: Vec<ListenerFilterChainMatchPredicate>, negate: bool| {
        let mut ports = Vec::new();
        for rule in rules {
            let set = disabled(rule, depth + 1)?;
            ports.extend(if negate { set.complement().0 } else { set.0 });
        }
        // In order and without overlaps.
        Ok(PortSet(ports).complement().complement())
    };
    Ok(match rule {
        None | Some(Rule::AnyMatch(false)) => PortSet::default(),
        Some(Rule::AnyMatch(true)) => PortSet::all(),
        Some(Rule::DestinationPortRange(Int32Range { start, end })) => {
            let port = |number: i32| {
                u16::try_from(number)
                    .map_err(|_| Refused::new("destination_port_range", format!("{number} is not a port")))
            };
            // The end is exclusive.
            if end > start { PortSet(vec![(port(start)?, port(end - 1)?)]) } else { PortSet::default() }
        }
        Some(Rule::OrMatch(MatchSet { rules })) => union(rules, false).within("or_match")?,
        // What is in all is what is in none of the opposites.
        Some(Rule::AndMatch(MatchSet { rules })) => {
            let outside: PortSet = union(rules, true).within("and_match")?;
            outside.complement()
        }
        Some(Rule::NotMatch(rule)) => disabled(*rule, depth + 1).within("not_match")?.complement(),
    })
}
