//! Who may talk to whom, and what goes over the wire.

use crate::{
    bed::{Bed, ensure},
    install::{MESH, SYSTEM},
    lab::{App, LAB, OUTSIDE},
    metrics::sum,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: &str = "deploy/client";

fn requests_by_policy(bed: &Bed, policy: &str) -> Result<f64> {
    let labels = [("reporter", "destination"), ("connection_security_policy", policy), ("response_code", "200")];
    Ok(sum(&bed.proxy_metrics(LAB, "deploy/solo")?, "istio_requests_total", &labels))
}

pub(super) fn mutual_tls_by_default(bed: &Bed) -> Result<()> {
    for (namespace, url, policy) in [(LAB, "http://solo/", "mutual_tls"), (OUTSIDE, "http://solo.lab/", "none")] {
        let before = requests_by_policy(bed, policy)?;
        let counted = bed.client(namespace, CLIENT, &[url, "--requests", "30"])?;
        ensure(counted.failed == 0, || format!("from {namespace}: {} failed: {:?}", counted.failed, counted.errors))?;
        bed.wait(&format!("30 requests from {namespace} with policy {policy}"), Duration::from_secs(5), || {
            let now = requests_by_policy(bed, policy)?;
            ensure(now - before >= 30.0, || format!("{before} before, {now} now"))?;
            Ok(Some(()))
        })?;
    }
    // The app knows who asks, and nobody can say so for himself.
    let forged = ["-H", "x-forwarded-client-cert=URI=spiffe://cluster.local/ns/lab/sa/king"];
    for (namespace, url) in [(LAB, "http://solo/"), (OUTSIDE, "http://solo.lab/")] {
        let answer = bed.ask(namespace, CLIENT, &[&[url][..], &forged].concat())?;
        let told = answer["body"]["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
        let from_lab = told.contains("URI=spiffe://cluster.local/ns/lab/sa/client") && told.contains("By=spiffe://");
        ensure(!told.contains("king") && from_lab == (namespace == LAB), || format!("from {namespace}: {told:?}"))?;
    }
    Ok(())
}

/// Sets the mode, and sets it back whatever happens.
pub(super) struct Strict<'a>(&'a Bed);

impl Strict<'_> {
    pub(super) fn on(bed: &Bed) -> Result<Strict<'_>> {
        bed.patch(&MESH, &json!({"spec": {"mesh": {"mtls": "Strict"}}}))?;
        Ok(Strict(bed))
    }
}

impl Drop for Strict<'_> {
    fn drop(&mut self) {
        self.0.patch(&MESH, &json!({"spec": {"mesh": {"mtls": "Permissive"}}})).ok();
    }
}

pub(super) fn strict_refuses_plain_text(bed: &Bed) -> Result<()> {
    let restarts = restarts(bed)?;
    let mesh_pods = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "10", "--rate", "50"])?;
    let strict = Strict::on(bed)?;
    let plain =
        |url: &str| bed.ask(OUTSIDE, CLIENT, &[url, "--patience", "3"]).is_ok_and(|answer| answer["status"] == 200);
    for url in ["http://solo.lab/", "http://solo.lab:8081/"] {
        bed.wait(&format!("{url} to refuse plain text"), Duration::from_secs(10), || Ok((!plain(url)).then_some(())))?;
    }
    bed.stays("strict", Duration::from_secs(2), || ensure(!plain("http://solo.lab/"), || "plain text passed".into()))?;
    let tcp = bed.client(OUTSIDE, CLIENT, &["tcp://stock.lab:9000", "--protocol", "tcp", "--requests", "3"])?;
    ensure(tcp.failed == tcp.requests, || {
        format!("plain TCP passed: {} of {}", tcp.requests - tcp.failed, tcp.requests)
    })?;
    let counted = mesh_pods.finish()?;
    ensure(counted.failed == 0, || {
        format!("inside the mesh {} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
    })?;
    // Probes of the kubelet are plain text; they must keep passing.
    for pod in bed.pods(LAB, "app=echo")? {
        let ready = crate::bed::condition_of(&pod, "Ready").is_some_and(|ready| ready["status"] == "True");
        ensure(ready, || format!("{} is not ready under strict mutual TLS", pod["metadata"]["name"]))?;
    }
    ensure(self::restarts(bed)? == restarts, || "containers restarted under strict mutual TLS".into())?;
    drop(strict);
    bed.wait("plain text to be accepted again", Duration::from_secs(10), || Ok(plain("http://solo.lab/").then_some(())))
}

