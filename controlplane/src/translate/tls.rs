//! Mutual TLS between workloads: certificates come by SDS from the agent in the pod, and each side checks the other's SPIFFE
//! identity.

use leno_core::{Identity, Protocol};
use leno_xds::any;
use leno_xds::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use leno_xds::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, GrpcService, TransportSocket, api_config_source::ApiType,
    config_source::ConfigSourceSpecifier, transport_socket,
};
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

use super::values::ZERO;

/// What a client of the mesh offers by ALPN, so that the server's proxy can tell its connections from those of an app.
pub(super) const ALPN_HTTP1: &str = "leno-http/1.1";
/// As [`ALPN_HTTP1`], for HTTP/2.
pub(super) const ALPN_HTTP2: &str = "leno-h2";
/// As [`ALPN_HTTP1`], for everything else.
pub(super) const ALPN_TCP: &str = "leno";

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

/// Whom a client expects.
pub(super) enum Expected<'a> {
    /// This workload.
    Exactly(&'a Identity),
    /// One of these.
    OneOf(Vec<&'a Identity>),
    /// Anyone of a namespace of the trust domain.
    OfNamespace(&'a str, &'a str),
}

/// The client's side.
pub(super) fn client(expected: &Expected<'_>, protocol: Protocol, server_name: &str) -> TransportSocket {
    let sans = match expected {
        Expected::Exactly(identity) => vec![MatchPattern::Exact(identity.to_string())],
        Expected::OneOf(identities) => {
            identities.iter().map(|identity| MatchPattern::Exact(identity.to_string())).collect()
        }
        Expected::OfNamespace(trust_domain, namespace) => {
            vec![MatchPattern::Prefix(format!("spiffe://{trust_domain}/ns/{namespace}/sa/"))]
        }
    };
    let alpn = match protocol {
        Protocol::Http => ALPN_HTTP1,
        Protocol::Http2 | Protocol::Grpc => ALPN_HTTP2,
        Protocol::Tcp | Protocol::Auto => ALPN_TCP,
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
    let sans = vec![MatchPattern::Prefix(format!("spiffe://{trust_domain}/"))];
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

fn common(sans: Vec<MatchPattern>, alpn_protocols: Vec<String>) -> CommonTlsContext {
    let matchers = sans.into_iter().map(|pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    });
    let validation =
        CertificateValidationContext { match_typed_subject_alt_names: matchers.collect(), ..Default::default() };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..Default::default()
        }),
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
