//! What stands before a filter chain and in it: PROXY protocol, chain matching, gates, what serves without an endpoint.

use super::configured::{Configured, answer, filter, static_cluster, tcp_to};
use super::tls::pair_json;
use super::*;
use crate::overload::Overload;
use serde_json::{Value, json};

fn proxy_protocol(body: Value) -> Value {
    let mut body = body;
    body["@type"] = json!("type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol");
    json!({"name": "proxy", "typed_config": body})
}

fn with_gate(gate: Value) -> Value {
    json!({"default_filter_chain": {"filters": [gate, filter("echo.v3.Echo", json!({}))]}})
}

/// What an echo gives back.
fn echo(address: SocketAddr) -> Option<String> {
    let mut side = Side::connect(address);
    side.send(b"hi\n");
    side.until(b"\n")
}

#[test]
fn client_when_the_proxy_protocol_names_it_then_chains_see_its_address() {
    let from = |range: &str, text: &str| {
        let (prefix, length) = range.split_once('/').unwrap();
        json!({
            "filter_chain_match": {"source_prefix_ranges": [
                {"address_prefix": prefix, "prefix_len": length.parse::<u32>().unwrap()}
            ]},
            "filters": [answer(text)]
        })
    };
    let listener = |optional: bool| {
        json!({
            "listener_filters": [proxy_protocol(json!({"allow_requests_without_proxy_protocol": optional}))],
            "filter_chains": [from("1.2.3.0/24", "told"), from("127.0.0.0/8", "itself")]
        })
    };
    let configured = Configured::start_with(1, vec![listener(false), listener(true)], &[]);
    let ask = |index: usize, header: &[u8]| {
        let mut side = Side::connect(configured.address(index));
        side.send(&[header, get("/").as_bytes()].concat());
        side.message(false).map(|message| message.body)
    };
    let v1 = b"PROXY TCP4 1.2.3.4 10.0.0.1 5 80\r\n";
    let (source, destination) = ("1.2.3.9:5".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    let v2 = crate::listen::write_header(true, source, destination, &[]);
    for index in [0, 1] {
        assert_eq!(ask(index, v1).as_deref(), Some("told"));
        assert_eq!(ask(index, &v2).as_deref(), Some("told"));
        assert_eq!(ask(index, b"PROXY UNKNOWN\r\n").as_deref(), Some("itself"));
        assert_eq!(ask(index, b"PROXY TCP4 nonsense\r\n"), None);
    }
    assert_eq!(ask(0, b""), None, "it must be there");
    assert_eq!(ask(1, b"").as_deref(), Some("itself"));
}

#[test]
fn client_when_it_ends_before_it_is_clear_what_it_speaks_then_only_a_beginning_of_tls_is_refused() {
    let inspector = |name: &str, kind: &str| {
        json!({"name": name, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{kind}")}})
    };
    let listener = json!({
        "listener_filters": [inspector("tls_inspector", "TlsInspector"), inspector("http_inspector", "HttpInspector")],
        "default_filter_chain": {"filters": [filter("echo.v3.Echo", json!({}))]}
    });
    let configured = Configured::start(listener, &[]);
    let ask = |bytes: &[u8]| {
        let mut side = Side::connect(configured.address(0));
        side.send(bytes);
        side.stream.shutdown(std::net::Shutdown::Write).unwrap();
        side.rest()
    };
    assert_eq!(ask(b"hi"), "hi", "too short to be told from HTTP");
    assert_eq!(ask(b"hi there\n"), "hi there\n");
    assert_eq!(ask(b"\x16\x03\x01\x02\x00\x01"), "");
    assert_eq!(ask(b""), "");
}

#[test]
fn proxy_protocol_when_it_does_not_come_in_time_then_the_connection_is_closed() {
    let listener = json!({
        "listener_filters": [proxy_protocol(json!({}))], "listener_filters_timeout": "0.05s",
        "default_filter_chain": {"filters": [answer("late")]}
    });
    let configured = Configured::start(listener, &[]);
    assert_eq!(Side::connect(configured.address(0)).rest(), "");
}

#[test]
fn endpoint_when_it_wants_the_proxy_protocol_then_it_learns_who_the_client_is() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |stream, _| {
        let all = Side::new(stream).rest();
        sender.lock().unwrap().send(all).unwrap();
    });
    for version in ["V1", "V2"] {
        let mut cluster = static_cluster("up", &[backend.address]);
        cluster["transport_socket"] = json!({"name": "p", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": {"version": version, "pass_through_tlvs": {"match_type": "INCLUDE", "tlv_type": [225]}},
            "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
            }}
        }});
        let listener = json!({
            "listener_filters": [proxy_protocol(json!({"pass_through_tlvs": {"match_type": "INCLUDE_ALL"}}))],
            "default_filter_chain": {"filters": [tcp_to("up")]}
        });
        let configured = Configured::start(listener, &[cluster]);
        let mut side = Side::connect(configured.address(0));
        let addresses = ("1.2.3.4:5".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let tlvs: Vec<(u8, Box<[u8]>)> = vec![(224, (*b"gone").into()), (225, (*b"kept").into())];
        side.send(&crate::listen::write_header(true, addresses.0, addresses.1, &tlvs));
        side.send(b"hello");
        side.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let want = crate::listen::write_header(version == "V2", addresses.0, addresses.1, &tlvs[1..]);
        let got = receiver.recv_timeout(LIMIT).unwrap();
        assert_eq!(got, String::from_utf8_lossy(&[&want[..], b"hello"].concat()));
    }
}

