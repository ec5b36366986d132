//! Streams over connections in memory: `h2` itself as client and as endpoint, this module between them.

use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::config::Http2Options;
use crate::http::body::{Downstream, HIGH_WATER, Piece, SideError, Upstream};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::parse::HeadError;

mod endpoint;
mod faults;
mod fuzz;

const LIMIT: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    Settings {
        keepalive: None,
        options: Http2Options::default(),
        max_head_bytes: 60 * 1024,
        max_headers: 100,
        head_timeout: LIMIT,
        idle_timeout: Duration::from_secs(60),
        max_duration: None,
        drain_timeout: LIMIT,
        max_requests: None,
        malformed_ends: true,
    }
}

/// Runs a test's tasks on one thread, for at most [`LIMIT`].
async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, LocalSet::new().run_until(test)).await.expect("the test did not end in time")
}

type Head = Result<RequestHead, HeadError>;

/// A client of a server that runs `handle` for every request; `drain` tells the server to leave.
async fn client<F: Future<Output = ()> + 'static>(
    settings: Settings,
    handle: impl FnMut(Head, Down) -> F + 'static,
) -> (SendRequest<Bytes>, oneshot::Sender<()>, JoinHandle<io::Result<()>>, JoinHandle<Result<(), h2::Error>>) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let (drain, leave) = oneshot::channel::<()>();
    let server = spawn_local(async move {
        let leave = async {
            // A sender that is dropped asks for nothing.
            if leave.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        serve(far, false, settings, leave, |_| {}, handle).await
    });
    let (send, connection) = h2::client::handshake(near).await.unwrap();
    (send, drain, server, spawn_local(connection))
}

fn get(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://reviews:9080{path}")).body(()).unwrap()
}

/// An answer of the handler's own.
async fn answer(request: &RequestHead, mut down: Down, status: u16, body: &[u8]) {
    let mut head = ResponseHead { status, body: BodyLength::Exact(body.len() as u64), ..ResponseHead::default() };
    head.headers.push(b"X-Answer", b"own");
    down.send_head(request, &head, false);
    down.send_data(body.into());
    down.send_end(None);
    let _ = poll_fn(|cx| down.poll_flush(cx)).await;
}

async fn body_of(mut body: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    (bytes, body.trailers().await.unwrap())
}

async fn send_all(mut stream: h2::SendStream<Bytes>, mut body: Bytes, trailers: HeaderMap) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = match stream.capacity() {
            0 => poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap(),
            room => room,
        };
        stream.send_data(body.split_to(room.min(body.len())), false).unwrap();
    }
    stream.send_trailers(trailers).unwrap();
}

/// Moves one request and its response between the sides, as the pipeline does.
async fn relay(request: RequestHead, mut down: Down, mut up: Up) -> Result<ResponseHead, SideError> {
    up.send_head(&request);
    let mut response = ResponseHead::default();
    let (mut request_ended, mut headed) = (false, false);
    poll_fn(|cx| {
        while !request_ended {
            if up.queued() >= HIGH_WATER && up.poll_flush(cx)?.is_pending() {
                break;
            }
            match down.poll_body(cx)? {
                Poll::Ready(Piece::Data(data)) => {
                    let count = data.len();
                    up.send_data(data);
                    down.consume(count);
                }
                Poll::Ready(Piece::Trailers(trailers)) => {
                    up.send_end(Some(trailers));
                    request_ended = true;
                }
                Poll::Ready(Piece::End) => {
                    up.send_end(None);
                    request_ended = true;
                }
                Poll::Pending => break,
            }
        }
        let _ = up.poll_flush(cx)?;
        if !headed {
            std::task::ready!(up.poll_head(cx, &mut response))?;
            headed = true;
            down.send_head(&request, &response, false);
        }
        respond(cx, &mut down, &mut up)
    })
    .await?;
    Ok(response)
}

fn respond(cx: &mut Context<'_>, down: &mut Down, up: &mut Up) -> Poll<Result<(), SideError>> {
    loop {
        if down.queued() >= HIGH_WATER {
            std::task::ready!(down.poll_flush(cx))?;
        }
        match up.poll_body(cx)? {
            Poll::Ready(Piece::Data(data)) => {
                let count = data.len();
                down.send_data(data);
                up.consume(count);
            }
            Poll::Ready(Piece::Trailers(trailers)) => {
                down.send_end(Some(trailers));
                return down.poll_flush(cx);
            }
            Poll::Ready(Piece::End) => {
                down.send_end(None);
                return down.poll_flush(cx);
            }
            Poll::Pending => {
                let _ = down.poll_flush(cx)?;
                return Poll::Pending;
            }
        }
    }
}

