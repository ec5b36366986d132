//! What sidecars do with requests: routes and their actions, every way to name a pod, protocols, rolling restarts, and
//! what is told about it in metrics and logs.

use crate::{
    bed::{Bed, ensure},
    lab::{LAB, OUTSIDE},
    metrics::sum,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: &str = "deploy/client";
const IN_FORCE: Duration = Duration::from_secs(15);

/// A VirtualService for a while.
struct Routes<'a> {
    bed: &'a Bed,
    name: &'a str,
}

impl Routes<'_> {
    fn apply<'a>(bed: &'a Bed, name: &'a str, spec: &Value) -> Result<Routes<'a>> {
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": LAB}, "spec": spec,
        });
        bed.apply(&object.to_string())?;
        let routes = Routes { bed, name };
        bed.wait_condition(&["virtualservice", name, "-n", LAB], "Programmed", IN_FORCE)?;
        Ok(routes)
    }
}

impl Drop for Routes<'_> {
    fn drop(&mut self) {
        self.bed.kubectl(&["delete", "virtualservice", self.name, "-n", LAB, "--ignore-not-found"]).ok();
    }
}

fn to_solo() -> Value {
    json!([{"destination": {"host": "solo"}}])
}

/// Fails unless all requests of a client succeed.
fn all_succeed(bed: &Bed, namespace: &str, what: &str, arguments: &[&str]) -> Result<()> {
    let counted = bed.client(namespace, CLIENT, arguments)?;
    ensure(counted.failed == 0 && counted.requests > 0, || {
        format!("{what}: {} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
    })
}

pub(super) fn actions_of_routes(bed: &Bed) -> Result<()> {
    let _routes = Routes::apply(
        bed,
        "actions",
        &json!({"hosts": ["solo"], "http": [
            {"name": "moved", "match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/new", "authority": "shop.example", "redirectCode": 308}},
            {"name": "rewritten", "match": [{"uri": {"prefix": "/api/"}}], "rewrite": {"uri": "/v2/", "authority": "inner.example"}, "route": to_solo()},
            {"name": "headers", "match": [{"uri": {"exact": "/headers"}}], "route": to_solo(), "headers": {
                "request": {"set": {"x-set": "new"}, "add": {"x-add": "more"}, "remove": ["x-gone"]},
                "response": {"set": {"x-answer": "yes"}, "remove": ["x-version"]},
            }},
            {"name": "late", "match": [{"uri": {"prefix": "/delay"}}], "timeout": "300ms", "route": to_solo()},
            {"name": "again", "match": [{"uri": {"prefix": "/flaky/retried"}}], "retries": {"attempts": 3, "retryOn": "5xx"}, "route": to_solo()},
            {"name": "said", "match": [{"uri": {"exact": "/said"}}], "directResponse": {"status": 418, "body": {"string": "short and stout"}}},
            {"name": "expression", "match": [{"uri": {"regex": "/items/\\d+"}, "method": {"exact": "GET"}, "queryParams": {"q": {"exact": "1"}}}],
             "rewrite": {"uri": "/item"}, "route": to_solo()},
            {"name": "rest", "route": to_solo()},
        ]}),
    )?;
    let ask = |arguments: &[&str]| bed.ask(LAB, CLIENT, arguments);

    let moved = ask(&["http://solo/old?x=1"])?;
    ensure(moved["status"] == 308, || format!("redirect: {moved}"))?;
    let location = moved["headers"]["location"].as_str().unwrap_or_default().to_owned();
    ensure(location.starts_with("http://shop.example") && location.contains("/new"), || {
        format!("redirect to {location}")
    })?;

    let rewritten = ask(&["http://solo/api/items?x=1"])?;
    ensure(rewritten["body"]["path"] == "/v2/items?x=1", || format!("rewrite: {rewritten}"))?;
    ensure(rewritten["body"]["headers"]["host"] == "inner.example", || format!("rewritten authority: {rewritten}"))?;

    let headers = ask(&["http://solo/headers", "-H", "x-set=old", "-H", "x-add=one", "-H", "x-gone=here"])?;
    let seen = &headers["body"]["headers"];
    ensure(seen["x-set"] == "new" && seen["x-gone"].is_null(), || format!("request headers: {seen}"))?;
    ensure(seen["x-add"].as_str().is_some_and(|v| v.contains("one") && v.contains("more")), || {
        format!("added header: {seen}")
    })?;
    ensure(headers["headers"]["x-answer"] == "yes" && headers["headers"]["x-version"].is_null(), || {
        format!("answer: {headers}")
    })?;

    let late = ask(&["http://solo/delay/3000"])?;
    ensure(late["status"] == 504, || format!("timeout: {late}"))?;
    let retried = ask(&["http://solo/flaky/retried-1/2"])?;
    ensure(retried["status"] == 200, || format!("two failures and three retries: {retried}"))?;
    let once = ask(&["http://solo/flaky/once/1", "-X", "POST"])?;
    ensure(once["status"] == 503, || format!("an answer of 503 is not retried unless asked for: {once}"))?;
    let said = ask(&["http://solo/said"])?;
    ensure(said["status"] == 418 && said["body"] == "short and stout", || format!("direct response: {said}"))?;
    let item = ask(&["http://solo/items/12?q=1"])?;
    ensure(item["body"]["path"] == "/item?q=1", || format!("matched by expression: {item}"))?;
    let not_item = ask(&["http://solo/items/12a?q=1"])?;
    ensure(not_item["body"]["path"] == "/items/12a?q=1", || format!("an expression matches the whole path: {not_item}"))
}

