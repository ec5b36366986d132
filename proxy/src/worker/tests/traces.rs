//! Traces: what endpoints are told, and what a collector gets over OTLP.

use super::configured::{Configured, filter, static_cluster};
use super::*;
use serde_json::{Value, json};
use std::sync::Mutex;

/// The messages of opentelemetry-proto, as far as the tests look at them.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(message, repeated, tag = "1")]
        pub(super) resource_spans: Vec<ResourceSpans>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(super) scope_spans: Vec<ScopeSpans>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(super) attributes: Vec<KeyValue>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, repeated, tag = "2")]
        pub(super) spans: Vec<Span>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<AnyValue>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AnyValue {
        #[prost(string, tag = "1")]
        pub(super) text: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Span {
        #[prost(bytes, tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes, tag = "2")]
        pub(super) span_id: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) trace_state: String,
        #[prost(bytes, tag = "4")]
        pub(super) parent: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) name: String,
        #[prost(int32, tag = "6")]
        pub(super) kind: i32,
        #[prost(fixed64, tag = "7")]
        pub(super) start: u64,
        #[prost(fixed64, tag = "8")]
        pub(super) end: u64,
        #[prost(message, repeated, tag = "9")]
        pub(super) attributes: Vec<KeyValue>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Response {}
}

impl proto::Span {
    fn tag(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|pair| pair.key == name)?.value.as_ref().map(|value| value.text.as_str())
    }

    fn id(&self) -> String {
        self.span_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

type Seen = Arc<Mutex<Vec<proto::Request>>>;

/// The collector's service, as tonic serves it.
#[derive(Clone)]
struct Export(Seen);

impl tonic::server::UnaryService<proto::Request> for Export {
    type Response = proto::Response;
    type Future = std::future::Ready<Result<tonic::Response<proto::Response>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<proto::Request>) -> Self::Future {
        self.0.lock().unwrap().push(request.into_inner());
        std::future::ready(Ok(tonic::Response::new(proto::Response {})))
    }
}

/// A collector over gRPC, and what it got.
fn collector() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let (export, listener) = (Export(seen.clone()), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let export = export.clone();
                let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let export = export.clone();
                    async move {
                        assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
                        let codec = tonic_prost::ProstCodec::<proto::Response, proto::Request>::default();
                        Ok::<_, std::convert::Infallible>(tonic::server::Grpc::new(codec).unary(export, request).await)
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                tokio::spawn(hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service));
            }
        });
    });
    (address, seen)
}

fn spans(seen: &Seen) -> Vec<proto::Span> {
    let seen = seen.lock().unwrap();
    let scopes = seen.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
    scopes.flat_map(|scope| scope.spans.clone()).collect()
}

pub(super) fn listener(tracing: Value) -> Value {
    let manager = filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "h", "tracing": tracing,
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            }}],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/named"}, "route": {"cluster": "a"}, "decorator": {"operation": "shop"}},
                {"match": {"prefix": "/never"}, "route": {"cluster": "a"}, "tracing": {"random_sampling": {"numerator": 0}}},
                {"match": {"prefix": "/copied"}, "route": {"cluster": "a", "request_mirror_policies": [
                    {"cluster": "a"}, {"cluster": "a", "trace_sampled": false},
                ]}},
                {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
            ]}]}
        }),
    );
    json!({"filter_chains": [{"filters": [manager]}]})
}

fn otlp() -> Value {
    json!({"name": "otel", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "service_name": "front",
        "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}, "timeout": "2s"},
    }})
}

