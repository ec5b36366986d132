//! The process `leno-proxy serve`: Envoy's bootstrap in, traffic through.

use crate::process::{LIMIT, Proxy, again, free, get, run, socket_address, upstream, wait};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

fn listener(name: &str, address: SocketAddr, cluster: &str) -> String {
    format!(
        r#"
  - name: {name}
    address: {}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#,
        socket_address(address)
    )
}

fn cluster(name: &str, address: SocketAddr) -> String {
    format!(
        r#"
  - name: {name}
    connect_timeout: 1s
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {}}}"#,
        socket_address(address)
    )
}

/// A bootstrap with these listeners and clusters.
fn bootstrap(listeners: &[String], clusters: &[String]) -> String {
    format!(
        "node: {{id: test, cluster: test}}\nadmin: {{address: {}}}\nstatic_resources:\n  listeners:{}\n  clusters:{}\n",
        socket_address(([127, 0, 0, 1], 0).into()),
        listeners.concat(),
        clusters.concat()
    )
}

#[test]
fn serve_when_several_listeners_are_static_passes_each_to_its_cluster_and_drains_at_sigterm() {
    let (a, b) = (upstream(), upstream());
    let (first, second) = (free(), free());
    let text = bootstrap(
        &[listener("first", first, "a"), listener("second", second, "b")],
        &[cluster("a", a), cluster("b", b)],
    );
    let mut proxy = Proxy::start(&text);
    let answer = wait("the first listener", || get(first, "/"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&a.port().to_string()), "{answer}");
    assert!(get(second, "/").unwrap().ends_with(&b.port().to_string()));
    assert!(proxy.admin("/ready").starts_with("HTTP/1.1 200"));
    assert!(proxy.admin("/listeners").contains(&second.to_string()));
    let mut open = TcpStream::connect(first).unwrap();
    assert!(again(&mut open).starts_with("HTTP/1.1 200"));
    proxy.signal();
    wait("the socket to close", || TcpStream::connect(first).err());
    let status = wait("the process to end", || proxy.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// A file with these resources, put in its place as a whole.
fn write_resources(folder: &std::path::Path, name: &str, resources: &[String]) {
    let list = if resources.is_empty() { " []".to_owned() } else { resources.concat() };
    std::fs::write(folder.join("new"), format!("resources:{list}\n")).unwrap();
    std::fs::rename(folder.join("new"), folder.join(name)).unwrap();
}

/// A resource of that type, made of an entry of a list in a bootstrap.
fn typed(type_name: &str, entry: &str) -> String {
    entry.replacen("  - name:", &format!("  - \"@type\": type.googleapis.com/{type_name}\n    name:"), 1)
}

#[test]
fn listeners_when_a_file_adds_changes_and_removes_them_open_and_close_their_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (upstream(), upstream());
    let (first, second) = (free(), free());
    let lds = |entries: &[String]| {
        let typed: Vec<_> = entries.iter().map(|entry| typed("envoy.config.listener.v3.Listener", entry)).collect();
        write_resources(folder.path(), "lds.yaml", &typed);
    };
    let clusters = [cluster("a", a), cluster("b", b)].map(|entry| typed("envoy.config.cluster.v3.Cluster", &entry));
    write_resources(folder.path(), "cds.yaml", &clusters);
    lds(&[listener("first", first, "a")]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "node: {{id: test, cluster: test}}\nadmin: {{address: {}}}\ndynamic_resources:\n  \
         lds_config: {{path_config_source: {{path: {}}}}}\n  cds_config: {{path: {}}}\n",
        socket_address(([127, 0, 0, 1], 0).into()),
        path("lds.yaml"),
        path("cds.yaml"),
    );
    // What belongs to a listener that goes ends with its next answer, not little by little.
    let own = tempfile::tempdir().unwrap();
    let child = crate::process::command(&own, &text).args(["--drain-strategy", "immediate"]).spawn().unwrap();
    let proxy = Proxy { child, folder: own };
    let port = |address: SocketAddr| address.port().to_string();
    assert!(wait("the listener", || get(first, "/")).ends_with(&port(a)));
    let mut kept = TcpStream::connect(first).unwrap();
    assert!(again(&mut kept).ends_with(&port(a)));

    lds(&[listener("first", first, "a"), listener("second", second, "b")]);
    assert!(wait("the second listener", || get(second, "/")).ends_with(&port(b)));

    // One goes and another has its address: connections are taken all the time.
    lds(&[listener("renamed", first, "a"), listener("second", second, "b")]);
    wait("the new name", || Some(proxy.admin("/listeners")).filter(|all| all.contains("renamed::")));
    assert!(get(first, "/").unwrap().ends_with(&port(a)));
    lds(&[listener("first", first, "a"), listener("second", second, "b")]);
    wait("the old name", || Some(proxy.admin("/listeners")).filter(|all| all.contains("first::")));
    kept = TcpStream::connect(first).unwrap();
    assert!(again(&mut kept).ends_with(&port(a)));

    lds(&[listener("first", first, "b"), listener("second", second, "b")]);
    wait("the first listener to lead elsewhere", || get(first, "/").filter(|answer| answer.ends_with(&port(b))));
    assert!(again(&mut kept).ends_with(&port(b)), "a connection that stays is served by what is in force");

    lds(&[listener("first", first, "nonsense_%&").replace("prefix: /}", "prefix: /, grpc: {}, nonsense: {}}")]);
    lds(&[listener("second", second, "b")]);
    wait("the first listener to go", || TcpStream::connect(first).err());
    kept.set_read_timeout(Some(LIMIT)).unwrap();
    assert!(again(&mut kept).ends_with(&port(b)), "one more request is answered where the listener is gone");
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "and then the connection ends in order");
    assert!(get(second, "/").unwrap().ends_with(&port(b)));
    assert!(proxy.admin("/listeners").contains("second"));
}