fn restarts(bed: &Bed) -> Result<i64> {
    let pods = bed.pods(LAB, "app")?;
    Ok(pods
        .iter()
        .flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten())
        .filter_map(|status| status["restartCount"].as_i64())
        .sum())
}

pub(super) fn impostor_is_refused(bed: &Bed) -> Result<()> {
    // The endpoint says that it is the pod `honest`, and leads to the pod `impostor`, which has another service account.
    let (honest, impostor) = (App::echo(LAB, "honest"), App::echo(LAB, "impostor"));
    honest.apply(bed)?;
    impostor.apply(bed)?;
    honest.wait(bed)?;
    impostor.wait(bed)?;
    let target = bed.pod(LAB, "app=honest")?;
    let result = [("app=honest", true), ("app=impostor", false)].into_iter().try_for_each(|(selector, trusted)| {
        let address = bed.pod(LAB, selector)?["status"]["podIP"].clone();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "vault", "namespace": LAB},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "vault-1", "namespace": LAB, "labels": {"kubernetes.io/service-name": "vault"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [address], "conditions": {"ready": true}, "nodeName": target["spec"]["nodeName"],
                "targetRef": {"kind": "Pod", "namespace": LAB, "name": target["metadata"]["name"], "uid": target["metadata"]["uid"]},
            }],
        });
        bed.apply(&service.to_string())?;
        bed.apply(&slice.to_string())?;
        let name = target["metadata"]["name"].as_str().context("no name")?;
        if trusted {
            return bed.wait("the honest pod to answer", Duration::from_secs(10), || {
                let answer = bed.ask(LAB, CLIENT, &["http://vault/"])?;
                ensure(answer["status"] == 200 && answer["body"]["pod"] == name, || answer.to_string())?;
                Ok(Some(()))
            });
        }
        bed.wait("the impostor to be refused", Duration::from_secs(10), || {
            let answer = bed.ask(LAB, CLIENT, &["http://vault/"])?;
            ensure(answer["status"] == 503, || answer.to_string())?;
            Ok(Some(()))
        })?;
        let counted = bed.client(LAB, CLIENT, &["http://vault/", "--requests", "50"])?;
        ensure(counted.failed == 50, || format!("the impostor answered: {:?}", counted.statuses))
    });
    bed.kubectl(&["-n", LAB, "delete", "service/vault", "endpointslice/vault-1", "--ignore-not-found"])?;
    honest.remove(bed)?;
    impostor.remove(bed)?;
    result
}

pub(super) fn rbac_of_the_control_plane_has_no_write(bed: &Bed) -> Result<()> {
    let account = format!("system:serviceaccount:{}:leno-control-plane", SYSTEM);
    let may = |verb: &str, resource: &str| {
        let output =
            bed.command("kubectl")?.args(["auth", "can-i", verb, resource, "-A", "--as", &account]).output()?;
        Ok::<bool, anyhow::Error>(output.status.success())
    };
    for resource in [
        "pods",
        "services",
        "endpointslices.discovery.k8s.io",
        "virtualservices.networking.istio.io",
        "meshinstalls.mesh.leno.dev",
    ] {
        ensure(may("watch", resource)?, || format!("the control plane cannot watch {resource}"))?;
    }
    for verb in ["create", "update", "patch", "delete", "deletecollection"] {
        for resource in [
            "pods",
            "configmaps",
            "secrets",
            "services",
            "events",
            "leases.coordination.k8s.io",
            "virtualservices.networking.istio.io",
            "virtualservices/status.networking.istio.io",
            "meshinstalls/status.mesh.leno.dev",
        ] {
            ensure(!may(verb, resource)?, || format!("the control plane may {verb} {resource}"))?;
        }
    }
    ensure(may("create", "tokenreviews.authentication.k8s.io")?, || "the control plane cannot review tokens".into())?;
    ensure(!may("get", "secrets")?, || "the control plane may read all secrets".into())
}

