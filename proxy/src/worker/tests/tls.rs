//! TLS with certificates of the configuration's own, to clients and to endpoints.

use super::configured::{Configured, answer, filter, static_cluster, tcp_to};
use super::tracked::numbers;
use super::*;
use crate::tls::own_tests::Ca;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};

pub(super) type Client = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

pub(super) fn pair_json(chain: &str, key: &str) -> Value {
    json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}})
}

pub(super) fn socket(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"));
    json!({"name": "envoy.transport_sockets.tls", "typed_config": body})
}

/// A client that trusts one root, perhaps with a certificate of its own.
pub(super) fn connect(
    address: SocketAddr,
    ca: &Ca,
    name: &str,
    own: Option<(String, String)>,
    alpn: &[&str],
) -> Result<Client, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut stream = rustls::StreamOwned::new(connection, tcp);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

fn ask(stream: &mut Client) -> std::io::Result<String> {
    stream.write_all(get("/").as_bytes())?;
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("hello") {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push(byte[0] as char);
    }
    Ok(text)
}

#[test]
fn requests_when_a_listener_has_a_certificate_of_its_own_then_they_are_served_over_tls() {
    let ca = Ca::new("ca");
    let (chain, key) = ca.leaf(&["a.example"], -1..1);
    let listener = json!({"default_filter_chain": {
        "filters": [answer("hello")],
        "transport_socket": socket("DownstreamTlsContext", json!({"common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair_json(&chain, &key)]
        }}))
    }});
    let configured = Configured::start(listener, &[]);
    let mut client = connect(configured.address(0), &ca, "a.example", None, &["http/1.1"]).unwrap();
    assert_eq!(client.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    for _ in 0..2 {
        assert!(ask(&mut client).unwrap().starts_with("HTTP/1.1 200"));
    }
    let h2 = connect(configured.address(0), &ca, "a.example", None, &["h2"]).unwrap();
    assert_eq!(h2.conn.alpn_protocol(), Some(&b"h2"[..]));
    // None in common, or none offered: the first bytes tell.
    let mut client = connect(configured.address(0), &ca, "a.example", None, &["other"]).unwrap();
    assert!(ask(&mut client).unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn secrets_when_they_rotate_then_open_connections_live_on_and_new_ones_see_the_new() {
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let listener = json!({"default_filter_chain": {
        "filters": [answer("hello")],
        "transport_socket": socket("DownstreamTlsContext", json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{"name": "own", "sds_config": {"ads": {}}}],
                "validation_context_sds_secret_config": {"name": "clients", "sds_config": {"ads": {}}}
            }
        }))
    }});
    let mut configured = Configured::start(listener, &[]);
    let address = configured.address(0);
    assert!(connect(address, &first, "a.example", None, &[]).is_err(), "nothing to show yet");
    let give = |configured: &mut Configured, ca: &Ca| {
        let (chain, key) = ca.leaf(&["a.example"], -1..1);
        configured.secret("own", json!({"tls_certificate": pair_json(&chain, &key)}));
        configured.secret("clients", json!({"validation_context": {"trusted_ca": {"inline_string": ca.pem()}}}));
    };
    give(&mut configured, &first);
    let mut open = connect(address, &first, "a.example", Some(first.leaf(&["c"], -1..1)), &[]).unwrap();
    ask(&mut open).unwrap();
    give(&mut configured, &second);
    ask(&mut open).unwrap();
    let mut new = connect(address, &second, "a.example", Some(second.leaf(&["c"], -1..1)), &[]).unwrap();
    ask(&mut new).unwrap();
    let refused = connect(address, &second, "a.example", Some(first.leaf(&["c"], -1..1)), &[])
        .and_then(|mut client| ask(&mut client));
    assert!(refused.is_err(), "the old root is no longer trusted");
}

