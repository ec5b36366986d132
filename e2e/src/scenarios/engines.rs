//! Envoy as engine beside Leno's own proxy: they route, secure and count alike, and a killed or swapped Envoy costs the app
//! nothing.

use super::{injection, security::Strict};
use crate::{
    bed::{Bed, ensure},
    lab::{App, LAB, OUTSIDE},
    metrics::sum,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: &str = "deploy/client";
const ENVOY_CLIENT: &str = "deploy/envoy-client";
const ROUTE: [&str; 4] = ["virtualservice", "duo", "-n", LAB];

fn on(engine: &str, app: App) -> App {
    // An Envoy alone needs about 70 MiB, more than the sample's limit leaves room for.
    app.pod_annotations(json!({"mesh.leno.dev/engine": engine, "sidecar.istio.io/proxyMemoryLimit": "256Mi"}))
}

/// A service of two versions, `duo` on Leno's own proxy and `duo-two` on Envoy; a server that speaks first on Envoy; and a client
/// on Envoy.
fn apps() -> Vec<App> {
    let both = json!({"duo": "yes"});
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let tcp = json!({"ports": [{"name": "tcp", "port": 9000, "targetPort": 9000}]});
    vec![
        on("leno", App::echo(LAB, "duo"))
            .version("v1")
            .pod_labels(both.clone())
            .service(json!({"selector": both, "ports": ports})),
        on("envoy", App::echo(LAB, "duo-two")).version("v2").pod_labels(both.clone()).service(Value::Null),
        on("envoy", App::echo(LAB, "tally"))
            .args(&["inventory", "--listen=0.0.0.0:9000"])
            .container(json!({}))
            .service(tcp),
        on("envoy", App::client(LAB, "envoy-client")),
    ]
}

fn routes(share: u32) -> String {
    let target =
        |subset: &str, weight: u32| json!({"destination": {"host": "duo", "subset": subset}, "weight": weight});
    let subset = |name: &str| json!({"name": name, "labels": {"version": name}});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "duo", "namespace": LAB},
            "spec": {"host": "duo", "subsets": [subset("v1"), subset("v2")]},
        },
        {
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "duo", "namespace": LAB},
            "spec": {"hosts": ["duo"], "http": [{"route": [target("v1", 100 - share), target("v2", share)]}]},
        },
    ]})
    .to_string()
}

pub(super) fn mixed(bed: &Bed) -> Result<()> {
    let apps = apps();
    apps.iter().try_for_each(|app| app.apply(bed))?;
    apps.iter().try_for_each(|app| app.wait(bed))?;
    let result = compare(bed);
    bed.kubectl(&["-n", LAB, "delete", "virtualservice/duo", "destinationrule/duo", "--ignore-not-found"])?;
    apps.iter().try_for_each(|app| app.remove(bed))?;
    result
}

fn compare(bed: &Bed) -> Result<()> {
    for share in [20, 70] {
        bed.apply(&routes(share))?;
        let message = bed.wait_condition(&ROUTE, "Programmed", Duration::from_secs(30))?;
        ensure(message.contains("in force on") && message.contains("run Envoy"), || format!("it says {message:?}"))?;
        for client in [CLIENT, ENVOY_CLIENT] {
            let counted = bed.client(LAB, client, &["http://duo/", "--requests", "1000", "--concurrency", "4"])?;
            ensure(counted.failed == 0 && counted.fits("v2", f64::from(share)), || {
                format!("{client}: {} of {} failed, {:?}", counted.failed, counted.requests, counted.versions)
            })?;
        }
    }
    secure(bed)?;
    for client in ["client", "envoy-client"] {
        for server in ["duo", "duo-two"] {
            counted_alike(bed, client, server).with_context(|| format!("from {client} to {server}"))?;
        }
        connections_counted(bed, client).with_context(|| format!("from {client} to tally"))?;
    }
    Ok(())
}

/// Strict mutual TLS holds between the engines, in both directions.
fn secure(bed: &Bed) -> Result<()> {
    let plain = || {
        let url = ["http://duo.lab/", "--patience", "3"];
        bed.ask(OUTSIDE, CLIENT, &url).is_ok_and(|answer| answer["status"] == 200)
    };
    let strict = Strict::on(bed)?;
    bed.wait("plain text to be refused by both", Duration::from_secs(20), || {
        Ok((0..6).all(|_| !plain()).then_some(()))
    })?;
    for client in [CLIENT, ENVOY_CLIENT] {
        let counted = bed.client(LAB, client, &["http://duo/", "--requests", "200"])?;
        ensure(counted.failed == 0 && counted.of("v1") > 0 && counted.of("v2") > 0, || {
            format!("{client} under strict mutual TLS: {} failed, {:?}", counted.failed, counted.versions)
        })?;
    }
    drop(strict);
    bed.wait("plain text to be taken again", Duration::from_secs(20), || Ok(plain().then_some(())))
}

