//! TLS with certificates and trust of the configuration's own: inline, or by the name of any secret.

use super::common::maybe_duration;
use super::secret::{complete, key_pair, ticket_keys, trust, unwatched};
use super::tls::alpn;
use super::{Context, Converted, Refused, Within as _, refuse};
use crate::config::{ClientTls, ServerTls};
use crate::tls::facts::Hasher;
use crate::tls::material::{KeyPair, TrustSettings};
use crate::tls::{
    ClientContext, ClientSettings, ServerContext, ServerSettings, Source, Tickets, TlsParams, TrustSource,
};
use crate::xds::state::Kind;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters,
    UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType},
    tls_parameters::TlsProtocol,
};
use prost::Message as _;
use std::sync::Arc;

/// Certificates of one context at most.
const MAX_KEY_PAIRS: usize = 64;

/// TLS that a filter chain ends.
pub fn downstream(context: &mut Context, value: DownstreamTlsContext) -> Converted<ServerTls> {
    let mut hash = Hasher::default();
    hash.add(&value.encode_to_vec());
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = value;
    if ocsp_staple_policy != i32::from(OcspStaplePolicy::LenientStapling) {
        return Err(Refused::new("ocsp_staple_policy", "is not supported by this proxy; only LENIENT_STAPLING is"));
    }
    let tickets = match session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => Tickets::Own,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Tickets::Disabled,
        Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
            let keys = ticket_keys(keys, &mut hash).within("session_ticket_keys")?;
            Tickets::Shared(Source::Inline(Arc::new(keys)))
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(value)) => {
            let name = name(context, value).within("session_ticket_keys_sds_secret_config")?;
            Tickets::Shared(Source::Slot(context.secrets.ticket_keys(&name)))
        }
    };
    let common = common(context, common_tls_context, &mut hash).within("common_tls_context")?;
    if common.key_pairs.is_empty() {
        return Err(Refused::new("common_tls_context.tls_certificates", "is empty; a server must show a certificate"));
    }
    let settings = ServerSettings {
        params: common.params,
        session_lifetime: maybe_duration(session_timeout, "session_timeout")?,
        alpn: common.alpn,
        require_client_certificate: require_client_certificate.unwrap_or(false),
        prefer_client_ciphers,
        disable_stateful_resumption: disable_stateful_session_resumption,
        tickets,
        require_sni: require_sni.unwrap_or(false),
        full_scan_on_mismatch: full_scan_certs_on_sni_mismatch.unwrap_or(false),
    };
    let made = ServerContext::new(hash.end(), settings, common.key_pairs, common.trust);
    Ok(ServerTls::Own(context.tls_contexts.server(made)))
}

/// TLS to endpoints.
pub fn upstream(context: &mut Context, value: UpstreamTlsContext) -> Converted<ClientTls> {
    let mut hash = Hasher::default();
    hash.add(&value.encode_to_vec());
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        // Our TLS library always does.
        enforce_rsa_key_usage: _,
    } = value;
    refuse!(allow_renegotiation);
    if !sni.is_empty()
        && sni.parse::<std::net::IpAddr>().is_err()
        && rustls_pki_types::DnsName::try_from(sni.as_str()).is_err()
    {
        return Err(Refused::new("sni", format!("`{sni}` is no host name")));
    }
    let common = common(context, common_tls_context, &mut hash).within("common_tls_context")?;
    if auto_sni_san_validation && common.trust.is_none() {
        let reason = "wants a validation context: without one no certificate is looked at";
        return Err(Refused::new("auto_sni_san_validation", reason));
    }
    let mut key_pairs = common.key_pairs.into_iter();
    let key_pair = key_pairs.next();
    if key_pairs.next().is_some() {
        return Err(Refused::new("common_tls_context.tls_certificates", "are several; a client shows one"));
    }
    let settings = ClientSettings {
        params: common.params,
        alpn: common.alpn,
        sni: sni.into(),
        sni_of_host: auto_host_sni,
        match_server_name: auto_sni_san_validation,
        sessions: max_session_keys.map_or(1, |count| (count as usize).min(1024)),
    };
    let made = ClientContext::new(hash.end(), settings, key_pair, common.trust);
    Ok(ClientTls::Own(context.tls_contexts.client(made)))
}

struct Common {
    params: TlsParams,
    alpn: Vec<Arc<str>>,
    key_pairs: Vec<Source<KeyPair>>,
    trust: TrustSource,
}

