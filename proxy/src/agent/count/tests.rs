use super::*;
use crate::telemetry::{Exposition, Telemetry};
use leno_xds::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties, certificate_properties::SubjectAltName,
};
use leno_xds::envoy::data::accesslog::v3::{
    ConnectionProperties, HttpRequestProperties, HttpResponseProperties, TlsProperties,
};
use leno_xds::envoy::service::accesslog::v3::stream_access_logs_message::{HttpAccessLogEntries, TcpAccessLogEntries};
use std::collections::BTreeMap;

const OWN: &str = "reviews-v1;shop;reviews;v1;Kubernetes;reviews";
const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";

fn counter() -> (Telemetry, Counter) {
    let (telemetry, mut shards) = Telemetry::new(1);
    (telemetry, Counter::new(shards.remove(0), "cluster.local"))
}

fn page(telemetry: &Telemetry) -> String {
    let mut out = Exposition::default();
    telemetry.write_traffic(&mut out);
    out.finish()
}

fn common(tags: &[(&str, &str)]) -> AccessLogCommon {
    let tags = tags.iter().chain(&[("own", OWN)]);
    AccessLogCommon {
        custom_tags: tags.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        upstream_cluster: "outbound|9080||reviews.shop.svc.cluster.local".into(),
        upstream_remote_address: Some(Default::default()),
        ..Default::default()
    }
}

fn from_front(claim: &str) -> AccessLogCommon {
    let name = SubjectAltName { san: Some(San::Uri(FRONT.into())) };
    let peer = prost_types::Value { kind: Some(Kind::StringValue(claim.into())) };
    let fields = prost_types::Struct { fields: BTreeMap::from([("peer".to_owned(), peer)]) };
    AccessLogCommon {
        tls_properties: Some(TlsProperties {
            peer_certificate_properties: Some(CertificateProperties {
                subject_alt_name: vec![name],
                ..Default::default()
            }),
            ..Default::default()
        }),
        metadata: Some(Metadata {
            filter_metadata: BTreeMap::from([("leno".to_owned(), fields)]),
            ..Default::default()
        }),
        ..common(&[])
    }
}

fn http(common: AccessLogCommon, code: u32) -> LogEntries {
    LogEntries::HttpLogs(HttpAccessLogEntries {
        log_entry: vec![HttpAccessLogEntry {
            common_properties: Some(common),
            request: Some(HttpRequestProperties { request_headers_bytes: 100, ..Default::default() }),
            response: Some(HttpResponseProperties {
                response_code: Some(code),
                response_headers_bytes: 200,
                response_body_bytes: 50,
                ..Default::default()
            }),
            ..Default::default()
        }],
    })
}

fn tcp(common: AccessLogCommon, kind: AccessLogType, received: u64, sent: u64) -> LogEntries {
    LogEntries::TcpLogs(TcpAccessLogEntries {
        log_entry: vec![TcpAccessLogEntry {
            common_properties: Some(AccessLogCommon { access_log_type: kind.into(), ..common }),
            connection_properties: Some(ConnectionProperties { received_bytes: received, sent_bytes: sent }),
        }],
    })
}

/// The value of the one sample of a metric whose line holds all of these.
fn value(page: &str, metric: &str, labels: &[&str]) -> String {
    let lines: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(lines.len(), 1, "{metric} with {labels:?} in\n{page}");
    lines[0].rsplit_once(' ').unwrap().1.to_owned()
}

#[test]
fn request_when_envoy_is_called_then_both_sides_are_named() {
    let (telemetry, mut counter) = counter();
    counter.take(Reporter::Destination, &http(from_front("front-v1;shop;front;v1;Kubernetes;front"), 200));
    let page = page(&telemetry);
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"front-v1\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"",
        "destination_workload=\"reviews-v1\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\"",
        "response_code=\"200\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(value(&page, "istio_requests_total", &labels), "1");
    assert_eq!(value(&page, "istio_response_bytes_sum", &labels), "250");
}

#[test]
fn request_when_its_header_lies_then_only_the_certificate_is_believed() {
    let (telemetry, mut counter) = counter();
    counter.take(Reporter::Destination, &http(from_front("admin-v1;shop;admin;v1;Kubernetes;admin"), 200));
    let labels = ["source_workload=\"unknown\"", "source_workload_namespace=\"shop\"", "sa/front\""];
    assert_eq!(value(&page(&telemetry), "istio_requests_total", &labels), "1");
}

