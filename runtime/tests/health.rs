//! The health server answers what a probe and a scraper ask.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

use std::time::Duration;

use leno_runtime::http::{Health, MAX_CONNECTIONS, health_routes, listen, serve};
use leno_runtime::metrics::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.expect("an answer within 5 s")
}

#[tokio::test]
async fn health_when_the_process_becomes_ready_then_the_probe_sees_it() {
    let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, shutdown) = (Health::new(), CancellationToken::new());
    let server = tokio::spawn(serve(listener, health_routes(health.clone(), Registry::new()), shutdown.clone()));
    assert!(get(address, "/healthz/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 503"));
    health.set_ready(true);
    assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 200"));
    health.live_check("lease", || Err("lost".to_owned()));
    assert!(get(address, "/healthz/live").await.contains("lease: lost"));
    assert!(get(address, "/metrics").await.contains("leno_build_info"));
    assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server).await.expect("the server ends within 5 s").unwrap();
}

#[tokio::test]
async fn health_when_many_hold_connections_and_ask_nothing_then_others_are_answered() {
    let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, health_routes(Health::new(), Registry::new()), shutdown.clone()));
    let mut slow = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz/live HTTP/1.1\r\n").await.unwrap();
        slow.push(stream);
    }
    assert!(get(address, "/healthz/live").await.starts_with("HTTP/1.1 200"));
    let mut last = slow.pop().unwrap();
    last.write_all(b"host: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "the newest of them may go on: {answer}");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server).await.expect("the server ends within 5 s").unwrap();
}
