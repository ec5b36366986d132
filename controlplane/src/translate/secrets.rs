//! Certificates and trust of TLS towards servers outside the mesh: named by clusters, sent on their own (SDS), so that they
//! change without a new connection.
//!
//! Files are only named: proxies read them in their own container, and again when their folder changes. What Secrets hold is
//! sent to proxies of the Secret's namespace alone. Names are Istio's.

use std::path::Path;

use leno_core::ObjectKey;
use leno_core::credential::{AUTHORITIES_SUFFIX, Credential, Credentials};
use leno_core::policy::{Authorities, Certificate, SimpleTls, Trust};
use leno_xds::envoy::config::core::v3::{ConfigSource, DataSource, WatchedDirectory, data_source::Specifier};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};

use super::values::ads;

/// How long a cluster waits for its secrets before it is there without.
const PATIENCE: prost_types::Duration = prost_types::Duration { seconds: 2, nanos: 0 };

/// The secrets that these settings name, as far as they can be had.
pub(super) fn of(settings: &SimpleTls, credentials: &Credentials) -> Vec<Secret> {
    let SimpleTls { trust, certificate, unverified, .. } = settings;
    let mut secrets = Vec::new();
    let mut add = |name: String, value: Option<secret::Type>| {
        secrets.extend(value.map(|value| Secret { name, r#type: Some(value) }));
    };
    let held = |secret: &ObjectKey| credentials.get(secret).and_then(|held| held.as_deref().ok());
    if let Some(certificate) = certificate {
        let value = match certificate {
            Certificate::Files { chain, key } => Some(pair(file(chain), file(key), folder_of(&[chain, key]))),
            Certificate::Secret(secret) => held(secret)
                .filter(|held| !held.chain.is_empty() && !held.key.is_empty())
                .map(|Credential { chain, key, .. }| pair(inline(chain), inline(key), None)),
        };
        add(of_certificate(certificate), value);
    }
    if let Some(name) = of_trust(trust).filter(|_| !unverified) {
        let value = match &trust.authorities {
            Authorities::System => None,
            Authorities::File(path) => {
                let files: Vec<&str> = std::iter::once(path.as_str()).chain(trust.revoked.as_deref()).collect();
                Some(trusted(file(path), trust.revoked.as_deref().map(file), folder_of(&files)))
            }
            Authorities::Secret(secret) => held(secret).filter(|held| !held.authorities.is_empty()).map(|held| {
                let revoked = (!held.revoked.is_empty()).then(|| inline(&held.revoked));
                trusted(inline(&held.authorities), revoked, None)
            }),
        };
        add(name, value);
    }
    secrets
}

/// The name of the secret with a certificate.
pub(super) fn of_certificate(certificate: &Certificate) -> String {
    match certificate {
        Certificate::Files { chain, key } => format!("file-cert:{chain}~{key}"),
        Certificate::Secret(secret) => format!("kubernetes://{secret}"),
    }
}

/// The name of the secret with authorities; `None` for those of the system.
pub(super) fn of_trust(trust: &Trust) -> Option<String> {
    Some(match (&trust.authorities, &trust.revoked) {
        (Authorities::System, _) => return None,
        (Authorities::File(path), None) => format!("file-root:{path}"),
        (Authorities::File(path), Some(revoked)) => format!("file-root:{path}~{revoked}"),
        (Authorities::Secret(secret), _) => format!("kubernetes://{secret}{AUTHORITIES_SUFFIX}"),
    })
}

/// How a proxy gets a secret: from us.
pub(super) fn config(name: String) -> SdsSecretConfig {
    let source = ConfigSource { initial_fetch_timeout: Some(PATIENCE), ..ads() };
    SdsSecretConfig { name, sds_config: Some(source) }
}

/// A file in the proxy's container.
pub(super) fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..Default::default() }
}

fn inline(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..Default::default() }
}

/// The folder that changes when one of these files does: Kubernetes swaps a link in it. `None` where there are several: Envoy
/// watches one, and each file by itself where it is told none.
fn folder_of(paths: &[&str]) -> Option<WatchedDirectory> {
    let folder = Path::new(paths.first()?).parent()?;
    let shared = paths.iter().all(|path| Path::new(path).parent() == Some(folder));
    let folder = folder.to_str().filter(|folder| shared && !folder.is_empty())?;
    Some(WatchedDirectory { path: folder.to_owned(), ..Default::default() })
}

fn pair(chain: DataSource, key: DataSource, watched: Option<WatchedDirectory>) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(chain),
        private_key: Some(key),
        watched_directory: watched,
        ..Default::default()
    })
}

fn trusted(authorities: DataSource, revoked: Option<DataSource>, watched: Option<WatchedDirectory>) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(authorities),
        crl: revoked,
        watched_directory: watched,
        ..Default::default()
    })
}
