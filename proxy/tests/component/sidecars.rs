//! Two sidecars with mutual TLS between them, and what their metrics and access logs say; a stock Envoy in the place of
//! one of them (the program that `LENO_ENVOY` names).

use crate::support;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::support::{Ca, Client, FRONT, Plan, Proxy, REVIEWS, echo_server, get, in_time, post, start};
use bytes::Bytes;
use http::{StatusCode, Version};
use http_body_util::BodyExt;
use leno_proxy::config::{
    ClientTls, Direction, HeaderMatch, HeaderOp, HeaderOps, HeaderTest, MeshTls, RetryOn, RetryPolicy, UpstreamProtocol,
};
use leno_proxy::telemetry::WorkloadLabels;

fn expecting(identity: &str) -> Arc<ClientTls> {
    Arc::new(ClientTls::Mesh(MeshTls {
        expected: vec![identity.into()],
        sni: "outbound|9080||reviews.shop.svc.cluster.local".into(),
        alpn: vec!["leno".into()],
    }))
}

/// A caller's and a called workload's sidecar. The called one has `identity`, the caller expects [`REVIEWS`].
fn sidecars(ca: &Ca, app: SocketAddr, identity: &str, protocol: UpstreamProtocol) -> (Proxy, Proxy) {
    sidecars_with(ca, app, identity, protocol, None)
}

/// The same with small socket buffers between the two.
fn sidecars_with(
    ca: &Ca,
    app: SocketAddr,
    identity: &str,
    protocol: UpstreamProtocol,
    socket_buffers: Option<usize>,
) -> (Proxy, Proxy) {
    let inbound = start(Plan {
        socket_buffers,
        direction: Direction::Inbound,
        server_tls: true,
        credentials: ca.store(identity),
        own: WorkloadLabels::new("reviews-v2", "shop", "reviews", "v2", "east", identity),
        headers: HeaderOps { request: vec![HeaderOp::Remove("x-leno-peer".into())], ..HeaderOps::default() },
        ..Plan::new(app, protocol)
    });
    let peer = HeaderOp::Set("x-leno-peer".into(), "front-v1;shop;front;v1;east;front".into());
    let outbound = start(Plan {
        client_tls: Some(expecting(REVIEWS)),
        credentials: ca.store(FRONT),
        headers: HeaderOps { request: vec![peer], ..HeaderOps::default() },
        ..Plan::new(inbound.address, protocol)
    });
    (outbound, inbound)
}

#[tokio::test]
async fn sidecars_when_both_are_of_the_mesh_then_requests_pass_and_both_report_who_called_whom() {
    let (ca, app) = (Ca::new(), echo_server().await);
    for (protocol, seen) in [(UpstreamProtocol::Http1, "HTTP/1.1"), (UpstreamProtocol::Http2, "HTTP/2.0")] {
        let (outbound, inbound) = sidecars(&ca, app, REVIEWS, protocol);
        let mut client = Client::connect(outbound.address, Version::HTTP_11).await;
        let body = Bytes::from(vec![7; 200_000]);
        for _ in 0..3 {
            let response = client.send(post("/", body.clone())).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["x-version"], seen);
            assert_eq!(response.headers()["x-peer"], "false", "the application sees who called");
            let collected = in_time("the body", response.into_body().collect()).await.unwrap();
            assert!(collected.to_bytes() == body);
        }
        let parties = [
            "source_workload=\"front-v1\"",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"",
            "destination_workload=\"reviews-v2\"",
            "destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\"",
            "destination_service=\"reviews.shop.svc.cluster.local\"",
        ];
        for (proxy, reporter, security) in [(&outbound, "source", "unknown"), (&inbound, "destination", "mutual_tls")] {
            let (reporter, security) =
                (format!("reporter=\"{reporter}\""), format!("connection_security_policy=\"{security}\""));
            let mut labels = parties.to_vec();
            labels.extend([&*reporter, &*security]);
            proxy.until_metric("istio_requests_total", &labels, 3.0).await;
        }
    }
}

