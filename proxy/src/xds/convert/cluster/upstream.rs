//! Connections to endpoints: source addresses, keep-alive, the options of HTTP.

use super::super::common::{maybe_duration, optional, socket, socket_options as socket_options_of, unknown_type};
use super::super::{Converted, Refused, Within as _, action, http, refuse, refuse_set, retry};
use super::{SocketMatch, outlier};
use crate::config::{
    ClientTls, Cluster, Eyeballs, MAX_HEADERS, OptionTime, SocketOption, SourceBind, TcpKeepalive, UpstreamProtocol,
};
use leno_xds::envoy::config::cluster::v3::upstream_connection_options::{
    FirstAddressFamilyVersion, HappyEyeballsConfig,
};
use leno_xds::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions,
    TcpKeepalive as XdsKeepalive, TypedExtensionConfig, UpstreamHttpProtocolOptions,
};
use leno_xds::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
use leno_xds::envoy::extensions::upstreams::http::generic::v3::GenericConnectionPoolProto;
use leno_xds::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// In which order the addresses of an endpoint are tried.
///
/// # Errors
/// When it names no family of addresses, or no number of them.
pub fn eyeballs(value: HappyEyeballsConfig) -> Converted<Eyeballs> {
    let HappyEyeballsConfig { first_address_family_version, first_address_family_count } = value;
    let first_v6 = match FirstAddressFamilyVersion::try_from(first_address_family_version) {
        Ok(FirstAddressFamilyVersion::Default) => None,
        Ok(FirstAddressFamilyVersion::V4) => Some(false),
        Ok(FirstAddressFamilyVersion::V6) => Some(true),
        Ok(FirstAddressFamilyVersion::Pipe | FirstAddressFamilyVersion::Internal) | Err(_) => {
            return Err(Refused::new("first_address_family_version", "is none of DEFAULT, V4 and V6"));
        }
    };
    match first_address_family_count.unwrap_or(1) {
        0 => Err(Refused::new("first_address_family_count", "must be at least 1")),
        count => Ok(Eyeballs { first_v6, count: count as usize }),
    }
}

/// How the sockets of connections to endpoints are made.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    source: Option<SourceBind>,
    options: Arc<[(i32, i32, SocketOption)]>,
}

impl Sockets {
    /// As a cluster or all of them have it.
    ///
    /// # Errors
    /// When something of it is not supported.
    pub fn new(value: BindConfig) -> Converted<Self> {
        let BindConfig {
            source_address,
            freebind: _,
            socket_options,
            extra_source_addresses,
            additional_source_addresses,
            local_address_selector,
            validate_network_namespaces: _,
        } = value;
        refuse!(additional_source_addresses, local_address_selector);
        let mut source = SourceBind { v4: None, v6: None };
        let extra = extra_source_addresses.into_iter().map(|extra| {
            let ExtraSourceAddress { address, socket_options } = extra;
            refuse_set(&socket_options, "extra_source_addresses.socket_options")?;
            Ok(address)
        });
        for value in std::iter::once(Ok(source_address)).chain(extra) {
            let Some(value) = value? else { continue };
            let address = socket(value).within("source_address")?;
            if address.port() != 0 {
                return Err(Refused::new("source_address.port_value", "other than 0 is not supported"));
            }
            match address.ip() {
                IpAddr::V4(ip) => source.v4 = Some(ip),
                IpAddr::V6(ip) => source.v6 = Some(ip),
            }
        }
        // Envoy sets those of other moments on listening sockets alone.
        let options = socket_options_of(socket_options)?
            .into_iter()
            .filter(|(time, ..)| *time == OptionTime::Unbound)
            .map(|(_, level, name, value)| (level, name, value))
            .collect();
        Ok(Self { source: Some(source), options })
    }

    /// Those of a cluster that says so much of its own, and has the rest from what is said for all.
    pub(super) fn apply(&self, own: Option<Self>, cluster: &mut Cluster) {
        let source = own.as_ref().map_or(self.source, |own| own.source);
        cluster.bind = source.filter(|source| source.v4.is_some() || source.v6.is_some());
        let options = own.map(|own| own.options).filter(|options| !options.is_empty());
        cluster.socket_options = options.unwrap_or_else(|| self.options.clone());
    }
}