fn clusters(backend: &Backend, collector: SocketAddr) -> Vec<Value> {
    let mut spans = static_cluster("collector", &[collector]);
    spans["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    vec![static_cluster("a", &[backend.address]), spans]
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

pub(super) fn told<'m>(answer: &'m Message, name: &str) -> Option<&'m str> {
    answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn trace_when_a_request_brings_one_then_it_goes_on_and_the_collector_gets_both_spans() {
    let backend = Backend::echo();
    let (address, seen) = collector();
    let tracing = json!({
        "provider": otlp(), "spawn_upstream_span": true,
        "custom_tags": [{"tag": "who", "request_header": {"name": "x-who", "default_value": "nobody"}}],
    });
    let it = Configured::start(listener(tracing), &clusters(&backend, address));
    let request = format!("GET /named?q HTTP/1.1\r\nhost: h\r\ntraceparent: {PARENT}-01\r\ntracestate: a=b\r\n\r\n");
    let answer = it.proxy.client().ask(&request);
    let parent = told(&answer, "traceparent").unwrap();
    assert!(parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent.ends_with("-01"), "{parent}");
    assert_eq!(told(&answer, "tracestate"), Some("a=b"));
    assert_eq!(told(&answer, "x-envoy-decorator-operation"), Some("shop"));
    eventually("two spans", || spans(&seen).len() == 2);
    let spans = spans(&seen);
    let (child, own) = (&spans[0], &spans[1]);
    assert_eq!((own.name.as_str(), own.kind), ("shop", 2));
    assert_eq!(own.parent, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    assert_eq!((child.name.as_str(), child.kind, &child.parent), ("router a egress", 3, &own.span_id));
    assert_eq!(&parent[36..52], child.id(), "the endpoint belongs to the attempt's span");
    assert_eq!((own.trace_state.as_str(), own.tag("who")), ("a=b", Some("nobody")));
    assert_eq!((own.tag("http.status_code"), own.tag("http.url")), (Some("200"), Some("http://h/named?q")));
    assert_eq!(child.tag("upstream_address"), Some(backend.address.to_string().as_str()));
    assert!(own.start <= child.start && child.end <= own.end && own.start > 1_600_000_000_000_000_000);
    let resource = seen.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    assert!(resource.attributes.iter().any(|pair| pair.key == "service.name"));
    eventually("them counted", || it.proxy.telemetry.render().contains("leno_proxy_spans_sent_total 2"));
}

#[test]
fn attempts_when_they_fail_or_are_given_up_then_their_spans_say_why_each_ended() {
    let backend = Backend::http(|_| "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno".to_owned());
    let (address, seen) = collector();
    let tracing = json!({"provider": otlp(), "custom_tags": [{"tag": "who", "literal": {"value": "me"}}]});
    let mut listener = listener(tracing);
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["http_filters"][0]["typed_config"]["start_child_span"] = json!(true);
    manager["route_config"]["virtual_hosts"][0]["routes"] = json!([
        {"match": {"prefix": "/dead"}, "route": {"cluster": "dead"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a", "retry_policy": {"retry_on": "5xx", "num_retries": 1}}},
    ]);
    // Bound and not listened on: nobody else gets the port.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = (nobody.local_addr().unwrap().as_socket().unwrap(), nobody);
    let mut clusters = clusters(&backend, address);
    clusters.push(static_cluster("dead", &[nobody.0]));
    let it = Configured::start(listener, &clusters);
    let mut client = it.proxy.client();
    for path in ["/", "/dead"] {
        assert_eq!(client.ask(&get(path)).status(), 503);
    }
    eventually("five spans", || spans(&seen).len() == 5);
    let spans = spans(&seen);
    let attempts: Vec<_> = spans.iter().filter(|span| span.kind == 3 && span.name.starts_with("router ")).collect();
    let said: Vec<_> = attempts
        .iter()
        .map(|span| ["http.status_code", "canceled", "error.reason", "retry.count", "who"].map(|name| span.tag(name)))
        .collect();
    assert_eq!(
        said,
        [
            [Some("503"), Some("true"), None, None, Some("me")],
            [Some("503"), None, None, Some("1"), Some("me")],
            [Some("0"), None, Some("remote connection failure"), None, Some("me")],
        ]
    );
    assert!(attempts.iter().all(|span| span.tag("error") == Some("true")));
    assert_eq!(attempts.iter().map(|span| span.tag("response_flags").unwrap()).collect::<Vec<_>>(), ["-", "-", "UF"]);
}

#[test]
fn trace_when_a_request_is_mirrored_then_its_copies_belong_to_its_span() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let backend = Backend::http(move |request| {
        let value = |name| request.header(name).unwrap_or_default().to_owned();
        telling.lock().unwrap().push((value("host"), value("traceparent"), value("tracestate")));
        ok("")
    });
    let (address, seen) = collector();
    let it = Configured::start(listener(json!({"provider": otlp()})), &clusters(&backend, address));
    let request = format!("GET /copied HTTP/1.1\r\nhost: h\r\ntraceparent: {PARENT}-01\r\ntracestate: a=b\r\n\r\n");
    assert_eq!(it.proxy.client().ask(&request).status(), 200);
    eventually("two copies", || told.lock().unwrap().len() == 3);
    eventually("the span", || spans(&seen).len() == 1);
    let own = spans(&seen).remove(0);
    let mut copies: Vec<_> = told.lock().unwrap().iter().filter(|(host, _, _)| host == "h-shadow").cloned().collect();
    copies.sort();
    let wanted = |sampled: &str| {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-{sampled}", own.id());
        ("h-shadow".to_owned(), parent, "a=b".to_owned())
    };
    assert_eq!(copies, [wanted("00"), wanted("01")]);
}

#[test]
fn trace_when_it_is_not_sampled_then_the_endpoint_is_told_and_the_collector_is_not() {
    let backend = Backend::echo();
    let (address, seen) = collector();
    let it = Configured::start(listener(json!({"provider": otlp()})), &clusters(&backend, address));
    let ask =
        |path: &str, header: &str| it.proxy.client().ask(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n{header}\r\n"));
    let answer = ask("/", &format!("traceparent: {PARENT}-00\r\n"));
    assert!(told(&answer, "traceparent").unwrap().ends_with("-00"));
    let answer = ask("/never", "");
    assert!(told(&answer, "traceparent").unwrap().ends_with("-00"));
    assert_eq!(told(&answer, "x-request-id").unwrap().as_bytes()[14], b'4');
    let answer = ask("/never", &format!("traceparent: {PARENT}-01\r\n"));
    assert!(told(&answer, "traceparent").unwrap().ends_with("-00"), "a parent does not overrule what is decided here");
    let answer = ask("/", "traceparent: nonsense\r\n");
    assert_eq!(told(&answer, "traceparent"), Some("nonsense"));
    let answer = ask("/never", "x-client-trace-id: mine\r\n");
    assert!(told(&answer, "traceparent").unwrap().ends_with("-01"));
    assert_eq!(told(&answer, "x-request-id").unwrap().as_bytes()[14], b'b', "since its client wanted it");
    eventually("one span", || !spans(&seen).is_empty());
    let spans = spans(&seen);
    assert_eq!((spans.len(), spans[0].tag("guid:x-client-trace-id")), (1, Some("mine")));
    assert_eq!((spans[0].kind, spans[0].name.as_str()), (3, "egress h"));
}

#[test]
fn spans_when_nobody_takes_them_then_they_are_lost_and_counted() {
    let backend = Backend::echo();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let it = Configured::start(listener(json!({"provider": otlp()})), &clusters(&backend, nobody));
    let mut client = it.proxy.client();
    for _ in 0..3 {
        assert_eq!(client.ask(&get("/")).status(), 200);
    }
    eventually("three lost", || it.proxy.telemetry.render().contains("leno_proxy_spans_dropped_total 3"));
}
