//! Transport sockets: plain text, TLS with certificates of the mesh, or with others.
//!
//! The certificates of the mesh are not in the configuration: the resources name the secrets `default` and `ROOTCA`, and the
//! proxy holds both. What names neither, or comes to a proxy without an identity, is for [`super::own_tls`].

use super::common::{optional, unknown_type, unpack};
use super::listener_filters::pass_tlvs;
use super::{Context, Converted, Refused, Within as _, own_tls, refuse};
use crate::config::{ClientTls, MeshTls, ProxiedTls, ServerTls};
use leno_xds::envoy::config::core::v3::{
    ProxyProtocolConfig, TlvEntry, TransportSocket, proxy_protocol_config, transport_socket,
};
use leno_xds::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use leno_xds::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    downstream_tls_context::OcspStaplePolicy,
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use leno_xds::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use std::sync::Arc;

/// Name of the secret with the workload's own certificate.
const OWN_SECRET: &str = "default";
/// Name of the secret with the roots of the mesh.
const ROOTS_SECRET: &str = "ROOTCA";

const SANS: &str =
    "common_tls_context.combined_validation_context.default_validation_context.match_typed_subject_alt_names";

fn typed(socket: TransportSocket) -> Converted<Option<prost_types::Any>> {
    let TransportSocket { name, config_type } = socket;
    match config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => {
            Ok(if optional::<RawBuffer>(&any)?.is_some() { None } else { Some(any) })
        }
        None if name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(Refused::new("typed_config", "is missing")),
    }
}

/// TLS to endpoints; `None` is plain text.
pub fn client(context: &mut Context, socket: Option<TransportSocket>) -> Converted<Option<Arc<ClientTls>>> {
    let Some(socket) = socket else { return Ok(None) };
    let Some(any) = typed(socket)? else { return Ok(None) };
    if let Some(value) = optional::<ProxyProtocolUpstreamTransport>(&any).within("typed_config")? {
        return proxied(context, value).within("typed_config").map(|tls| Some(Arc::new(ClientTls::Proxied(tls))));
    }
    if any.type_url != <UpstreamTlsContext as prost::Name>::type_url() {
        return Err(unknown_type(&any).within("typed_config"));
    }
    let value: UpstreamTlsContext = unpack(&any)?;
    let mesh = !context.trust_domain.is_empty() && names_the_mesh(value.common_tls_context.as_ref());
    let tls = if mesh { upstream(value).map(ClientTls::Mesh) } else { own_tls::upstream(context, value) };
    tls.within("typed_config").map(|tls| Some(Arc::new(tls)))
}

/// The PROXY protocol before what another transport socket says.
fn proxied(context: &mut Context, value: ProxyProtocolUpstreamTransport) -> Converted<ProxiedTls> {
    let ProxyProtocolUpstreamTransport {
        config,
        transport_socket,
        // A family of addresses that cannot be written is always said to be unknown.
        allow_unspecified_address: _,
        // Connections that carry one client's extensions are never shared.
        tlv_as_pool_key: _,
    } = value;
    let ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config.unwrap_or_default();
    let v2 = match proxy_protocol_config::Version::try_from(version) {
        Ok(proxy_protocol_config::Version::V1) => false,
        Ok(proxy_protocol_config::Version::V2) => true,
        Err(_) => return Err(Refused::new("config.version", "is not known to this proxy")),
    };
    let mut add = Vec::with_capacity(added_tlvs.len());
    for (index, TlvEntry { r#type, value, format_string }) in added_tlvs.into_iter().enumerate() {
        let within = format!("config.added_tlvs[{index}]");
        super::refuse_set(&format_string, "format_string").within(&within)?;
        let kind = u8::try_from(r#type).map_err(|_| Refused::new("type", "is larger than 255").within(&within))?;
        add.push((kind, value.into()));
    }
    let Some(socket) = transport_socket else { return Err(Refused::new("transport_socket", "is missing")) };
    let inner = client(context, Some(socket)).within("transport_socket")?;
    if matches!(inner.as_deref(), Some(ClientTls::Proxied(_))) {
        return Err(Refused::new("transport_socket", "is the PROXY protocol a second time"));
    }
    let pass = pass_through_tlvs.map(pass_tlvs).transpose().within("config.pass_through_tlvs")?.unwrap_or_default();
    Ok(ProxiedTls { v2, pass, add, inner })
}

/// Whether a secret of the mesh is named.
fn names_the_mesh(common: Option<&CommonTlsContext>) -> bool {
    let Some(common) = common else { return false };
    let roots = match &common.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => Some(config),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.validation_context_sds_secret_config.as_ref()
        }
        _ => None,
    };
    roots.is_some_and(|config| config.name == ROOTS_SECRET)
        || common.tls_certificate_sds_secret_configs.iter().any(|config| config.name == OWN_SECRET)
}

