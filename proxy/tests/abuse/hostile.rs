//! Clients and endpoints that mean harm, each with a well-behaved client beside that must not suffer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Plan, Proxy, echo_server, field, frame, in_time, start};
use leno_proxy::config::{Coding, Decompressor, FilterEntry, FilterStats, HttpFilter, HttpManager, UpstreamProtocol};

/// What a well-behaved client may have to wait for one answer, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(3);
/// What 99 of 100 of its answers may take beside an attack, by what they take on a quiet proxy, and what they always may: those who
/// attack use the machine as well.
const WORSE: u32 = 10;
const ALWAYS: Duration = Duration::from_millis(100);
/// Answers that are looked at, before an attack and beside it, at least.
const ANSWERS: usize = 200;

/// What slow clients are allowed; a client on a busy machine is not slow.
const SLOW: Duration = Duration::from_secs(2);

/// A client that asks again and again, a connection for itself, until it is told to stop.
struct Good {
    stop: Arc<AtomicBool>,
    quiet: Duration,
    thread: thread::JoinHandle<Vec<Duration>>,
}

/// Of those times the one that 99 of 100 do not exceed.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Asks once; how long the answer took.
fn ask(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    stream.write_all(b"GET /bytes/100 HTTP/1.1\r\nhost: reviews\r\n\r\n").unwrap();
    let mut text = Vec::new();
    let mut part = [0; 4096];
    while !text.windows(4).any(|end| end == b"\r\n\r\n") || !text.ends_with(&[7; 100]) {
        let read = stream.read(&mut part).expect("an answer");
        assert!(read > 0, "the good client's connection was closed");
        text.extend_from_slice(&part[..read]);
        assert!(text.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&text));
    }
    began.elapsed()
}

impl Good {
    /// Asks for a while as long as nobody else does, and then on beside what comes.
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut quiet: Vec<Duration> = (0..ANSWERS).map(|_| ask(&mut stream)).collect();
        let thread = thread::spawn(move || {
            let mut times = Vec::new();
            while !told.load(Ordering::SeqCst) || times.len() < ANSWERS {
                times.push(ask(&mut stream));
            }
            times
        });
        Self { stop, quiet: p99(&mut quiet), thread }
    }

    fn end(self, beside: &str) {
        self.stop.store(true, Ordering::SeqCst);
        let mut times = self.thread.join().expect("the good client is served");
        let (slow, worst, quiet) = (p99(&mut times), times[times.len() - 1], self.quiet);
        println!("beside {beside}: {} answers, p99 {slow:?}, worst {worst:?}; quiet {quiet:?}", times.len());
        assert!(worst < PATIENCE, "beside {beside}: the slowest answer took {worst:?}");
        assert!(slow <= ALWAYS.max(quiet * WORSE), "beside {beside}: p99 is {slow:?}, and {quiet:?} on a quiet proxy");
    }
}

/// Makes the frames of a flood.
type Frames = Box<dyn Fn() -> Box<dyn Iterator<Item = Vec<u8>>> + Send + Sync>;

fn head(method: &str) -> Vec<u8> {
    [field(":method", method), field(":scheme", "http"), field(":path", "/bytes/1"), field(":authority", "reviews")]
        .concat()
}

/// Sends everything until the other side hangs up or all was sent; whether it hung up within the limit.
fn flood(address: SocketAddr, frames: impl Iterator<Item = Vec<u8>>, limit: Duration) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(limit)).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    // What comes back is read and forgotten.
    let closed = thread::spawn(move || {
        let mut part = [0; 65536];
        loop {
            match reader.read(&mut part) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    });
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    let mut sent = stream.write_all(&out).is_ok();
    let mut batch = Vec::new();
    for frame in frames {
        batch.extend(frame);
        if batch.len() > 16_000 {
            sent = sent && stream.write_all(&batch).is_ok();
            batch.clear();
        }
        if !sent {
            break;
        }
    }
    let _ = stream.write_all(&batch);
    closed.join().unwrap()
}

