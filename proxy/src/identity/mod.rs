//! The workload's certificate: asked for at start, renewed at half life, kept in memory only.
//!
//! The first one is bought with the pod's service account token; a renewal uses the certificate itself, so that a
//! restarted control plane costs the API server no token review for each proxy, and falls back to the token when that is
//! refused. Every certificate has a key of its own. The trusted roots come from a file (the mesh's ConfigMap) that is
//! read again while the process runs: a root that is taken out there is distrusted within seconds. The same file says what
//! signs now; when that is not what signed ours, we renew without waiting for half of its life.

pub mod link;

use crate::tls::{CredentialStore, Credentials};
use crate::xds::backoff::Backoff;
use leno_api::identity::v1::{SignRequest, workload_certificates_client::WorkloadCertificatesClient};
use leno_runtime::certs::{CertError, Keypair, certificates_from_pem, describe, new_request};
use leno_runtime::trust::{Fingerprint, announced, issuer_sha256, roots_sha256};
use link::{Link, LinkError};
use rand::Rng as _;
use rustls_pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// How often the roots' file is looked at.
const ROOTS_INTERVAL: Duration = Duration::from_secs(5);
/// After a change of the roots, the proxies of a mesh ask for new certificates within this time, each at a random moment.
const ROTATION_SPREAD: Duration = Duration::from_secs(3);
/// When a new certificate is still not of what the roots' file says that signs (the control plane may learn of it later than
/// we), the next is asked for after this time, then after twice that, up to the limit.
const SIGNER_PATIENCE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));
/// How long a signature may take.
const SIGN_LIMIT: Duration = Duration::from_secs(10);
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// No certificate is renewed more often than this, however short it lives.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(1);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read.
    #[error("cannot read {}: {reason}; is the pod injected by this version?", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The control plane could not be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The control plane refused.
    #[error("the control plane did not sign: {code:?}: {message}")]
    Refused {
        /// The gRPC status code.
        code: tonic::Code,
        /// The control plane's words.
        message: String,
    },
    /// The request could not be made, or the answer does not fit it.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The certificate that came cannot be used.
    #[error("the certificate that the control plane signed cannot be used: {0}")]
    Unusable(String),
}

/// Where the proof of the first certificate and the roots are.
#[derive(Debug, Clone)]
pub struct Files {
    /// The projected service account token.
    pub token: PathBuf,
    /// The trusted roots, PEM.
    pub roots: PathBuf,
}

/// The current certificate with its key, and the roots.
#[derive(Clone)]
pub struct Material {
    /// The chain and its key.
    pub own: Keypair,
    /// The trusted roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// What signed the certificate.
    pub issuer: Fingerprint,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// When to renew.
    pub renew_at: SystemTime,
}

impl Material {
    /// The fingerprint of the trusted roots, as the operator compares it.
    pub fn roots_sha256(&self) -> Fingerprint {
        roots_sha256(&self.roots)
    }
}

impl std::fmt::Debug for Material {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// What the rest of the process sees: `None` until the first certificate.
pub type Current = watch::Receiver<Option<Arc<Material>>>;

/// The task that keeps the certificate fresh.
pub struct Identity {
    files: Files,
    link: Link,
    store: CredentialStore,
    current: watch::Sender<Option<Arc<Material>>>,
}

impl Identity {
    /// A task that has not begun; the receiver sees what it obtains, and so does `store`.
    pub fn new(files: Files, link: Link, store: CredentialStore) -> (Self, Current) {
        let (current, receiver) = watch::channel(None);
        (Self { files, link, store, current }, receiver)
    }

    /// Runs until `shutdown`. Waits between attempts grow to three seconds, jittered.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut patience = Backoff::new(SIGNER_PATIENCE.0, SIGNER_PATIENCE.1);
        let mut not_before = Instant::now();
        loop {
            let wait = match self.obtain().await {
                Ok((material, signer)) => {
                    backoff.reset();
                    if signer.is_some_and(|signer| signer != material.issuer) {
                        not_before = Instant::now() + patience.next();
                    } else {
                        patience.reset();
                    }
                    let until = material.renew_at.duration_since(SystemTime::now()).unwrap_or_default();
                    tracing::info!(renew_in = ?until, "got a workload certificate");
                    until.max(SHORTEST_RENEWAL)
                }
                Err(error) => {
                    let wait = backoff.next();
                    tracing::warn!(%error, retry_in = ?wait, "no new workload certificate");
                    wait
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.watch_roots(not_before) => {}
            }
        }
    }

