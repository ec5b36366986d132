//! What a proxy is asked to be in a case, and how each of them is told so.

use super::backend::Backend;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// What stands between the client and the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// HTTP/1.1 on both sides.
    Http1,
    /// HTTP/2 in clear text on both sides.
    Http2,
    /// HTTP/1.1 inside TLS from the client.
    Tls,
    /// The same, with a client certificate.
    Mtls,
    /// Bytes.
    Tcp,
    /// HTTP/1.1 with so many routes and clusters.
    Routes(usize, usize),
    /// The client's half of two sidecars: clear text in, mutual TLS out.
    Outbound,
    /// The server's half: mutual TLS in, a policy, clear text out.
    Inbound,
}

/// What a configuration refers to.
pub struct Site<'a> {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where its admin pages are.
    pub admin: SocketAddr,
    /// The back end, or the next proxy.
    pub to: SocketAddr,
    /// Keys and certificates.
    pub tls: &'a Path,
    /// Threads.
    pub workers: usize,
    /// Metrics of every request, a log line and a policy.
    pub sidecar: bool,
}

/// Where the back end of a shape is.
pub fn target(shape: Shape, backend: &Backend) -> SocketAddr {
    match shape {
        Shape::Http2 => backend.http2,
        Shape::Tcp => backend.source,
        _ => backend.http1,
    }
}

/// Envoy's bootstrap, which Leno takes too.
pub fn bootstrap(shape: Shape, site: &Site<'_>) -> Value {
    let tls = site.tls;
    let mut chain = json!({"filters": [if shape == Shape::Tcp { tcp_proxy() } else { manager(shape, site) }]});
    if matches!(shape, Shape::Tls | Shape::Mtls | Shape::Inbound) {
        let mut context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair(tls, "server")]},
        });
        if shape != Shape::Tls {
            context["require_client_certificate"] = json!(true);
            context["common_tls_context"]["validation_context"] = json!({"trusted_ca": file(tls, "ca.pem")});
        }
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    }
    let count = if let Shape::Routes(_, clusters) = shape { clusters } else { 1 };
    let clusters: Vec<Value> = (0..count).map(|number| cluster(shape, site, number)).collect();
    json!({
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": address(site.admin)},
        "static_resources": {
            "listeners": [{"name": "bench", "address": address(site.listen), "filter_chains": [chain]}],
            "clusters": clusters,
        },
    })
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"address": of.ip().to_string(), "port_value": of.port()}})
}

fn file(folder: &Path, name: &str) -> Value {
    json!({"filename": folder.join(name)})
}

fn pair(folder: &Path, name: &str) -> Value {
    json!({
        "certificate_chain": file(folder, &format!("{name}.pem")),
        "private_key": file(folder, &format!("{name}.key")),
    })
}

fn tcp_proxy() -> Value {
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "bench",
        "cluster": "c0",
    }})
}

fn manager(shape: Shape, site: &Site<'_>) -> Value {
    let mut routes: Vec<Value> = Vec::new();
    if let Shape::Routes(count, clusters) = shape {
        routes.extend((0..count).map(|number| {
            let to = format!("c{}", number % clusters);
            json!({"match": {"prefix": format!("/service-{number}/")}, "route": {"cluster": to, "timeout": "15s"}})
        }));
    }
    routes.push(json!({"match": {"prefix": "/"}, "route": {"cluster": "c0", "timeout": "15s"}}));
    let mut filters = Vec::new();
    if site.sidecar && shape == Shape::Inbound {
        filters.push(json!({"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"clients": {
                "permissions": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}],
                "principals": [{"authenticated": {"principal_name": {"prefix": "spiffe://cluster.local/"}}}],
            }}},
        }}));
    }
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
    }}));
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "AUTO",
        "route_config": {"name": "bench", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    });
    if site.sidecar {
        manager["access_log"] = json!([{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
            "log_format": {"text_format_source": {"inline_string":
                "[%START_TIME%] \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
                 %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \"%REQ(:AUTHORITY)%\" %UPSTREAM_HOST% %ROUTE_NAME%\n"}},
        }}]);
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