/// TCP keep-alive; what is 0 is left to the kernel.
pub(super) fn keepalive(value: XdsKeepalive) -> TcpKeepalive {
    let XdsKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = value;
    let seconds = |value: Option<u32>| value.filter(|value| *value > 0).map(|value| Duration::from_secs(value.into()));
    TcpKeepalive {
        idle: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
        probes: keepalive_probes.filter(|probes| *probes > 0),
    }
}

/// The most that `max_response_headers_kb` may allow, as in Envoy.
const MAX_HEAD_KIB: usize = 8192;

/// Options that every version of HTTP has.
pub(super) fn common_options(cluster: &mut Cluster, value: CommonOptions) -> Converted<()> {
    let CommonOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action: _,
        max_requests_per_connection,
    } = value;
    cluster.max_stream_duration =
        maybe_duration(max_stream_duration, "max_stream_duration")?.filter(|limit| !limit.is_zero());
    if let Some(count) = max_headers_count {
        let most = usize::try_from(count).ok().filter(|count| (1..=MAX_HEADERS).contains(count));
        cluster.http1.max_headers =
            most.ok_or_else(|| Refused::new("max_headers_count", format!("is not between 1 and {MAX_HEADERS}")))?;
    }
    if let Some(kib) = max_response_headers_kb {
        let most = usize::try_from(kib).ok().filter(|kib| (1..=MAX_HEAD_KIB).contains(kib));
        let refused = || Refused::new("max_response_headers_kb", format!("is not between 1 and {MAX_HEAD_KIB}"));
        cluster.http1.max_head_bytes = Some(most.ok_or_else(refused)? * 1024);
    }
    if let Some(limit) = maybe_duration(idle_timeout, "idle_timeout")? {
        cluster.idle_timeout = limit;
    }
    let age = maybe_duration(max_connection_duration, "max_connection_duration")?.filter(|age| !age.is_zero());
    let jitter = max_connection_duration_jitter.map_or(0.0, |percent| percent.value.clamp(0.0, 100.0));
    cluster.max_connection_duration = age.map(|age| (age, jitter));
    if let Some(limit) = max_requests_per_connection {
        cluster.max_requests_per_connection = limit;
    }
    Ok(())
}

/// Options of HTTP/1.
pub(super) fn http1_options(cluster: &mut Cluster, value: Option<Http1ProtocolOptions>) -> Converted<()> {
    http::http1(value, &mut cluster.http1)
}

/// Options of HTTP/2.
pub(super) fn http2_options(cluster: &mut Cluster, value: Option<Http2ProtocolOptions>) -> Converted<()> {
    let keepalive = value.as_ref().and_then(|options| options.connection_keepalive);
    cluster.http2 = http::http2(value)?;
    cluster.http2_keepalive = http::http2_keepalive(keepalive)?;
    Ok(())
}

/// TLS as a cluster has it by default and by the labels of endpoints.
fn sockets<'a>(
    cluster: &'a mut Cluster,
    matches: &'a mut [SocketMatch],
) -> impl Iterator<Item = &'a mut Option<Arc<ClientTls>>> {
    std::iter::once(&mut cluster.default_tls).chain(matches.iter_mut().map(|candidate| &mut candidate.tls))
}

/// The server name, and the name that the certificate must have, from each request.
pub(super) fn server_name(
    cluster: &mut Cluster,
    matches: &mut [SocketMatch],
    value: UpstreamHttpProtocolOptions,
) -> Converted<()> {
    let UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = value;
    if auto_sni {
        let header = if override_auto_sni_header.is_empty() { ":authority" } else { &override_auto_sni_header };
        cluster.server_name = Some(header.to_ascii_lowercase().into());
    }
    for tls in sockets(cluster, matches).filter(|_| auto_san_validation) {
        match tls.as_deref() {
            None => {}
            Some(ClientTls::Own(context)) if auto_sni => {
                *tls = Some(Arc::new(ClientTls::Own(Arc::new(context.matching_server_name()))));
            }
            Some(_) => {
                let reason = "is only supported with auto_sni and certificates of its own";
                return Err(Refused::new("auto_san_validation", reason));
            }
        }
    }
    Ok(())
}