pub(super) fn every_name_of_a_pod(bed: &Bed) -> Result<()> {
    let pod = bed.pod(LAB, "app=solo")?;
    let ip = pod["status"]["podIP"].as_str().context("no pod IP")?.to_owned();
    let by_ip = bed.ask(LAB, CLIENT, &[&format!("http://{ip}:8080/")])?;
    ensure(by_ip["status"] == 200, || format!("by pod IP: {by_ip}"))?;
    let peer = by_ip["body"]["peer"].as_str().unwrap_or_default().to_owned();
    ensure(peer.starts_with("127.0.0.6:"), || {
        format!("by pod IP the request came from {peer}, not through the sidecar")
    })?;
    for host in ["solo", "solo.lab", "solo.lab.svc", "solo.lab.svc.cluster.local", "solo:8081"] {
        let answer = bed.ask(LAB, CLIENT, &[&format!("http://{host}/")])?;
        ensure(answer["status"] == 200, || format!("as {host}: {answer}"))?;
    }
    all_succeed(bed, LAB, "headless", &["http://echo-headless:8080/", "--requests", "200"])?;
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    for url in ["http://solo/", "http://127.0.0.1:8080/", &format!("http://{ip}:8080/")] {
        let itself = bed.ask(LAB, name, &[url])?;
        ensure(itself["status"] == 200, || format!("a pod that asks itself at {url}: {itself}"))?;
    }
    Ok(())
}

pub(super) fn every_protocol(bed: &Bed) -> Result<()> {
    for (what, arguments) in [
        ("HTTP/1.1", &["http://echo/", "--requests", "200"][..]),
        ("HTTP/2", &["http://echo/", "--protocol", "http2", "--requests", "200"]),
        ("HTTP/1.1, detected", &["http://echo:8081/", "--requests", "200"]),
        ("HTTP/2, detected", &["http://echo:8081/", "--protocol", "http2", "--requests", "200"]),
        ("TCP, server first", &["tcp://stock:9000", "--protocol", "tcp", "--requests", "50"]),
        ("TCP, server first, detected", &["tcp://stock:9001", "--protocol", "tcp", "--requests", "20"]),
        ("1 MiB answers", &["http://echo/bytes/1048576", "--requests", "40"]),
        ("TLS of the API server", &["tcp://kubernetes.default:443", "--requests", "1", "--protocol", "tcp"]),
    ] {
        if what.starts_with("TLS") {
            // The API server waits for the client: the connection must be made, and no byte may come.
            let silent = bed.demo(LAB, CLIENT, &["ask", "http://kubernetes.default:443/", "--print", "body"])?;
            ensure(silent.contains("HTTP request to an HTTPS server"), || format!("{what}: {silent}"))?;
            continue;
        }
        all_succeed(bed, LAB, what, arguments)?;
    }
    let detected =
        bed.client(LAB, CLIENT, &["tcp://stock:9001", "--protocol", "tcp", "--requests", "20", "--concurrency", "1"])?;
    ensure(detected.p50_us < 700_000, || {
        format!("a server that speaks first waits {} us for detection", detected.p50_us)
    })?;
    let upgraded = bed.ask(LAB, CLIENT, &["http://echo/", "--upgrade"])?;
    ensure(upgraded["status"] == 101 && upgraded["echoed"] == true, || format!("upgrade: {upgraded}"))
}

