//! Workers between real clients and servers: every pair of HTTP versions, and gRPC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Client, LIMIT, Plan, echo, echo_server, field, frame, get, in_time, post, start};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_api::identity::v1::workload_certificates_client::WorkloadCertificatesClient;
use leno_api::identity::v1::workload_certificates_server::{WorkloadCertificates, WorkloadCertificatesServer};
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_proxy::config::UpstreamProtocol;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn request_when_versions_differ_in_any_way_then_body_and_trailers_pass() {
    let server = echo_server().await;
    let body: Bytes = (0..300_000u32).map(|n| (n % 253) as u8).collect::<Vec<_>>().into();
    for (protocol, seen) in [(UpstreamProtocol::Http1, "HTTP/1.1"), (UpstreamProtocol::Http2, "HTTP/2.0")] {
        let proxy = start(Plan::new(server, protocol));
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(proxy.address, version).await;
            for round in 0..3 {
                let what = format!("{version:?} to {seen}, round {round}");
                let response = client.send(post("/echo?x=1", body.clone())).await;
                assert_eq!(response.status(), 200, "{what}");
                assert_eq!(response.headers()["x-version"], seen, "{what}");
                assert_eq!(response.headers()["x-host"], "reviews", "{what}");
                let collected = in_time(&what, response.into_body().collect()).await.unwrap();
                let trailers = collected.trailers().cloned().unwrap_or_default();
                assert!(collected.to_bytes() == body, "{what}: the body changed");
                assert_eq!(trailers.get("x-end").map(|v| v.as_bytes()), Some(&b"true"[..]), "{what}: {trailers:?}");
                assert_eq!(trailers.get("x-checksum").map(|v| v.as_bytes()), Some(&b"300000"[..]), "{what}");
                let response = client.send(get("/small")).await;
                assert_eq!(in_time(&what, response.into_body().collect()).await.unwrap().to_bytes(), Bytes::new());
            }
        }
        let labels = &["reporter=\"source\"", "response_code=\"200\"", "destination_workload=\"reviews-v2\""];
        proxy.until_metric("istio_requests_total", labels, 12.0).await;
        proxy.until_log("\"POST /echo?x=1 HTTP/2\" 200 - via_upstream").await;
        proxy.until_log("\"POST /echo?x=1 HTTP/1.1\" 200 - via_upstream").await;
        proxy.workers.stop();
    }
}

#[tokio::test]
async fn request_when_malformed_then_its_line_says_so_whether_it_ends_its_stream_or_its_connection() {
    let whole = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let server = echo_server().await;
    for malformed_ends_stream in [false, true] {
        let mut plan = Plan::new(server, UpstreamProtocol::Http1);
        plan.manager.http2.malformed_ends_stream = malformed_ends_stream;
        let proxy = start(plan);
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        for (stream, more, details) in [
            (1, ("X-Large", "1"), "http2.invalid.header.field"),
            (3, ("te", "gzip"), "http2.violation.of.messaging.rule"),
        ] {
            let greeting = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
            let head = frame(
                1,
                5,
                stream,
                &whole.iter().chain([&more]).flat_map(|(name, value)| field(name, value)).collect::<Vec<_>>(),
            );
            if stream == 1 || !malformed_ends_stream {
                client = TcpStream::connect(proxy.address).await.unwrap();
                client.write_all(&greeting).await.unwrap();
            }
            client.write_all(&head).await.unwrap();
            proxy.until_log(&format!("0 DPE {details}")).await;
        }
        proxy.workers.stop();
    }
}

#[tokio::test]
async fn upstream_protocol_when_it_follows_the_client_then_each_gets_its_own() {
    let proxy = start(Plan::new(echo_server().await, UpstreamProtocol::Follow));
    for (version, seen) in [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2.0")] {
        let mut client = Client::connect(proxy.address, version).await;
        assert_eq!(client.send(get("/")).await.headers()["x-version"], seen);
    }
}

