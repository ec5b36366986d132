//! TLS with a certificate of the client's own, towards a server outside the mesh: the API server, which knows its clients by
//! theirs. The app speaks plain HTTP.

use crate::{
    bed::{Bed, condition_of, ensure},
    lab::{App, LAB},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

/// The Secret, and the DestinationRules that use it.
const SECRET: &str = "api-client";
const BY_SECRET: &str = "api-by-secret";
const BY_FILES: &str = "api-by-files";
/// The workload whose sidecar has the files.
const CERTIFIED: &str = "certified";
const HOST: &str = "kubernetes.default.svc.cluster.local";
/// Only who is known may ask.
const URL: &str = "http://kubernetes.default:443/api/v1/namespaces/lab";
/// A Secret is read every 10 s.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn client_certificates(bed: &Bed) -> Result<()> {
    let result = run(bed);
    for object in [["secret", SECRET], ["destinationrule", BY_SECRET], ["destinationrule", BY_FILES]] {
        bed.kubectl(&["-n", LAB, "delete", object[0], object[1], "--ignore-not-found"])?;
    }
    for kind in ["role", "rolebinding"] {
        bed.kubectl(&["-n", LAB, "delete", kind, &format!("read-{SECRET}"), "--ignore-not-found"])?;
    }
    for kind in ["deployment", "serviceaccount"] {
        bed.kubectl(&["-n", LAB, "delete", kind, CERTIFIED, "--ignore-not-found"])?;
    }
    result
}

fn run(bed: &Bed) -> Result<()> {
    bed.apply(&secret(bed)?.to_string())?;
    let stranger = bed.ask(LAB, "deploy/client", &[URL])?;
    ensure(stranger["status"] == 400, || format!("plain text to the API server: {stranger}"))?;

    bed.apply(&rule(BY_SECRET, "client", json!({"credentialName": SECRET})).to_string())?;
    let said = bed.wait("the status to say how the Secret is granted", LIMIT, || {
        let value = bed.get(&["destinationrule", BY_SECRET, "-n", LAB])?;
        let found = condition_of(&value, "ResolvedRefs").context("there is no status yet")?;
        let message = found["message"].as_str().unwrap_or_default().to_owned();
        ensure(found["status"] == "False" && message.contains("may not read the Secret"), || found.to_string())?;
        Ok(Some(message))
    })?;
    is_unknown(bed, "deploy/client", "without the Secret")?;
    // As it stands in the status, word by word.
    let commands = said.split_once("allow it: ").map(|(_, commands)| commands).context("no command in the status")?;
    let commands = commands.split_once(';').map_or(commands, |(commands, _)| commands);
    for command in commands.split("&&") {
        let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        bed.kubectl(&arguments)?;
    }
    answers(bed, "deploy/client", "with the Secret")?;
    is_unknown(bed, "deploy/solo", "not chosen")?;
    bed.wait("the status to be in order again", LIMIT, || {
        let value = bed.get(&["destinationrule", BY_SECRET, "-n", LAB])?;
        let found = condition_of(&value, "ResolvedRefs").context("there is no status")?;
        ensure(found["status"] == "True", || found.to_string())?;
        Ok(Some(()))
    })?;

    let volume = json!({"api": {"secret": {"secretName": SECRET}}});
    let mount = json!({"api": {"mountPath": "/etc/api", "readOnly": true}});
    let annotations = json!({
        "sidecar.istio.io/userVolume": volume.to_string(), "sidecar.istio.io/userVolumeMount": mount.to_string(),
    });
    App::client(LAB, CERTIFIED).pod_annotations(annotations).deploy(bed)?;
    let files = json!({
        "clientCertificate": "/etc/api/tls.crt", "privateKey": "/etc/api/tls.key", "caCertificates": "/etc/api/ca.crt",
    });
    bed.apply(&rule(BY_FILES, CERTIFIED, files).to_string())?;
    answers(bed, &format!("deploy/{CERTIFIED}"), "with files")
}

/// An answer that refuses, or a connection that ends without any.
fn is_unknown(bed: &Bed, pod: &str, what: &str) -> Result<()> {
    match bed.ask(LAB, pod, &[URL]) {
        Ok(answer) => ensure(answer["status"] != 200, || format!("{pod}, {what}: {answer}")),
        Err(_) => Ok(()),
    }
}

fn answers(bed: &Bed, pod: &str, what: &str) -> Result<()> {
    bed.wait(&format!("the API server to know the sidecar of {pod} {what}"), LIMIT, || {
        let answer = bed.ask(LAB, pod, &[URL])?;
        ensure(answer["status"] == 200 && answer["body"]["metadata"]["name"] == LAB, || answer.to_string())?;
        Ok(Some(()))
    })
}

fn rule(name: &str, app: &str, with: Value) -> Value {
    let mut tls = json!({"mode": "MUTUAL", "sni": "kubernetes.default", "subjectAltNames": ["kubernetes.default"]});
    if let (Some(tls), Some(with)) = (tls.as_object_mut(), with.as_object()) {
        tls.extend(with.clone());
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": name, "namespace": LAB},
        "spec": {
            "host": HOST, "workloadSelector": {"matchLabels": {"app": app}}, "trafficPolicy": {"tls": tls},
        },
    })
}

/// The certificate of whoever runs the tests, and the API server's authority.
fn secret(bed: &Bed) -> Result<Value> {
    let config: Value =
        serde_json::from_str(&bed.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"])?)?;
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}"));
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": SECRET, "namespace": LAB},
        "data": {
            "tls.crt": text("/users/0/user/client-certificate-data")?,
            "tls.key": text("/users/0/user/client-key-data")?,
            "ca.crt": text("/clusters/0/cluster/certificate-authority-data")?,
        },
    }))
}