#[test]
fn connection_when_roles_deny_it_then_it_is_closed_and_shadow_rules_deny_nothing() {
    let rules = |range: &str| {
        json!({"action": "ALLOW", "policies": {"p": {
            "permissions": [{"any": true}], "principals": [{"direct_remote_ip": {"address_prefix": range, "prefix_len": 8}}]
        }}})
    };
    let allowed = json!({"stat_prefix": "r", "rules": rules("127.0.0.0"), "shadow_rules": rules("10.0.0.0")});
    let denied = json!({"stat_prefix": "r", "rules": rules("10.0.0.0")});
    let listeners = [allowed, denied].map(|body| with_gate(filter("rbac.v3.RBAC", body)));
    let configured = Configured::start_with(1, listeners.into(), &[]);
    assert_eq!(echo(configured.address(0)).as_deref(), Some("hi\n"));
    assert_eq!(echo(configured.address(1)), None);
}

#[test]
fn connections_when_there_are_too_many_then_one_more_is_closed_until_one_ends() {
    let gate = filter("connection_limit.v3.ConnectionLimit", json!({"stat_prefix": "c", "max_connections": 2}));
    let mut configured = Configured::start(with_gate(gate.clone()), &[]);
    let address = configured.address(0);
    let open = || {
        let mut side = Side::connect(address);
        side.send(b"hi\n");
        (side.until(b"\n").as_deref() == Some("hi\n")).then_some(side)
    };
    let (first, second) = (open().unwrap(), open().unwrap());
    assert!(open().is_none());
    // The same listener again does not forget who is there.
    configured.publish(vec![with_gate(gate)], &[]);
    assert!(open().is_none());
    drop(first);
    eventually("a place", || open().is_some());
    drop(second);
    eventually("nobody", || configured.proxy.workers().connections() == 0);
}

#[test]
fn connection_when_its_filter_chain_is_gone_then_its_next_request_is_answered_while_there_is_time() {
    let chain = |range: &str, text: &str| {
        json!({"filter_chain_match": {"source_prefix_ranges": [{"address_prefix": range, "prefix_len": 8}]},
            "filters": [answer(text)]})
    };
    let both = json!({"filter_chains": [chain("127.0.0.0", "own"), chain("10.0.0.0", "other")]});
    let one = json!({"filter_chains": [chain("10.0.0.0", "other")]});
    let mut configured = Configured::start(both.clone(), &[]);
    let mut side = Side::connect(configured.address(0));
    assert_eq!(side.ask(&get("/")).body, "own");
    configured.drain_time = LIMIT;
    configured.publish(vec![one.clone()], &[]);
    let last = side.ask(&get("/"));
    assert_eq!(last.body, "own");
    assert!(last.head.to_ascii_lowercase().contains("connection: close"), "{}", last.head);
    assert_eq!(Side::connect(configured.address(0)).rest(), "", "no others are taken");
    // Without such a time what it belonged to may be no longer allowed.
    configured.drain_time = Duration::ZERO;
    configured.publish(vec![both], &[]);
    let mut side = Side::connect(configured.address(0));
    assert_eq!(side.ask(&get("/")).body, "own");
    configured.publish(vec![one], &[]);
    side.send(get("/").as_bytes());
    assert_eq!(side.rest(), "");
}

