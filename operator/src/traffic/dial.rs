//! One status stream to one control plane replica, kept open.
//!
//! The replica is dialled by its pod's address and known by its identity, not by a name. Our certificate is made anew for
//! each connection, from the authority that the operator keeps.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use leno_api::status::v1::mesh_status_client::MeshStatusClient;
use leno_api::status::v1::{Report, WatchRequest};
use leno_runtime::certs::{CertError, LeafSpec, spiffe_id};
use leno_runtime::tls::{ExpectedPeer, client_config};
use leno_runtime::trust::Signing;
use rustls_pki_types::ServerName;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::names;

/// The port of the control plane's gRPC services.
pub const PORT: u16 = 15012;
/// How long our certificate lasts.
const CERTIFICATE: Duration = Duration::from_secs(24 * 3600);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait before a new attempt.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A replica to listen to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The uid of its pod, which tells it from a later one of the same address.
    pub uid: String,
    /// Its pod, for the log.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    /// The namespace of the control plane.
    pub namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
}

/// What comes from a replica.
#[derive(Debug)]
pub enum Incoming {
    /// A report.
    Report(String, Box<Report>),
    /// The stream ended; what it said does not count any more.
    Gone(String),
}

/// The signing pair and roots, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The authority's certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// All trusted roots.
    pub roots: Vec<u8>,
}

/// A stream could not be opened or ended.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The authority cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// Nobody answers, or somebody else.
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// The replica refused, or the connection broke.
    #[error("the stream ended: {0}")]
    Stream(#[from] tonic::Status),
    /// It ended without a reason.
    #[error("the replica closed the stream")]
    Closed,
}

/// Keeps a stream open until `cancelled`, handing what it says to `incoming`. `pair` gives the authority as it is now.
pub async fn listen(
    replica: Replica,
    pair: impl Fn() -> Option<Pair>,
    incoming: mpsc::Sender<Incoming>,
    cancelled: CancellationToken,
) {
    let mut wait = RETRY.0;
    loop {
        let result = match pair() {
            None => Ok(()),
            Some(pair) => {
                let said = &mut false;
                let result = tokio::select! {
                    () = cancelled.cancelled() => Ok(()),
                    result = stream(&replica, &pair, &incoming, said) => result,
                };
                if *said {
                    wait = RETRY.0;
                }
                result
            }
        };
        let gone = incoming.send(Incoming::Gone(replica.uid.clone())).await;
        if cancelled.is_cancelled() || gone.is_err() {
            return;
        }
        if let Err(error) = result {
            tracing::debug!(pod = replica.pod, %error, "no status stream");
        }
        tokio::select! {
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    }
}

async fn stream(
    replica: &Replica,
    pair: &Pair,
    incoming: &mpsc::Sender<Incoming>,
    said: &mut bool,
) -> Result<(), DialError> {
    let channel = connect(replica, pair).await?;
    let mut reports = MeshStatusClient::new(channel).watch(WatchRequest {}).await?.into_inner();
    tracing::info!(pod = replica.pod, "listening to the status of a control plane replica");
    while let Some(report) = reports.message().await? {
        *said = true;
        if incoming.send(Incoming::Report(replica.uid.clone(), Box::new(report))).await.is_err() {
            return Ok(());
        }
    }
    Err(DialError::Closed)
}

/// A connection to the replica, as the operator.
///
/// # Errors
///
/// [`DialError`].
pub async fn connect(replica: &Replica, pair: &Pair) -> Result<Channel, DialError> {
    let identity = |account: &str| spiffe_id(&replica.trust_domain, &replica.namespace, account);
    let signing = Signing::from_pem(&pair.certificate, &pair.key, &pair.roots)?;
    let spec = LeafSpec {
        identity: identity(names::OPERATOR_ACCOUNT),
        common_name: names::OPERATOR_ACCOUNT.to_owned(),
        lifetime: CERTIFICATE,
        ..LeafSpec::default()
    };
    let own = signing.issue(&spec, SystemTime::now())?;
    let expected = ExpectedPeer::Identity(identity(names::CONTROL_PLANE_ACCOUNT));
    let mut config = client_config(&signing.roots, Some(own), expected)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let address = SocketAddr::new(replica.address, PORT);
    let connect = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let connector = connector.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::IpAddress(address.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    let channel = Endpoint::from_static("http://leno-control-plane")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector(connect)
        .await?;
    Ok(channel)
}
