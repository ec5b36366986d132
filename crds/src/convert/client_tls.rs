//! TLS settings of DestinationRules.

use leno_core::Reason;
use leno_core::policy::{ClientTls, SimpleTls};

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
        Some(istio::ClientTlsMode::Simple) => {
            no_effect(&["clientCertificate", "privateKey"], "with SIMPLE the client shows no certificate");
            if given("credentialName") {
                let message = "Secrets are not handed to sidecars; leave it out for the authorities that the system \
                               trusts, or name a file of the proxy's container in caCertificates";
                report.refuse(Reason::NotPermitted, &format!("{field}.credentialName"), message);
                return None;
            }
            Some(ClientTls::Simple(SimpleTls {
                server_name,
                names: subject_alt_names.clone(),
                authorities: text(ca_certificates).filter(|file| file != SYSTEM),
                revoked: text(ca_crl),
                unverified: *insecure_skip_verify == Some(true),
            }))
        }
        Some(istio::ClientTlsMode::Mutual) => {
            // A key in a file, or in a Secret that every sidecar were handed, is what the mesh's identities replace.
            let (name, message) = if given("credentialName") {
                ("credentialName", "Secrets are not handed to sidecars; use ISTIO_MUTUAL, or SIMPLE")
            } else {
                ("privateKey", "keys are not read from files in sidecars; use ISTIO_MUTUAL, or SIMPLE")
            };
            report.refuse(Reason::NotPermitted, &format!("{field}.{name}"), message);
            None
        }
    }
}
