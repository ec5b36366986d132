//! The Secret with the mesh's authority: what is in it, and how it changes.
//!
//! | key | holds |
//! |---|---|
//! | `tls.crt`, `tls.key`, `ca.crt` | what signs: the certificate with what leads to a root, its key, its roots |
//! | `roots.pem` | every root that is trusted: those of `ca.crt` and, in a rotation, others |
//! | `next.crt`, `next.key`, `next-ca.crt` | what will sign, once everybody trusts it |
//! | `previous.crt`, `previous.key` | what signed before, until nobody shows a certificate of it |
//!
//! The step of a rotation is what is there and nothing else, and each change is one write under the resource version that was
//! read: whoever is killed between two of them is followed by one who sees where it stopped.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use leno_crds::meshinstall::{IssuerType, MeshInstall, ROTATE_ROOT};
use leno_kubeutil::apply::{ApplyError, Desired};
use leno_runtime::certs::{certificate_to_pem, certificates_from_pem};
use leno_runtime::trust::{Fingerprint, intermediates, signer_fingerprint};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::names;

/// The annotation that says where what signs comes from.
const ISSUER: &str = "mesh.leno.dev/issuer";
/// The annotation that says where what will sign comes from.
const NEXT_ISSUER: &str = "mesh.leno.dev/next-issuer";
/// The annotation that says when the present step of a rotation began.
const SINCE: &str = "mesh.leno.dev/rotation-since";

/// Certificates, DER.
pub type Certificates = Vec<CertificateDer<'static>>;

/// A signing pair with its roots, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, followed by what leads to a root.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Its roots.
    pub ca: String,
}

/// The Secret, read. The keys stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What signs: the certificate, followed by what leads to a root.
    pub chain: Certificates,
    /// Its roots.
    pub ca: Certificates,
    /// Every root that is trusted.
    pub roots: Certificates,
    /// What will sign, with its roots.
    pub next: Option<(Certificates, Certificates)>,
    /// Whether what signed before is still kept.
    pub previous: bool,
    /// Where what signs comes from.
    pub issuer: IssuerType,
    /// Where what will sign comes from.
    pub next_issuer: IssuerType,
    /// The value of the annotation `mesh.leno.dev/rotate-root` that was obeyed last.
    pub rotate_root: Option<String>,
    /// When the present step of a rotation began.
    pub since: Option<Timestamp>,
}

impl Held {
    /// Reads the Secret.
    ///
    /// # Errors
    ///
    /// A text that names the key and what to do about it. What is wrong is never replaced: every identity hangs on it.
    pub fn read(secret: &Secret) -> Result<Self, String> {
        for key in ["tls.crt", "tls.key", names::ROOTS_KEY] {
            if text(secret, key)?.is_none() {
                return Err(format!(
                    "it has no key {key}; add it (tls.crt and tls.key are the signing pair, roots.pem all trusted roots, PEM), or delete the Secret and a new authority is made"
                ));
            }
        }
        let list = |key: &str| match text(secret, key)? {
            None => Ok(None),
            Some(pem) => certificates_from_pem(pem.as_bytes()).map(Some).map_err(|error| {
                format!(
                    "its key {key}: {error}; put back what was there, or delete the Secret and a new authority is made"
                )
            }),
        };
        let roots = list(names::ROOTS_KEY)?.unwrap_or_default();
        let annotation = |key: &str| secret.annotations().get(key).map(String::as_str);
        let issuer = |key: &str| match annotation(key) {
            Some("Secret") => IssuerType::Secret,
            _ => IssuerType::SelfSigned,
        };
        let next = match (list("next.crt")?, list("next-ca.crt")?, text(secret, "next.key")?) {
            (Some(chain), Some(ca), Some(_)) => Some((chain, ca)),
            _ => None,
        };
        let held = Held {
            chain: list("tls.crt")?.unwrap_or_default(),
            ca: list("ca.crt")?.unwrap_or_else(|| roots.clone()),
            roots,
            next,
            previous: text(secret, "previous.crt")?.is_some(),
            issuer: issuer(ISSUER),
            next_issuer: issuer(NEXT_ISSUER),
            rotate_root: annotation(ROTATE_ROOT).map(str::to_owned),
            since: annotation(SINCE).and_then(|text| text.parse().ok()),
        };
        held.signer().map_err(|error| {
            format!(
                "its key tls.crt: {error}; put back what was there, or delete the Secret and a new authority is made"
            )
        })?;
        Ok(held)
    }

    /// The fingerprint of what signs.
    ///
    /// # Errors
    ///
    /// When the certificate does not parse.
    pub fn signer(&self) -> Result<Fingerprint, String> {
        let authority = self.chain.first().ok_or_else(|| "it holds no certificate".to_owned())?;
        let pem = to_pem(&self.chain);
        intermediates(pem.as_bytes(), &self.roots)
            .and_then(|intermediates| signer_fingerprint(authority, &intermediates))
            .map_err(|error| error.to_string())
    }

    /// Whether roots are trusted that are not of what signs.
    pub fn trusts_others(&self) -> bool {
        self.roots.iter().any(|root| !self.ca.contains(root)) || self.ca.iter().any(|root| !self.roots.contains(root))
    }
}

/// A change of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Put in what will sign, and trust its roots beside those that are trusted.
    Prepare {
        /// Where it comes from.
        issuer: IssuerType,
        /// Why, for the log.
        why: &'static str,
    },
    /// Take out what was to sign, before it ever did.
    Abandon,
    /// Sign with what was prepared.
    Switch,
    /// Trust only the roots of what signs.
    Retire,
}