pub(super) fn operator_is_held_to_what_it_needs(bed: &Bed) -> Result<()> {
    // kubectl reads what it patches; the operator itself may not, so that it is lent the right for as long.
    const LENT: [&str; 2] = ["clusterrolebinding", "leno-operator-lent-view"];
    let subject = format!("--serviceaccount={}:leno-operator", SYSTEM);
    bed.kubectl(&["create", LENT[0], LENT[1], "--clusterrole=view", &subject])?;
    let result = what_the_operator_may(bed);
    bed.kubectl(&["delete", LENT[0], LENT[1]])?;
    result
}

fn what_the_operator_may(bed: &Bed) -> Result<()> {
    let account = format!("system:serviceaccount:{}:leno-operator", SYSTEM);
    let pod = bed.pod(LAB, "app=echo")?;
    let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
    let outside = bed.pod(OUTSIDE, "app=client")?;
    let outside = outside["metadata"]["name"].as_str().context("no name")?.to_owned();
    let image = |container: &str| {
        let containers = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned());
        let mut all = containers.into_iter().flatten().flatten();
        all.find(|one| one["name"] == container).and_then(|one| one["image"].as_str().map(str::to_owned))
    };
    let hub = image("leno-proxy-0").context("no sidecar")?;
    let (hub, _) = hub.rsplit_once(":").context("the image has no version")?;
    let app = pod["spec"]["containers"][0]["name"].as_str().context("no app")?;
    let attempt = |object: &[&str], patch: &Value| {
        let patch = patch.to_string();
        let mut all = vec!["patch", "--as", &account, "--dry-run=server", "--type=strategic", "-p", &patch];
        all.extend(object);
        bed.kubectl(&all)
    };
    let own = ["-n", LAB, "pod", &name];
    let set = |list: &str, container: &str, image: &str| json!({"spec": {list: [{"name": container, "image": image}]}});
    let note = |kind: &str, key: &str| json!({"metadata": {kind: {key: "1"}}});
    let allowed = [
        set("initContainers", "leno-proxy-1", &format!("{hub}:0.9.9")),
        note("annotations", "mesh.leno.dev/serve-slot"),
        note("labels", "mesh.leno.dev/upgrade"),
    ];
    for patch in &allowed {
        attempt(&own, patch).with_context(|| format!("the operator needs {patch}"))?;
    }
    let restart = |key: &str| json!({"spec": {"template": {"metadata": {"annotations": {key: "0.9.9"}}}}});
    attempt(&["-n", LAB, "deployment", "echo"], &restart("mesh.leno.dev/restarted-for"))?;
    let refused: [(&[&str], Value); 11] = [
        (&own, set("containers", app, "elsewhere.invalid/app:1")),
        (&own, set("initContainers", "leno-capture", &format!("{hub}:0.9.9"))),
        (&own, set("initContainers", "leno-proxy-1", "elsewhere.invalid/leno/proxy:0.9.9")),
        (&own, note("annotations", "example.com/mine")),
        (&own, note("labels", "app")),
        (&own, json!({"metadata": {"finalizers": ["example.com/held"]}})),
        (&["-n", OUTSIDE, "pod", &outside], note("annotations", "mesh.leno.dev/serve-slot")),
        (&["-n", LAB, "deployment", "echo"], json!({"spec": {"replicas": 0}})),
        (&["-n", LAB, "deployment", "echo"], json!({"spec": {"paused": true}})),
        (&["-n", LAB, "deployment", "echo"], json!({"metadata": {"finalizers": ["example.com/held"]}})),
        (&["-n", LAB, "deployment", "echo"], restart("example.com/mine")),
    ];
    for (object, patch) in refused {
        let said = match attempt(object, &patch) {
            Ok(_) => "nothing: it was let through".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        ensure(said.contains("the operator may"), || format!("{} {patch}: it said {said}", object.join(" ")))?;
    }
    for (kind, name) in [("configmap", "other"), ("secret", "other")] {
        let object = json!({"apiVersion": "v1", "kind": kind_of(kind), "metadata": {"name": name, "namespace": LAB}});
        let all = ["create", "--as", &account, "--dry-run=server", "-f", "-"];
        let said = bed.kubectl_with(&all, &object.to_string()).unwrap_or_else(|error| format!("{error:#}"));
        ensure(said.contains("the operator may create"), || format!("{kind} {name}: it said {said}"))?;
    }
    Ok(())
}

fn kind_of(resource: &str) -> &'static str {
    if resource == "secret" { "Secret" } else { "ConfigMap" }
}
