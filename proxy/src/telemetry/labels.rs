//! The nouns that metrics speak of: who called, who answered, which service was meant, and how.

use std::fmt::Write as _;
use std::sync::Arc;

/// Which side of a call reports it: a call between two sidecars is counted by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The caller's proxy (outbound).
    Source,
    /// The called workload's proxy (inbound).
    Destination,
}

impl Reporter {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// What the request spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RequestProtocol {
    /// HTTP of any version.
    Http,
    /// HTTP/2 with an `application/grpc` content type.
    Grpc,
    /// Bytes.
    Tcp,
}

impl RequestProtocol {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
            RequestProtocol::Tcp => "tcp",
        }
    }
}

/// Whether the call was protected. A source reports `unknown`, as Istio does: only the called side knows for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConnectionSecurity {
    /// Reported by the source.
    Unknown,
    /// Plain text.
    None,
    /// Mutual TLS with a mesh certificate.
    MutualTls,
}

impl ConnectionSecurity {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConnectionSecurity::Unknown => "unknown",
            ConnectionSecurity::None => "none",
            ConnectionSecurity::MutualTls => "mutual_tls",
        }
    }
}

/// What an unknown label says.
pub const UNKNOWN: &str = "unknown";

/// Longest label value in bytes; what is longer is cut (peers choose some of these values).
pub const MAX_LABEL_BYTES: usize = 256;

/// One side of a call, as metrics name it. Shared by `Arc`: two requests of the same peer hold the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadLabels {
    /// Name of the workload (the Deployment, StatefulSet, ...).
    pub workload: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// The label `app`, or `unknown`.
    pub app: Box<str>,
    /// The label `version`, or `unknown`.
    pub version: Box<str>,
    /// Name of the Kubernetes cluster.
    pub cluster: Box<str>,
    /// SPIFFE id, or `unknown` for a peer without mutual TLS.
    pub principal: Box<str>,
}

fn value(text: &str) -> Box<str> {
    let mut end = text.len().min(MAX_LABEL_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 { UNKNOWN.into() } else { text[..end].into() }
}

impl WorkloadLabels {
    /// Names a workload; empty values become `unknown`, values over [`MAX_LABEL_BYTES`] are cut.
    pub fn new(workload: &str, namespace: &str, app: &str, version: &str, cluster: &str, principal: &str) -> Arc<Self> {
        Arc::new(Self {
            workload: value(workload),
            namespace: value(namespace),
            app: value(app),
            version: value(version),
            cluster: value(cluster),
            principal: value(principal),
        })
    }

    /// A peer of which nothing is known.
    pub fn unknown() -> Arc<Self> {
        Self::new("", "", "", "", "", "")
    }

    /// A peer of which only its certificate is known.
    pub fn from_principal(namespace: &str, principal: &str) -> Arc<Self> {
        Self::new("", namespace, "", "", "", principal)
    }

    /// Reads an endpoint's metadata, `<workload>;<namespace>;<app>;<version>;<cluster>`. Missing parts are `unknown`,
    /// further parts are ignored.
    pub fn from_endpoint(text: &str, principal: Option<&str>) -> Arc<Self> {
        let mut parts = text.split(';');
        let mut next = || parts.next().unwrap_or_default();
        let (workload, namespace, app, version, cluster) = (next(), next(), next(), next(), next());
        Self::new(workload, namespace, app, version, cluster, principal.unwrap_or_default())
    }

    /// Istio's canonical service: the label `app`, or else the workload's name.
    pub fn canonical_service(&self) -> &str {
        if &*self.app == UNKNOWN { &self.workload } else { &self.app }
    }

    /// Istio's canonical revision: the label `version`, or else `latest` (`unknown` when the workload is).
    pub fn canonical_revision(&self) -> &str {
        if &*self.version != UNKNOWN {
            &self.version
        } else if &*self.workload == UNKNOWN {
            UNKNOWN
        } else {
            "latest"
        }
    }
}

/// The service that was called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceLabels {
    /// Full host, `reviews.default.svc.cluster.local`.
    pub host: Box<str>,
    /// Short name, `reviews`.
    pub name: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
}