/// The Secret of a new authority. `also_trust` are roots (PEM) that are in use already.
///
/// # Errors
///
/// [`ApplyError::Malformed`], which is a mistake here.
pub fn create(
    install: &MeshInstall,
    name: &str,
    issuer: IssuerType,
    pair: &Pair,
    also_trust: &str,
    now: Timestamp,
) -> Result<Desired, ApplyError> {
    let mut annotations = json!({ ISSUER: issuer.as_str() });
    if let Some(value) = asked(install) {
        annotations[ROTATE_ROOT] = json!(value);
    }
    if !also_trust.is_empty() {
        annotations[SINCE] = json!(seconds(now));
    }
    let roots = format!("{}{also_trust}", pair.ca);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": names::CA_SECRET,
            "namespace": install.spec.system_namespace(),
            "labels": names::labels(name, names::CONTROL_PLANE),
            "annotations": annotations,
            "ownerReferences": [names::owner(install)],
        },
        "data": {
            "tls.crt": encode(&pair.certificate),
            "tls.key": encode(&pair.key),
            "ca.crt": encode(&pair.ca),
            names::ROOTS_KEY: encode(&roots),
        },
    });
    Desired::new(&object, "secrets")
}

/// The merge patch of a change; it fits no Secret but the one that was read. `pair` is what will sign, for
/// [`Change::Prepare`].
///
/// # Errors
///
/// What [`Held::read`] says, or that there is nothing to change.
pub fn patch(
    secret: &Secret,
    install: &MeshInstall,
    change: &Change,
    pair: Option<&Pair>,
    now: Timestamp,
) -> Result<Value, String> {
    let held = Held::read(secret)?;
    let raw = |key: &str| text(secret, key).map(|found| found.map(|text| json!(encode(&text))).unwrap_or(Value::Null));
    let (mut data, mut annotations) = (json!({}), json!({}));
    let trusted_without_next = || {
        let others = held.next.iter().flat_map(|(_, ca)| ca).filter(|root| !held.ca.contains(root));
        let others: Vec<_> = others.collect();
        held.roots.iter().filter(|root| !others.contains(root)).cloned().collect::<Certificates>()
    };
    match change {
        Change::Prepare { issuer, why: _ } => {
            let pair = pair.ok_or_else(|| "there is nothing to prepare".to_owned())?;
            let mut roots = trusted_without_next();
            for root in certificates_from_pem(pair.ca.as_bytes()).map_err(|error| error.to_string())? {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
            data["next.crt"] = json!(encode(&pair.certificate));
            data["next.key"] = json!(encode(&pair.key));
            data["next-ca.crt"] = json!(encode(&pair.ca));
            data["ca.crt"] = json!(encode(&to_pem(&held.ca)));
            data[names::ROOTS_KEY] = json!(encode(&to_pem(&roots)));
            annotations = json!({
                ISSUER: held.issuer.as_str(), NEXT_ISSUER: issuer.as_str(), SINCE: seconds(now),
                ROTATE_ROOT: asked(install).or(held.rotate_root.as_deref()),
            });
        }
        Change::Abandon => {
            for key in ["next.crt", "next.key", "next-ca.crt"] {
                data[key] = Value::Null;
            }
            data[names::ROOTS_KEY] = json!(encode(&to_pem(&trusted_without_next())));
            annotations = json!({ NEXT_ISSUER: null, SINCE: null });
        }
        Change::Switch => {
            let (next, _) = held.next.as_ref().ok_or_else(|| "nothing was prepared".to_owned())?;
            if next.is_empty() {
                return Err("nothing was prepared".to_owned());
            }
            for (to, from) in [
                ("previous.crt", "tls.crt"),
                ("previous.key", "tls.key"),
                ("tls.crt", "next.crt"),
                ("tls.key", "next.key"),
                ("ca.crt", "next-ca.crt"),
            ] {
                data[to] = raw(from)?;
            }
            for key in ["next.crt", "next.key", "next-ca.crt"] {
                data[key] = Value::Null;
            }
            annotations = json!({ ISSUER: held.next_issuer.as_str(), NEXT_ISSUER: null, SINCE: seconds(now) });
        }
        Change::Retire => {
            data["previous.crt"] = Value::Null;
            data["previous.key"] = Value::Null;
            data[names::ROOTS_KEY] = json!(encode(&to_pem(&held.ca)));
            annotations[SINCE] = Value::Null;
        }
    }
    Ok(json!({
        "metadata": { "resourceVersion": secret.resource_version(), "uid": secret.uid(), "annotations": annotations },
        "data": data,
    }))
}

/// The value of the annotation that has the authority replaced.
pub fn asked(install: &MeshInstall) -> Option<&str> {
    install.annotations().get(ROTATE_ROOT).map(String::as_str).filter(|value| !value.is_empty())
}

/// A key of a Secret.
///
/// # Errors
///
/// When it is no text.
pub fn text(secret: &Secret, key: &str) -> Result<Option<String>, String> {
    let Some(data) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
    String::from_utf8(data.0.clone()).map(Some).map_err(|_| format!("its key {key} is no text; write PEM"))
}

/// PEM texts, one after the other.
pub fn to_pem(certificates: &[CertificateDer<'static>]) -> String {
    certificates.iter().map(|certificate| certificate_to_pem(certificate)).collect()
}

fn encode(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

/// The time to the second, RFC 3339.
fn seconds(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