#[tokio::test]
async fn http2_when_many_streams_run_at_once_then_they_share_few_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = accepted.clone();
    // Nobody is answered before all are there.
    let all = Arc::new(tokio::sync::Barrier::new(300));
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let all = all.clone();
            let service = hyper::service::service_fn(move |request| {
                let all = all.clone();
                async move {
                    all.wait().await;
                    echo(request).await
                }
            });
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(100);
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(io), service).await.map_err(|_| ()) });
        }
    });
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let Client::Http2(send) = Client::connect(proxy.address, Version::HTTP_2).await else { panic!() };
    let requests = (0..300).map(|n| {
        let mut send = send.clone();
        async move {
            send.ready().await.unwrap();
            let response = send.send_request(post("/", Bytes::from(format!("{n}")))).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, Bytes::from(format!("{n}")));
        }
    });
    in_time("300 streams", futures::future::join_all(requests)).await;
    let connections = accepted.load(std::sync::atomic::Ordering::Relaxed);
    assert!((3..=4).contains(&connections), "{connections} connections for 300 streams, of which each bears 100");
}

#[tokio::test]
async fn drain_when_http2_streams_are_open_then_they_end_and_the_connection_goes() {
    let (release, released) = tokio::sync::watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut released = released.clone();
            async move {
                let _ = released.wait_for(|released| *released).await;
                echo(request).await
            }
        });
        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), service)
            .await;
    });
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let Client::Http2(mut send) = Client::connect(proxy.address, Version::HTTP_2).await else { panic!() };
    let pending = tokio::spawn(send.send_request(post("/slow", Bytes::from_static(b"x"))));
    in_time("the stream to begin", async {
        while proxy.workers.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut drained = std::pin::pin!(proxy.workers.drain(std::time::Instant::now() + LIMIT, Duration::ZERO));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut drained).await;
    assert!(early.is_err(), "the drain did not wait for the open stream");
    assert!(!pending.is_finished(), "the open stream was cut");
    release.send(true).unwrap();
    let response = in_time("the answer", pending).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(in_time("the body", response.into_body().collect()).await.unwrap().to_bytes(), "x");
    let open = in_time("the drain", drained).await;
    assert!(send.ready().await.is_err(), "the connection still takes streams");
    assert_eq!(open, 0, "connections are still open after the drain");
}

/// The end of a pod is announced: everything goes on, and nobody stays.
#[tokio::test]
async fn clients_when_asked_to_leave_then_are_served_and_go_on_over_other_connections() {
    let proxy = start(Plan::new(echo_server().await, UpstreamProtocol::Http2));
    let status = |response: Response<Incoming>| async move {
        let status = response.status();
        in_time("the body", response.into_body().collect()).await.unwrap();
        status
    };
    let mut first = Client::connect(proxy.address, Version::HTTP_11).await;
    let mut second = Client::connect(proxy.address, Version::HTTP_2).await;
    for client in [&mut first, &mut second] {
        assert_eq!(status(client.send(get("/")).await).await, 200);
    }
    in_time("all workers to be told", proxy.workers.ask_to_leave(LIMIT)).await;
    let Client::Http2(mut second) = second else { panic!() };
    in_time("the end of the connection", async {
        while second.ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await;
    let last = first.send(get("/")).await;
    assert_eq!(
        (last.status(), &last.headers()["connection"]),
        (http::StatusCode::OK, &http::HeaderValue::from_static("close"))
    );
    // Who comes meanwhile is served, and told to leave as well.
    let mut late = Client::connect(proxy.address, Version::HTTP_2).await;
    assert_eq!(status(late.send(get("/")).await).await, 200);
    let Client::Http2(mut late) = late else { panic!() };
    in_time("the end of the late connection", async {
        while late.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    })
    .await;
    let late = Client::connect(proxy.address, Version::HTTP_11).await.send(get("/")).await;
    assert_eq!(late.headers()["connection"], "close");
}

/// A server that handles requests of either HTTP version by `service`.
async fn server<S, F>(service: S) -> SocketAddr
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Incoming>, hyper::Error>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            let service = hyper::service::service_fn(service.clone());
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(io), service).await.map_err(|_| ()) });
        }
    });
    address
}