/// Both reporters name both sides, whichever engine they are.
fn counted_alike(bed: &Bed, client: &str, server: &str) -> Result<()> {
    let pod = |app: &str| -> Result<String> {
        Ok(bed.pod(LAB, &format!("app={app}"))?["metadata"]["name"].as_str().context("no name")?.to_owned())
    };
    let (source, destination) =
        (format!("spiffe://cluster.local/ns/lab/sa/{client}"), format!("spiffe://cluster.local/ns/lab/sa/{server}"));
    let common = [
        ("source_workload", client),
        ("source_workload_namespace", LAB),
        ("source_app", client),
        ("source_version", "v1"),
        ("source_principal", &source),
        ("destination_workload", server),
        ("destination_workload_namespace", LAB),
        ("destination_app", server),
        ("destination_principal", &destination),
        ("destination_service", "duo.lab.svc.cluster.local"),
        ("destination_service_name", "duo"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
    ];
    for (name, reporter, security) in [(client, "source", "unknown"), (server, "destination", "mutual_tls")] {
        let labels: Vec<_> =
            common.iter().copied().chain([("reporter", reporter), ("connection_security_policy", security)]).collect();
        bed.wait(&format!("the {reporter} to count"), Duration::from_secs(8), || {
            let page = bed.proxy_metrics(LAB, &pod(name)?)?;
            for metric in ["istio_requests_total", "istio_request_duration_milliseconds_count"] {
                let found = sum(&page, metric, &labels);
                ensure(found >= 100.0, || {
                    let seen: Vec<_> = page.iter().filter(|sample| sample.name == metric).map(|s| &s.labels).collect();
                    format!("{metric} is {found} with {labels:?}; there is {seen:?}")
                })?;
            }
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// On TCP nothing but the certificate tells the server who the client is.
fn connections_counted(bed: &Bed, client: &str) -> Result<()> {
    let from = format!("deploy/{client}");
    let counted = bed.client(LAB, &from, &["tcp://tally:9000", "--protocol", "tcp", "--requests", "20"])?;
    ensure(counted.failed == 0, || format!("{} of {} failed: {:?}", counted.failed, counted.requests, counted.errors))?;
    let source = format!("spiffe://cluster.local/ns/lab/sa/{client}");
    let known = [("source", from.as_str(), client), ("destination", "deploy/tally", "unknown")];
    for (reporter, pod, workload) in known {
        let labels = [
            ("reporter", reporter),
            ("source_workload", workload),
            ("source_principal", source.as_str()),
            ("destination_workload", "tally"),
            ("destination_service_name", "tally"),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
        ];
        for name in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_sent_bytes_total",
            "istio_tcp_received_bytes_total",
        ] {
            bed.wait(&format!("{name} of the {reporter}"), Duration::from_secs(8), || {
                let page = bed.proxy_metrics(LAB, pod)?;
                let seen: Vec<_> = page.iter().filter(|sample| sample.name == name).map(|s| &s.labels).collect();
                ensure(sum(&page, name, &labels) >= 20.0, || format!("with {labels:?}; there is {seen:?}"))?;
                Ok(Some(()))
            })?;
        }
    }
    Ok(())
}

/// One app alone, on Envoy.
fn with_envoy_app(bed: &Bed, name: &str, look: impl FnOnce() -> Result<()>) -> Result<()> {
    let app = on("envoy", App::echo(LAB, name));
    app.deploy(bed)?;
    let result = look();
    app.remove(bed)?;
    result
}

pub(super) fn killed(bed: &Bed) -> Result<()> {
    with_envoy_app(bed, "mortal", || {
        let pod = bed.pod(LAB, "app=mortal")?;
        let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
        let slots = || -> Result<Vec<(i64, i64)>> {
            let pod = bed.get(&["pod", &name, "-n", LAB])?;
            let count = |list: &str| -> i64 {
                let all = pod["status"][list].as_array().into_iter().flatten();
                all.filter_map(|status| status["restartCount"].as_i64()).sum()
            };
            Ok(vec![(count("initContainerStatuses"), count("containerStatuses"))])
        };
        let before = slots()?;
        let active = ["leno-proxy-0", "leno-proxy-1"];
        let mut killed = None;
        for slot in active {
            match bed.kill_program(LAB, &name, slot, |program| program == "envoy") {
                Ok(true) => killed = Some(slot),
                Ok(false) => {
                    println!("  not looked at: processes of this cluster cannot be killed from here");
                    return Ok(());
                }
                // It is the idle one.
                Err(_) => {}
            }
        }
        ensure(killed.is_some(), || format!("no slot of {name} runs Envoy"))?;
        bed.wait("the killed Envoy to be back", Duration::from_secs(20), || {
            let answer = bed.ask(LAB, CLIENT, &["http://mortal/", "--patience", "2"])?;
            let page = bed.proxy_metrics(LAB, &name)?;
            let restarts = sum(&page, "leno_proxy_engine_restarts_total", &[]);
            ensure(answer["status"] == 200 && restarts >= 1.0, || format!("{restarts} restarts: {answer}"))?;
            Ok(Some(()))
        })?;
        let counted = bed.client(LAB, CLIENT, &["http://mortal/", "--requests", "100"])?;
        ensure(counted.failed == 0, || format!("{} failed after it is back: {:?}", counted.failed, counted.errors))?;
        ensure(slots()? == before, || "a container restarted".into())
    })
}

pub(super) fn image_patch(bed: &Bed) -> Result<()> {
    with_envoy_app(bed, "swapped", || {
        let failed = injection::patch_images(bed, "swapped")?;
        bed.figures.add("envoy_image_swap_failed", failed as f64, "requests");
        Ok(())
    })
}
