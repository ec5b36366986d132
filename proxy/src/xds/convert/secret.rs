//! Certificates, keys and trust as a configuration or a secret brings them.

use super::common::unpack;
use super::{Context, Converted, Refused, Within as _, matcher, refuse, spiffe};
use crate::tls::facts::Hasher;
use crate::tls::material::{KeyPair, Roots, TrustSettings, revocation_lists};
use crate::tls::sans::{SanKind, SanMatch};
use crate::tls::{SecretValue, TicketKeys};
use base64::Engine as _;
use leno_xds::envoy::config::core::v3::{DataSource, WatchedDirectory, data_source};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SubjectAltNameMatcher, TlsCertificate, TlsSessionTicketKeys,
    certificate_validation_context::TrustChainVerification, secret, subject_alt_name_matcher::SanType,
};
use leno_xds::envoy::r#type::matcher::v3::StringMatcher;
use prost::Message as _;
use prost_types::Any;
use std::io::Read as _;
use std::sync::Arc;

/// Bytes of a file with certificates, keys or lists at most.
const MAX_FILE: u64 = 8 << 20;

/// Takes a secret into the store. What uses it sees it with the next handshake.
///
/// # Errors
/// When it is of a kind that is not supported or does not make sense; the one before then stays.
pub fn secret(context: &mut Context, name: &str, body: &Any) -> Converted<()> {
    let Secret { name: own_name, r#type } = unpack(body)?;
    let name = if name.is_empty() { own_name.as_str() } else { name };
    let mut hash = Hasher::default();
    hash.add(&body.value);
    let value = match r#type {
        Some(secret::Type::TlsCertificate(value)) => {
            SecretValue::KeyPair(key_pair(value, &mut hash).within("tls_certificate")?)
        }
        Some(secret::Type::ValidationContext(value)) => {
            let trust = trust(value, &mut hash).within("validation_context")?;
            complete(&trust).within("validation_context")?;
            // Whoever lays it over trust of his own must be able to.
            for own in context.tls_contexts.combined_with(name) {
                complete(&own.merged(&trust)).within("validation_context")?;
            }
            SecretValue::Trust(trust)
        }
        Some(secret::Type::SessionTicketKeys(value)) => {
            SecretValue::TicketKeys(ticket_keys(value, &mut hash).within("session_ticket_keys")?)
        }
        Some(secret::Type::GenericSecret(_)) => {
            return Err(Refused::new("generic_secret", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("type", "is missing")),
    };
    if context.secrets.is_of_other_kind(name, &value) {
        return Err(Refused::new("type", "is another one than those take that use the secret"));
    }
    context.secrets.set(name, value, hash.end());
    Ok(())
}

/// The bytes that a source names; what they are goes into the hash.
pub fn data(source: Option<DataSource>, hash: &mut Hasher) -> Converted<Option<Vec<u8>>> {
    // Files of secrets are looked at by their paths, whatever folder was moved; others are not. See [`unwatched`].
    let Some(DataSource { watched_directory: _, specifier }) = source else { return Ok(None) };
    let bytes = match specifier {
        None => return Ok(None),
        Some(data_source::Specifier::InlineBytes(bytes)) => bytes,
        Some(data_source::Specifier::InlineString(text)) => text.into_bytes(),
        Some(data_source::Specifier::Filename(path)) => {
            let cannot = |error: std::io::Error| Refused::new("filename", format!("cannot read `{path}`: {error}"));
            let mut bytes = Vec::new();
            let file = std::fs::File::open(&path).map_err(cannot)?;
            file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
            if bytes.len() as u64 > MAX_FILE {
                return Err(Refused::new("filename", format!("`{path}` is larger than {MAX_FILE} bytes")));
            }
            bytes
        }
        Some(data_source::Specifier::EnvironmentVariable(name)) => {
            let missing = |_| Refused::new("environment_variable", format!("`{name}` is not set"));
            std::env::var(&name).map_err(missing)?.into_bytes()
        }
    };
    hash.add(&bytes);
    Ok(Some(bytes))
}

/// Refuses folders to be watched for files that are only read when the configuration comes.
///
/// # Errors
/// Names the field.
pub fn unwatched(own: Option<&WatchedDirectory>, sources: [(&str, Option<&DataSource>); 2]) -> Converted<()> {
    let refused = |field: &str| Err(Refused::new(field, "is for secrets by SDS only; name the secret instead"));
    if own.is_some() {
        return refused("watched_directory");
    }
    match sources.iter().find(|(_, source)| source.is_some_and(|source| source.watched_directory.is_some())) {
        Some((field, _)) => refused(&format!("{field}.watched_directory")),
        None => Ok(()),
    }
}

/// A certificate chain with its key.
pub fn key_pair(value: TlsCertificate, hash: &mut Hasher) -> Converted<KeyPair> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        // Envoy does not use them either.
        signed_certificate_timestamp: _,
        tls_params,
    } = value;
    refuse!(pkcs12, private_key_provider, password, ocsp_staple, tls_params);
    let chain = data(certificate_chain, hash).within("certificate_chain")?;
    let chain = chain.ok_or_else(|| Refused::new("certificate_chain", "is missing"))?;
    let key = data(private_key, hash).within("private_key")?;
    let key = key.ok_or_else(|| Refused::new("private_key", "is missing"))?;
    KeyPair::from_pem(&chain, &key).map_err(|reason| Refused::new("", reason))
}

/// Keys for tickets, newest first.
pub fn ticket_keys(value: TlsSessionTicketKeys, hash: &mut Hasher) -> Converted<TicketKeys> {
    let TlsSessionTicketKeys { keys } = value;
    let mut all = Vec::with_capacity(keys.len());
    for (index, source) in keys.into_iter().enumerate() {
        let within = format!("keys[{index}]");
        let bytes = data(Some(source), hash).within(&within)?;
        all.push(bytes.ok_or_else(|| Refused::new(within, "is missing"))?);
    }
    TicketKeys::new(&all).map_err(|reason| Refused::new("keys", reason))
}