fn upstream(context: UpstreamTlsContext) -> Converted<MeshTls> {
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = context;
    refuse!(auto_host_sni, auto_sni_san_validation, allow_renegotiation);
    let common = common(common_tls_context).within("common_tls_context")?;
    let exact = |identity| match identity {
        Accepted::Identity(identity) | Accepted::Namespace(identity) => Ok(identity),
        Accepted::TrustDomain(_) => {
            Err(Refused::new(SANS, "must be the identity of a server or the prefix of a namespace, not a trust domain"))
        }
    };
    let expected = common.identities.into_iter().map(exact).collect::<Converted<Vec<_>>>()?;
    if expected.is_empty() {
        return Err(Refused::new(SANS, "is empty; a server is only trusted by its identity"));
    }
    Ok(MeshTls { expected, sni: sni.into(), alpn: common.alpn })
}

/// TLS that a filter chain ends; `None` is plain text.
pub fn server(context: &mut Context, socket: Option<TransportSocket>) -> Converted<Option<Arc<ServerTls>>> {
    let Some(socket) = socket else { return Ok(None) };
    let Some(any) = typed(socket)? else { return Ok(None) };
    if any.type_url != <DownstreamTlsContext as prost::Name>::type_url() {
        return Err(unknown_type(&any).within("typed_config"));
    }
    let value: DownstreamTlsContext = unpack(&any)?;
    let common = value.common_tls_context.as_ref();
    // A server must show something, and without a word about it that is the certificate of the mesh.
    let silent = common.is_none_or(|common| {
        common.tls_certificates.is_empty() && common.tls_certificate_sds_secret_configs.is_empty()
    });
    let mesh = !context.trust_domain.is_empty() && (silent || names_the_mesh(common));
    let tls = if mesh { downstream(value, &context.trust_domain) } else { own_tls::downstream(context, value) };
    tls.within("typed_config").map(|tls| Some(Arc::new(tls)))
}

fn downstream(context: DownstreamTlsContext, trust_domain: &str) -> Converted<ServerTls> {
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption: _,
        session_timeout: _,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch: _,
        prefer_client_ciphers: _,
        session_ticket_keys_type: _,
    } = context;
    refuse!(require_sni);
    if ocsp_staple_policy != i32::from(OcspStaplePolicy::LenientStapling) {
        return Err(Refused::new("ocsp_staple_policy", "is not supported by this proxy"));
    }
    let common = common(common_tls_context).within("common_tls_context")?;
    for accepted in common.identities {
        // Clients of our own trust domain are what this proxy accepts.
        match accepted {
            Accepted::TrustDomain(domain) if domain == trust_domain => {}
            Accepted::TrustDomain(domain) => {
                let reason = format!("`{domain}` is not this proxy's trust domain `{trust_domain}`");
                return Err(Refused::new(SANS, reason));
            }
            Accepted::Identity(_) | Accepted::Namespace(_) => {
                let reason = "of single clients is not supported by this proxy; use an authorization policy";
                return Err(Refused::new(SANS, reason));
            }
        }
    }
    let require_client_certificate = require_client_certificate.unwrap_or(false);
    Ok(ServerTls::Mesh { require_client_certificate, alpn: common.alpn })
}

struct Common {
    alpn: Vec<Arc<str>>,
    identities: Vec<Accepted>,
}

/// Protocols, best first; several may stand in one text.
pub(super) fn alpn(texts: &[String]) -> Vec<Arc<str>> {
    texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(Arc::from)
        .collect()
}

/// Whose certificate is accepted.
enum Accepted {
    /// Of this SPIFFE identity.
    Identity(Arc<str>),
    /// Of any identity of a namespace (`spiffe://<trust domain>/ns/<namespace>/sa/`).
    Namespace(Arc<str>),
    /// Of any identity in this trust domain (`spiffe://<trust domain>/`).
    TrustDomain(String),
}