#[test]
fn listener_when_its_first_table_is_refused_serves_without_and_later_with_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let (a, web, other) = (upstream(), free(), free());
    let table = |rewrite: &str| {
        let route = format!("{{match: {{prefix: /}}, route: {{cluster: a, prefix_rewrite: {rewrite}}}}}");
        let text = format!(
            "\n- {{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: \
             [{{name: all, domains: ['*'], routes: [{route}]}}]}}"
        );
        write_resources(folder.path(), "rds.yaml", &[text]);
    };
    table(r#""a\nb""#);
    let written = listener("web", web, "a");
    let (before, rest) = written.split_once("          route_config:").unwrap();
    let filters = rest.split_once("          http_filters:").unwrap().1;
    let source = format!(
        "{{path_config_source: {{path: {}}}, initial_fetch_timeout: 0s}}",
        folder.path().join("rds.yaml").display()
    );
    let named = format!(
        "{before}          rds: {{route_config_name: r, config_source: {source}}}\n          http_filters:{filters}"
    );
    let proxy = Proxy::start(&bootstrap(&[named, listener("other", other, "a")], &[cluster("a", a)]));
    wait("the other listener", || get(other, "/").filter(|answer| answer.starts_with("HTTP/1.1 200")));
    wait("the listener without its table", || get(web, "/").filter(|answer| answer.starts_with("HTTP/1.1 404")));
    assert!(proxy.admin("/ready").starts_with("HTTP/1.1 200"));
    table("/b");
    wait("the good table", || get(web, "/").filter(|answer| answer.starts_with("HTTP/1.1 200")));
    table(r#""a\nb""#);
    wait("the refusal", || Some(proxy.admin("/stats")).filter(|all| all.contains("rds.r.update_rejected: 2")));
    assert!(get(web, "/").unwrap().starts_with("HTTP/1.1 200"), "the last good form stays");
}

#[test]
fn runtime_when_a_layer_comes_from_elsewhere_and_changes_changes_what_routes_do() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, web) = (upstream(), upstream(), free());
    let layer = |values: &str| {
        let text = format!(
            "\n- {{\"@type\": type.googleapis.com/envoy.service.runtime.v3.Runtime, name: shares, layer: {values}}}"
        );
        write_resources(folder.path(), "rtds.yaml", &[text]);
    };
    layer("{to: {b: 100}}");
    let share = "runtime_fraction: {default_value: {numerator: 0}, runtime_key: to.b}";
    let routes = format!("routes: [{{match: {{prefix: /, {share}}}, route: {{cluster: b}}}}, {{match");
    let text = bootstrap(
        &[listener("web", web, "a").replace("routes: [{match", &routes)],
        &[cluster("a", a), cluster("b", b)],
    );
    let proxy = Proxy::start(&format!(
        "{text}layered_runtime:\n  layers:\n  - name: served\n    rtds_layer: {{name: shares, rtds_config: {{path_config_source: \
         {{path: {}}}}}}}\n  - {{name: admin, admin_layer: {{}}}}\n",
        folder.path().join("rtds.yaml").display()
    ));
    let leads = |to: SocketAddr| {
        wait("the route", || get(web, "/").filter(|answer| answer.ends_with(&to.port().to_string())));
    };
    leads(b);
    assert!(proxy.admin("/runtime").contains("to.b"), "{}", proxy.admin("/runtime"));
    layer("{to: {b: 0}}");
    leads(a);
    // What cannot be taken leaves all as it was.
    layer("{to: {b: 100}, health_check: {min_interval: 5}}");
    wait("the refusal", || Some(proxy.admin("/stats")).filter(|all| all.contains("runtime.update_rejected: 1")));
    leads(a);
}