/// What a peer's certificate must satisfy. See also [`complete`].
pub fn trust(value: CertificateValidationContext, hash: &mut Hasher) -> Converted<TrustSettings> {
    let mut own = Hasher::default();
    own.add(&value.encode_to_vec());
    let mut settings = trust_of(value, &mut own)?;
    settings.fingerprint = own.end();
    hash.add(&settings.fingerprint);
    Ok(settings)
}

fn trust_of(value: CertificateValidationContext, hash: &mut Hasher) -> Converted<TrustSettings> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = value;
    refuse!(ca_certificate_provider_instance, system_root_certs, require_signed_certificate_timestamp);
    let accept_untrusted = match TrustChainVerification::try_from(trust_chain_verification) {
        Ok(TrustChainVerification::VerifyTrustChain) => false,
        Ok(TrustChainVerification::AcceptUntrusted) => true,
        Err(_) => return Err(Refused::new("trust_chain_verification", "is not known to this proxy")),
    };
    let mut settings = TrustSettings {
        only_leaf_crl: only_verify_leaf_cert_crl,
        allow_expired: allow_expired_certificate,
        accept_untrusted,
        max_depth: max_verify_depth,
        suppress_client_ca_list,
        ..TrustSettings::default()
    };
    if let Some(pem) = data(trusted_ca, hash).within("trusted_ca")? {
        let roots = Roots::from_pem(&pem).map_err(|reason| Refused::new("trusted_ca", reason))?;
        settings.roots = Some(Arc::new(roots));
    }
    if let Some(own) = custom_validator_config {
        // Nobody is to think that the validator looks at them.
        let others = [
            (settings.roots.is_some(), "trusted_ca"),
            (crl.is_some(), "crl"),
            (!verify_certificate_hash.is_empty(), "verify_certificate_hash"),
            (!verify_certificate_spki.is_empty(), "verify_certificate_spki"),
            (!match_subject_alt_names.is_empty(), "match_subject_alt_names"),
            (settings.accept_untrusted, "trust_chain_verification"),
        ];
        if let Some((_, field)) = others.into_iter().find(|(set, _)| *set) {
            return Err(Refused::new(field, "means nothing to a custom validator; leave it out"));
        }
        let domains = spiffe::trust_domains(own, hash).within("custom_validator_config")?;
        settings.domains = Some(Arc::new(domains));
    }
    if let Some(pem) = data(crl, hash).within("crl")? {
        let lists = revocation_lists(&pem).map_err(|reason| Refused::new("crl", reason))?;
        settings.crls = Some(Arc::new(lists));
    }
    for (index, text) in verify_certificate_hash.iter().enumerate() {
        let wrong = || Refused::new(format!("verify_certificate_hash[{index}]"), "is no SHA-256 in hexadecimal");
        settings.hashes.push(from_hex(text).ok_or_else(wrong)?);
    }
    for (index, text) in verify_certificate_spki.iter().enumerate() {
        let wrong = || Refused::new(format!("verify_certificate_spki[{index}]"), "is no SHA-256 in Base64");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| wrong())?;
        settings.spki.push(bytes.try_into().map_err(|_| wrong())?);
    }
    for (index, value) in match_typed_subject_alt_names.into_iter().enumerate() {
        let name = typed_name(value).within(format_args!("match_typed_subject_alt_names[{index}]"))?;
        if settings.domains.is_some() && name.kind != SanKind::Uri {
            let reason = "is not URI, the only kind that the SPIFFE validator looks at";
            return Err(Refused::new("san_type", reason).within(format_args!("match_typed_subject_alt_names[{index}]")));
        }
        settings.names.push(name);
    }
    for (index, value) in match_subject_alt_names.into_iter().enumerate() {
        let name = name(SanKind::Any, value).within(format_args!("match_subject_alt_names[{index}]"))?;
        settings.names.push(name);
    }
    Ok(settings)
}

/// Checks what only the whole of a trust can tell, after everything has been merged that belongs to it.
pub fn complete(trust: &TrustSettings) -> Converted<()> {
    if !trust.names.is_empty() && !trust.has_roots() {
        let reason = "is missing; names are worth nothing in certificates that anybody could have made";
        return Err(Refused::new("trusted_ca", reason));
    }
    if trust.crls.is_some() && trust.roots.is_none() {
        return Err(Refused::new("trusted_ca", "is missing; a revocation list is worth nothing without it"));
    }
    Ok(())
}

fn typed_name(value: SubjectAltNameMatcher) -> Converted<SanMatch> {
    let SubjectAltNameMatcher { san_type, matcher, oid } = value;
    refuse!(oid);
    let kind = match SanType::try_from(san_type) {
        Ok(SanType::Dns) => SanKind::Dns,
        Ok(SanType::Uri) => SanKind::Uri,
        Ok(SanType::Email) => SanKind::Email,
        Ok(SanType::IpAddress) => SanKind::Ip,
        Ok(SanType::OtherName) => return Err(Refused::new("san_type", "OTHER_NAME is not supported by this proxy")),
        Ok(SanType::Unspecified) | Err(_) => return Err(Refused::new("san_type", "is missing")),
    };
    name(kind, matcher.unwrap_or_default()).within("matcher")
}

fn name(kind: SanKind, value: StringMatcher) -> Converted<SanMatch> {
    Ok(SanMatch { kind, text: Arc::new(matcher::string(value)?) })
}

/// 32 bytes in hexadecimal, with or without colons between them.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum * 16 + *digit as u8)).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}
