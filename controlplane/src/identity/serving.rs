//! The certificate of this process: issued by the mesh's authority at start, issued again at half of its life and whenever the
//! authority changes. Open connections stay on what they began with.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use leno_runtime::certs::{CertError, LeafSpec, describe};
use leno_runtime::tls::{ClientCertificates, server_config};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ca::{Ca, Fingerprints};

/// How long a certificate of this process lasts.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
const RETRY: Duration = Duration::from_secs(10);

/// TLS settings of the servers of this process. Cheap to clone.
#[derive(Clone)]
pub struct Serving {
    ca: Ca,
    identity: String,
    dns_names: Vec<String>,
    grpc: Arc<ArcSwap<ServerConfig>>,
    webhook: Arc<ArcSwap<ServerConfig>>,
    in_force: Arc<watch::Sender<Fingerprints>>,
}

struct Issued {
    fingerprints: Fingerprints,
    grpc: ServerConfig,
    webhook: ServerConfig,
    half_life: SystemTime,
}

impl Serving {
    /// Issues the first certificate.
    ///
    /// # Errors
    ///
    /// [`CertError`].
    pub fn new(ca: Ca, identity: String, dns_names: Vec<String>) -> Result<(Self, SystemTime), CertError> {
        let Issued { fingerprints, grpc, webhook, half_life } = issue(&ca, &identity, &dns_names)?;
        let serving = Serving {
            ca,
            identity,
            dns_names,
            grpc: Arc::new(ArcSwap::from_pointee(grpc)),
            webhook: Arc::new(ArcSwap::from_pointee(webhook)),
            in_force: Arc::new(watch::Sender::new(fingerprints)),
        };
        Ok((serving, half_life))
    }

    /// For gRPC: HTTP/2, and a client certificate is verified when there is one.
    pub fn grpc(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.grpc.clone()
    }

    /// For the webhook: the API server has no certificate of the mesh.
    pub fn webhook(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.webhook.clone()
    }

    /// What connections meet that begin now: the roots that are trusted, and what signed our certificate.
    pub fn in_force(&self) -> watch::Receiver<Fingerprints> {
        self.in_force.subscribe()
    }

    /// Keeps the certificate fresh until `shutdown`.
    pub async fn renew(self, mut due: SystemTime, shutdown: CancellationToken) {
        let mut changes = self.ca.subscribe();
        loop {
            let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                Ok(()) = changes.changed() => {}
            }
            match issue(&self.ca, &self.identity, &self.dns_names) {
                Ok(Issued { fingerprints, grpc, webhook, half_life }) => {
                    self.grpc.store(Arc::new(grpc));
                    self.webhook.store(Arc::new(webhook));
                    self.in_force.send_if_modified(|known| std::mem::replace(known, fingerprints) != fingerprints);
                    due = half_life.max(SystemTime::now() + RETRY);
                    tracing::info!("the serving certificate is renewed");
                }
                Err(error) => {
                    due = SystemTime::now() + RETRY;
                    tracing::error!(%error, "the serving certificate cannot be renewed; the old one stays");
                }
            }
        }
    }
}

fn issue(ca: &Ca, identity: &str, dns_names: &[String]) -> Result<Issued, CertError> {
    let material = ca.current();
    let spec = LeafSpec {
        identity: identity.to_owned(),
        dns_names: dns_names.to_vec(),
        common_name: "leno-control-plane".to_owned(),
        lifetime: LIFETIME,
        ..LeafSpec::default()
    };
    let mut own = material.authority.issue(&spec, SystemTime::now())?;
    own.chain.extend(material.intermediates.iter().cloned());
    let half_life =
        own.chain.first().map_or_else(|| Ok(SystemTime::now()), |leaf| describe(leaf).map(|info| info.half_life()))?;
    let mut grpc = server_config(&material.roots, own.clone(), ClientCertificates::Optional)?;
    grpc.alpn_protocols = vec![b"h2".to_vec()];
    let mut webhook = server_config(&material.roots, own, ClientCertificates::None)?;
    webhook.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Issued { fingerprints: material.fingerprints, grpc, webhook, half_life })
}