#[test]
fn request_when_envoy_calls_then_the_endpoints_metadata_names_the_other_side() {
    let (telemetry, mut counter) = counter();
    let services = r#"[{"host":"ratings.shop.svc.cluster.local","name":"ratings","namespace":"shop"}]"#;
    let tags = [
        ("service", services),
        ("workload", "ratings-v1;shop;ratings;v1;Kubernetes"),
        ("identity", "spiffe://cluster.local/ns/shop/sa/ratings"),
    ];
    let flags = EnvoyFlags { upstream_connection_failure: true, ..Default::default() };
    let common = AccessLogCommon { response_flags: Some(flags), ..common(&tags) };
    counter.take(Reporter::Source, &http(common, 503));
    let labels = [
        "reporter=\"source\"",
        "source_workload=\"reviews-v1\"",
        "destination_workload=\"ratings-v1\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/ratings\"",
        "destination_service=\"ratings.shop.svc.cluster.local\"",
        "destination_service_name=\"ratings\"",
        "response_flags=\"UF\"",
        "connection_security_policy=\"unknown\"",
    ];
    assert_eq!(value(&page(&telemetry), "istio_requests_total", &labels), "1");
}

#[test]
fn connection_when_it_lasts_then_its_bytes_are_counted_on_the_way() {
    let (telemetry, mut counter) = counter();
    let of = |id: &str| AccessLogCommon { stream_id: id.into(), ..common(&[]) };
    counter.take(Reporter::Source, &tcp(of("one"), AccessLogType::TcpUpstreamConnected, 0, 0));
    counter.take(Reporter::Source, &tcp(of("one"), AccessLogType::TcpPeriodic, 10, 100));
    let labels = ["source_workload=\"reviews-v1\"", "destination_workload=\"unknown\"", "response_flags=\"-\""];
    let now = page(&telemetry);
    assert_eq!(value(&now, "istio_tcp_connections_opened_total", &labels), "1");
    assert_eq!(value(&now, "istio_tcp_connections_closed_total", &labels), "0");
    assert_eq!(value(&now, "istio_tcp_sent_bytes_total", &labels), "100");
    counter.take(Reporter::Source, &tcp(of("one"), AccessLogType::TcpConnectionEnd, 15, 150));
    let now = page(&telemetry);
    assert_eq!(value(&now, "istio_tcp_connections_closed_total", &labels), "1");
    assert_eq!(value(&now, "istio_tcp_sent_bytes_total", &labels), "150");
    assert_eq!(value(&now, "istio_tcp_received_bytes_total", &labels), "15");
}

#[test]
fn connection_when_its_client_is_not_known_yet_then_is_counted_with_it_later() {
    let (telemetry, mut counter) = counter();
    let (of, proved) = (AccessLogCommon { stream_id: "one".into(), ..from_front("") }, TlsProperties::default());
    let early = AccessLogCommon { tls_properties: Some(proved), ..of.clone() };
    counter.take(Reporter::Destination, &tcp(early, AccessLogType::TcpUpstreamConnected, 0, 0));
    assert!(!page(&telemetry).contains("istio_tcp_connections_opened_total{"));
    counter.take(Reporter::Destination, &tcp(of, AccessLogType::TcpConnectionEnd, 15, 150));
    let labels = ["source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"", "mutual_tls"];
    let now = page(&telemetry);
    assert_eq!(value(&now, "istio_tcp_connections_opened_total", &labels), "1");
    assert_eq!(value(&now, "istio_tcp_received_bytes_total", &labels), "15");
}

#[test]
fn connection_when_no_endpoint_was_reached_then_none_is_counted() {
    let (telemetry, mut counter) = counter();
    let nobody = AccessLogCommon { upstream_remote_address: None, ..common(&[]) };
    counter.take(Reporter::Source, &tcp(nobody, AccessLogType::TcpConnectionEnd, 0, 0));
    assert!(!page(&telemetry).contains("istio_tcp_connections_opened_total{"));
}
