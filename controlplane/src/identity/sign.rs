//! The service that signs certificates for workloads.
//!
//! A proof is either a service account token or, to renew, the client certificate of the connection. Either names a pod; the
//! control plane's own view of that pod decides the rest. A pod that is not seen yet is waited for a moment: its proxy may start
//! before a watch tells of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_api::identity::v1::workload_certificates_server::WorkloadCertificates;
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_core::ObjectKey;
use leno_runtime::certs::{CertError, LeafSpec, describe, spiffe_id};
use tonic::{Request, Response, Status};

use super::ca::Ca;
use super::tokens::{TokenError, TokenPod, Tokens};
use crate::metrics::{Metrics, ResultLabel};
use crate::tls::Peer;

/// Most bytes of a certificate request.
pub const MAX_REQUEST: usize = 16 * 1024;
/// How long a pod that a proof names is waited for.
pub const POD_WAIT: Duration = Duration::from_secs(3);

/// What the control plane knows of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its uid; empty where pods have none (a folder of YAML).
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
}

/// The control plane's own view of pods.
pub trait Directory: Send + Sync + 'static {
    /// A pod, when it is known within `wait`.
    fn pod(&self, pod: &ObjectKey, wait: Duration) -> impl Future<Output = Option<KnownPod>> + Send;
}

/// The service.
pub struct Signer<D> {
    ca: Ca,
    tokens: Arc<Tokens>,
    directory: Arc<D>,
    lifetime: Duration,
    metrics: Metrics,
}

impl<D: Directory> Signer<D> {
    /// A service that signs with `ca` for `lifetime`.
    pub fn new(ca: Ca, tokens: Tokens, directory: Arc<D>, lifetime: Duration, metrics: Metrics) -> Self {
        Signer { ca, tokens: Arc::new(tokens), directory, lifetime, metrics }
    }

    /// Which pod the caller proves to be.
    async fn proof(&self, request: &Request<SignRequest>) -> Result<TokenPod, Status> {
        if let Some(header) = request.metadata().get(leno_api::AUTHORIZATION) {
            let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ")).map(str::trim);
            let token =
                token.ok_or_else(|| Status::unauthenticated("authorization is not of the form Bearer <token>"))?;
            return self.tokens.check(token).await.map_err(|error| match error {
                TokenError::Invalid(_) => Status::unauthenticated(error.to_string()),
                TokenError::NotBound => Status::permission_denied(error.to_string()),
                TokenError::Unavailable(_) => Status::unavailable(error.to_string()),
            });
        }
        let peer = Peer::of(request)?;
        if !peer.has_certificate() {
            return Err(Status::unauthenticated(
                "give a service account token, or connect with a certificate of the mesh",
            ));
        }
        let pod = peer.certificate()?.pod()?;
        Ok(TokenPod { pod: pod.pod, uid: Some(pod.uid), service_account: Some(pod.service_account) })
    }

    async fn decide(&self, request: Request<SignRequest>) -> Result<SignResponse, Status> {
        if request.get_ref().csr.len() > MAX_REQUEST {
            return Err(Status::invalid_argument(format!("a certificate request is at most {MAX_REQUEST} bytes")));
        }
        let proof = self.proof(&request).await?;
        let known = self.directory.pod(&proof.pod, POD_WAIT).await.ok_or_else(|| {
            Status::unavailable(format!("pod {} is not known to this control plane yet: try again", proof.pod))
        })?;
        let fits = |proved: &Option<String>, known: &str| proved.as_deref().is_none_or(|proved| proved == known);
        if !fits(&proof.uid, &known.uid) || !fits(&proof.service_account, &known.service_account) {
            return Err(Status::permission_denied(format!(
                "the proof is of another pod than {} is now: its uid or service account differ",
                proof.pod
            )));
        }
        let spec = LeafSpec {
            identity: spiffe_id(&known.trust_domain, &proof.pod.namespace, &known.service_account),
            dns_names: Vec::new(),
            common_name: proof.pod.name.clone(),
            organization: Some(proof.pod.namespace.clone()),
            subject_serial: Some(known.uid).filter(|uid| !uid.is_empty()),
            lifetime: self.lifetime,
        };
        self.issue(&request.get_ref().csr, &spec, &proof.pod)
    }

    fn issue(&self, csr: &[u8], spec: &LeafSpec, pod: &ObjectKey) -> Result<SignResponse, Status> {
        let material = self.ca.current();
        let leaf = material.authority.issue_for_request(csr, spec, SystemTime::now()).map_err(|error| match error {
            CertError::Parse { .. } => Status::invalid_argument(error.to_string()),
            _ => Status::internal(error.to_string()),
        })?;
        let not_after = describe(&leaf).map_err(|error| Status::internal(error.to_string()))?.not_after;
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        tracing::info!(%pod, identity = spec.identity, "signed a certificate");
        Ok(SignResponse {
            chain: std::iter::once(leaf.to_vec())
                .chain(material.intermediates.iter().map(|certificate| certificate.to_vec()))
                .collect(),
            roots: material.roots.iter().map(|root| root.to_vec()).collect(),
            not_after: i64::try_from(seconds).unwrap_or(i64::MAX),
        })
    }
}

#[tonic::async_trait]
impl<D: Directory> WorkloadCertificates for Signer<D> {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let result = self.decide(request).await;
        let label = match &result {
            Ok(_) => "signed",
            Err(status) if status.code() == tonic::Code::Unavailable => "unavailable",
            Err(_) => "refused",
        };
        self.metrics.certificates.get_or_create(&ResultLabel::new(label)).inc();
        if let Err(status) = &result {
            tracing::warn!(code = ?status.code(), reason = status.message(), "no certificate");
        }
        result.map(Response::new)
    }
}