/// TLS takes bytes that the socket has no room for: they are not sent before it is flushed again, be they the last ones.
#[tokio::test]
async fn bodies_when_sockets_are_full_at_their_end_then_all_of_them_arrives() {
    const SIZES: [usize; 3] = [100_000, 333_333, 1 << 20];
    let (ca, app) = (Ca::new(), echo_server().await);
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (outbound, _inbound) = sidecars_with(&ca, app, REVIEWS, protocol, Some(16 * 1024));
        let address = outbound.address;
        let clients = (0..4).map(|index| async move {
            let mut client = Client::connect(address, Version::HTTP_11).await;
            for round in 0..SIZES.len() {
                let body = Bytes::from(vec![7; SIZES[(index + round) % SIZES.len()]]);
                for request in [get(&format!("/bytes/{}", body.len())), post("/", body.clone())] {
                    let what = format!("{} {} by {protocol:?}", request.method(), request.uri());
                    let response = client.send(request).await;
                    assert_eq!(response.status(), 200);
                    let collected = in_time(&what, response.into_body().collect()).await.unwrap();
                    assert!(collected.to_bytes() == body, "{what}");
                }
            }
        });
        futures::future::join_all(clients).await;
    }
}

#[tokio::test]
async fn sidecar_when_an_impostor_answers_then_the_request_fails_and_the_log_says_why() {
    let (ca, app) = (Ca::new(), echo_server().await);
    let (outbound, inbound) = sidecars(&ca, app, "spiffe://cluster.local/ns/evil/sa/impostor", UpstreamProtocol::Http1);
    let mut client = Client::connect(outbound.address, Version::HTTP_11).await;
    let response = client.send(get("/secret")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let line = outbound.until_log("/secret").await;
    assert!(line.contains(" 503 UF ") && line.contains("ns/evil/sa/impostor"), "{line}");
    assert_eq!(inbound.metric("istio_requests_total", &[]), None, "the impostor got a request");
}

/// A request whose body is one piece, without trailers.
fn whole_post(path: &str, body: &'static str) -> http::Request<support::Echo> {
    let body = BodyExt::boxed(http_body_util::Full::new(Bytes::from(body)));
    http::Request::post(format!("http://reviews{path}")).body(body).unwrap()
}

#[tokio::test]
async fn request_when_the_app_behind_one_sidecar_is_gone_then_the_app_behind_another_gets_it() {
    let (ca, app) = (Ca::new(), echo_server().await);
    let gone = crate::process::free();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let inbound = |app| {
            start(Plan {
                direction: Direction::Inbound,
                server_tls: true,
                credentials: ca.store(REVIEWS),
                ..Plan::new(app, protocol)
            })
        };
        let (without, with) = (inbound(gone), inbound(app));
        let header = HeaderMatch {
            name: "x-leno-not-sent".into(),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let on = RetryOn { headers: true, ..RetryOn::default() };
        let outbound = |others| {
            start(Plan {
                client_tls: Some(expecting(REVIEWS)),
                credentials: ca.store(FRONT),
                others,
                retry: Some(Arc::new(RetryPolicy { on, headers: vec![header.clone()], ..RetryPolicy::default() })),
                ..Plan::new(without.address, protocol)
            })
        };
        let both = outbound(vec![with.address]);
        let mut client = Client::connect(both.address, Version::HTTP_11).await;
        // Least request looks at two at random: in so many requests the dead one is met.
        for _ in 0..20 {
            let response = client.send(whole_post("/order", "one espresso")).await;
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("x-leno-not-sent"));
            let body = in_time("the body", response.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(body, "one espresso");
        }
        with.until_metric("istio_requests_total", &["response_code=\"200\""], 20.0).await;
        assert!(without.metric("istio_requests_total", &["response_code=\"503\""]).is_some(), "nobody asked it");
        // When there is no other, the app is not told what only proxies understand.
        let one = outbound(Vec::new());
        let response = Client::connect(one.address, Version::HTTP_11).await.send(get("/")).await;
        assert_eq!((response.status().as_u16(), response.headers().contains_key("x-leno-not-sent")), (503, false));
    }
}

#[tokio::test]
async fn reply_when_the_client_is_not_of_the_mesh_then_it_does_not_say_that_nothing_was_sent() {
    let gone = crate::process::free();
    let inbound = start(Plan { direction: Direction::Inbound, ..Plan::new(gone, UpstreamProtocol::Http1) });
    let response = Client::connect(inbound.address, Version::HTTP_11).await.send(get("/")).await;
    assert_eq!((response.status().as_u16(), response.headers().contains_key("x-leno-not-sent")), (503, false));
}

// ----------------------------------------------------------------------------------------------- a stock Envoy

/// Envoy with a static configuration; killed when dropped.
struct Envoy {
    process: std::process::Child,
    _folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts Envoy as one side of mutual TLS: a listener and a cluster of the same HTTP version, TLS on one of them.
async fn envoy(program: &str, ca: &Ca, identity: &str, inbound: bool, upstream: SocketAddr, http2: bool) -> Envoy {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key) = ca.leaf(identity);
    let (chain, key, root) = (file("chain.pem", &chain), file("key.pem", &key), file("root.pem", &ca.root()));
    let alpn = if http2 { "leno-h2" } else { "leno-http/1.1" };
    let expected = if inbound { FRONT } else { REVIEWS };
    let tls = serde_json::json!({
        "alpn_protocols": [alpn],
        "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
        "validation_context": {
            "trusted_ca": {"filename": root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": expected}}],
        },
    });
    let prefix = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let server = serde_json::json!({"name": "tls", "typed_config": {
        "@type": format!("{prefix}.DownstreamTlsContext"), "require_client_certificate": true, "common_tls_context": tls,
    }});
    let client = serde_json::json!({"name": "tls", "typed_config": {
        "@type": format!("{prefix}.UpstreamTlsContext"), "common_tls_context": tls,
        "sni": "outbound_.9080_._.reviews.shop.svc.cluster.local",
    }});
    let raw = serde_json::json!({"name": "raw", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}});
    let port = crate::process::free().port();
    let version = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let socket = |address: SocketAddr| {
        serde_json::json!({"socket_address": {
        "address": address.ip().to_string(), "port_value": address.port()}})
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let config = serde_json::json!({"static_resources": {
        "listeners": [{"name": "l", "address": socket(address), "filter_chains": [{
            "transport_socket": if inbound { &server } else { &raw },
            "filters": [{"name": "hcm", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "h", "codec_type": if http2 && inbound { "HTTP2" } else { "AUTO" },
                "http_protocol_options": {"enable_trailers": true},
                "http_filters": [{"name": "router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]},
            }}],
        }]}],
        "clusters": [{"name": "c", "type": "STATIC", "connect_timeout": "5s",
            "transport_socket": if inbound { &raw } else { &client },
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {version: {}}}},
            "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": socket(upstream)}}]}]}}],
    }});
    let config = file("envoy.json", &config.to_string());
    let process = std::process::Command::new(program)
        .args(["--config-path", &config, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"])
        .spawn()
        .unwrap();
    let envoy = Envoy { process, _folder: folder, address };
    in_time("Envoy listens", async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    envoy
}

#[tokio::test]
async fn sidecar_when_the_other_one_is_a_stock_envoy_then_requests_pass_in_both_directions() {
    let program = std::env::var("LENO_ENVOY")
        .expect("LENO_ENVOY names no Envoy; `make unit` sets it, or: LENO_ENVOY=$(leno-cluster envoy) cargo test");
    let (ca, app) = (Ca::new(), echo_server().await);
    for (protocol, http2) in [(UpstreamProtocol::Http1, false), (UpstreamProtocol::Http2, true)] {
        let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let body = Bytes::from(vec![9; 200_000]);
        // Envoy calls us.
        let (_outbound, inbound) = sidecars(&ca, app, REVIEWS, protocol);
        let caller = envoy(&program, &ca, FRONT, false, inbound.address, http2).await;
        let mut client = Client::connect(caller.address, version).await;
        let response = client.send(post("/from-envoy", body.clone())).await;
        let status = response.status();
        let answer = in_time("the body", response.into_body().collect()).await.unwrap().to_bytes();
        assert!(status == 200 && answer == body, "{status}: {:.300}", String::from_utf8_lossy(&answer));
        let labels = &["source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"", "mutual_tls"];
        inbound.until_metric("istio_requests_total", labels, 1.0).await;
        // We call Envoy.
        let called = envoy(&program, &ca, REVIEWS, true, app, http2).await;
        let outbound = start(Plan {
            client_tls: Some(expecting(REVIEWS)),
            credentials: ca.store(FRONT),
            ..Plan::new(called.address, protocol)
        });
        let mut client = Client::connect(outbound.address, version).await;
        let response = client.send(post("/to-envoy", body.clone())).await;
        let status = response.status();
        let answer = in_time("the body", response.into_body().collect()).await.unwrap().to_bytes();
        assert!(status == 200 && answer == body, "{status}: {:.300}", String::from_utf8_lossy(&answer));
        // An Envoy that is somebody else gets nothing.
        let impostor = envoy(&program, &ca, "spiffe://cluster.local/ns/evil/sa/x", true, app, http2).await;
        let outbound = start(Plan {
            client_tls: Some(expecting(REVIEWS)),
            credentials: ca.store(FRONT),
            ..Plan::new(impostor.address, protocol)
        });
        let response = Client::connect(outbound.address, version).await.send(get("/")).await;
        assert_eq!(response.status(), 503);
    }
}