#[test]
fn endpoint_when_its_certificate_is_not_for_the_sent_name_then_no_byte_reaches_it() {
    // The endpoint is a proxy of its own that shows a certificate for a.example and wants one from its client.
    let ca = Ca::new("ca");
    let (chain, key) = ca.leaf(&["a.example"], -1..1);
    let server = Configured::start(
        json!({"default_filter_chain": {
            "filters": [answer("hello")],
            "transport_socket": socket("DownstreamTlsContext", json!({
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificates": [pair_json(&chain, &key)],
                    "validation_context": {"trusted_ca": {"inline_string": ca.pem()}, "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": "client.example"}}
                    ]}
                }
            }))
        }}),
        &[],
    );
    let via = |sni: &str, client: &str, counts: &str| {
        let mut cluster = static_cluster("up", &[server.address(0)]);
        let (chain, key) = ca.leaf(&[client], -1..1);
        cluster["transport_socket"] = socket(
            "UpstreamTlsContext",
            json!({
                "sni": sni, "auto_sni_san_validation": true, "common_tls_context": {
                    "tls_certificates": [pair_json(&chain, &key)],
                    "validation_context": {"trusted_ca": {"inline_string": ca.pem()}}
                }
            }),
        );
        let proxy = Configured::start(json!({"default_filter_chain": {"filters": [tcp_to("up")]}}), &[cluster]);
        let mut side = Side::connect(proxy.address(0));
        side.send(get("/").as_bytes());
        let body = side.message(false).map(|message| message.body);
        let name = format!("cluster.up.ssl.{counts}");
        eventually(&name, || numbers(&proxy.proxy.telemetry).get(&name) == Some(&1));
        body
    };
    assert_eq!(via("a.example", "client.example", "handshake").as_deref(), Some("hello"));
    assert_eq!(via("b.example", "client.example", "fail_verify_san"), None);
    let before = numbers(&server.proxy.telemetry);
    assert_eq!(via("a.example", "other.example", "handshake"), None);
    let name = format!("listener.{}.ssl.fail_verify_san", server.address(0).to_string().replace(':', "_"));
    eventually(&name, || numbers(&server.proxy.telemetry)[&name] > before[&name]);
}

#[test]
fn endpoint_when_requests_decide_about_the_server_name_then_its_certificate_must_be_for_their_host() {
    let ca = Ca::new("ca");
    let (chain, key) = ca.leaf(&["a.example"], -1..1);
    let server = Configured::start(
        json!({"default_filter_chain": {
            "filters": [answer("hello")],
            "transport_socket": socket("DownstreamTlsContext", json!({"common_tls_context": {
                "tls_certificates": [pair_json(&chain, &key)]
            }}))
        }}),
        &[],
    );
    let mut cluster = static_cluster("up", &[server.address(0)]);
    cluster["transport_socket"] = socket(
        "UpstreamTlsContext",
        json!({"common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": ca.pem()}}}}),
    );
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({options: {
        "@type": format!("type.googleapis.com/{options}"),
        "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true},
        "explicit_http_config": {"http_protocol_options": {}}
    }});
    let mut context = crate::xds::convert::Context::new("");
    let template =
        crate::xds::convert::cluster::template(&mut context, leno_xds::json::from_value(&cluster).unwrap()).unwrap();
    let built = template.build(<_>::default(), &crate::telemetry::WorkloadLabels::unknown());
    let proxy = Proxy::start(1, http(forward(Forward::default())), vec![Cluster::clone(&built)]);
    let mut client = proxy.client();
    let mut ask = |host: &str| client.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).status();
    assert_eq!([ask("a.example:80"), ask("b.example"), ask("a.example")], [200, 503, 200]);
}

#[test]
fn endpoint_when_tls_may_agree_on_the_version_then_each_is_spoken_to_in_its_own_and_not_told_what_the_mesh_is() {
    let ca = Ca::new("ca");
    let (chain, key) = ca.leaf(&["a.example"], -1..1);
    let backend = |alpn: &str| {
        let mut manager = answer("hello");
        manager["typed_config"]["route_config"]["response_headers_to_add"] =
            json!([{"header": {"key": "x-protocol", "value": "%PROTOCOL% %REQ(x-leno-peer)% %REQ(x-other)%"}}]);
        let tls = socket(
            "DownstreamTlsContext",
            json!({"common_tls_context": {
                "alpn_protocols": [alpn], "tls_certificates": [pair_json(&chain, &key)]
            }}),
        );
        Configured::start(json!({"filter_chains": [{"filters": [manager], "transport_socket": tls}]}), &[])
    };
    let (two, one) = (backend("h2"), backend("http/1.1"));
    let mut cluster = static_cluster("a", &[two.address(0), one.address(0)]);
    cluster["transport_socket"] = socket(
        "UpstreamTlsContext",
        json!({"sni": "a.example", "common_tls_context": {
            "validation_context": {"trusted_ca": {"inline_string": ca.pem()}}
        }}),
    );
    cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "auto_config": {},
    }});
    let manager = filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "h",
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            }}],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
            ]}]}
        }),
    );
    let it = Configured::start(json!({"filter_chains": [{"filters": [manager]}]}), &[cluster]);
    let mut client = it.proxy.client();
    let spoken: Vec<String> = (0..8)
        .map(|_| {
            let answer = client.ask("GET / HTTP/1.1\r\nhost: test\r\nx-leno-peer: me\r\nx-other: one\r\n\r\n");
            assert_eq!(answer.status(), 200);
            answer.header("x-protocol").unwrap().to_owned()
        })
        .collect();
    let of = |version: &str| spoken.iter().filter(|spoken| *spoken == version).count();
    assert_eq!((of("HTTP/2  one"), of("HTTP/1.1  one")), (4, 4), "{spoken:?}");
}