#[test]
fn serve_when_a_field_is_not_supported_ends_with_1_and_names_resource_and_field() {
    let good = bootstrap(&[listener("web", free(), "a")], &[cluster("a", free())]);
    let cases = [
        (format!("{good}\nheader_prefix: x-foo"), "field `header_prefix`"),
        (good.replace("connect_timeout: 1s", "queuing_policies: {}"), "cluster a: field `queuing_policies`"),
        (good.replace("connect_timeout: 1s", "connect_timeuot: 1s"), "connect_timeuot"),
        (good.replace("name: web", "name: web\n    enable_mptcp: true"), "listener web: field `enable_mptcp`"),
    ];
    for (text, wanted) in cases {
        let output = run(&text, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(wanted) && said.contains("bootstrap.yaml"), "{wanted}: {said}");
    }
}

#[test]
fn serve_when_statistics_are_configured_tells_them_so() {
    let (web, health) = (free(), free());
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events");
    let check = format!(
        r#"
    alt_stat_name: shop
    health_checks:
    - {{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {{}}, event_log_path: {}}}"#,
        events.display()
    );
    let stats = r#"
stats_config:
  stats_tags: [{tag_name: zone, fixed_value: z1}, {tag_name: stat, regex: '^cluster\.shop\.(membership_(healthy))$'}]
  stats_matcher: {inclusion_list: {patterns: [{prefix: cluster.shop.}]}}
  histogram_bucket_settings: [{match: {prefix: cluster.}, buckets: [1, 1000]}]
"#;
    let text = bootstrap(&[listener("web", web, "a")], &[cluster("a", health) + &check]);
    let proxy = Proxy::start(&format!("{text}{stats}"));
    let told = |path: &str| proxy.admin(path).rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
    // The workers tell theirs when they have begun.
    let all = wait("the cluster's statistics", || Some(told("/stats")).filter(|all| all.contains(".membership_")));
    let names = || all.lines().filter(|line| line.contains(": "));
    assert!(names().any(|line| line == "cluster.shop.membership_healthy: 0"), "{all}");
    assert!(names().all(|line| line.starts_with("cluster.shop.")), "{all}");
    let scraped = told("/stats/prometheus");
    let line = r#"envoy_cluster_{zone="z1",envoy_cluster_name="shop",stat="healthy"} 0"#;
    assert!(scraped.lines().any(|have| have == line), "{scraped}");
    assert!(
        scraped.contains(r#"le="1000"} 0"#)
            && !scraped.contains(r#"upstream_cx_connect_ms_bucket{zone="z1",envoy_cluster_name="shop",le="5"}"#)
    );
    assert!(proxy.admin("/clusters").contains("a::observability_name::shop"));
    let line = || std::fs::read_to_string(&events).ok().filter(|text| text.ends_with('\n'));
    let event: serde_json::Value = serde_json::from_str(wait("the event of the check", line).trim()).unwrap();
    assert_eq!(event["health_check_failure_event"]["failure_type"], "NETWORK", "{event}");
    assert_eq!((&event["cluster_name"], &event["health_checker_type"]), (&"a".into(), &"TCP".into()));
}

#[test]
fn serve_when_another_process_has_the_address_says_so_and_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = bootstrap(&[listener("web", address, "a")], &[cluster("a", free())]);
    let output = run(&text, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&format!("cannot bind {address}")), "{said}");
}