async fn proxy(protocol: UpstreamProtocol, manager: HttpManager) -> Proxy {
    start(Plan { manager, ..Plan::new(echo_server().await, protocol) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_when_a_client_floods_then_it_is_disconnected_and_others_are_served() {
    let proxy = proxy(UpstreamProtocol::Http1, HttpManager::default()).await;
    let address = proxy.address;
    let opens = |stream: u32| frame(1, 5, stream, &head("GET"));
    let cases: Vec<(&str, Frames)> = vec![
        (
            "rapid reset",
            Box::new(move || {
                Box::new(
                    (0..20_000u32)
                        .map(move |n| [opens(2 * n + 1), frame(3, 0, 2 * n + 1, &8u32.to_be_bytes())].concat()),
                )
            }),
        ),
        (
            "resets by breaking the protocol",
            // A window that overflows makes this side reset the stream.
            Box::new(move || {
                Box::new((0..20_000u32).map(move |n| {
                    let stream = 2 * n + 1;
                    [frame(1, 4, stream, &head("POST")), frame(8, 0, stream, &0x7fff_ffffu32.to_be_bytes())].concat()
                }))
            }),
        ),
        (
            "continuations",
            Box::new(|| {
                let first = frame(1, 0, 1, &head("GET"));
                let more = frame(9, 0, 1, &field("x-filler", &"a".repeat(100)));
                Box::new(std::iter::once(first).chain(std::iter::repeat_n(more, 100_000)))
            }),
        ),
        (
            "empty continuations",
            Box::new(|| {
                let first = frame(1, 0, 1, &head("GET"));
                Box::new(std::iter::once(first).chain(std::iter::repeat_n(frame(9, 0, 1, &[]), 100_000)))
            }),
        ),
        ("settings", Box::new(|| Box::new(std::iter::repeat_n(frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]), 200_000)))),
        ("pings", Box::new(|| Box::new(std::iter::repeat_n(frame(6, 0, 0, &[1; 8]), 200_000)))),
        (
            "empty data",
            Box::new(|| {
                let first = frame(1, 4, 1, &head("POST"));
                Box::new(std::iter::once(first).chain(std::iter::repeat_n(frame(0, 0, 1, &[]), 100_000)))
            }),
        ),
        (
            "settings that change every window again and again",
            Box::new(|| {
                let streams = (0..90u32).map(|n| frame(1, 4, 2 * n + 1, &head("POST")));
                let entries = [[0, 4, 0, 0, 0xff, 0xff], [0, 4, 0, 0, 0xff, 0xfe]].concat().repeat(1300);
                Box::new(streams.chain(std::iter::repeat_n(frame(4, 0, 0, &entries), 500)))
            }),
        ),
        (
            "trailers that unpack to much",
            Box::new(|| {
                // One large field goes into the table, and is then named with a byte each.
                let mut field = vec![0x40, 6];
                field.extend_from_slice(b"x-bomb");
                field.extend([0x7f, 0xa1, 0x1e]);
                field.extend(std::iter::repeat_n(b'a', 4000));
                let named = frame(9, 0, 1, &[0xbe; 16_000]);
                let begin = [frame(1, 4, 1, &head("POST")), frame(1, 1, 1, &field)].concat();
                let end = frame(9, 4, 1, &[0xbe; 100]);
                Box::new(std::iter::once(begin).chain(std::iter::repeat_n(named, 7)).chain([end]))
            }),
        ),
        ("priorities", Box::new(|| Box::new(std::iter::repeat_n(frame(2, 0, 1, &[0, 0, 0, 0, 9]), 100_000)))),
        (
            "heads far beyond the limits",
            // Each byte names a header of the static table: `cookie`, without a value.
            Box::new(|| {
                let block = [head("GET"), vec![0xa0; 10_000]].concat();
                Box::new((0..20_000u32).map(move |n| frame(1, 5, 2 * n + 1, &block)))
            }),
        ),
        (
            "window updates",
            Box::new(|| {
                let first = frame(1, 4, 1, &head("POST"));
                Box::new(std::iter::once(first).chain(std::iter::repeat_n(frame(8, 0, 1, &[0, 0, 0, 1]), 200_000)))
            }),
        ),
        (
            "tiny data",
            Box::new(|| {
                let first = frame(1, 4, 1, &head("POST"));
                Box::new(std::iter::once(first).chain(std::iter::repeat_n(frame(0, 0, 1, b"x"), 60_000)))
            }),
        ),
        (
            "streams beyond the limit",
            Box::new(|| Box::new((0..2_000u32).map(|n| frame(1, 4, 2 * n + 1, &head("POST"))))),
        ),
    ];
    for (what, frames) in cases {
        // What a client may do, if only nobody suffers from it.
        let borne = matches!(what, "tiny data" | "streams beyond the limit");
        let limit = Duration::from_secs(if borne { 3 } else { 10 });
        let good = Good::start(address);
        let closed = tokio::task::spawn_blocking(move || flood(address, frames(), limit)).await.unwrap();
        good.end(what);
        assert!(closed || borne, "{what}: the client is still connected");
    }
    proxy.workers.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_when_a_head_unpacks_to_much_then_it_is_refused_and_others_are_served() {
    let proxy = proxy(UpstreamProtocol::Http1, HttpManager::default()).await;
    let address = proxy.address;
    let good = Good::start(address);
    let answer = tokio::task::spawn_blocking(move || {
        // One large field goes into the table, and is then named thousands of times with a byte each.
        let mut block = head("GET");
        block.extend([0x40, 6]);
        block.extend_from_slice(b"x-bomb");
        block.extend([0x7f, 0xa1, 0x1e]);
        block.extend(std::iter::repeat_n(b'a', 4000));
        let named = vec![0xbe; 10_000];
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        out.extend(frame(4, 0, 0, &[]));
        out.extend(frame(1, 1, 1, &block));
        out.extend(frame(9, 4, 1, &named));
        stream.write_all(&out).unwrap();
        let mut all = Vec::new();
        let mut part = [0; 4096];
        // Until there is an answer to the stream, a reset, or the end.
        while !all.windows(4).any(|four: &[u8]| matches!(four, [1 | 3, _, 0, 0])) {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend_from_slice(&part[..count]),
            }
        }
        all
    });
    let answer = answer.await.unwrap();
    assert!(!answer.windows(3).any(|text| text == b"200"), "it was served");
    good.end("a bomb");
    proxy.workers.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn body_when_it_unpacks_to_much_then_it_is_refused_and_others_are_served() {
    let decompressor = Decompressor {
        coding: Coding::Gzip,
        name: "gzip".into(),
        stats: Default::default(),
        max_ratio: 100,
        requests: Some(false),
        responses: None,
        advertise: false,
    };
    let filter = HttpFilter::Decompressor(Arc::new(decompressor));
    let entry = FilterEntry { name: "gzip".into(), disabled: false, filter, stats: FilterStats::default() };
    let proxy = proxy(UpstreamProtocol::Http1, HttpManager { filters: vec![entry], ..HttpManager::default() }).await;
    let address = proxy.address;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 256 << 20]).unwrap();
    let bomb = packed.finish().unwrap();
    let good = Good::start(address);
    let thrown = tokio::task::spawn_blocking(move || {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let length = bomb.len();
            let head = format!(
                "POST / HTTP/1.1\r\nhost: reviews\r\ncontent-encoding: gzip\r\ncontent-length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            let _ = stream.write_all(&bomb);
            let mut answer = [0; 12];
            // It may be reset before all of it was sent, and the answer lost with that.
            if stream.read_exact(&mut answer).is_ok() {
                assert_eq!(&answer, b"HTTP/1.1 400");
            }
        }
    });
    thrown.await.unwrap();
    good.end("bombs in bodies");
    proxy.workers.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_when_clients_are_slow_then_they_are_cut_off_and_others_are_served() {
    let manager = HttpManager { request_head_timeout: SLOW, stream_idle_timeout: SLOW, ..HttpManager::default() };
    let proxy = proxy(UpstreamProtocol::Http1, manager).await;
    let address = proxy.address;
    let good = Good::start(address);
    for (what, begins) in [
        ("heads", &b"GET / HTTP/1.1\r\nhost: reviews\r\nx: "[..]),
        ("bodies", b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 100\r\n\r\n"),
        ("chunks", b"POST / HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\r\nff\r\n"),
    ] {
        let cut = tokio::task::spawn_blocking(move || {
            let mut slow: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
            for stream in &mut slow {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.write_all(begins).unwrap();
            }
            slow.iter_mut().all(|stream| {
                let mut text = String::new();
                let ended = stream.read_to_string(&mut text);
                ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
                    || text.starts_with("HTTP/1.1 408")
            })
        });
        assert!(cut.await.unwrap(), "slow {what} were not cut off");
    }
    // Readers that take nothing of a large answer.
    let mut readers: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stream in &mut readers {
        stream.write_all(b"GET /bytes/8000000 HTTP/1.1\r\nhost: reviews\r\n\r\n").unwrap();
    }
    in_time("slow readers to be cut off", async {
        // Only the good client's connection is left.
        while proxy.workers.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(readers);
    good.end("slow clients");
    proxy.workers.stop();
}

/// An endpoint that does the same dirty thing on each connection.
fn dirty(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut part = [0; 4096];
                let _ = stream.read(&mut part);
                let _ = stream.write_all(answer);
                let _ = stream.read(&mut part);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_when_an_endpoint_answers_dirtily_then_no_client_gets_anothers_answer() {
    for answer in [
        // Two answers to one question: the second is nobody's.
        &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 40\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\npoison",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\npoison",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokpoison",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\npoison",
        b"HTTP/1.1 200 OK\nx: poison\n\npoison",
        b"poison\r\n\r\n",
    ] {
        let proxy = start(Plan::new(dirty(answer), UpstreamProtocol::Http1));
        let address = proxy.address;
        let rounds = tokio::task::spawn_blocking(move || {
            for _ in 0..3 {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").unwrap();
                let mut text = Vec::new();
                let _ = stream.read_to_end(&mut text);
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(!text.contains("poison"), "{text}");
                assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
            }
        });
        rounds.await.unwrap_or_else(|_| panic!("after {}", answer.escape_ascii()));
        proxy.workers.stop();
    }
}

/// An endpoint of HTTP/1 that keeps everything that it receives, and answers each request that it understands.
fn recorder() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let all = Arc::new(Mutex::new(Vec::new()));
    let kept = all.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let kept = kept.clone();
            thread::spawn(move || {
                let mut part = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut part) {
                    kept.lock().unwrap().extend_from_slice(&part[..count]);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            });
        }
    });
    (address, all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_when_a_head_hides_a_request_then_the_endpoint_of_http1_sees_none() {
    let hidden = "GET /smuggled HTTP/1.1\r\nhost: reviews\r\n\r\n";
    let usual = |method, path, authority| {
        [field(":method", method), field(":scheme", "http"), field(":path", path), field(":authority", authority)]
            .concat()
    };
    let plain = || usual("POST", "/", "reviews");
    let inject = |before: &str| format!("{before}\r\n\r\n{hidden}");
    let (path, authority, method) =
        (inject("/ HTTP/1.1\r\nhost: reviews"), inject("reviews"), inject("GET / HTTP/1.1\r\nhost: a"));
    let body = format!("0\r\n\r\n{hidden}");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a line end in the path", usual("GET", &path, "reviews")),
        ("a blank in the path", usual("GET", "/x HTTP/1.1", "reviews")),
        ("a line end in the authority", usual("GET", "/", &authority)),
        ("a line end in the method", usual(&method, "/", "reviews")),
        ("a line end in a value", [plain(), field("x-a", &inject("b"))].concat()),
        ("a line end in a name", [plain(), field(&format!("x-a: b\r\n\r\n{hidden}x"), "b")].concat()),
        ("a colon in a name", [plain(), field("x-a: b\r\ntransfer-encoding", "chunked")].concat()),
        ("chunks", [plain(), field("transfer-encoding", "chunked")].concat()),
        ("a length of nothing", [plain(), field("content-length", "0")].concat()),
        ("two lengths", [plain(), field("content-length", "0"), field("content-length", "60")].concat()),
        ("a length that is none", [plain(), field("content-length", "+60")].concat()),
        ("what concerns a connection", [plain(), field("connection", "transfer-encoding")].concat()),
        ("a host that differs", [plain(), field("host", "other\r\nx: y")].concat()),
        ("a capital in a name", [plain(), field("Transfer-Encoding", "chunked")].concat()),
    ];
    for (what, block) in cases {
        let (upstream, received) = recorder();
        let proxy = start(Plan { domain: Some("*"), ..Plan::new(upstream, UpstreamProtocol::Http1) });
        let (address, body) = (proxy.address, body.clone());
        let attack = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            out.extend(frame(4, 0, 0, &[]));
            out.extend(frame(1, 4, 1, &block));
            out.extend(frame(0, 1, 1, body.as_bytes()));
            out.extend(frame(6, 0, 0, &[5; 8]));
            stream.write_all(&out).unwrap();
            // Until the stream is answered, reset, or the connection ends.
            let mut all = Vec::new();
            let mut part = [0; 4096];
            while !all.windows(4).any(|four: &[u8]| matches!(four, [1 | 3 | 7, _, 0, 0])) {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => all.extend_from_slice(&part[..count]),
                }
            }
            // A good request on a connection of its own goes the same way.
            let mut good = TcpStream::connect(address).unwrap();
            good.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            good.write_all(b"GET /good HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            let _ = good.read_to_string(&mut text);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        });
        attack.await.unwrap_or_else(|_| panic!("after {what}"));
        let received = String::from_utf8_lossy(&received.lock().unwrap()).into_owned();
        // As part of a body it is harmless: then its length, or its chunk, comes before it.
        let lines = || received.split("\r\n\r\n").filter(|part| part.contains("GET /smuggled"));
        assert!(lines().all(|_| framed(&received, hidden)), "{what}: {received:?}");
        assert!(received.contains("GET /good"), "{what}: {received:?}");
        proxy.workers.stop();
    }
}

/// Whether a text stands in what was received only as the content of one chunk.
fn framed(received: &str, hidden: &str) -> bool {
    let body = format!("0\r\n\r\n{hidden}");
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    received.matches(hidden).count() == received.matches(&chunk).count()
}