type Endpoint = h2::server::Connection<DuplexStream, Bytes>;

/// A connection to an endpoint that a test plays.
async fn endpoint(tls: bool) -> (Connection, Endpoint) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let (connection, drive) = connect(near, tls, None, Http2Options::default()).await.unwrap();
    spawn_local(drive);
    (connection, h2::server::handshake(far).await.unwrap())
}

#[tokio::test]
async fn stream_when_relayed_then_bodies_and_trailers_arrive_whole() {
    local(async {
        let (connection, mut endpoint) = endpoint(true).await;
        spawn_local(async move {
            let (request, mut respond) = endpoint.accept().await.unwrap().unwrap();
            spawn_local(async move { while endpoint.accept().await.is_some() {} });
            // The scheme is the client's, whatever protects this connection.
            assert_eq!(request.uri(), "http://reviews:9080/echo?a=b");
            assert_eq!(request.headers()["te"], "trailers");
            assert_eq!(request.headers()["cookie"], "a=1; b=2");
            assert_eq!(request.headers()["x-leno-peer"], "front");
            let (bytes, trailers) = body_of(request.into_body()).await;
            let stream = respond.send_response(Response::new(()), false).unwrap();
            send_all(stream, bytes.into(), trailers.unwrap()).await;
        });
        let handle = move |head: Head, down| {
            let up = connection.open();
            async move {
                relay(head.unwrap(), down, up).await.unwrap();
            }
        };
        let (mut send, _drain, _, _) = client(settings(), handle).await;
        let request = Request::post("http://reviews:9080/echo?a=b")
            .header("te", "trailers")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("x-leno-peer", "front");
        let (response, stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
        // Larger than every window on the way.
        let body: Bytes = (0..2 << 20).map(|n: u32| (n % 251) as u8).collect::<Vec<u8>>().into();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        spawn_local(send_all(stream, body.clone(), trailers.clone()));
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let (bytes, end) = body_of(response.into_body()).await;
        assert!(bytes == body, "the body changed on the way");
        assert_eq!(end, Some(trailers));
    })
    .await;
}

#[tokio::test]
async fn peer_header_when_the_endpoint_is_plain_text_then_it_is_not_sent() {
    local(async {
        let (connection, mut endpoint) = endpoint(false).await;
        let mut up = connection.open();
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        head.set_path(b"/");
        head.set_authority(b"a");
        head.headers.push(b"x-leno-peer", b"front");
        head.headers.push(b"Connection", b"x");
        up.send_head(&head);
        let (request, _respond) = endpoint.accept().await.unwrap().unwrap();
        assert!(request.headers().is_empty(), "{:?}", request.headers());
        assert_eq!(request.uri(), "http://a/");
        assert!(request.body().is_end_stream());
    })
    .await;
}

#[tokio::test]
async fn head_request_when_answered_then_the_length_is_told_and_no_body() {
    local(async {
        let (mut send, _drain, _, _) = client(settings(), |head: Head, mut down: Down| async move {
            let mut response = ResponseHead { status: 200, ..ResponseHead::default() };
            response.headers.push(b"Content-Length", b"864");
            down.send_head(&head.unwrap(), &response, false);
            down.send_end(None);
        })
        .await;
        let request = Request::head("http://a/").body(()).unwrap();
        let response = send.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(response.headers()["content-length"], "864");
        assert_eq!(body_of(response.into_body()).await.0, b"");
    })
    .await;
}

#[tokio::test]
async fn request_when_it_cannot_be_taken_then_the_handler_is_told_why() {
    local(async {
        let handle = |head: Head, down: Down| async move {
            let error = head.expect_err("the request was taken");
            answer(&RequestHead::default(), down, error.status(), error.to_string().as_bytes()).await;
        };
        let (mut send, _drain, _, _) = client(settings(), handle).await;
        let mut many = Request::get("http://a/");
        for n in 0..101 {
            many = many.header(format!("x-{n}"), "1");
        }
        let requests = [
            (many.body(()).unwrap(), 431, "more headers"),
            (Request::get("http://a/").header("content-length", "+5").body(()).unwrap(), 400, "content-length"),
        ];
        for (request, status, text) in requests {
            let response = send.send_request(request, false);
            let Ok((response, _stream)) = response else { panic!("{text}: the client itself refused") };
            match response.await {
                Ok(response) => {
                    assert_eq!(response.status(), status, "{text}");
                    let (body, _) = body_of(response.into_body()).await;
                    assert!(String::from_utf8_lossy(&body).contains(text));
                }
                // A length that is no number makes the request malformed.
                Err(error) => assert!(status == 400 && !error.is_reset(), "{text}: {error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn connection_when_it_drains_then_open_streams_end_in_peace_and_it_closes() {
    local(async {
        let (started, go_on) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let handle = {
            let (started, go_on) = (started.clone(), go_on.clone());
            move |head: Head, down| {
                let (started, go_on) = (started.clone(), go_on.clone());
                async move {
                    started.notify_one();
                    go_on.notified().await;
                    answer(&head.unwrap(), down, 200, b"late").await;
                }
            }
        };
        let (mut send, drain, server, connection) = client(settings(), handle).await;
        let (response, _) = send.send_request(get("/slow"), true).unwrap();
        started.notified().await;
        drain.send(()).unwrap();
        // The client learns that no more streams are welcome.
        while poll_fn(|cx| send.poll_ready(cx)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        go_on.notify_one();
        let response = response.await.unwrap();
        assert_eq!(body_of(response.into_body()).await.0, b"late");
        drop(send);
        server.await.unwrap().unwrap();
        connection.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn connection_when_an_answer_asks_to_close_then_it_takes_no_more_streams() {
    local(async {
        let (mut send, _drain, server, _) = client(settings(), |head: Head, mut down: Down| async move {
            down.send_head(&head.unwrap(), &ResponseHead { status: 204, ..ResponseHead::default() }, true);
            down.send_end(None);
        })
        .await;
        assert_eq!(send.send_request(get("/"), true).unwrap().0.await.unwrap().status(), 204);
        drop(send);
        server.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn connection_when_idle_for_too_long_then_it_is_closed() {
    local(async {
        let settings = Settings { idle_timeout: Duration::from_millis(50), ..settings() };
        let (send, _drain, server, connection) = client(settings, |head: Head, down| async move {
            answer(&head.unwrap(), down, 200, b"").await;
        })
        .await;
        server.await.unwrap().unwrap();
        connection.await.unwrap().unwrap();
        drop(send);
    })
    .await;
}

#[tokio::test]
async fn client_when_it_sends_no_preface_then_it_is_cut_off_in_time() {
    local(async {
        let (_near, far) = tokio::io::duplex(1024);
        let settings = Settings { head_timeout: Duration::from_millis(50), ..settings() };
        let served = serve(far, false, settings, std::future::pending(), |_| {}, |_: Head, _| async {}).await;
        assert_eq!(served.unwrap_err().kind(), io::ErrorKind::TimedOut);
    })
    .await;
}

#[tokio::test]
async fn client_when_told_that_we_leave_and_it_does_not_say_that_it_heard_then_the_connection_ends_all_the_same() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // It reads, or it does not even do that.
    for room in [1024, PREFACE.len() + SETTINGS.len()] {
        local(async {
            let (mut near, far) = tokio::io::duplex(room);
            let short = Duration::from_millis(50);
            let settings = Settings { idle_timeout: short, drain_timeout: short, ..settings() };
            let begun = std::time::Instant::now();
            tokio::io::AsyncWriteExt::write_all(&mut near, &[PREFACE, &SETTINGS].concat()).await.unwrap();
            let _ = serve(far, false, settings, std::future::pending(), |_| {}, |_: Head, _| async {}).await;
            assert!(begun.elapsed() >= 2 * short);
        })
        .await;
    }
}

#[tokio::test]
async fn client_when_told_that_we_leave_and_it_reads_slowly_then_it_gets_all_of_its_last_answer() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const LONG: usize = 4096;
    local(async {
        let (mut near, far) = tokio::io::duplex(128);
        let settings = Settings { max_requests: Some(1), drain_timeout: Duration::from_millis(50), ..settings() };
        let handle = |head: Head, down| async move { answer(&head.unwrap(), down, 200, &[b'x'; LONG]).await };
        let server = spawn_local(serve(far, false, settings, std::future::pending(), |_| {}, handle));
        near.write_all(&[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()).await.unwrap();
        // `GET http://t/`.
        near.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01t").await.unwrap();
        let (mut came, mut piece) = (Vec::new(), [0; 128]);
        while let Ok(count @ 1..) = near.read(&mut piece).await {
            came.extend_from_slice(&piece[..count]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(came.iter().filter(|byte| **byte == b'x').count() >= LONG, "{} bytes came", came.len());
        server.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn client_when_its_head_does_not_end_then_it_is_cut_off_in_time() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A block that wants more, and a frame that is not whole.
    for begun in [&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82][..], &[0, 0, 9, 1, 4, 0, 0, 0, 1, 0x82]] {
        local(async {
            let (mut near, far) = tokio::io::duplex(1024);
            let settings = Settings { head_timeout: Duration::from_millis(50), ..settings() };
            tokio::io::AsyncWriteExt::write_all(&mut near, &[PREFACE, &SETTINGS, begun].concat()).await.unwrap();
            let served = serve(far, false, settings, std::future::pending(), |_| {}, |_: Head, _| async {}).await;
            assert!(served.unwrap_err().to_string().contains("a head does not end in time"));
        })
        .await;
    }
}

#[tokio::test]
async fn client_when_it_leaves_then_the_request_notices() {
    local(async {
        let noticed = Rc::new(Notify::new());
        let handle = {
            let noticed = noticed.clone();
            move |_: Head, mut down: Down| {
                let noticed = noticed.clone();
                async move {
                    poll_fn(|cx| down.poll_gone(cx)).await;
                    noticed.notify_one();
                }
            }
        };
        let (mut send, _drain, server, connection) = client(settings(), handle).await;
        let (response, _) = send.send_request(get("/"), true).unwrap();
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        drop(response);
        noticed.notified().await;
        // The whole connection going away is noticed as well.
        let (_response, _) = send.send_request(get("/"), true).unwrap();
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        connection.abort();
        drop(send);
        noticed.notified().await;
        let _ = server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn client_when_it_opens_and_resets_streams_without_end_then_the_connection_ends() {
    local(async {
        let handle = |_: Head, mut down: Down| async move { poll_fn(|cx| down.poll_gone(cx)).await };
        let (send, _drain, server, _) = client(settings(), handle).await;
        let flood = spawn_local(async move {
            let mut send = send;
            let mut rounds = 0u32;
            loop {
                for _ in 0..50 {
                    match send.send_request(get("/"), true) {
                        // Dropping the response resets the stream.
                        Ok((response, _)) => drop(response),
                        Err(_) => return rounds,
                    }
                }
                rounds += 1;
                assert!(rounds < 10_000, "the server puts up with everything");
                tokio::task::yield_now().await;
                send = match send.ready().await {
                    Ok(send) => send,
                    Err(_) => return rounds,
                };
            }
        });
        let rounds = flood.await.unwrap();
        let served = server.await.unwrap();
        assert!(served.is_err(), "ended after {rounds} rounds without an error");
    })
    .await;
}

#[tokio::test]
async fn client_when_it_sends_heads_without_end_then_others_have_their_turn_in_between() {
    local(async {
        let (mut near, far) = tokio::io::duplex(4 * 1024 * 1024);
        let served = Rc::new(std::cell::Cell::new(0));
        let counts = served.clone();
        let handle = move |head: Head, down: Down| {
            let counts = counts.clone();
            async move {
                counts.set(counts.get() + 1);
                answer(&head.unwrap(), down, 200, b"").await;
            }
        };
        // All of it is there before the server reads the first byte.
        let text = |text: &str| [&[0x7f, (text.len() - 127) as u8 | 0x80, 0x0f], text.as_bytes()].concat();
        let long = text(&"a".repeat(127 + 15 * 128));
        let block = [&[0x82, 0x86, 0x84, 0x01, 1, b'r', 0x00, 1, b'x'][..], &long].concat();
        let mut all = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        for number in 0..1000u32 {
            all.extend([0, (block.len() >> 8) as u8, block.len() as u8, 1, 5]);
            all.extend((2 * number + 1).to_be_bytes());
            all.extend_from_slice(&block);
        }
        tokio::io::AsyncWriteExt::write_all(&mut near, &all).await.unwrap();
        let server = spawn_local(serve(far, false, settings(), std::future::pending(), |_| {}, handle));
        let (mut last, mut most) = (0, 0);
        while served.get() < 1000 {
            tokio::task::yield_now().await;
            most = most.max(served.get() - last);
            last = served.get();
        }
        assert!(most <= 150, "{most} requests were served in one turn");
        server.abort();
    })
    .await;
}