#[test]
fn serve_when_only_to_validate_says_what_it_would_take_and_binds_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = bootstrap(&[listener("web", taken.local_addr().unwrap(), "a")], &[cluster("a", free())]);
    let output = run(&good, &["--mode", "validate"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK"));
    let output = run(&good.replace("prefix: /}", "prefix: /, nonsense: 1}"), &["--mode", "validate"]);
    assert_eq!(output.status.code(), Some(1));
}

/// A certificate of its own for this name, in the files of that folder, each put in its place as a whole.
fn write_certificate(folder: &std::path::Path, name: &str) -> rustls::pki_types::CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    for (file, text) in [("key.pem", made.signing_key.serialize_pem()), ("cert.pem", made.cert.pem())] {
        std::fs::write(folder.join("new.pem"), text).unwrap();
        std::fs::rename(folder.join("new.pem"), folder.join(file)).unwrap();
    }
    made.cert.der().clone()
}

#[test]
fn certificates_when_their_files_are_replaced_are_used_without_ending_connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let first = write_certificate(folder.path(), "first.example");
    let secret = format!(
        "\n  - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n    name: own\n    \
         tls_certificate: {{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}, watched_directory: {{path: {}}}}}",
        path("cert.pem"),
        path("key.pem"),
        path("")
    );
    write_resources(folder.path(), "sds.yaml", std::slice::from_ref(&secret));
    let (backend, address) = (upstream(), free());
    let tls = format!(
        "\n      transport_socket:\n        name: tls\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: own, sds_config: {{path_config_source: {{path: {}}}}}}}]}}",
        path("sds.yaml")
    );
    let proxy = Proxy::start(&bootstrap(&[listener("web", address, "a") + &tls], &[cluster("a", backend)]));
    let mut kept = wait("TLS", || secured(address));
    assert_eq!(shown(&kept), first);
    assert!(ask(&mut kept).starts_with("HTTP/1.1 200"));
    let second = write_certificate(folder.path(), "second.example");
    wait("the other certificate", || secured(address).filter(|stream| shown(stream) == second));
    assert!(ask(&mut kept).starts_with("HTTP/1.1 200"), "the connection of before goes on");
    // What cannot be used leaves all as it was, and is counted.
    let counted = |what: &str| {
        wait(what, || {
            Some(proxy.admin("/stats")).filter(|all| all.lines().any(|line| line == format!("sds.own.{what}")))
        });
        assert_eq!(shown(&wait("TLS", || secured(address))), second, "{what}");
    };
    std::fs::write(folder.path().join("fresh"), "no key").unwrap();
    std::fs::rename(folder.path().join("fresh"), folder.path().join("key.pem")).unwrap();
    counted("key_rotation_failed: 1");
    write_resources(folder.path(), "sds.yaml", &[secret.replace("name: own", "name: other")]);
    counted("update_rejected: 1");
    write_resources(folder.path(), "sds.yaml", &["\n  - [".to_owned()]);
    counted("update_failure: 1");
}

