//! Traces of Zipkin: what endpoints are told in the headers of B3, and what a collector gets.

use super::configured::{Configured, static_cluster};
use super::traces::{listener, told};
use super::*;
use serde_json::{Value, json};
use std::sync::Mutex;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const OTHER: &str = "00f067aa0ba902b7";

type Seen = Arc<Mutex<Vec<Message>>>;

/// A collector over HTTP, and what it got.
fn collector() -> (Backend, Seen) {
    let seen = Seen::default();
    let to = seen.clone();
    let backend = Backend::http(move |request| {
        to.lock().unwrap().push(request.clone());
        "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    (backend, seen)
}

fn spans(seen: &Seen) -> Vec<Value> {
    let seen = seen.lock().unwrap();
    let lists = seen.iter().map(|request| serde_json::from_str::<Vec<Value>>(&request.body).unwrap());
    lists.flatten().collect()
}

fn zipkin(over: Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "collector", "collector_endpoint": "/api/v2/spans",
        "collector_hostname": "zipkin.example", "collector_endpoint_version": "HTTP_JSON",
    });
    for (field, value) in over.as_object().unwrap() {
        config[field] = value.clone();
    }
    json!({"name": "zipkin", "typed_config": config})
}

/// A proxy with these settings; its listener is one for traffic that goes out.
fn start(tracing: Value) -> (Configured, Backend, Seen) {
    let backend = Backend::echo();
    let (collector, seen) = collector();
    let clusters = [static_cluster("a", &[backend.address]), static_cluster("collector", &[collector.address])];
    (Configured::start(listener(tracing), &clusters), backend, seen)
}

fn ask(it: &Configured, path: &str, headers: &[&str]) -> Message {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    it.proxy.client().ask(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n"))
}

#[test]
fn zipkin_when_a_request_brings_b3_then_it_goes_on_and_the_collector_gets_both_spans() {
    let (it, _backend, seen) = start(json!({"provider": zipkin(json!({})), "spawn_upstream_span": true}));
    let headers = [("traceid", TRACE), ("spanid", SPAN), ("parentspanid", OTHER)]
        .map(|(name, value)| format!("x-b3-{name}: {value}"));
    let answer = ask(&it, "/named?q", &headers.each_ref().map(String::as_str));
    assert_eq!(told(&answer, "x-b3-traceid"), Some(TRACE));
    assert_eq!(told(&answer, "x-b3-sampled"), Some("1"));
    assert_eq!(told(&answer, "x-b3-parentspanid"), Some(SPAN), "the server's span is its client's");
    assert_eq!(told(&answer, "traceparent"), None);
    eventually("two spans", || spans(&seen).len() == 2);
    let spans = spans(&seen);
    let (child, own) = (&spans[0], &spans[1]);
    assert_eq!((&own["id"], &own["parentId"], &own["kind"]), (&json!(SPAN), &json!(OTHER), &json!("SERVER")));
    assert_eq!((&own["shared"], &own["name"], &own["traceId"]), (&json!(true), &json!("shop"), &json!(TRACE)));
    assert_eq!(own["tags"]["http.url"], "http://h/named?q");
    assert_eq!((&own["annotations"][0]["value"], &child["annotations"][0]["value"]), (&json!("ss"), &json!("cr")));
    assert_eq!(own["localEndpoint"]["port"], 0);
    assert_eq!((&child["parentId"], &child["kind"], &child["shared"]), (&json!(SPAN), &json!("CLIENT"), &Value::Null));
    assert_eq!(told(&answer, "x-b3-spanid").map(Value::from), Some(child["id"].clone()));
    assert!(own["timestamp"].as_u64() > Some(1_600_000_000_000_000) && own["duration"].as_u64() > Some(0));
    let seen = seen.lock().unwrap();
    assert!(seen[0].head.starts_with("POST /api/v2/spans ") && seen[0].header("host") == Some("zipkin.example"));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    eventually("them counted", || it.proxy.telemetry.render().contains("leno_proxy_spans_sent_total 2"));
}

#[test]
fn zipkin_when_traffic_goes_out_then_the_span_is_a_clients_and_a_child() {
    let (it, _backend, seen) = start(json!({"provider": zipkin(json!({}))}));
    let answer = ask(&it, "/", &[&format!("x-b3-traceid: {TRACE}"), &format!("x-b3-spanid: {SPAN}")]);
    let span = told(&answer, "x-b3-spanid").unwrap();
    assert!(span != SPAN && told(&answer, "x-b3-parentspanid") == Some(SPAN), "{span}");
    eventually("a span", || spans(&seen).len() == 1);
    let span = &spans(&seen)[0];
    assert_eq!((&span["kind"], &span["parentId"], &span["name"]), (&json!("CLIENT"), &json!(SPAN), &json!("h")));
}

#[test]
fn zipkin_when_a_trace_begins_here_then_its_id_is_as_long_as_was_said() {
    for (wide, length) in [(false, 16), (true, 32)] {
        let (it, _backend, seen) = start(json!({"provider": zipkin(json!({"trace_id_128bit": wide}))}));
        let answer = ask(&it, "/", &[]);
        let trace = told(&answer, "x-b3-traceid").unwrap();
        assert_eq!((trace.len(), told(&answer, "x-b3-parentspanid")), (length, None));
        assert!(trace.ends_with(told(&answer, "x-b3-spanid").unwrap()));
        eventually("a span", || spans(&seen).len() == 1);
        assert_eq!(spans(&seen)[0]["traceId"], json!(trace));
    }
}

#[test]
fn zipkin_when_it_is_not_sampled_then_the_endpoint_is_told_and_the_collector_is_not() {
    let (it, _backend, seen) = start(json!({"provider": zipkin(json!({}))}));
    assert!(told(&ask(&it, "/", &["b3: 0"]), "b3").unwrap().ends_with("-0"));
    assert_eq!(told(&ask(&it, "/", &["x-b3-sampled: 0"]), "x-b3-sampled"), Some("0"));
    assert_eq!(told(&ask(&it, "/never", &[]), "x-b3-sampled"), Some("0"), "its route samples nothing");
    let answer = ask(&it, "/", &["b3: nonsense"]);
    assert_eq!((told(&answer, "b3"), told(&answer, "x-b3-traceid")), (Some("nonsense"), None));
    assert!(told(&ask(&it, "/never", &["b3: d"]), "b3").unwrap().ends_with("-1"), "its client has decided");
    eventually("one span", || !spans(&seen).is_empty());
    assert_eq!(spans(&seen).len(), 1);
}

#[test]
fn zipkin_when_w3c_is_spoken_as_well_then_it_is_read_and_written() {
    let option = json!({"trace_context_option": "USE_B3_WITH_W3C_PROPAGATION"});
    let (it, _backend, _) = start(json!({"provider": zipkin(option)}));
    let answer = ask(&it, "/", &[&format!("traceparent: 00-{TRACE}-{SPAN}-01")]);
    assert_eq!((told(&answer, "x-b3-traceid"), told(&answer, "x-b3-parentspanid")), (Some(TRACE), Some(SPAN)));
    let span = told(&answer, "x-b3-spanid").unwrap();
    assert_eq!(told(&answer, "traceparent"), Some(format!("00-{TRACE}-{span}-01").as_str()));
}