impl ServiceLabels {
    /// Names a service; empty values become `unknown`, values over [`MAX_LABEL_BYTES`] are cut.
    pub fn new(host: &str, name: &str, namespace: &str) -> Arc<Self> {
        Arc::new(Self { host: value(host), name: value(name), namespace: value(namespace) })
    }

    /// A destination that belongs to no service of the mesh, named as its cluster is (`PassthroughCluster`).
    pub fn cluster_only(cluster: &str) -> Arc<Self> {
        Self::new(cluster, cluster, UNKNOWN)
    }
}

/// Appends `name="value"` with the value escaped as Prometheus' text format asks.
pub(super) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// What follows the two sides in a label set.
pub(super) struct Tail {
    pub(super) protocol: RequestProtocol,
    /// Response code and gRPC status; `None` for TCP, whose series have neither.
    pub(super) http: Option<(u16, Option<u16>)>,
    pub(super) flags: super::ResponseFlags,
    pub(super) security: ConnectionSecurity,
}

/// Writes a whole label set in Istio's order.
pub(super) fn label_text(
    reporter: Reporter,
    source: &WorkloadLabels,
    destination: &WorkloadLabels,
    service: &ServiceLabels,
    tail: &Tail,
) -> String {
    let mut out = String::with_capacity(900);
    let text = &mut out;
    push_label(text, "reporter", reporter.as_str());
    push_label(text, "source_workload", &source.workload);
    push_label(text, "source_canonical_service", source.canonical_service());
    push_label(text, "source_canonical_revision", source.canonical_revision());
    push_label(text, "source_workload_namespace", &source.namespace);
    push_label(text, "source_principal", &source.principal);
    push_label(text, "source_app", &source.app);
    push_label(text, "source_version", &source.version);
    push_label(text, "source_cluster", &source.cluster);
    push_label(text, "destination_workload", &destination.workload);
    push_label(text, "destination_workload_namespace", &destination.namespace);
    push_label(text, "destination_principal", &destination.principal);
    push_label(text, "destination_app", &destination.app);
    push_label(text, "destination_version", &destination.version);
    push_label(text, "destination_service", &service.host);
    push_label(text, "destination_canonical_service", destination.canonical_service());
    push_label(text, "destination_canonical_revision", destination.canonical_revision());
    push_label(text, "destination_service_name", &service.name);
    push_label(text, "destination_service_namespace", &service.namespace);
    push_label(text, "destination_cluster", &destination.cluster);
    push_label(text, "request_protocol", tail.protocol.as_str());
    let mut number = String::new();
    if let Some((code, grpc)) = tail.http {
        let _ = write!(number, "{code}");
        push_label(text, "response_code", &number);
        number.clear();
        if let Some(grpc) = grpc {
            let _ = write!(number, "{grpc}");
        }
        push_label(text, "grpc_response_status", &number);
        number.clear();
    }
    let _ = write!(number, "{}", tail.flags);
    push_label(text, "response_flags", &number);
    push_label(text, "connection_security_policy", tail.security.as_str());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_labels_when_parts_are_missing_then_they_are_unknown() {
        let labels = WorkloadLabels::from_endpoint("reviews-v1;shop;reviews", None);
        assert_eq!(&*labels.version, "unknown");
        assert_eq!(&*labels.principal, "unknown");
        assert_eq!(labels.canonical_service(), "reviews");
        assert_eq!(labels.canonical_revision(), "latest");
    }

    #[test]
    fn label_value_when_too_long_then_it_is_cut_at_a_character() {
        let labels = WorkloadLabels::new(&"é".repeat(500), "", "", "", "", "");
        assert_eq!(labels.workload.len(), MAX_LABEL_BYTES);
    }

    #[test]
    fn label_when_it_holds_quotes_and_newlines_then_they_are_escaped() {
        let mut text = String::new();
        push_label(&mut text, "a", "x\"y\\z\n");
        assert_eq!(text, r#"a="x\"y\\z\n""#);
    }
}