/// Who speaks by it must be able to tell an end from a cut.
#[test]
fn connections_by_tls_when_they_end_in_time_or_by_one_side_then_nothing_looks_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path(), "web.example");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let tls = format!(
        "\n      transport_socket:\n        name: tls\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
         common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]}}",
        path("cert.pem"),
        path("key.pem")
    );
    let last_word = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = last_word.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in last_word.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).is_ok() {
                    let _ = stream.write_all(b"bye");
                }
            });
        }
    });
    let (web, tcp) = (free(), free());
    let idle = "stat_prefix: web\n          common_http_protocol_options: {idle_timeout: 0.3s}";
    let proxied = format!(
        "\n  - name: tcp\n    address: {}\n    filter_chains:\n    - filters:\n      - name: tcp\n        typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a, idle_timeout: 0.3s}}",
        socket_address(tcp)
    );
    let listeners = [listener("web", web, "a").replace("stat_prefix: web", idle) + &tls, proxied + &tls];
    let _proxy = Proxy::start(&bootstrap(&listeners, &[cluster("a", to)]));
    for address in [web, tcp] {
        let mut stream = wait("TLS", || secured(address));
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "an end in order of one that was idle");
    }
    // A client that only closes its half of TCP has its answer.
    let mut stream = secured(tcp).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "bye");
}

type Secured = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A connection by TLS, whatever certificate is shown.
fn secured(address: SocketAddr) -> Option<Secured> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Anybody))
        .with_no_client_auth();
    let name = "web.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    client.complete_io(&mut tcp).ok()?;
    Some(rustls::StreamOwned::new(client, tcp))
}

fn shown(stream: &Secured) -> rustls::pki_types::CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

fn ask(stream: &mut Secured) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.example\r\n\r\n").unwrap();
    let mut bytes = [0; 2048];
    let count = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Asks the admin server to change something.
fn post(proxy: &Proxy, path: &str) -> String {
    let address = wait("the admin server's address", || {
        std::fs::read_to_string(proxy.folder.path().join("admin")).ok()?.parse::<SocketAddr>().ok()
    });
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn asks_to_close(answer: &str) -> bool {
    answer.to_ascii_lowercase().contains("connection: close")
}

/// A bootstrap whose requests are logged to that file.
fn logging(path: &str, at: SocketAddr, upstream: SocketAddr) -> String {
    let log = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {path}}}}}]"
    );
    let listener = listener("web", at, "a").replace("stat_prefix: web", &format!("stat_prefix: web\n          {log}"));
    bootstrap(&[listener], &[cluster("a", upstream)])
}

#[test]
fn signals_when_they_ask_for_nothing_that_ends_a_process_then_it_goes_on_and_opens_logs_anew() {
    let (upstream, at) = (upstream(), free());
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("log");
    let mut proxy = Proxy::start(&logging(&path.display().to_string(), at, upstream));
    wait("the listener", || get(at, "/"));
    std::fs::rename(&path, logs.path().join("moved")).unwrap();
    proxy.send(nix::sys::signal::Signal::SIGHUP);
    proxy.send(nix::sys::signal::Signal::SIGUSR1);
    wait("a line in a new file", || {
        get(at, "/")?;
        std::fs::metadata(&path).ok().filter(|about| about.len() > 0)
    });
    assert!(proxy.child.try_wait().unwrap().is_none());
}

#[test]
fn serve_when_a_log_cannot_be_opened_then_the_configuration_is_refused() {
    let output = run(&logging("/nowhere/at/all", free(), upstream()), &[]);
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("`/nowhere/at/all` cannot be opened"), "{words}");
}

#[test]
fn connections_when_health_checks_are_to_fail_then_they_end_with_the_next_answer_until_that_is_over() {
    let (upstream, at) = (upstream(), free());
    let proxy = Proxy::start(&bootstrap(&[listener("web", at, "a")], &[cluster("a", upstream)]));
    wait("the listener", || get(at, "/"));
    let mut open = TcpStream::connect(at).unwrap();
    assert!(!asks_to_close(&again(&mut open)));
    post(&proxy, "/healthcheck/fail");
    assert!(asks_to_close(&again(&mut open)));
    post(&proxy, "/healthcheck/ok");
    assert!(!asks_to_close(&again(&mut TcpStream::connect(at).unwrap())));
    wait("that it is told", || {
        proxy.admin("/stats?filter=drain_close").contains("downstream_cx_drain_close: 1").then_some(())
    });
}