    /// Takes over changed roots, and returns when it is time for a certificate of the authority behind them: the old one may
    /// have been replaced without an overlap. Returns too when another authority signs than the one that signed ours, but
    /// not before `not_before`.
    async fn watch_roots(&self, not_before: Instant) {
        loop {
            tokio::time::sleep(ROOTS_INTERVAL).await;
            let Some(held) = self.current.borrow().clone() else { continue };
            match read_roots(&self.files.roots) {
                Ok((roots, _)) if roots != held.roots => {
                    tracing::info!(roots = roots.len(), "the trusted roots have changed");
                    let material = Material { roots, ..(*held).clone() };
                    match self.publish(material) {
                        Ok(_) => {
                            let spread = ROTATION_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
                            tokio::time::sleep(spread).await;
                            return;
                        }
                        Err(error) => tracing::error!(%error, "the new roots cannot be used; keeping the old ones"),
                    }
                }
                Ok((_, Some(signer))) if signer != held.issuer && Instant::now() >= not_before => {
                    tracing::info!("another authority signs now; renewing");
                    let spread = ROTATION_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
                    tokio::time::sleep(spread).await;
                    return;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the trusted roots cannot be read; keeping the old ones"),
            }
        }
    }

    /// Gets one certificate and publishes it. Gives what should have signed it too, if that is known.
    async fn obtain(&self) -> Result<(Arc<Material>, Option<Fingerprint>), IdentityError> {
        let (roots, signer) = read_roots(&self.files.roots)?;
        let (key, request) = new_request()?;
        let held = self.current.borrow().clone();
        let renewed = match held.filter(|held| held.not_after > SystemTime::now()) {
            None => None,
            Some(held) => match self.sign(&request, &roots, Some(held.own.clone()), None).await {
                Ok(chain) => Some(chain),
                // Too late, revoked, or another control plane: the token may still do.
                Err(error) => {
                    tracing::debug!(%error, "no renewal by certificate; trying the token");
                    None
                }
            },
        };
        let chain = match renewed {
            Some(chain) => chain,
            None => {
                let token = read(&self.files.token)?;
                self.sign(&request, &roots, None, Some(token.trim())).await?
            }
        };
        let Some(leaf) = chain.first() else { return Err(IdentityError::Unusable("the chain is empty".to_owned())) };
        let info = describe(leaf)?;
        let material = self.publish(Material {
            issuer: issuer_sha256(&chain)?,
            own: Keypair { chain, key },
            roots,
            not_after: info.not_after,
            renew_at: info.half_life(),
        })?;
        Ok((material, signer))
    }

    async fn sign(
        &self,
        request: &[u8],
        roots: &[CertificateDer<'static>],
        own: Option<Keypair>,
        token: Option<&str>,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let channel = self.link.channel(roots, own).await?;
        let mut request = Request::new(SignRequest { csr: request.to_vec() });
        request.set_timeout(SIGN_LIMIT);
        if let Some(token) = token {
            let bearer = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| IdentityError::File {
                path: self.files.token.clone(),
                reason: "it holds no token".to_owned(),
            })?;
            request.metadata_mut().insert(leno_api::AUTHORIZATION, bearer);
        }
        let signed =
            tokio::time::timeout(SIGN_LIMIT, async { WorkloadCertificatesClient::new(channel).sign(request).await })
                .await
                .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded(format!("no answer within {SIGN_LIMIT:?}"))))
                .map_err(|status| IdentityError::Refused {
                    code: status.code(),
                    message: status.message().to_owned(),
                })?;
        // The roots in the answer are for others: ours are the file's, which alone can also take a root away.
        let leno_api::identity::v1::SignResponse { chain, roots: _, not_after: _ } = signed.into_inner();
        Ok(chain.into_iter().map(CertificateDer::from).collect())
    }

    fn publish(&self, material: Material) -> Result<Arc<Material>, IdentityError> {
        let own = material.own.clone();
        let credentials = Credentials::new(own.chain, own.key, material.roots.clone())
            .map_err(|error| IdentityError::Unusable(error.to_string()))?;
        self.store.set(credentials);
        let material = Arc::new(material);
        self.current.send_replace(Some(material.clone()));
        Ok(material)
    }
}

fn read(path: &Path) -> Result<String, IdentityError> {
    use std::io::Read as _;
    let failed = |reason: String| IdentityError::File { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    Ok(text)
}

/// The trusted roots, and what signs now, if the file says so.
fn read_roots(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Option<Fingerprint>), IdentityError> {
    let text = read(path)?;
    Ok((certificates_from_pem(text.as_bytes())?, announced(&text)))
}
