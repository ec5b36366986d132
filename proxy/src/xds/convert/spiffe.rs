//! Envoy's SPIFFE validator: which roots count is told by the trust domain in a certificate's SPIFFE ID.

use super::common::optional;
use super::secret::data;
use super::{Converted, Refused, Within as _, refuse, refuse_set};
use crate::tls::facts::Hasher;
use crate::tls::material::Roots;
use base64::Engine as _;
use leno_xds::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    SpiffeCertValidatorConfig, spiffe_cert_validator_config::TrustDomain,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Trust domains at most.
const MOST: usize = 1024;

/// A SPIFFE trust bundle map, as far as it is about X.509.
#[derive(Deserialize)]
struct BundleMap {
    trust_domains: BTreeMap<Box<str>, Bundle>,
}

/// A SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4).
#[derive(Deserialize)]
struct Bundle {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default, rename = "use")]
    purpose: String,
    #[serde(default)]
    x5c: Vec<String>,
}

/// The roots of each trust domain.
///
/// # Errors
/// Names the field.
pub(super) fn trust_domains(value: TypedExtensionConfig, hash: &mut Hasher) -> Converted<BTreeMap<Box<str>, Roots>> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    let Some(config) = optional::<SpiffeCertValidatorConfig>(&any).within("typed_config")? else {
        return Err(Refused::new("name", format!("`{name}` is not supported by this proxy; the SPIFFE validator is")));
    };
    let SpiffeCertValidatorConfig { trust_domains, trust_bundles } = config;
    let mut all = BTreeMap::new();
    if let Some(source) = trust_bundles {
        refuse_set(&source.watched_directory, "typed_config.trust_bundles.watched_directory")?;
        let text = data(Some(source), hash).within("typed_config.trust_bundles")?.unwrap_or_default();
        all = bundles(&text).map_err(|reason| Refused::new("typed_config.trust_bundles", reason))?;
    } else {
        for (index, value) in trust_domains.into_iter().enumerate() {
            let within = format!("typed_config.trust_domains[{index}]");
            let (name, roots) = domain(value, hash).within(&within)?;
            if all.insert(name.clone(), roots).is_some() {
                return Err(Refused::new("name", format!("`{name}` is there twice")).within(within));
            }
        }
    }
    match all.len() {
        1..=MOST => Ok(all),
        0 => Err(Refused::new("typed_config.trust_domains", "are missing")),
        _ => Err(Refused::new("typed_config.trust_domains", format!("are more than {MOST}"))),
    }
}

fn domain(value: TrustDomain, hash: &mut Hasher) -> Converted<(Box<str>, Roots)> {
    let TrustDomain { name, trust_bundle, workload_trust_domain } = value;
    refuse!(workload_trust_domain);
    refuse_set(
        &trust_bundle.as_ref().and_then(|source| source.watched_directory.as_ref()),
        "trust_bundle.watched_directory",
    )?;
    let pem = data(trust_bundle, hash).within("trust_bundle")?;
    let pem = pem.ok_or_else(|| Refused::new("trust_bundle", "is missing"))?;
    if CertificateRevocationListDer::pem_slice_iter(&pem).next().is_some() {
        return Err(Refused::new("trust_bundle", "holds a revocation list, which is not looked at here; take it out"));
    }
    let roots = Roots::from_pem(&pem).map_err(|reason| Refused::new("trust_bundle", reason))?;
    Ok((name.into(), roots))
}

/// The files that name its roots.
pub(crate) fn sources(value: Option<TypedExtensionConfig>) -> Vec<DataSource> {
    let config = value.and_then(|value| value.typed_config);
    let config = config.and_then(|any| optional::<SpiffeCertValidatorConfig>(&any).ok().flatten());
    let Some(SpiffeCertValidatorConfig { trust_domains, trust_bundles }) = config else { return Vec::new() };
    let of_domains = trust_domains.into_iter().filter_map(|domain| domain.trust_bundle);
    trust_bundles.into_iter().chain(of_domains).collect()
}

/// The roots of a bundle map; in words, why there are none.
fn bundles(text: &[u8]) -> Result<BTreeMap<Box<str>, Roots>, String> {
    let map: BundleMap = serde_json::from_slice(text).map_err(|error| format!("is no SPIFFE bundle map: {error}"))?;
    let roots = |(name, bundle): (Box<str>, Bundle)| {
        let of = |reason: String| format!("trust domain `{name}`: {reason}");
        let mut certificates = Vec::new();
        for text in bundle.keys.iter().filter(|key| key.purpose == "x509-svid").flat_map(|key| &key.x5c) {
            let der = base64::engine::general_purpose::STANDARD.decode(text);
            certificates.push(CertificateDer::from(der.map_err(|error| of(format!("`x5c` is no Base64: {error}")))?));
        }
        let roots = Roots::new(certificates).map_err(of)?;
        Ok((name, roots))
    };
    map.trust_domains.into_iter().map(roots).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::own_tests::Ca;
    use serde_json::json;

    fn read(config: serde_json::Value) -> Converted<BTreeMap<Box<str>, Roots>> {
        let mut config = config;
        config["@type"] =
            json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig");
        let value = json!({"name": "envoy.tls.cert_validator.spiffe", "typed_config": config});
        trust_domains(leno_xds::json::from_value(&value).unwrap(), &mut Hasher::default())
    }

    #[test]
    fn validator_when_it_names_domains_or_a_bundle_map_then_has_roots_of_each() {
        let pem = Ca::new("ca").pem();
        let one = read(json!({"trust_domains": [{"name": "a.example", "trust_bundle": {"inline_string": pem}}]}));
        assert_eq!(one.unwrap().keys().map(|name| &**name).collect::<Vec<_>>(), ["a.example"]);
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let key = |purpose: &str| json!({"kty": "EC", "use": purpose, "x5c": [body]});
        let bundle = json!({"trust_domains": {
            "a.example": {"spiffe_sequence": 1, "keys": [key("x509-svid"), {"kty": "EC", "use": "jwt-svid", "kid": "1"}]},
            "b.example": {"keys": [key("x509-svid")]},
        }});
        let map = read(json!({"trust_bundles": {"inline_string": bundle.to_string()}})).unwrap();
        assert_eq!(map.values().map(|roots| roots.certificates.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn validator_when_it_would_trust_nobody_is_refused_by_its_path() {
        for (config, field) in [
            (json!({}), "typed_config.trust_domains"),
            (json!({"trust_domains": [{"name": "a"}]}), "typed_config.trust_domains[0].trust_bundle"),
            (
                json!({"trust_domains": [{"name": "a", "trust_bundle": {"inline_string": "x"}}]}),
                "typed_config.trust_domains[0].trust_bundle",
            ),
            (json!({"trust_bundles": {"inline_string": "{}"}}), "typed_config.trust_bundles"),
            (
                json!({"trust_bundles": {"inline_string": "{\"trust_domains\": {\"a\": {\"keys\": []}}}"}}),
                "typed_config.trust_bundles",
            ),
        ] {
            assert_eq!(read(config).unwrap_err().field, field);
        }
    }
}