#[test]
fn connection_when_its_filter_chain_wants_tls_from_now_on_then_it_ends() {
    let ca = crate::tls::own_tests::Ca::new("ca");
    let (chain, key) = ca.leaf(&["a.example"], -1..1);
    let plain = json!({"default_filter_chain": {"filters": [answer("plain")]}});
    let mut secured = plain.clone();
    secured["default_filter_chain"]["transport_socket"] = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [pair_json(&chain, &key)]}}});
    let mut configured = Configured::start(plain, &[]);
    let mut side = Side::connect(configured.address(0));
    assert_eq!(side.ask(&get("/")).body, "plain");
    configured.publish(vec![secured], &[]);
    side.send(get("/").as_bytes());
    assert_eq!(side.rest(), "");
}

#[test]
fn tcp_when_its_filter_chain_is_gone_then_it_ends_when_the_time_is_over() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.send(b"hello\n");
        side.rest();
    });
    let chain = |range: &str| {
        json!({"filter_chains": [{"filter_chain_match": {"source_prefix_ranges": [
            {"address_prefix": range, "prefix_len": 8}]}, "filters": [tcp_to("c")]}]})
    };
    let clusters = [static_cluster("c", &[backend.address])];
    let mut configured = Configured::start(chain("127.0.0.0"), &clusters);
    let greeted = |configured: &Configured| {
        let mut side = Side::connect(configured.address(0));
        assert_eq!(side.until(b"\n").unwrap(), "hello\n");
        side
    };
    configured.drain_time = Duration::from_millis(500);
    configured.publish(vec![chain("127.0.0.0")], &clusters);
    let (mut ends, begun) = (greeted(&configured), Instant::now());
    configured.publish(vec![chain("10.0.0.0")], &clusters);
    assert_eq!(ends.rest(), "");
    assert!(begun.elapsed() >= Duration::from_millis(450), "not before");
    // What is back in time is not gone.
    configured.publish(vec![chain("127.0.0.0")], &clusters);
    let mut stays = greeted(&configured);
    configured.publish(vec![chain("10.0.0.0")], &clusters);
    std::thread::sleep(Duration::from_millis(100));
    configured.publish(vec![chain("127.0.0.0")], &clusters);
    stays.stream.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    assert!(stays.stream.read(&mut [0]).is_err(), "it is still there");
}

#[test]
fn connections_when_all_listeners_have_as_many_as_are_allowed_then_one_more_is_closed() {
    let hello = || {
        http(Action::Direct(DirectResponse {
            code: 200,
            body: b"hi".to_vec().into(),
            format: None,
            content_type: None,
        }))
    };
    let proxy = Proxy::start(1, hello(), Vec::new());
    let plain = root(proxy.address, hello(), Vec::new());
    let limited = Root { listeners: plain.listeners.clone(), most_connections: Some(2), ..Root::default() };
    proxy.wait(proxy.workers().publish(Arc::new(limited)));
    let open = || {
        let mut side = Side::connect(proxy.address);
        side.send(get("/").as_bytes());
        side.until(b"hi").map(|_| side)
    };
    let (first, second) = (open().unwrap(), open().unwrap());
    assert!(open().is_none());
    drop(first);
    eventually("a place", || open().is_some());
    drop(second);

    let one = |passes_most| {
        let listener = Listener {
            addresses: vec![proxy.address],
            detect_timeout: Duration::ZERO,
            continue_on_timeout: true,
            chains: FilterChains::new(Vec::new(), Some(FilterChain::new("default", hello()))).unwrap(),
            passes_most,
            ..Listener::default()
        };
        let listeners = Listeners::new(vec![Arc::new(listener)]);
        Arc::new(Root { listeners, most_connections: Some(1), ..Root::default() })
    };
    proxy.wait(proxy.workers().publish(one(true)));
    let apart: Vec<Side> = (0..3).map(|_| open().unwrap()).collect();
    proxy.wait(proxy.workers().publish(one(false)));
    let counted = open().unwrap();
    assert!(open().is_none(), "those that are not held to the limit count nothing to it");
    drop((apart, counted));
}

