//! Our control plane on a folder of YAML, and the certificates that it gives to the pods of a case.

use super::{
    case::Case,
    process::{Process, get},
    space::Space,
};
use anyhow::{Context, Result, anyhow};
use leno_api::{
    AUTHORIZATION,
    identity::v1::{SignRequest, workload_certificates_client::WorkloadCertificatesClient},
};
use leno_runtime::{
    certs::{self, Keypair},
    tls::{ExpectedPeer, client_config},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where it serves ADS and certificates.
pub(super) const PORT: u16 = 15012;
const HEALTH: u16 = 8080;
const READY: Duration = Duration::from_secs(10);

/// A running control plane.
pub(super) struct ControlPlane {
    pub(super) process: Process,
    pub(super) space: Space,
    roots: Vec<CertificateDer<'static>>,
}

/// What a pod shows to others: chain and key, DER.
pub(super) struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Credentials {
    /// As TLS configurations take it.
    pub(super) fn keypair(&self) -> Keypair {
        Keypair { chain: self.chain.clone(), key: self.key.clone_key() }
    }

    /// The certificates as PEM.
    pub(super) fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| certs::certificate_to_pem(der)).collect()
    }

    /// The roots as PEM.
    pub(super) fn roots_pem(&self) -> String {
        self.roots.iter().map(|der| certs::certificate_to_pem(der)).collect()
    }

    /// The key as PEM.
    pub(super) fn key_pem(&self) -> String {
        certs::certificate_to_pem(self.key.secret_der()).replace("CERTIFICATE", "PRIVATE KEY")
    }
}

impl ControlPlane {
    /// Starts it on a copy of the case's input and waits until it is ready.
    pub(super) async fn start(bin_dir: &Path, case: &Case, folder: &Path) -> Result<ControlPlane> {
        let space = Space::new()?;
        let config = folder.join("config");
        std::fs::create_dir(&config)?;
        std::fs::write(config.join("in.yaml"), &case.input)?;
        let root = folder.join("root.pem");
        let mut command = space.command(bin_dir.join("leno-control-plane"));
        command.arg("--config-dir").arg(&config).arg("--root-out").arg(&root).env("LENO_LOG", "info");
        let mut process = Process::start("control-plane", folder, command)?;
        let start = Instant::now();
        loop {
            process.alive()?;
            if get(&space, HEALTH, "/healthz/ready").is_ok_and(|(status, _)| status == 200) && root.exists() {
                break;
            }
            if start.elapsed() > READY {
                return Err(anyhow!("the control plane is not ready after {READY:?}:\n{}", process.tail(30)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let roots = certs::certificates_from_pem(&std::fs::read(&root)?)?;
        Ok(ControlPlane { process, space, roots })
    }

    /// Buys a certificate for a pod (`namespace/name`).
    pub(super) async fn sign(&self, pod: &str) -> Result<Credentials> {
        let (key, csr) = certs::new_request()?;
        let mut config = client_config(&self.roots, None, ExpectedPeer::AnyTrusted)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (space, config) = (self.space.clone(), Arc::new(config));
        let connector = tower::service_fn(move |_: http::Uri| {
            let (space, config) = (space.clone(), config.clone());
            async move {
                let stream = space.connect(None, SocketAddr::from(([127, 0, 0, 1], PORT))).await?;
                let name = ServerName::try_from("localhost")?;
                let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
                Ok::<_, anyhow::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost");
        let channel = channel.connect_with_connector(connector).await.context("cannot connect to the control plane")?;
        let mut request = tonic::Request::new(SignRequest { csr });
        request.set_timeout(Duration::from_secs(5));
        request.metadata_mut().insert(AUTHORIZATION, format!("Bearer dev:{pod}").parse()?);
        let answer = WorkloadCertificatesClient::new(channel).sign(request).await;
        let answer = answer.with_context(|| format!("no certificate for {pod}"))?.into_inner();
        let ders = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        Ok(Credentials { chain: ders(answer.chain), key, roots: ders(answer.roots) })
    }
}
