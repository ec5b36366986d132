//! What is said of the mesh's authority. That it is replaced under load is shown by `make test-upgrade`.

use crate::{
    bed::{Bed, condition_of, ensure},
    install::{MESH, SYSTEM},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

/// The mesh's certificates as its status has them.
fn certificates(bed: &Bed) -> Result<Value> {
    Ok(bed.get(&MESH)?["status"]["certificates"].clone())
}

/// A Secret that cannot be used changes nothing but what is said.
pub(super) fn unusable_secret_is_named(bed: &Bed) -> Result<()> {
    let before = certificates(bed)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "leno-issuer", "namespace": SYSTEM},
        "stringData": {"tls.crt": "no certificate", "tls.key": "no key"},
    });
    bed.apply(&secret.to_string())?;
    bed.patch(&MESH, &json!({"spec": {"certificates": {"issuer": "Secret"}}}))?;
    let told = bed.wait("CertificatesCurrent to name the Secret", Duration::from_secs(20), || {
        let mesh = bed.get(&MESH)?;
        let condition = condition_of(&mesh, "CertificatesCurrent").context("no such condition")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure(
            condition["status"] == "False"
                && condition["reason"] == "UserSecretUnusable"
                && message.contains(&format!("{SYSTEM}/leno-issuer"))
                && message.contains("tls.crt"),
            || condition.to_string(),
        )?;
        Ok(Some(()))
    });
    bed.patch(&MESH, &json!({"spec": {"certificates": null}}))?;
    bed.kubectl(&["-n", SYSTEM, "delete", "secret", "leno-issuer"])?;
    told?;
    let after = certificates(bed)?;
    ensure(after["rootsSha256"] == before["rootsSha256"], || format!("the authority changed: {before}, {after}"))?;
    bed.wait_condition(&MESH, "CertificatesCurrent", Duration::from_secs(20)).map(drop)
}
