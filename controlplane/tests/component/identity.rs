//! Certificates over a real TLS socket: who gets one, and what it says.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::common::{Proxy, Server, WAIT, server, server_of};
use leno_api::identity::v1::workload_certificates_client::WorkloadCertificatesClient;
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_api::status::v1::WatchRequest;
use leno_api::status::v1::mesh_status_client::MeshStatusClient;
use leno_controlplane::identity::Ca;
use leno_controlplane::identity::sign::KnownPod;
use leno_core::ObjectKey;
use leno_runtime::certs::{Authority, Keypair, certificates_from_pem, describe, new_request};
use leno_runtime::trust::{Signing, issuer_sha256, roots_sha256};
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

/// The folder of a mounted Secret: what signs, and what is trusted.
fn mount(dir: &Path, (certificate, key): &(String, String), roots: &[&str]) {
    std::fs::write(dir.join("roots.pem"), roots.concat()).unwrap();
    std::fs::write(dir.join("tls.crt"), certificate).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
}

fn der(pem: &str) -> Vec<CertificateDer<'static>> {
    certificates_from_pem(pem.as_bytes()).unwrap()
}

/// A rotation as proxies and the operator see it, over real TLS: the old root and the new one, step by step.
#[tokio::test]
async fn authority_when_it_is_replaced_step_by_step_then_no_handshake_fails_and_every_step_is_said() {
    let root = || Authority::create("cluster.local", Duration::from_secs(3600), SystemTime::now()).unwrap();
    let (old, new) = (root(), root());
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), &old, &[&old.0]);
    let ca = Ca::from_dir(dir.path()).unwrap();
    let server = server_of(ca.clone()).await;
    tokio::spawn(ca.follow_files(Duration::from_millis(5), server.shutdown.clone()));
    know(&server, "u-1");
    let operator = server.account_certificate("leno-system", "leno-operator");
    let mut reports =
        MeshStatusClient::new(server.channel(Some(operator)).await).watch(WatchRequest {}).await.unwrap().into_inner();
    let signer = |pair: &(String, String)| {
        Signing::from_pem(pair.0.as_bytes(), pair.1.as_bytes(), pair.0.as_bytes()).unwrap().fingerprint().unwrap()
    };
    let both = [old.0.as_str(), new.0.as_str()].concat();
    let mut said = async |roots: &str, signer: [u8; 32]| {
        let wanted = (roots_sha256(&der(roots)).to_vec(), signer.to_vec());
        let heard = async {
            loop {
                let report = reports.message().await.unwrap().unwrap();
                if (report.roots_sha256, report.signer_sha256) == wanted {
                    return;
                }
            }
        };
        tokio::time::timeout(WAIT, heard).await.expect("the replica says what is in force");
    };
    said(&old.0, signer(&old)).await;
    let (first, key) = sign(&server, None, Some("dev:shop/reviews-1")).await.unwrap();
    let chain = |response: &SignResponse| {
        response.chain.iter().map(|der| CertificateDer::from(der.clone())).collect::<Vec<_>>()
    };
    let of_the_old = Keypair { chain: chain(&first), key };
    let stream = Proxy::open(server.channel(Some(of_the_old.clone())).await).await.unwrap();

    // Both are trusted, the old one signs.
    mount(dir.path(), &old, &[&old.0, &new.0]);
    said(&both, signer(&old)).await;
    assert!(server.channel_trusting(&der(&old.0), Some(of_the_old.clone())).await.is_ok());

    // The new one signs; a proxy with a certificate of the old one that trusts both goes on and renews.
    mount(dir.path(), &new, &[&old.0, &new.0]);
    said(&both, signer(&new)).await;
    assert!(server.channel_trusting(&der(&old.0), Some(of_the_old.clone())).await.is_err());
    assert!(Proxy::open(server.channel_trusting(&der(&both), Some(of_the_old.clone())).await.unwrap()).await.is_ok());
    let (renewed, key) = sign(&server, Some(of_the_old.clone()), None).await.unwrap();
    let of_the_new = Keypair { chain: chain(&renewed), key };
    assert_eq!(issuer_sha256(&of_the_new.chain).unwrap(), signer(&new));

    // Only the new one is trusted: certificates of the old one are refused, open streams are not ended.
    mount(dir.path(), &new, &[&new.0]);
    said(&new.0, signer(&new)).await;
    let channel = server.channel_trusting(&der(&new.0), Some(of_the_new)).await.unwrap();
    assert!(Proxy::open(channel).await.is_ok());
    let refused = match server.channel_trusting(&der(&new.0), Some(of_the_old)).await {
        Ok(channel) => Proxy::open(channel).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    drop(stream);
}

#[tokio::test]
async fn authority_when_it_is_an_intermediate_then_its_certificates_are_trusted_by_the_root_alone() {
    let root = Authority::create("cluster.local", Duration::from_secs(3600), SystemTime::now()).unwrap();
    let intermediate =
        leno_runtime::certs::new_intermediate(&root.0, &root.1, "shop", Duration::from_secs(600)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), &intermediate, &[&root.0]);
    let server = server_of(Ca::from_dir(dir.path()).unwrap()).await;
    know(&server, "u-1");
    let (signed, _) = sign(&server, None, Some("dev:shop/reviews-1")).await.unwrap();
    assert_eq!((signed.chain.len(), signed.roots.len()), (2, 1));
}
