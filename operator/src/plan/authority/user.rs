//! The authority that a user provides: read, judged, never changed.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{MeshInstall, USER_SECRET};
use leno_kubeutil::watch::Key;
use leno_runtime::certs::{Authority, certificates_from_pem, describe, spiffe_id};
use leno_runtime::trust::Signing;
use rustls_pki_types::CertificateDer;

use super::held::{Pair, text, to_pem};
use crate::names;
use crate::plan::Observed;

/// What the user provides, checked to be able to sign for this mesh.
///
/// # Errors
///
/// A text that names object, key and remedy.
pub fn provided(observed: &Observed, install: &MeshInstall) -> Result<Pair, String> {
    let namespace = install.spec.system_namespace();
    let secret = observed.issuers.get(&Key::new(namespace, USER_SECRET)).ok_or_else(|| {
        format!(
            "spec.certificates.issuer is Secret, and there is no Secret {namespace}/{USER_SECRET}; create it with the keys tls.crt, tls.key and ca.crt (cert-manager: a Certificate with isCA: true and secretName: {USER_SECRET})"
        )
    })?;
    judge(secret, install, observed.now).map_err(|problem| format!("Secret {namespace}/{USER_SECRET}: {problem}"))
}

fn judge(secret: &Secret, install: &MeshInstall, now: Timestamp) -> Result<Pair, String> {
    let key = |key: &'static str| -> Result<String, String> {
        text(secret, key)?.filter(|text| !text.trim().is_empty()).ok_or_else(|| {
            format!("it has no key {key}; add it (tls.crt: the authority's certificate and what leads to the root, tls.key: its key, ca.crt: the root, all PEM)")
        })
    };
    let (certificate, private) = (key("tls.crt")?, key("tls.key")?);
    let chain = certificates_from_pem(certificate.as_bytes())
        .map_err(|error| format!("its key tls.crt: {error}; write the authority's certificate as PEM"))?;
    let first = chain.first().ok_or_else(|| "its key tls.crt holds no certificate".to_owned())?;
    let info = describe(first)
        .map_err(|error| format!("its key tls.crt: {error}; write the authority's certificate as PEM"))?;
    if !leno_runtime::trust::may_sign(first) {
        return Err("its key tls.crt: the first certificate is no authority's; issue one with isCA: true and the usage `cert sign`".to_owned());
    }
    let time = SystemTime::from(now);
    if info.not_after <= time || info.not_before > time {
        return Err(format!(
            "its key tls.crt: the certificate holds from {} to {}, which is not now; renew it",
            written(info.not_before),
            written(info.not_after),
        ));
    }
    let ca = match text(secret, "ca.crt")?.filter(|text| !text.trim().is_empty()) {
        Some(ca) => certificates_from_pem(ca.as_bytes())
            .map_err(|error| format!("its key ca.crt: {error}; write the root certificate as PEM"))?,
        None if leno_runtime::trust::is_self_signed(first) => vec![first.clone()],
        None => {
            return Err(
                "it has no key ca.crt, and tls.crt is not itself a root; add the root certificate, PEM".to_owned()
            );
        }
    };
    Authority::from_pem(certificate.as_bytes(), private.as_bytes()).map_err(|error| {
        format!("its key tls.key: {error}; write the key of the certificate in tls.crt as PEM (ECDSA P-256 or P-384, or RSA), not encrypted")
    })?;
    let ca_pem = to_pem(&ca);
    let signing = Signing::from_pem(certificate.as_bytes(), private.as_bytes(), ca_pem.as_bytes())
        .map_err(|error| format!("its keys tls.crt and ca.crt: {error}"))?;
    if !signing.owns_its_key() {
        return Err(
            "its key tls.key is not the key of the first certificate in tls.crt; write the two that belong together"
                .to_owned(),
        );
    }
    let identity =
        spiffe_id(install.spec.trust_domain(), install.spec.system_namespace(), names::CONTROL_PLANE_ACCOUNT);
    signing.prove(&identity, &ca, time).map_err(|error| {
        format!("what it signs would not be accepted by proxies that trust ca.crt: {error}; put what leads from tls.crt to a root in ca.crt into tls.crt, after the first certificate")
    })?;
    Ok(Pair { certificate, key: private, ca: ca_pem })
}

/// Whether the user provides what these are.
pub fn is_same(pair: &Pair, chain: &[CertificateDer<'static>], ca: &[CertificateDer<'static>]) -> bool {
    let list = |pem: &str| certificates_from_pem(pem.as_bytes()).unwrap_or_default();
    let roots = list(&pair.ca);
    list(&pair.certificate) == chain && roots.len() == ca.len() && roots.iter().all(|root| ca.contains(root))
}

/// A time, RFC 3339.
pub fn written(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}
