//! Endpoints of HTTP/2 that take nothing more of a request: its client is not kept waiting for ever, and may leave.

use super::*;
use std::sync::mpsc;

/// An endpoint that never opens a window, and tells of each stream that is reset.
fn stalled() -> (Backend, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |mut stream, _| {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        // SETTINGS, and the acknowledgement of the other side's.
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0").unwrap();
        let mut head = [0; 9];
        while stream.read_exact(&mut head).is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if stream.read_exact(&mut vec![0; length]).is_err() {
                return;
            }
            if head[3] == 3 {
                sender.lock().unwrap().send(()).unwrap();
            }
        }
    });
    (backend, receiver)
}

fn start(backend: &Backend, forwarded: Forward) -> Proxy {
    let cluster = Cluster { protocol: UpstreamProtocol::Http2, ..cluster(&[backend.address]) };
    Proxy::start(1, http(forward(forwarded)), vec![cluster])
}

fn upload(bytes: usize) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: {bytes}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; bytes]].concat()
}

#[test]
fn request_when_its_endpoint_takes_nothing_more_then_limits_count_all_the_same() {
    let (backend, resets) = stalled();
    let limit = Some(Duration::from_millis(100));
    let policy = RetryPolicy { per_try_timeout: limit, attempts: 0, ..RetryPolicy::default() };
    for forwarded in [
        Forward { timeout: limit, ..Forward::default() },
        Forward { retry: Some(Arc::new(policy)), timeout: Some(Duration::ZERO), ..Forward::default() },
    ] {
        let proxy = start(&backend, forwarded);
        // What was read to its end waits to be sent, or there is more of it that nobody reads.
        for bytes in [70_000, 400_000] {
            let mut client = proxy.client();
            client.send(&upload(bytes));
            assert_eq!(client.message(false).expect("an answer").status(), 504, "{bytes}");
            resets.recv_timeout(LIMIT).expect("the stream is given up");
            proxy.told("UT");
        }
    }
}

#[test]
fn client_when_it_leaves_while_its_endpoint_takes_nothing_more_then_the_endpoint_hears_of_it() {
    let (backend, resets) = stalled();
    let proxy = start(&backend, Forward { timeout: Some(Duration::ZERO), ..Forward::default() });
    let mut client = proxy.client();
    client.send(&upload(70_000));
    eventually("a connection", || backend.connections.load(Ordering::SeqCst) == 1);
    assert!(resets.recv_timeout(Duration::from_millis(200)).is_err(), "it waits");
    drop(client);
    resets.recv_timeout(LIMIT).expect("the stream is given up");
    proxy.told("DC");
}

#[test]
fn answer_when_its_client_takes_it_slowly_then_the_time_of_its_endpoint_does_not_count() {
    const LONG: usize = 24 << 20;
    let long = Backend::http(|request| match request.head.contains("/chunks") {
        true => format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{LONG:x}\r\n{}\r\n0\r\n\r\n",
            "x".repeat(LONG)
        ),
        false => ok(&"x".repeat(LONG)),
    });
    let limit = Some(Duration::from_millis(200));
    let proxy = Proxy::start(
        1,
        http(forward(Forward { timeout: limit, ..Forward::default() })),
        vec![cluster(&[long.address])],
    );
    for path in ["/", "/chunks"] {
        let mut client = proxy.client();
        client.send(get(path).as_bytes());
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(client.message(false).expect("all of it").body.len(), LONG, "{path}");
    }
    // Over HTTP/2, with a window that is opened late.
    let mut client = proxy.client().stream;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // `GET http://t/`, by the static table but for the host.
    client.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01t").unwrap();
    std::thread::sleep(Duration::from_millis(700));
    for stream in [0, 1] {
        client.write_all(&[b"\0\0\x04\x08\0\0\0\0", &[stream][..], b"\x7f\0\0\0"].concat()).unwrap();
    }
    let (mut head, mut bytes) = ([0; 9], 0);
    loop {
        client.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).unwrap();
        match head[3] {
            0 => bytes += payload.len(),
            3 | 7 => panic!("reset after {bytes} bytes"),
            _ => {}
        }
        if head[3] <= 1 && head[4] & 1 != 0 {
            break;
        }
    }
    assert_eq!(bytes, LONG);
}

#[test]
fn endpoint_when_it_answers_101_over_http2_then_that_is_no_answer() {
    let backend = Backend::start(|mut stream, _| {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").unwrap();
        // `:status: 101`, a literal without indexing, in a head that ends nothing.
        stream.write_all(b"\0\0\x05\x01\x04\0\0\0\x01\x08\x03101").unwrap();
        while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    });
    let proxy = start(&backend, Forward::default());
    assert_eq!(proxy.get("/").status(), 502);
    proxy.told("UPE");
}