/// Connections as they are made where nothing is said: of HTTP, and of TCP for tunnels.
pub(super) fn usual(value: TypedExtensionConfig) -> Converted<()> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    match optional::<GenericConnectionPoolProto>(&any).within("typed_config")? {
        Some(GenericConnectionPoolProto {}) => Ok(()),
        None => Err(unknown_type(&any).within("typed_config")),
    }
}

/// The version on which TLS agrees.
fn agreed(cluster: &mut Cluster, matches: &mut [SocketMatch], value: AutoHttpConfig) -> Converted<()> {
    let AutoHttpConfig {
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        alternate_protocols_cache_options,
    } = value;
    refuse!(http3_protocol_options, alternate_protocols_cache_options);
    http1_options(cluster, http_protocol_options).within("http_protocol_options")?;
    http2_options(cluster, http2_protocol_options).within("http2_protocol_options")?;
    for tls in sockets(cluster, matches) {
        let Some(ClientTls::Own(context)) = tls.as_deref() else {
            let reason = "needs TLS with certificates of its own, by which the version is agreed on, for all endpoints";
            return Err(Refused::new("", reason));
        };
        *tls = Some(Arc::new(ClientTls::Own(Arc::new(context.offering_both()))));
    }
    Ok(())
}

/// The typed options of HTTP.
pub(super) fn http_options(
    cluster: &mut Cluster,
    matches: &mut [SocketMatch],
    value: HttpProtocolOptions,
) -> Converted<()> {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    if let Some(options) = upstream_http_protocol_options {
        server_name(cluster, matches, options).within("upstream_http_protocol_options")?;
    }
    // Where nothing but what ends them is there, they change nothing.
    let only_codec = http_filters.iter().all(|filter| match &filter.config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => matches!(optional::<UpstreamCodec>(any), Ok(Some(_))),
        _ => false,
    });
    refuse_set(&!only_codec, "http_filters")?;
    refuse!(header_validation_config, request_mirror_policies);
    cluster.retry = retry_policy.map(retry::policy).transpose().within("retry_policy")?.map(Arc::new);
    let mut hash = Vec::with_capacity(hash_policy.len());
    for (index, value) in hash_policy.into_iter().enumerate() {
        hash.extend(action::hash(value).within(format_args!("hash_policy[{index}]"))?);
    }
    cluster.hash = hash.into();
    if let (Some(value), Some(outliers)) = (outlier_detection, &mut cluster.outliers) {
        let failures = outlier::failures(value).within("outlier_detection")?;
        Arc::make_mut(outliers).failures = failures.map(Arc::new);
    }
    if let Some(common) = common_http_protocol_options {
        common_options(cluster, common).within("common_http_protocol_options")?;
    }
    cluster.protocol = match upstream_protocol_options {
        None => return Err(Refused::new("upstream_protocol_options", "is missing")),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => {
            match protocol_config {
                None => UpstreamProtocol::Http1,
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    let within = "explicit_http_config.http_protocol_options";
                    http1_options(cluster, Some(options)).within(within)?;
                    UpstreamProtocol::Http1
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    http2_options(cluster, Some(options)).within("explicit_http_config.http2_protocol_options")?;
                    UpstreamProtocol::Http2
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return Err(Refused::new("explicit_http_config.http3_protocol_options", "is not supported"));
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            let UseDownstreamHttpConfig { http_protocol_options, http2_protocol_options, http3_protocol_options: _ } =
                config;
            let within = "use_downstream_protocol_config.http_protocol_options";
            http1_options(cluster, http_protocol_options).within(within)?;
            let within = "use_downstream_protocol_config.http2_protocol_options";
            http2_options(cluster, http2_protocol_options).within(within)?;
            UpstreamProtocol::Follow
        }
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            agreed(cluster, matches, config).within("auto_config")?;
            UpstreamProtocol::Agreed
        }
    };
    Ok(())
}