#[test]
fn listeners_when_they_are_drained_in_time_then_more_and_more_connections_end_and_sockets_close_last() {
    let (upstream, at) = (upstream(), free());
    let folder = tempfile::tempdir().unwrap();
    let text = bootstrap(&[listener("web", at, "a")], &[cluster("a", upstream)]);
    let child = crate::process::command(&folder, &text).args(["--drain-time-s", "2"]).spawn().unwrap();
    let proxy = Proxy { child, folder };
    wait("the listener", || get(at, "/"));
    assert!(proxy.admin("/server_info").contains("\"drain_time\": \"2s\""));
    assert!(proxy.admin("/stats?usedonly").contains("server.state: 0"));
    assert!(post(&proxy, "/drain_listeners?inboundonly&graceful&skip_exit").contains("OK"));
    assert!(post(&proxy, "/drain_listeners?graceful").contains("OK"));
    wait("an answer that ends its connection", || {
        asks_to_close(&again(&mut TcpStream::connect(at).ok()?)).then_some(())
    });
    wait("the socket to close", || TcpStream::connect(at).err());
    wait("that it is told", || {
        proxy.admin("/stats?filter=listener_stopped").contains("listener_manager.listener_stopped: 1").then_some(())
    });
}

#[test]
fn management_server_when_it_stands_still_then_is_asked_anew_and_the_best_endpoint_first() {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (still, ill, last) = (bind(), bind(), bind());
    let endpoint = |listener: &TcpListener, health: &str| {
        let address = socket_address(listener.local_addr().unwrap());
        format!("{{lb_endpoints: [{{health_status: {health}, endpoint: {{address: {address}}}}}]")
    };
    let text = format!(
        "node: {{id: a, cluster: b}}
dynamic_resources:
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: server}}}}]}}
static_resources:
  clusters:
  - name: server
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{connection_keepalive: {{interval: 0.3s, timeout: 0.3s}}}}}}
    load_assignment: {{cluster_name: server, endpoints: [{}, priority: 1}}, {}}}, {}}}]}}
",
        endpoint(&last, "HEALTHY"),
        endpoint(&ill, "UNHEALTHY"),
        endpoint(&still, "HEALTHY"),
    );
    let _proxy = Proxy::start(&text);
    for listener in [&still, &ill, &last] {
        listener.set_nonblocking(true).unwrap();
    }
    // Whoever connects is taken, and never hears a word.
    let mut taken = Vec::new();
    for number in 1..=3 {
        let connection = wait(&format!("connection {number}"), || still.accept().ok());
        taken.push(connection);
    }
    assert!(
        ill.accept().is_err() && last.accept().is_err(),
        "the healthy endpoint of the first priority takes connections"
    );
}

#[test]
fn health_checks_when_they_are_to_fail_then_every_answer_says_so_and_connections_end_where_they_should() {
    let filter = "http_filters:
          - name: check
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
              pass_through_mode: false
              headers: [{name: \":path\", string_match: {exact: /healthz}}]";
    let (usual, lasting) = (free(), free());
    let listeners = [listener("usual", usual, "a"), listener("lasting", lasting, "a")]
        .map(|text| text.replace("http_filters:", filter));
    let listeners = [listeners[0].clone(), format!("{}\n    drain_type: MODIFY_ONLY", listeners[1])];
    let proxy = Proxy::start(&bootstrap(&listeners, &[cluster("a", upstream())]));
    wait("the listener", || get(usual, "/"));
    let told = "x-envoy-immediate-health-check-fail: true";
    let (mut first, mut second) = (TcpStream::connect(usual).unwrap(), TcpStream::connect(lasting).unwrap());
    for stream in [&mut first, &mut second] {
        let answer = again(stream);
        assert!(!answer.contains(told) && !answer.contains("connection: close"), "{answer}");
    }
    assert!(proxy.change("/healthcheck/fail").starts_with("HTTP/1.1 200"));
    let answer = get(usual, "/healthz").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(told), "{answer}");
    let answer = again(&mut first);
    assert!(answer.contains(told) && answer.contains("connection: close"), "{answer}");
    let answer = again(&mut second);
    assert!(answer.contains(told) && !answer.contains("connection: close"), "{answer}");
    assert!(proxy.change("/healthcheck/ok").starts_with("HTTP/1.1 200"));
    assert!(!get(usual, "/healthz").unwrap().contains(told));
}