fn common(context: Option<CommonTlsContext>) -> Converted<Common> {
    let Some(CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    }) = context
    else {
        return Err(Refused::new("", "is missing"));
    };
    refuse!(
        tls_certificates,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        custom_handshaker,
        key_log
    );
    parameters(tls_params).within("tls_params")?;
    for (index, config) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
        secret(config, OWN_SECRET).within(format_args!("tls_certificate_sds_secret_configs[{index}]"))?;
    }
    let identities = match validation_context_type {
        None => Vec::new(),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            secret(config, ROOTS_SECRET).within("validation_context_sds_secret_config")?;
            Vec::new()
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = combined;
            refuse!(validation_context_certificate_provider, validation_context_certificate_provider_instance);
            if let Some(config) = validation_context_sds_secret_config {
                secret(config, ROOTS_SECRET)
                    .within("combined_validation_context.validation_context_sds_secret_config")?;
            }
            match default_validation_context {
                Some(context) => {
                    validation(context).within("combined_validation_context.default_validation_context")?
                }
                None => Vec::new(),
            }
        }
        Some(_) => {
            return Err(Refused::new(
                "validation_context_type",
                "must name the secret ROOTCA where the certificate `default` is shown",
            ));
        }
    };
    Ok(Common { alpn: alpn(&alpn_protocols), identities })
}

/// TLS 1.2 and 1.3 with rustls' cipher suites are what the proxy speaks; a minimum of at most 1.2 changes nothing.
fn parameters(value: Option<TlsParameters>) -> Converted<()> {
    let Some(TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    }) = value
    else {
        return Ok(());
    };
    refuse!(cipher_suites, ecdh_curves, signature_algorithms, compliance_policies);
    if tls_minimum_protocol_version > i32::from(TlsProtocol::TlSv12) {
        return Err(Refused::new("tls_minimum_protocol_version", "above TLS 1.2 is not supported by this proxy"));
    }
    if ![i32::from(TlsProtocol::TlsAuto), i32::from(TlsProtocol::TlSv13)].contains(&tls_maximum_protocol_version) {
        return Err(Refused::new("tls_maximum_protocol_version", "below TLS 1.3 is not supported by this proxy"));
    }
    Ok(())
}

/// Only the name counts: where Envoy would ask for the secret means nothing here.
fn secret(config: SdsSecretConfig, wanted: &str) -> Converted<()> {
    let SdsSecretConfig { name, sds_config: _ } = config;
    if name == wanted { Ok(()) } else { Err(Refused::new("name", format!("`{name}` is not the secret `{wanted}`"))) }
}

fn validation(context: CertificateValidationContext) -> Converted<Vec<Accepted>> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl: _,
        max_verify_depth,
        suppress_client_ca_list: _,
    } = context;
    refuse!(
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        max_verify_depth
    );
    let exact = |matcher: StringMatcher| {
        let StringMatcher { ignore_case, match_pattern } = matcher;
        match match_pattern {
            Some(MatchPattern::Exact(text)) if !ignore_case && text.starts_with("spiffe://") => {
                Ok(Accepted::Identity(text.into()))
            }
            Some(MatchPattern::Prefix(text)) if !ignore_case => {
                let rest = text.strip_prefix("spiffe://").and_then(|rest| rest.strip_suffix('/'));
                match rest.map(|rest| rest.split('/').collect::<Vec<_>>()).as_deref() {
                    Some([domain]) if !domain.is_empty() => Ok(Accepted::TrustDomain((*domain).to_owned())),
                    Some([domain, "ns", namespace, "sa"]) if !domain.is_empty() && !namespace.is_empty() => {
                        Ok(Accepted::Namespace(text.into()))
                    }
                    _ => Err(Refused::new(
                        "matcher.prefix",
                        "is neither `spiffe://<trust domain>/` nor `spiffe://<trust domain>/ns/<namespace>/sa/`",
                    )),
                }
            }
            _ => Err(Refused::new(
                "matcher",
                "is neither a SPIFFE identity nor the prefix of a trust domain or namespace",
            )),
        }
    };
    let typed = match_typed_subject_alt_names.into_iter().enumerate().map(|(index, matcher)| {
        let SubjectAltNameMatcher { san_type, matcher, oid: _ } = matcher;
        let within = format!("match_typed_subject_alt_names[{index}]");
        if san_type != i32::from(SanType::Uri) {
            return Err(Refused::new("san_type", "is not URI").within(within));
        }
        exact(matcher.unwrap_or_default()).within(within)
    });
    let untyped = match_subject_alt_names.into_iter().map(|matcher| exact(matcher).within("match_subject_alt_names"));
    typed.chain(untyped).collect()
}
