//! Reports of proxies over real TLS: taken from the pod they are about, told to the operator, gone with their stream.

use crate::common::{Server, WAIT, server};
use leno_api::proxies::v1::proxy_reports_client::ProxyReportsClient;
use leno_api::proxies::v1::proxy_status_client::ProxyStatusClient;
use leno_api::proxies::v1::{ProxiesReport, ProxyReport, ReportRequest, WatchProxiesRequest};
use leno_controlplane::identity::sign::KnownPod;
use leno_core::ObjectKey;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A server that knows the pod shop/front.
async fn with_a_pod() -> Server {
    let server = server().await;
    let known =
        KnownPod { uid: "uid-1".into(), service_account: "default".into(), trust_domain: "cluster.local".into() };
    server.configs.pods.lock().unwrap().insert(ObjectKey::new("shop", "front"), known);
    server
}

fn report(pod: &str, requests: u64) -> ProxyReport {
    let inbound = leno_api::proxies::v1::Counts { requests, ..Default::default() };
    let (namespace, pod) = ("shop".to_owned(), pod.to_owned());
    ProxyReport { namespace, pod, pod_uid: "a lie".to_owned(), inbound: Some(inbound), ..ProxyReport::default() }
}

/// A proxy with the certificate of shop/front of that uid.
async fn proxy(server: &Server, uid: &str) -> (mpsc::Sender<ProxyReport>, Streaming<ReportRequest>) {
    let channel = server.channel(Some(server.pod_certificate("shop", "front", uid))).await;
    let (reports, outgoing) = mpsc::channel(4);
    let answers = ProxyReportsClient::new(channel).report(ReceiverStream::new(outgoing)).await.unwrap();
    (reports, answers.into_inner())
}

async fn operator(server: &Server) -> Streaming<ProxiesReport> {
    let channel = server.channel(Some(server.account_certificate("leno-system", "leno-operator"))).await;
    ProxyStatusClient::new(channel).watch(WatchProxiesRequest {}).await.unwrap().into_inner()
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(WAIT, stream.message()).await.expect("something in time")
}

#[tokio::test]
async fn report_when_it_is_of_the_certificates_pod_is_told_to_the_operator_and_gone_with_its_stream() {
    let server = with_a_pod().await;
    let mut told = operator(&server).await;
    let first = next(&mut told).await.unwrap().unwrap();
    assert!(first.full && first.proxies.is_empty());
    let (reports, answers) = proxy(&server, "uid-1").await;
    reports.send(report("front", 3)).await.unwrap();
    let said = next(&mut told).await.unwrap().unwrap();
    assert_eq!(said.proxies, [ProxyReport { pod_uid: "uid-1".to_owned(), ..report("front", 3) }]);
    assert!(!said.full);
    let mut late = operator(&server).await;
    assert_eq!(next(&mut late).await.unwrap().unwrap().proxies.len(), 1, "who comes later is told everything");
    drop((reports, answers));
    let said = next(&mut told).await.unwrap().unwrap();
    assert_eq!(said.gone.iter().map(|gone| gone.pod.as_str()).collect::<Vec<_>>(), ["front"]);
}

#[tokio::test]
async fn report_when_it_is_of_another_pod_or_an_earlier_one_is_refused() {
    let server = with_a_pod().await;
    let (reports, mut answers) = proxy(&server, "uid-1").await;
    reports.send(report("reviews", 1)).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap_err().code(), Code::PermissionDenied);
    // That one is refused whatever it says.
    let (_reports, mut answers) = proxy(&server, "uid-0").await;
    assert_eq!(next(&mut answers).await.unwrap_err().code(), Code::PermissionDenied);
    let channel = server.channel(None).await;
    let (_reports, outgoing) = mpsc::channel(1);
    let refused = ProxyReportsClient::new(channel).report(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn reports_when_a_proxy_asks_for_them_are_not_told() {
    let server = with_a_pod().await;
    let channel = server.channel(Some(server.pod_certificate("shop", "front", "uid-1"))).await;
    let refused = ProxyStatusClient::new(channel).watch(WatchProxiesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn proxy_when_the_replica_leaves_is_told_to_go_elsewhere() {
    let server = with_a_pod().await;
    let (_reports, mut answers) = proxy(&server, "uid-1").await;
    server.shutdown.cancel();
    assert_eq!(next(&mut answers).await.unwrap_err().code(), Code::Unavailable);
}
