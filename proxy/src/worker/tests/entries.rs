//! Access logs that are messages: what a server of Envoy's access log service gets.

use super::configured::{Configured, answer, filter, static_cluster};
use super::*;
use leno_xds::envoy::service::accesslog::v3::access_log_service_server::{AccessLogService, AccessLogServiceServer};
use leno_xds::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use leno_xds::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use serde_json::{Value, json};
use std::sync::Mutex;
use tonic::{Request, Response, Status, Streaming};

/// What came on all streams, and who called.
type Seen = Arc<Mutex<Vec<(Option<String>, StreamAccessLogsMessage)>>>;

/// A server that ends each stream after so many messages.
struct Server {
    seen: Seen,
    most: usize,
}

#[tonic::async_trait]
impl AccessLogService for Server {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let who = request.metadata().get("x-who").map(|value| value.to_str().unwrap().to_owned());
        let mut messages = request.into_inner();
        for _ in 0..self.most {
            let Some(message) = messages.message().await? else { break };
            self.seen.lock().unwrap().push((who.clone(), message));
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

/// Serves at a socket that is bound and does not listen yet.
fn serve(socket: socket2::Socket, most: usize) -> Seen {
    let seen = Seen::default();
    let server = Server { seen: seen.clone(), most };
    socket.listen(16).unwrap();
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(AccessLogServiceServer::new(server));
            server.serve_with_incoming(incoming).await.unwrap();
        });
    });
    seen
}

fn bound() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn log(kind: &str, common: Value) -> Value {
    let mut config = json!({
        "log_name": "mine", "transport_api_version": "V3", "buffer_flush_interval": "0.05s",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": "logs"}, "initial_metadata": [{"key": "x-who", "value": "me"}],
        },
        "grpc_stream_retry_policy": {"retry_back_off": {"base_interval": "0.02s", "max_interval": "0.05s"}},
    });
    config.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
    json!([{"name": kind, "typed_config": {
        "@type": format!("type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.{kind}"), "common_config": config,
    }}])
}

fn logs_at(address: SocketAddr) -> Value {
    let mut logs = static_cluster("logs", &[address]);
    logs["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    logs
}

fn answering(common: Value) -> Value {
    let mut manager = answer("hello");
    manager["typed_config"]["access_log"] = log("HttpGrpcAccessLogConfig", common);
    json!({"filter_chains": [{"filters": [manager]}]})
}

fn paths(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    let lists = seen.iter().filter_map(|(_, message)| match &message.log_entries {
        Some(LogEntries::HttpLogs(logs)) => Some(&logs.log_entry),
        _ => None,
    });
    lists.flatten().map(|entry| entry.request.as_ref().unwrap().path.clone()).collect()
}

fn counted(it: &Configured, name: &str) -> u64 {
    let all = it.context.counters.stats();
    all.iter().find(|stat| stat.name == format!("access_logs.grpc_access_log.{name}")).unwrap().value
}

#[test]
fn entries_when_a_request_and_a_connection_end_then_the_server_gets_both_and_is_told_once_from_whom() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        let all = side.rest();
        side.send(all.as_bytes());
    });
    let (socket, address) = bound();
    let seen = serve(socket, usize::MAX);
    let tags = json!({"custom_tags": [{"tag": "who", "request_header": {"name": "x-key", "default_value": "nobody"}}]});
    let tcp = filter(
        "tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "t", "cluster": "a", "access_log": log("TcpGrpcAccessLogConfig", tags.clone())}),
    );
    let listeners = vec![answering(tags), json!({"filter_chains": [{"filters": [tcp]}]})];
    let it = Configured::start_with(1, listeners, &[static_cluster("a", &[backend.address]), logs_at(address)]);
    let mut client = it.proxy.client();
    for path in ["/one", "/two"] {
        assert_eq!(client.ask(&get(path)).status(), 200);
        eventually("the request", || paths(&seen).last().map(String::as_str) == Some(path));
    }
    let mut client = Side::new(TcpStream::connect(it.address(1)).unwrap());
    client.send(b"hello");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "hello");
    let of_tcp = || {
        let seen = seen.lock().unwrap();
        seen.iter().find_map(|(_, message)| match &message.log_entries {
            Some(LogEntries::TcpLogs(logs)) => Some((message.identifier.clone(), logs.log_entry[0].clone())),
            _ => None,
        })
    };
    eventually("the connection", || of_tcp().is_some());
    let (identifier, entry) = of_tcp().unwrap();
    assert_eq!(identifier.unwrap().log_name, "mine", "a stream of its own");
    let bytes = entry.connection_properties.unwrap();
    assert_eq!((bytes.received_bytes, bytes.sent_bytes), (5, 5));
    let common = entry.common_properties.unwrap();
    assert_eq!((common.upstream_cluster.as_str(), common.custom_tags["who"].as_str()), ("a", "nobody"));
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(who, _)| who.as_deref() == Some("me")));
    assert!(seen[0].1.identifier.is_some() && seen[1].1.identifier.is_none());
    assert_eq!((counted(&it, "logs_written"), counted(&it, "logs_dropped")), (2, 0));
    assert_eq!(counted(&it, "grpc_entries_flush_failed"), 0);
}

#[test]
fn entries_when_the_server_is_not_there_then_what_fits_comes_later_and_the_rest_is_dropped_and_counted() {
    let (socket, address) = bound();
    let it = Configured::start(answering(json!({"buffer_size_bytes": 1})), &[logs_at(address)]);
    let mut client = it.proxy.client();
    assert_eq!(client.ask(&get("/taken")).status(), 200);
    eventually("the first on its way", || counted(&it, "logs_written") == 1);
    for path in ["/waits", "/lost", "/lost"] {
        assert_eq!(client.ask(&get(path)).status(), 200);
    }
    let seen = serve(socket, usize::MAX);
    eventually("two entries", || paths(&seen).len() == 2);
    assert_eq!(paths(&seen), ["/taken", "/waits"]);
    eventually("two lost", || (counted(&it, "logs_written"), counted(&it, "logs_dropped")) == (2, 2));
}

#[test]
fn entries_when_the_server_ends_its_stream_then_the_next_go_on_another_that_tells_again_from_whom() {
    let (socket, address) = bound();
    let seen = serve(socket, 1);
    let it = Configured::start(answering(json!({})), &[logs_at(address)]);
    let mut client = it.proxy.client();
    for count in 1..4 {
        assert_eq!(client.ask(&get("/")).status(), 200);
        eventually("another entry", || paths(&seen).len() == count);
        // The end of the stream is on its way.
        thread::sleep(Duration::from_millis(50));
    }
    assert!(seen.lock().unwrap().iter().all(|(_, message)| message.identifier.is_some()));
}

#[test]
fn entries_when_no_configuration_wants_them_any_more_then_the_last_are_sent_all_the_same() {
    let (socket, address) = bound();
    let seen = serve(socket, usize::MAX);
    let mut it = Configured::start(answering(json!({"buffer_flush_interval": "0.5s"})), &[logs_at(address)]);
    assert_eq!(it.proxy.client().ask(&get("/last")).status(), 200);
    it.publish(vec![json!({"filter_chains": [{"filters": [answer("bye")]}]})], &[logs_at(address)]);
    eventually("the last entry", || paths(&seen) == ["/last"]);
}
