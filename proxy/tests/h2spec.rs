//! The HTTP/2 conformance suite `h2spec` against a worker (the program that `LENO_H2SPEC` names).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod support;

use std::process::Command;

use leno_proxy::config::{Codec, HttpManager, UpstreamProtocol};
use support::{Plan, echo_server, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_when_h2spec_judges_it_strictly_then_every_case_passes() {
    let program = std::env::var("LENO_H2SPEC")
        .expect("LENO_H2SPEC names no h2spec; `make unit` sets it, or: LENO_H2SPEC=$(leno-cluster h2spec) cargo test");
    // Not `Auto`: what does not begin with the preface would be HTTP/1 there, and be answered so.
    let manager = HttpManager { codec: Codec::Http2, ..HttpManager::default() };
    let upstream = echo_server().await;
    let proxy = start(Plan { domain: Some("*"), manager, ..Plan::new(upstream, UpstreamProtocol::Http1) });
    let port = proxy.address.port().to_string();
    let output = tokio::task::spawn_blocking(move || {
        // `--strict` adds cases to those that run anyway.
        let arguments = ["--strict", "--host", "127.0.0.1", "--port", &port, "--path", "/bytes/4096", "--timeout", "5"];
        Command::new(program).args(arguments).output().expect("h2spec runs")
    });
    let output = output.await.unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    let verdict = words.lines().rev().find(|line| line.contains(" passed, ")).unwrap_or_default();
    assert!(output.status.success(), "{words}");
    assert!(verdict.contains(" 0 skipped, 0 failed"), "{words}");
}