#[test]
fn listener_when_it_bypasses_the_overload_manager_then_it_serves_though_memory_is_short() {
    let listener = |bypasses: bool| {
        let mut manager = answer("hi");
        manager["typed_config"]["append_local_overload"] = json!(true);
        json!({"bypass_overload_manager": bypasses, "default_filter_chain": {"filters": [manager]}})
    };
    let configured = Configured::start_with(1, vec![listener(false), listener(true)], &[]);
    let ask = |index: usize| Side::connect(configured.address(index)).ask(&get("/"));
    let shed = |pressure: f64| {
        let levels = Overload::usual().levels(&[Some(pressure)]);
        configured.proxy.wait(configured.proxy.workers().shed(levels));
    };
    shed(0.92);
    let refused = ask(0);
    assert_eq!((refused.status(), refused.body.as_str()), (503, "envoy overloaded"));
    assert_eq!(refused.header("x-envoy-local-overloaded"), Some("true"));
    assert_eq!((ask(1).status(), ask(1).header("connection")), (200, None));
    shed(1.0);
    let mut closed = Side::connect(configured.address(0));
    closed.send(get("/").as_bytes());
    assert_eq!(closed.rest(), "");
    assert_eq!(ask(1).status(), 200);
}

#[test]
fn connections_when_they_come_too_fast_then_they_are_closed() {
    let bucket = json!({"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "3600s"});
    let gate = filter("local_ratelimit.v3.LocalRateLimit", json!({"stat_prefix": "l", "token_bucket": bucket}));
    let configured = Configured::start(with_gate(gate), &[]);
    let answers: Vec<bool> = (0..4).map(|_| echo(configured.address(0)).is_some()).collect();
    assert_eq!(answers, [true, true, false, false]);
}

#[test]
fn connection_when_a_fixed_answer_is_configured_then_it_is_said_and_closed() {
    let chain = filter("direct_response.v3.Config", json!({"response": {"inline_string": "go away\n"}}));
    let configured = Configured::start(json!({"default_filter_chain": {"filters": [chain]}}), &[]);
    let mut side = Side::connect(configured.address(0));
    side.send(b"anything");
    assert_eq!(side.rest(), "go away\n");
}

#[test]
fn connection_when_it_names_a_server_then_it_goes_to_the_cluster_of_that_name() {
    let say = |text: &'static str| {
        Backend::start(move |stream, _| {
            let mut side = Side::new(stream);
            let mut byte = [0];
            let _ = side.stream.read(&mut byte);
            side.send(text.as_bytes());
        })
    };
    let (named, other) = (say("named"), say("other"));
    let clusters = [static_cluster("a.example", &[named.address]), static_cluster("other", &[other.address])];
    let listener = json!({
        "listener_filters": [{"name": "t", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        }}],
        "default_filter_chain": {"filters": [filter("sni_cluster.v3.SniCluster", json!({})), tcp_to("other")]}
    });
    let configured = Configured::start(listener, &clusters);
    let ask = |bytes: &[u8]| {
        let mut side = Side::connect(configured.address(0));
        side.send(bytes);
        side.rest()
    };
    let hello = |name: &str| {
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(ask(&hello("a.example")), "named");
    assert_eq!(ask(&hello("b.example")), "", "there is no such cluster");
    assert_eq!(ask(b"plain"), "other");
}

#[test]
fn bytes_when_both_sides_are_plain_then_large_transfers_arrive_whole_both_ways() {
    const SIZE: usize = 6_000_000;
    let pattern: Arc<Vec<u8>> = Arc::new((0..SIZE).map(|at| (at % 251) as u8).collect());
    let sent = pattern.clone();
    let backend = Backend::start(move |mut stream, _| {
        stream.set_read_timeout(Some(LIMIT * 4)).unwrap();
        let (mut all, mut out, back) = (Vec::new(), stream.try_clone().unwrap(), sent.clone());
        let writer = thread::spawn(move || out.write_all(&back).unwrap());
        stream.read_to_end(&mut all).unwrap();
        writer.join().unwrap();
        assert!(all == **sent);
        stream.write_all(b"same").unwrap();
    });
    let configured = Configured::start(
        json!({"default_filter_chain": {"filters": [tcp_to("up")]}}),
        &[static_cluster("up", &[backend.address])],
    );
    let stream = TcpStream::connect(configured.address(0)).unwrap();
    stream.set_read_timeout(Some(LIMIT * 4)).unwrap();
    let (mut out, sent) = (stream.try_clone().unwrap(), pattern.clone());
    let writer = thread::spawn(move || {
        out.write_all(&sent).unwrap();
        out.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut all = Vec::new();
    (&stream).read_to_end(&mut all).unwrap();
    writer.join().unwrap();
    assert_eq!(all.len(), SIZE + 4);
    assert!(all[..SIZE] == **pattern && all[SIZE..] == *b"same");
    eventually("no open connection", || configured.proxy.workers().connections() == 0);
}

#[test]
fn connection_when_it_has_lasted_long_enough_then_it_is_closed_whatever_moves() {
    let backend = Backend::start(|mut stream, _| {
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let proxy = filter(
        "tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "t", "cluster": "up", "max_downstream_connection_duration": "0.1s"}),
    );
    let configured = Configured::start(
        json!({"default_filter_chain": {"filters": [proxy]}}),
        &[static_cluster("up", &[backend.address])],
    );
    let start = Instant::now();
    let said = Side::connect(configured.address(0)).rest();
    assert!(!said.is_empty() && start.elapsed() < LIMIT);
    configured.proxy.told("DT");
}

#[test]
fn listener_when_it_logs_then_every_connection_has_a_line_whether_something_takes_it_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let format = "%CONNECTION_ID% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %FILTER_CHAIN_NAME% %ACCESS_LOG_TYPE% \
                  %DOWNSTREAM_REMOTE_PORT%\n";
    let mut chain = json!({"name": "only", "filters": [answer("hello")]});
    chain["filter_chain_match"] = json!({"source_prefix_ranges": [{"address_prefix": "127.0.0.1", "prefix_len": 32}]});
    let it = Configured::start(
        json!({"filter_chains": [chain], "access_log": [{"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path.to_str().unwrap(), "log_format": {"text_format_source": {"inline_string": format}},
        }}]}),
        &[],
    );
    let telemetry = it.proxy.telemetry.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(telemetry.write_logs());
    });
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    let mut client = it.proxy.client();
    let port = client.stream.local_addr().unwrap().port();
    assert_eq!(client.ask(&get("/")).status(), 200);
    assert_eq!(read(), "", "its connection is still open");
    drop(client);
    eventually("a line", || read().lines().count() == 1);
    assert_eq!(read(), format!("1 - - only NotSet {port}\n"));
    let stranger = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    stranger.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).unwrap();
    stranger.connect(&it.proxy.address.into()).unwrap();
    eventually("another line", || read().lines().count() == 2);
    assert!(read().lines().nth(1).unwrap().starts_with("2 NR filter_chain_not_found - NotSet "), "{}", read());
}