#[tokio::test]
async fn stream_when_both_sides_talk_in_turn_then_neither_waits_for_the_end_of_the_other() {
    let address = server(async |request: Request<Incoming>| Ok(Response::new(request.into_body()))).await;
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let mut client = Client::connect(proxy.address, Version::HTTP_2).await;
    let (mut say, said) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let body = BodyExt::boxed(http_body_util::StreamBody::new(said));
    let request = Request::post("http://reviews/chat").body(body).unwrap();
    say.try_send(Ok(Frame::data(Bytes::from_static(b"word 0")))).unwrap();
    let mut answer = client.send(request).await.into_body();
    for n in 0..5 {
        let heard = in_time("an echo", answer.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(heard, format!("word {n}"));
        say.try_send(Ok(Frame::data(Bytes::from(format!("word {}", n + 1))))).unwrap();
    }
    drop(say);
    assert_eq!(in_time("the last word", answer.collect()).await.unwrap().to_bytes(), "word 5");
}

#[tokio::test]
async fn stream_when_the_client_gives_it_up_then_the_server_is_told_and_the_metrics_say_so() {
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (guard, mut ended) = tokio::sync::mpsc::unbounded_channel::<()>();
    let guard = Arc::new(std::sync::Mutex::new(Some(guard)));
    let address = server(move |_| {
        let (begun, guard) = (begun.clone(), guard.lock().unwrap().take());
        async move {
            begun.send(()).unwrap();
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let Client::Http2(mut send) = Client::connect(proxy.address, Version::HTTP_2).await else { panic!() };
    let pending = tokio::spawn(send.send_request(get("/")));
    in_time("the request to arrive", begins.recv()).await.unwrap();
    pending.abort();
    // The handler was dropped, because its stream was reset.
    assert_eq!(in_time("the reset", ended.recv()).await, None);
    proxy.until_metric("istio_requests_total", &["response_flags=\"DR\""], 1.0).await;
    // The connection is not harmed.
    assert!(send.ready().await.is_ok());
}

// --------------------------------------------------------------------------------------------------------- gRPC

struct Signer;

#[tonic::async_trait]
impl WorkloadCertificates for Signer {
    async fn sign(&self, request: tonic::Request<SignRequest>) -> Result<tonic::Response<SignResponse>, tonic::Status> {
        let csr = request.into_inner().csr;
        if csr.is_empty() {
            return Err(tonic::Status::invalid_argument("the request is empty"));
        }
        Ok(tonic::Response::new(SignResponse { chain: vec![csr], ..SignResponse::default() }))
    }
}

async fn grpc_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(WorkloadCertificatesServer::new(Signer))
            .serve_with_incoming(incoming),
    );
    address
}

async fn grpc_client(proxy: SocketAddr) -> WorkloadCertificatesClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::try_from(format!("http://{proxy}")).unwrap();
    let endpoint = endpoint.origin("http://reviews".parse().unwrap());
    WorkloadCertificatesClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn grpc_when_it_passes_the_proxy_then_answers_and_errors_keep_their_status() {
    let proxy = start(Plan::new(grpc_server().await, UpstreamProtocol::Http2));
    let mut client = grpc_client(proxy.address).await;
    let answer = in_time("sign", client.sign(SignRequest { csr: b"abc".to_vec() })).await.unwrap();
    assert_eq!(answer.into_inner().chain.len(), 1);
    let refused = in_time("sign", client.sign(SignRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::InvalidArgument, "the request is empty"));
    for status in ["0", "3"] {
        let status = format!("grpc_response_status=\"{status}\"");
        let labels = &["request_protocol=\"grpc\"", "response_code=\"200\"", &*status];
        proxy.until_metric("istio_requests_total", labels, 1.0).await;
    }
}

#[tokio::test]
async fn grpc_when_the_proxy_answers_itself_then_the_client_sees_a_grpc_status() {
    let proxy = start(Plan { endpoints: false, ..Plan::new(echo_server().await, UpstreamProtocol::Http2) });
    let mut client = grpc_client(proxy.address).await;
    let refused = in_time("sign", client.sign(SignRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, "no healthy upstream"));
    let labels = &["grpc_response_status=\"14\"", "response_flags=\"UH\""];
    proxy.until_metric("istio_requests_total", labels, 1.0).await;
    let endpoint = tonic::transport::Endpoint::try_from(format!("http://{}", proxy.address)).unwrap();
    let channel = endpoint.origin("http://nobody".parse().unwrap()).connect().await.unwrap();
    let lost = in_time("sign", WorkloadCertificatesClient::new(channel).sign(SignRequest::default())).await;
    assert_eq!(lost.unwrap_err().code(), tonic::Code::Unimplemented);
}