pub(super) fn outside_and_inside_talk(bed: &Bed) -> Result<()> {
    all_succeed(bed, OUTSIDE, "from outside to the mesh", &["http://echo.lab/", "--requests", "200"])?;
    all_succeed(
        bed,
        OUTSIDE,
        "from outside to the mesh, server first",
        &["tcp://stock.lab:9000", "--protocol", "tcp", "--requests", "20"],
    )?;
    all_succeed(bed, LAB, "from the mesh to outside", &["http://plain.outside/", "--requests", "200"])?;
    all_succeed(bed, LAB, "from the mesh to outside, detected", &["http://plain.outside:8081/", "--requests", "200"])?;
    let ip = bed.pod(OUTSIDE, "app=plain")?["status"]["podIP"].as_str().context("no pod IP")?.to_owned();
    let answer = bed.ask(LAB, CLIENT, &[&format!("http://{ip}:8080/")])?;
    ensure(answer["status"] == 200, || format!("from the mesh to a pod IP outside: {answer}"))?;
    let leaked = answer["body"]["headers"]
        .as_object()
        .is_some_and(|headers| headers.keys().any(|name| name.starts_with("x-leno")));
    ensure(!leaked, || format!("the mesh's own headers leave it: {answer}"))
}

pub(super) fn rolling_restart(bed: &Bed) -> Result<()> {
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "12", "--rate", "200", "--concurrency", "8"])?;
    let fresh = bed.load(
        LAB,
        CLIENT,
        &["http://echo/", "--seconds", "12", "--rate", "50", "--concurrency", "4", "--no-keep-alive"],
    )?;
    bed.kubectl(&["-n", LAB, "rollout", "restart", "deployment/echo"])?;
    bed.wait_rollout(LAB, "deployment/echo", Duration::from_secs(60))?;
    for (what, load) in [("kept connections", load), ("a connection a request", fresh)] {
        let counted = load.finish()?;
        bed.figures.add(
            format!("rolling_restart_failed_{}", what.replace(' ', "_")),
            counted.failed as f64,
            "requests",
        );
        ensure(counted.failed == 0 && counted.requests > 300, || {
            format!(
                "{what}: {} of {} failed during a rolling restart: {:?}",
                counted.failed, counted.requests, counted.errors
            )
        })?;
    }
    Ok(())
}

pub(super) fn metrics_of_both_reporters(bed: &Bed) -> Result<()> {
    let server = bed.pod(LAB, "app=solo")?;
    let server = server["metadata"]["name"].as_str().context("no name")?;
    let requests: &[(&str, &str)] = &[
        ("source_workload", "client"),
        ("source_workload_namespace", "lab"),
        ("source_app", "client"),
        ("source_version", "v1"),
        ("source_principal", "spiffe://cluster.local/ns/lab/sa/client"),
        ("destination_workload", "solo"),
        ("destination_workload_namespace", "lab"),
        ("destination_app", "solo"),
        ("destination_version", "v1"),
        ("destination_principal", "spiffe://cluster.local/ns/lab/sa/solo"),
        ("destination_service", "solo.lab.svc.cluster.local"),
        ("destination_service_name", "solo"),
        ("destination_service_namespace", "lab"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
    ];
    let count = |pod: &str, reporter: &str, name: &str| -> Result<f64> {
        let labels: Vec<(&str, &str)> = requests.iter().copied().chain([("reporter", reporter)]).collect();
        Ok(sum(&bed.proxy_metrics(LAB, pod)?, name, &labels))
    };
    let sides = [(CLIENT, "source"), (server, "destination")];
    let before: Vec<f64> =
        sides.iter().map(|(pod, reporter)| count(pod, reporter, "istio_requests_total")).collect::<Result<_>>()?;
    all_succeed(bed, LAB, "counted requests", &["http://solo/", "--requests", "50"])?;
    for ((pod, reporter), before) in sides.iter().zip(before) {
        bed.wait(&format!("50 more requests as the {reporter} tells"), Duration::from_secs(5), || {
            let now = count(pod, reporter, "istio_requests_total")?;
            ensure(now - before >= 50.0, || format!("{before} before and {now} now with labels {requests:?}"))?;
            Ok(Some(()))
        })?;
        for name in
            ["istio_request_duration_milliseconds_count", "istio_request_bytes_count", "istio_response_bytes_count"]
        {
            let found = count(pod, reporter, name)?;
            ensure(found >= 50.0, || format!("{name} of the {reporter} is {found}"))?;
        }
    }
    all_succeed(bed, LAB, "counted connections", &["tcp://stock:9000", "--protocol", "tcp", "--requests", "20"])?;
    let stock = bed.pod(LAB, "app=stock")?;
    let stock = stock["metadata"]["name"].as_str().context("no name")?;
    for (pod, reporter) in [(CLIENT, "source"), (stock, "destination")] {
        // On TCP nothing but the certificate tells the server who the client is.
        let labels = [
            ("reporter", reporter),
            ("destination_workload", "stock"),
            ("destination_service_name", "stock"),
            ("request_protocol", "tcp"),
            ("source_workload_namespace", "lab"),
            ("source_principal", "spiffe://cluster.local/ns/lab/sa/client"),
            ("response_flags", "-"),
        ];
        for name in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_sent_bytes_total",
            "istio_tcp_received_bytes_total",
        ] {
            bed.wait(&format!("{name} of the {reporter}"), Duration::from_secs(8), || {
                Ok((sum(&bed.proxy_metrics(LAB, pod)?, name, &labels) >= 20.0).then_some(()))
            })?;
        }
    }
    Ok(())
}