fn cluster(shape: Shape, site: &Site<'_>, number: usize) -> Value {
    let name = format!("c{number}");
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(site.to)}}]}],
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }]},
    });
    if matches!(shape, Shape::Http2 | Shape::Outbound) {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    if shape == Shape::Outbound {
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "localhost",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificates": [pair(site.tls, "client")],
                "validation_context": {"trusted_ca": file(site.tls, "ca.pem")},
            },
        }});
    }
    cluster
}

/// nginx's configuration; none where it cannot do the shape.
pub fn nginx(shape: Shape, grpc: bool, site: &Site<'_>, folder: &Path) -> Option<String> {
    let Site { listen, to, workers, .. } = site;
    let folder = folder.display();
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if shape == Shape::Tcp {
        module.exists().then(|| format!("load_module {};\n", module.display()))?
    } else {
        String::new()
    };
    let mut text = format!(
        "{load}daemon off;\nworker_processes {workers};\nworker_rlimit_nofile 65535;\npid {folder}/nginx.pid;\n\
         error_log {folder}/error.log error;\nevents {{ worker_connections 32768; }}\n"
    );
    if shape == Shape::Tcp {
        writeln!(text, "stream {{ server {{ listen {listen}; proxy_pass {to}; }} }}").ok()?;
        return Some(text);
    }
    let tls = site.tls.display();
    let listening = match shape {
        Shape::Http1 => format!("listen {listen} backlog=4096;"),
        Shape::Http2 => format!("listen {listen} http2 backlog=4096;"),
        Shape::Tls => format!(
            "listen {listen} ssl backlog=4096; ssl_certificate {tls}/server.pem; ssl_certificate_key {tls}/server.key;"
        ),
        Shape::Mtls => format!(
            "listen {listen} ssl backlog=4096; ssl_certificate {tls}/server.pem; ssl_certificate_key {tls}/server.key; \
             ssl_client_certificate {tls}/ca.pem; ssl_verify_client on;"
        ),
        _ => return None,
    };
    let pass = match (shape, grpc) {
        (Shape::Http2, true) => "grpc_pass grpc://back;".to_owned(),
        _ => "proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\";".to_owned(),
    };
    writeln!(
        text,
        "http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s; \
         client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; \
         scgi_temp_path {folder}; ssl_session_cache off; ssl_session_tickets off; \
         upstream back {{ server {to}; keepalive 1024; keepalive_requests 100000000; }} \
         server {{ {listening} location / {{ {pass} }} }} }}"
    )
    .ok()?;
    Some(text)
}

/// HAProxy's configuration; none where it cannot do the shape.
pub fn haproxy(shape: Shape, site: &Site<'_>, folder: &Path) -> Option<String> {
    let Site { listen, to, workers, .. } = site;
    let tls = site.tls.display();
    let pem = folder.join("server-and-key.pem");
    if matches!(shape, Shape::Tls | Shape::Mtls) {
        let both =
            ["server.pem", "server.key"].map(|name| std::fs::read_to_string(site.tls.join(name)).unwrap_or_default());
        std::fs::write(&pem, both.concat()).ok()?;
    }
    let pem = pem.display();
    let (mode, bind, server) = match shape {
        Shape::Http1 => ("http", String::new(), ""),
        Shape::Http2 => ("http", " proto h2".to_owned(), " proto h2"),
        Shape::Tls => ("http", format!(" ssl crt {pem} alpn http/1.1"), ""),
        Shape::Mtls => ("http", format!(" ssl crt {pem} alpn http/1.1 ca-file {tls}/ca.pem verify required"), ""),
        Shape::Tcp => ("tcp", String::new(), ""),
        _ => return None,
    };
    let options = if mode == "tcp" { "option splice-auto" } else { "http-reuse always" };
    Some(format!(
        "global\n  nbthread {workers}\n  ssl-server-verify none\n  tune.ssl.cachesize 0\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  backlog 4096\n\
         frontend bench\n  bind {listen}{bind}\n  default_backend back\n\
         backend back\n  {options}\n  server s1 {to}{server}\n"
    ))
}

/// The file that a configuration is written to.
pub fn config_file(folder: &Path, proxy: &str, number: usize) -> PathBuf {
    folder.join(format!("{proxy}-{number}.json"))
}
