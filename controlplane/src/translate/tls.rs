//! Mutual TLS between workloads: certificates come by SDS from the agent in the pod, and each side checks the other's SPIFFE
//! identity.

use std::net::IpAddr;

use leno_core::policy::{ProxyProtocol, SimpleTls};
use leno_core::{Identity, Protocol};
use leno_xds::any;
use leno_xds::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use leno_xds::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, GrpcService, ProxyProtocolConfig, TransportSocket,
    api_config_source::ApiType, config_source::ConfigSourceSpecifier, proxy_protocol_config, transport_socket,
};
use leno_xds::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use leno_xds::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext,
};
use leno_xds::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::secrets;
use super::values::ZERO;

/// What a client of the mesh offers by ALPN, so that the server's proxy can tell its connections from those of an app.
pub(super) const ALPN_HTTP1: &str = "leno-http/1.1";
/// As [`ALPN_HTTP1`], for HTTP/2.
pub(super) const ALPN_HTTP2: &str = "leno-h2";
/// As [`ALPN_HTTP1`], for everything else.
pub(super) const ALPN_TCP: &str = "leno";

/// Where the authorities that a system trusts are, as most distributions have them.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

/// Whom a client expects.
pub(super) enum Expected<'a> {
    /// This workload.
    Exactly(&'a Identity),
    /// One of these.
    OneOf(Vec<&'a Identity>),
    /// Whoever has one of these names.
    Named(&'a [String]),
    /// Anyone of a namespace of the trust domain.
    OfNamespace(&'a str, &'a str),
}

/// The client's side.
pub(super) fn client(expected: &Expected<'_>, protocol: Protocol, server_name: &str) -> TransportSocket {
    let uri = |pattern| (SanType::Uri, pattern);
    let sans = match expected {
        Expected::Exactly(identity) => vec![uri(MatchPattern::Exact(identity.to_string()))],
        Expected::OneOf(identities) => {
            identities.iter().map(|identity| uri(MatchPattern::Exact(identity.to_string()))).collect()
        }
        Expected::Named(names) => names.iter().map(|name| named(name)).collect(),
        Expected::OfNamespace(trust_domain, namespace) => {
            vec![uri(MatchPattern::Prefix(format!("spiffe://{trust_domain}/ns/{namespace}/sa/")))]
        }
    };
    let alpn = match protocol {
        Protocol::Http => ALPN_HTTP1,
        Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => ALPN_HTTP2,
        Protocol::Tcp | Protocol::Tls | Protocol::Auto => ALPN_TCP,
    };
    socket(&UpstreamTlsContext {
        common_tls_context: Some(common(sans, vec![alpn.to_owned()])),
        sni: server_name.to_owned(),
        ..Default::default()
    })
}

/// The server's side: any workload of the trust domain may call. It names no protocols of its own: chains are chosen by
/// what the client offers, and Envoy would take any agreed name but `h2` for HTTP/1.
pub(super) fn server(trust_domain: &str) -> TransportSocket {
    let sans = vec![(SanType::Uri, MatchPattern::Prefix(format!("spiffe://{trust_domain}/")))];
    socket(&DownstreamTlsContext {
        common_tls_context: Some(common(sans, Vec::new())),
        require_client_certificate: Some(true),
        ..Default::default()
    })
}

/// No TLS.
pub(super) fn plain() -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    }
}

fn socket<M: prost::Message + prost::Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: TLS_SOCKET.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(context))),
    }
}

/// A name as it stands in a certificate: a URI, an address, or a host.
fn named(name: &str) -> (SanType, MatchPattern) {
    let kind = if name.contains("://") {
        SanType::Uri
    } else if name.parse::<IpAddr>().is_ok() {
        SanType::IpAddress
    } else {
        SanType::Dns
    };
    (kind, MatchPattern::Exact(name.to_owned()))
}

fn matchers(sans: Vec<(SanType, MatchPattern)>) -> Vec<SubjectAltNameMatcher> {
    let matcher = |(kind, pattern): (SanType, MatchPattern)| SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    };
    sans.into_iter().map(matcher).collect()
}

/// TLS as servers outside the mesh speak it. `alias` is the server name where the settings have none and no request does;
/// `fallback` is whose certificate it must be where nothing else says. Files are the proxy container's own.
pub(super) fn simple(tls: &SimpleTls, protocol: Protocol, alias: Option<&str>, fallback: &str) -> TransportSocket {
    let SimpleTls { server_name, names, trust, certificate, unverified } = tls;
    let sni = server_name.as_deref().or(alias).unwrap_or_default();
    let wanted: Vec<(SanType, MatchPattern)> = match (names.as_slice(), sni) {
        // From the request's host, see `auto_san_validation`.
        ([], "") if !protocol.is_opaque() => Vec::new(),
        ([], "") => vec![named(fallback)],
        ([], sni) => vec![named(sni)],
        (names, _) => names.iter().map(|name| named(name)).collect(),
    };
    let expected =
        CertificateValidationContext { match_typed_subject_alt_names: matchers(wanted), ..Default::default() };
    let validation = match secrets::of_trust(trust) {
        _ if *unverified => ValidationContextType::ValidationContext(CertificateValidationContext::default()),
        None => ValidationContextType::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(secrets::file(SYSTEM_AUTHORITIES)),
            crl: trust.revoked.as_deref().map(secrets::file),
            ..expected
        }),
        Some(name) => ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(expected),
            validation_context_sds_secret_config: Some(secrets::config(name)),
            ..Default::default()
        }),
    };
    let alpn = if protocol.is_http2() { vec!["h2".to_owned()] } else { Vec::new() };
    socket(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(versions()),
            tls_certificate_sds_secret_configs: certificate
                .iter()
                .map(secrets::of_certificate)
                .map(secrets::config)
                .collect(),
            validation_context_type: Some(validation),
            alpn_protocols: alpn,
            ..Default::default()
        }),
        sni: sni.to_owned(),
        ..Default::default()
    })
}

/// Announces the client's address before anything else.
pub(super) fn proxy_protocol(version: ProxyProtocol, inner: TransportSocket) -> TransportSocket {
    let version = match version {
        ProxyProtocol::V1 => proxy_protocol_config::Version::V1,
        ProxyProtocol::V2 => proxy_protocol_config::Version::V2,
    };
    let config = ProxyProtocolConfig { version: version.into(), ..Default::default() };
    TransportSocket {
        name: "envoy.transport_sockets.upstream_proxy_protocol".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(&ProxyProtocolUpstreamTransport {
            config: Some(config),
            transport_socket: Some(inner),
            ..Default::default()
        }))),
    }
}

fn versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    }
}

fn common(sans: Vec<(SanType, MatchPattern)>, alpn_protocols: Vec<String>) -> CommonTlsContext {
    let validation =
        CertificateValidationContext { match_typed_subject_alt_names: matchers(sans), ..Default::default() };
    CommonTlsContext {
        tls_params: Some(versions()),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(secret("ROOTCA")),
                ..Default::default()
            },
        )),
        alpn_protocols,
        ..Default::default()
    }
}

/// A secret from the agent.
fn secret(name: &str) -> SdsSecretConfig {
    let agent = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: "sds-grpc".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
                api_type: ApiType::Grpc.into(),
                transport_api_version: ApiVersion::V3.into(),
                grpc_services: vec![agent],
                set_node_on_first_message_only: true,
                ..Default::default()
            })),
            resource_api_version: ApiVersion::V3.into(),
            initial_fetch_timeout: Some(ZERO),
            ..Default::default()
        }),
    }
}
