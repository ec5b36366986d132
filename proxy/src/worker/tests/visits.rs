//! What listeners and the TCP proxy tell about connections in their logs.

use super::configured::{Configured, answer, filter, static_cluster};
use super::*;
use serde_json::{Value, json};
use std::path::Path;

fn log(path: &Path, kind: &str) -> Value {
    let line = "%ACCESS_LOG_TYPE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %CONNECTION_TERMINATION_DETAILS% \
                %UPSTREAM_CLUSTER% %FILTER_CHAIN_NAME% %PROTOCOL%\n";
    json!([{"name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": {"text_format_source": {"inline_string": format!("{kind} {line}")}},
    }}])
}

fn denying() -> Value {
    let policy = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    filter("rbac.v3.RBAC", json!({"stat_prefix": "r", "rules": {"action": "DENY", "policies": {"nobody": policy}}}))
}

#[test]
fn connection_when_it_ends_then_the_listeners_line_says_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines");
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        let all = side.rest();
        side.send(all.as_bytes());
    });
    let tcp = |cluster: &str| {
        filter(
            "tcp_proxy.v3.TcpProxy",
            json!({"stat_prefix": "t", "cluster": cluster, "access_log": log(&path, "tcp")}),
        )
    };
    let listener = |filters: Vec<Value>| json!({"access_log": log(&path, "listener"), "filter_chains": [{"name": "chain", "filters": filters}]});
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let configured = Configured::start_with(
        1,
        vec![
            listener(vec![tcp("a")]),
            listener(vec![denying(), tcp("a")]),
            listener(vec![tcp("dead")]),
            listener(vec![answer("hello")]),
            listener(vec![denying(), answer("hello")]),
        ],
        &[static_cluster("a", &[backend.address]), static_cluster("dead", &[dead])],
    );
    let telemetry = configured.proxy.telemetry.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(telemetry.write_logs());
    });
    let mut seen = 0;
    let mut lines = |index: usize, sent: &str, count: usize| -> Vec<String> {
        let mut client = Side::new(TcpStream::connect(configured.address(index)).unwrap());
        client.send(sent.as_bytes());
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let _ = client.stream.read_to_end(&mut Vec::new());
        drop(client);
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        eventually("the lines of a connection", || read().lines().count() >= seen + count);
        let lines = read().lines().skip(seen).map(str::to_owned).collect();
        seen += count;
        lines
    };
    assert_eq!(lines(0, "hello", 2), ["listener NotSet - 5 5 - a chain -", "tcp TcpConnectionEnd - 5 5 - a chain -"]);
    let denied = "rbac_access_denied_matched_policy[nobody]";
    assert_eq!(
        lines(1, "hello", 2),
        [format!("listener NotSet - 0 0 {denied} - chain -"), format!("tcp TcpConnectionEnd - 0 0 {denied} - chain -")]
    );
    assert_eq!(
        lines(2, "", 2),
        ["listener NotSet UF,URX 0 0 - dead chain -", "tcp TcpConnectionEnd UF,URX 0 0 - dead chain -"]
    );
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let line = lines(3, request, 1).remove(0);
    assert!(line.starts_with(&format!("listener NotSet - {} ", request.len())), "{line}");
    assert!(line.ends_with(" - - chain HTTP/1.1") && !line.contains(" 0 "), "{line}");
    let line = lines(3, "BAD\r\n\r\n", 1).remove(0);
    assert!(line.starts_with("listener NotSet DPE 7 ") && line.ends_with(" - - chain -"), "{line}");
    assert_eq!(lines(4, request, 1), [format!("listener NotSet - 0 0 {denied} - chain -")]);
}
