//! Certificates over a real TLS socket: who gets one, and what it says.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Proxy, Server, server};
use leno_api::identity::v1::workload_certificates_client::WorkloadCertificatesClient;
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_api::status::v1::WatchRequest;
use leno_api::status::v1::mesh_status_client::MeshStatusClient;
use leno_controlplane::identity::sign::KnownPod;
use leno_core::ObjectKey;
use leno_runtime::certs::{Keypair, describe, new_request};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::{Code, Request, Status};

fn know(server: &Server, uid: &str) {
    let known = KnownPod { uid: uid.into(), service_account: "reviews".into(), trust_domain: "cluster.local".into() };
    server.configs.pods.lock().unwrap().insert(ObjectKey::new("shop", "reviews-1"), known);
}

async fn sign(
    server: &Server,
    own: Option<Keypair>,
    token: Option<&str>,
) -> Result<(SignResponse, PrivateKeyDer<'static>), Status> {
    let (key, csr) = new_request().unwrap();
    let mut request = Request::new(SignRequest { csr });
    if let Some(token) = token {
        request.metadata_mut().insert(leno_api::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    }
    let response = WorkloadCertificatesClient::new(server.channel(own).await).sign(request).await?;
    Ok((response.into_inner(), key))
}

#[tokio::test]
async fn pod_when_it_shows_a_token_then_gets_a_certificate_that_opens_a_stream_and_renews_itself() {
    let server = server().await;
    know(&server, "u-1");
    let (first, key) = sign(&server, None, Some("dev:shop/reviews-1")).await.unwrap();
    let info = describe(&first.chain[0]).unwrap();
    assert_eq!(info.uris, ["spiffe://cluster.local/ns/shop/sa/reviews"]);
    assert_eq!(info.common_name.as_deref(), Some("reviews-1"));
    assert_eq!(info.organization.as_deref(), Some("shop"));
    assert_eq!(info.subject_serial.as_deref(), Some("u-1"));
    assert_eq!(first.roots.len(), 1);
    let chain = first.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let own = Keypair { chain, key };
    assert!(Proxy::open(server.channel(Some(own.clone())).await).await.is_ok());
    let (renewed, _) = sign(&server, Some(own), None).await.unwrap();
    assert_ne!(renewed.chain, first.chain);
    assert_eq!(describe(&renewed.chain[0]).unwrap().uris, info.uris);
}

#[tokio::test]
async fn pod_when_it_shows_no_proof_or_a_wrong_one_then_gets_nothing() {
    let server = server().await;
    know(&server, "u-1");
    let code = |result: Result<(SignResponse, _), Status>| result.err().map(|status| status.code());
    assert_eq!(code(sign(&server, None, None).await), Some(Code::Unauthenticated));
    assert_eq!(code(sign(&server, None, Some("nonsense")).await), Some(Code::Unauthenticated));
    assert_eq!(code(sign(&server, None, Some("dev:shop/unknown")).await), Some(Code::Unavailable));
}

#[tokio::test]
async fn renewal_when_the_pod_was_replaced_by_one_of_the_same_name_then_is_denied() {
    let server = server().await;
    know(&server, "u-2");
    let old = server.pod_certificate("shop", "reviews-1", "u-1");
    let status = sign(&server, Some(old), None).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn request_when_it_does_not_parse_then_is_an_invalid_argument() {
    let server = server().await;
    know(&server, "u-1");
    let mut request = Request::new(SignRequest { csr: b"no request".to_vec() });
    request.metadata_mut().insert(leno_api::AUTHORIZATION, "Bearer dev:shop/reviews-1".parse().unwrap());
    let status = WorkloadCertificatesClient::new(server.channel(None).await).sign(request).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn reports_when_asked_for_by_the_operator_then_come_and_by_others_not() {
    let server = server().await;
    let watch = async |own: Option<Keypair>| {
        MeshStatusClient::new(server.channel(own).await).watch(WatchRequest {}).await.map(tonic::Response::into_inner)
    };
    assert_eq!(watch(None).await.err().unwrap().code(), Code::Unauthenticated);
    let pod = server.pod_certificate("shop", "reviews-1", "u-1");
    assert_eq!(watch(Some(pod)).await.err().unwrap().code(), Code::PermissionDenied);
    let operator = server.account_certificate("leno-system", "leno-operator");
    let mut reports = watch(Some(operator)).await.unwrap();
    let first = reports.message().await.unwrap().unwrap();
    assert!(first.full);
    assert_eq!(first.version, leno_runtime::version());
}