#[test]
fn tcp_proxy_when_it_logs_beginnings_then_each_moment_has_its_line_and_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str, fields: Value| {
        let path = folder.path().join(name);
        let format = "%ACCESS_LOG_TYPE% %UPSTREAM_HOST% %DOWNSTREAM_WIRE_BYTES_RECEIVED%/%UPSTREAM_WIRE_BYTES_RECEIVED% \
                      %UPSTREAM_HOSTS_ATTEMPTED%\n";
        let mut log = json!({"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path.to_str().unwrap(), "log_format": {"text_format_source": {"inline_string": format}},
        }});
        log.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        log
    };
    let ends = json!({"filter": {"log_type_filter": {"types": ["TcpConnectionEnd"]}}});
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        assert_eq!(side.until(b"\n").as_deref(), Some("ping\n"));
        side.send(b"pong pong\n");
    });
    let proxy = filter(
        "tcp_proxy.v3.TcpProxy",
        json!({
            "stat_prefix": "t", "cluster": "up", "access_log": [log("all", json!({})), log("ends", ends)],
            "access_log_options": {"flush_access_log_on_start": true, "flush_access_log_on_connected": true},
        }),
    );
    let it = Configured::start(
        json!({"default_filter_chain": {"filters": [proxy]}}),
        &[static_cluster("up", &[backend.address])],
    );
    let telemetry = it.proxy.telemetry.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(telemetry.write_logs());
    });
    let mut client = Side::connect(it.address(0));
    client.send(b"ping\n");
    assert_eq!(client.rest(), "pong pong\n");
    drop(client);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let at = backend.address;
    let end = format!("TcpConnectionEnd {at} 5/10 {at}\n");
    let all = format!("TcpConnectionStart - 0/0 -\nTcpUpstreamConnected {at} 0/0 {at}\n{end}");
    eventually("the last lines", || read("all").contains("TcpConnectionEnd") && !read("ends").is_empty());
    assert_eq!((read("all"), read("ends")), (all, end));
}