pub(super) fn access_log(bed: &Bed) -> Result<()> {
    all_succeed(bed, LAB, "logged requests", &["http://solo/logged?by=scenario", "--requests", "3"])?;
    let server = bed.pod(LAB, "app=solo")?;
    let server = server["metadata"]["name"].as_str().context("no name")?.to_owned();
    let client = bed.pod(LAB, "app=client")?["metadata"]["name"].as_str().context("no name")?.to_owned();
    for (pod, cluster) in [(&client, "outbound|80||solo.lab.svc.cluster.local"), (&server, "inbound|8080||")] {
        bed.wait(&format!("a line about the request in the log of {pod}"), Duration::from_secs(10), || {
            let logs = ["leno-proxy-0", "leno-proxy-1"]
                .map(|slot| bed.kubectl(&["-n", LAB, "logs", pod, "-c", slot, "--tail=200"]).unwrap_or_default());
            let Some(line) = logs.iter().flat_map(|log| log.lines()).find(|line| line.contains("/logged?by=scenario"))
            else {
                return Ok(None);
            };
            // [time] "METHOD PATH PROTOCOL" CODE FLAGS DETAILS TERMINATION "FAILURE" received sent duration upstream "XFF" "AGENT" "ID" "AUTHORITY" "UPSTREAM" CLUSTER …
            let fits = line.starts_with('[')
                && line.contains("] \"GET /logged?by=scenario HTTP/1.1\" 200 - ")
                && line.contains(&format!(" {cluster} "))
                && line.contains("\"solo\"")
                && line.split_whitespace().count() >= 18;
            ensure(fits, || format!("the line is not in Istio's default format: {line}"))?;
            Ok(Some(()))
        })?;
    }
    Ok(())
}

pub(super) fn admin_on_loopback(bed: &Bed) -> Result<()> {
    let dump = bed.ask(LAB, "deploy/solo", &["http://127.0.0.1:15000/config_dump"])?;
    ensure(dump["status"] == 200, || format!("config dump: {}", dump["status"]))?;
    let text = dump["body"].to_string();
    ensure(text.contains("virtualInbound") && text.contains("outbound|80||solo.lab.svc.cluster.local"), || {
        "the config dump lacks listeners or clusters".into()
    })?;
    ensure(!text.contains("PRIVATE KEY"), || "the config dump shows a private key".into())?;
    let ip = bed.pod(LAB, "app=solo")?["status"]["podIP"].as_str().context("no pod IP")?.to_owned();
    let url = format!("http://{ip}:15000/config_dump");
    for namespace in [LAB, OUTSIDE] {
        let answer = bed.ask(namespace, CLIENT, &[&url, "--patience", "3"]);
        let reached = answer.as_ref().is_ok_and(|answer| answer["status"] == 200);
        ensure(!reached, || format!("from {namespace} the admin of another pod answers"))?;
    }
    Ok(())
}