fn common(context: &mut Context, value: Option<CommonTlsContext>, hash: &mut Hasher) -> Converted<Common> {
    let CommonTlsContext {
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
    } = value.unwrap_or_default();
    refuse!(
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        custom_handshaker,
        key_log
    );
    if tls_certificates.len() + tls_certificate_sds_secret_configs.len() > MAX_KEY_PAIRS {
        return Err(Refused::new("tls_certificates", format!("are more than {MAX_KEY_PAIRS}")));
    }
    let params = tls_params.map(parameters).transpose().within("tls_params")?.unwrap_or_default();
    let mut key_pairs = Vec::new();
    for (index, value) in tls_certificates.into_iter().enumerate() {
        let sources =
            [("certificate_chain", value.certificate_chain.as_ref()), ("private_key", value.private_key.as_ref())];
        let unwatched = unwatched(value.watched_directory.as_ref(), sources);
        let pair = unwatched.and_then(|()| key_pair(value, hash));
        let pair = pair.within(format_args!("tls_certificates[{index}]"))?;
        key_pairs.push(Source::Inline(Arc::new(pair)));
    }
    for (index, value) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
        let name = name(context, value).within(format_args!("tls_certificate_sds_secret_configs[{index}]"))?;
        key_pairs.push(Source::Slot(context.secrets.key_pair(&name)));
    }
    let mut trusted = TrustSource::default();
    match validation_context_type {
        None => {}
        Some(ValidationContextType::ValidationContext(value)) => {
            let trust = inline_trust(value, hash).within("validation_context")?;
            complete(&trust).within("validation_context")?;
            trusted.own = Some(trust);
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(value)) => {
            let name = name(context, value).within("validation_context_sds_secret_config")?;
            trusted.secret = Some(context.secrets.trust(&name));
        }
        Some(ValidationContextType::CombinedValidationContext(value)) => {
            let within = "combined_validation_context";
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = value;
            refuse!(validation_context_certificate_provider, validation_context_certificate_provider_instance);
            let default = default_validation_context.unwrap_or_default();
            trusted.own = Some(inline_trust(default, hash).within("default_validation_context").within(within)?);
            let sds = validation_context_sds_secret_config.unwrap_or_default();
            let name = name(context, sds).within("validation_context_sds_secret_config").within(within)?;
            trusted.secret = Some(context.secrets.trust(&name));
        }
        Some(_) => return Err(Refused::new("validation_context_type", "is not supported by this proxy")),
    }
    Ok(Common { params, alpn: alpn(&alpn_protocols), key_pairs, trust: trusted })
}

/// The name of a secret that was there from the start, or comes from a source.
fn name(context: &mut Context, value: SdsSecretConfig) -> Converted<String> {
    let SdsSecretConfig { name, sds_config } = value;
    if name.is_empty() {
        return Err(Refused::new("name", "is missing"));
    }
    if sds_config.is_some() {
        context.sources.ask(Kind::Secret, &name, sds_config).within("sds_config")?;
    } else if !context.secrets.has(&name) {
        return Err(Refused::new("name", format!("`{name}` is no static secret, and no sds_config says where it is")));
    }
    Ok(name)
}

fn parameters(value: TlsParameters) -> Converted<TlsParams> {
    let TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    refuse!(signature_algorithms, compliance_policies);
    let version = |value: i32, auto: u8, field: &str| match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlsAuto) => Ok(auto),
        Ok(TlsProtocol::TlSv12) => Ok(12),
        Ok(TlsProtocol::TlSv13) => Ok(13),
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            Err(Refused::new(field, "below TLS 1.2 is not supported by this proxy (RFC 8996)"))
        }
        Err(_) => Err(Refused::new(field, "is not known to this proxy")),
    };
    let lowest = version(tls_minimum_protocol_version, 12, "tls_minimum_protocol_version")?;
    let highest = version(tls_maximum_protocol_version, 13, "tls_maximum_protocol_version")?;
    TlsParams::new(lowest, highest, &cipher_suites, &ecdh_curves).map_err(|(field, reason)| Refused::new(field, reason))
}

/// What a peer's certificate must satisfy, written in the context itself.
fn inline_trust(value: CertificateValidationContext, hash: &mut Hasher) -> Converted<TrustSettings> {
    let sources = [("trusted_ca", value.trusted_ca.as_ref()), ("crl", value.crl.as_ref())];
    unwatched(value.watched_directory.as_ref(), sources)?;
    trust(value, hash)
}
