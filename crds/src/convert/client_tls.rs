//! TLS settings of DestinationRules.

use leno_core::credential::AUTHORITIES_SUFFIX;
use leno_core::policy::{Authorities, Certificate, ClientTls, SimpleTls, Trust};
use leno_core::{ObjectKey, Reason};

use super::report::Report;
use crate::istio::destination_rule as istio;

/// What `caCertificates` may say for the authorities that the system trusts, as in Istio.
const SYSTEM: &str = "system";

/// TLS towards a service; `None` when it was refused.
pub(super) fn client_tls(report: &mut Report<'_>, tls: &istio::ClientTlsSettings, field: &str) -> Option<ClientTls> {
    let istio::ClientTlsSettings {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        credential_name,
        subject_alt_names,
        sni,
        insecure_skip_verify,
        ca_crl,
    } = tls;
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let server_name = text(sni);
    if let Some(name) = &server_name {
        report.server_name(name, &format!("{field}.sni"));
    }
    for (index, name) in subject_alt_names.iter().enumerate() {
        let field = format!("{field}.subjectAltNames[{index}]");
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            report.refuse(Reason::InvalidValue, &field, "no certificate carries this name; correct it or take it out");
        } else if *mode == Some(istio::ClientTlsMode::IstioMutual) && !name.starts_with("spiffe://") {
            let message = "workloads of the mesh are known by their identity; write spiffe://<trust domain>/ns/\
                           <namespace>/sa/<service account>";
            report.refuse(Reason::InvalidValue, &field, message);
        }
    }
    let files = [
        ("clientCertificate", client_certificate),
        ("privateKey", private_key),
        ("caCertificates", ca_certificates),
        ("credentialName", credential_name),
        ("caCrl", ca_crl),
    ];
    let given = |name: &str| files.iter().any(|(known, value)| *known == name && text(value).is_some());
    let mut no_effect = |names: &[&str], why: &str| {
        for name in names.iter().filter(|name| given(name)) {
            report.remark(Reason::NoEffect, &format!("{field}.{name}"), why);
        }
    };
    match mode {
        None | Some(istio::ClientTlsMode::Disable) => {
            let all: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            no_effect(&all, "with mode DISABLE no TLS is spoken");
            Some(ClientTls::Off)
        }
        Some(istio::ClientTlsMode::IstioMutual) => {
            let all: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            no_effect(&all, "with ISTIO_MUTUAL the mesh's own certificates are used");
            if *insecure_skip_verify == Some(true) {
                let message = "with ISTIO_MUTUAL servers are always verified";
                report.remark(Reason::NoEffect, &format!("{field}.insecureSkipVerify"), message);
            }
            Some(ClientTls::Mesh { server_name, names: subject_alt_names.clone() })
        }
        Some(mode @ (istio::ClientTlsMode::Simple | istio::ClientTlsMode::Mutual)) => {
            let mutual = *mode == istio::ClientTlsMode::Mutual;
            if !mutual {
                no_effect(&["clientCertificate", "privateKey"], "with SIMPLE the client shows no certificate");
            }
            let secret = text(credential_name);
            if let Some(name) = &secret {
                let all = ["clientCertificate", "privateKey", "caCertificates", "caCrl"];
                no_effect(if mutual { &all } else { &all[2..] }, "all is taken from the Secret of credentialName");
                credential(report, name, &format!("{field}.credentialName"));
            }
            let secret = secret.map(|name| ObjectKey::new(report.namespace(), name));
            let certificate = match (&secret, text(client_certificate), text(private_key)) {
                _ if !mutual => None,
                (Some(secret), ..) => Some(Certificate::Secret(secret.clone())),
                (None, Some(chain), Some(key)) => Some(Certificate::Files { chain, key }),
                (None, chain, _) => {
                    let name = if chain.is_none() { "clientCertificate" } else { "privateKey" };
                    let message = "MUTUAL needs clientCertificate and privateKey, or credentialName";
                    report.refuse(Reason::InvalidValue, &format!("{field}.{name}"), message);
                    return None;
                }
            };
            let given = text(ca_certificates).filter(|file| file != SYSTEM);
            let trust = match secret {
                Some(secret) => Trust { authorities: Authorities::Secret(secret), revoked: None },
                None => {
                    Trust { authorities: given.map_or(Authorities::System, Authorities::File), revoked: text(ca_crl) }
                }
            };
            Some(ClientTls::Simple(SimpleTls {
                server_name,
                names: subject_alt_names.clone(),
                trust,
                certificate,
                unverified: *insecure_skip_verify == Some(true),
            }))
        }
    }
}

/// Whether a Secret can be called so that a `credentialName` names: a DNS subdomain (RFC 1123). The name with `-cacert` is of the one beside it.
pub fn is_secret_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let good = name.bytes().all(fits) && ends(bytes.first()) && ends(bytes.last()) && !name.contains("..");
    good && name.len() + AUTHORITIES_SUFFIX.len() <= 253 && !name.ends_with(AUTHORITIES_SUFFIX)
}

/// The name of a Secret: it is handed to workloads of its own namespace alone, so the object must be for some of them.
fn credential(report: &mut Report<'_>, name: &str, field: &str) {
    if !is_secret_name(name) {
        let message =
            "write the name of a Secret in the namespace of this object; that of authorities alone without -cacert";
        report.refuse(Reason::InvalidValue, field, message);
    } else if !report.selective {
        let message = "a Secret is handed to chosen workloads of its namespace alone; name them in workloadSelector";
        report.refuse(Reason::NotPermitted, field, message);
    }
}
