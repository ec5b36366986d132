//! The health server answers what a probe and a scraper ask.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

use std::time::Duration;

use leno_runtime::http::{Health, health_routes, listen, serve};
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
