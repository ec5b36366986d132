//! Workload certificates from a signer of the test's own, over real TLS.

use leno_api::identity::v1::{
    SignRequest, SignResponse,
    workload_certificates_server::{WorkloadCertificates, WorkloadCertificatesServer},
};
use leno_proxy::identity::link::{Link, Target};
use leno_proxy::identity::{Current, Files, Identity, Material};
use leno_proxy::tls::CredentialStore;
use leno_runtime::certs::{Authority, LeafSpec, certificates_from_pem, spiffe_id};
use leno_runtime::tls::{ClientCertificates, peer_identity, server_config};
use leno_runtime::trust::{Signing, announce};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

const LIMIT: Duration = Duration::from_secs(20);
const WORKLOAD: &str = "spiffe://cluster.local/ns/default/sa/reviews";

/// How a caller proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Proof {
    Token(String),
    Certificate(String),
}

/// A TLS stream that knows who is at its other end.
struct Stream {
    inner: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    peer: Option<String>,
}

impl Connected for Stream {
    type ConnectInfo = Option<String>;
    fn connect_info(&self) -> Option<String> {
        self.peer.clone()
    }
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What the signer does, changed by the test.
struct Signer {
    authority: (String, String),
    lifetime: Duration,
    renewals: bool,
    proofs: Vec<Proof>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Signer>>);

#[tonic::async_trait]
impl WorkloadCertificates for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let peer = request.extensions().get::<Option<String>>().cloned().flatten();
        let mut signer = self.0.lock().unwrap();
        let proof = match (token, peer) {
            (Some(token), None) => Proof::Token(token),
            (None, Some(peer)) if signer.renewals => Proof::Certificate(peer),
            _ => return Err(Status::unauthenticated("no valid proof")),
        };
        signer.proofs.push(proof);
        let authority = Authority::from_pem(signer.authority.0.as_bytes(), signer.authority.1.as_bytes()).unwrap();
        let spec = LeafSpec {
            identity: WORKLOAD.to_owned(),
            common_name: "reviews-1".to_owned(),
            lifetime: signer.lifetime,
            ..LeafSpec::default()
        };
        // Backdated by five minutes, which half life counts: the lifetime is chosen by the test with that in mind.
        let leaf = authority.issue_for_request(&request.get_ref().csr, &spec, SystemTime::now()).unwrap();
        Ok(Response::new(SignResponse { chain: vec![leaf.to_vec()], roots: vec![], not_after: 0 }))
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    signer: Arc<Mutex<Signer>>,
    address: SocketAddr,
    store: CredentialStore,
}

impl Fixture {
    async fn new(lifetime: Duration) -> Self {
        leno_runtime::certs::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create("cluster.local", Duration::from_secs(86400), SystemTime::now()).unwrap();
        std::fs::write(directory.path().join("roots.pem"), &authority.0).unwrap();
        std::fs::write(directory.path().join("token"), "secret\n").unwrap();
        let signer = Signer { authority, lifetime, renewals: true, proofs: Vec::new() };
        let signer = Arc::new(Mutex::new(signer));
        let address = serve(signer.clone(), "leno-control-plane").await;
        Self { directory, signer, address, store: CredentialStore::new() }
    }

    fn start(&self, stop: &CancellationToken) -> Current {
        let target = Target {
            host: self.address.ip().to_string(),
            port: self.address.port(),
            identity: spiffe_id("cluster.local", "leno-system", "leno-control-plane"),
        };
        let path = |name| self.directory.path().join(name);
        let files = Files { token: path("token"), roots: path("roots.pem") };
        let (identity, current) = Identity::new(files, Link::new(target), self.store.clone());
        tokio::spawn(identity.run(stop.clone()));
        current
    }

    fn proofs(&self) -> Vec<Proof> {
        self.signer.lock().unwrap().proofs.clone()
    }
}

/// A signer whose own certificate is of that service account.
async fn serve(signer: Arc<Mutex<Signer>>, account: &str) -> SocketAddr {
    let (own, roots) = {
        let held = signer.lock().unwrap();
        let authority = Authority::from_pem(held.authority.0.as_bytes(), held.authority.1.as_bytes()).unwrap();
        let spec = LeafSpec {
            identity: spiffe_id("cluster.local", "leno-system", account),
            lifetime: Duration::from_secs(3600),
            ..LeafSpec::default()
        };
        let own = authority.issue(&spec, SystemTime::now()).unwrap();
        (own, certificates_from_pem(held.authority.0.as_bytes()).unwrap())
    };
    let mut config = server_config(&roots, own, ClientCertificates::Optional).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, incoming) = tokio::sync::mpsc::channel::<Result<Stream, std::io::Error>>(8);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(inner) = acceptor.accept(tcp).await {
                let peer = peer_identity(inner.get_ref().1.peer_certificates()).unwrap();
                accepted.send(Ok(Stream { inner, peer })).await.ok();
            }
        }
    });
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let server = Server::builder().add_service(WorkloadCertificatesServer::new(Service(signer)));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test]
async fn identity_when_it_starts_buys_a_certificate_with_the_token() {
    let fixture = Fixture::new(Duration::from_secs(3600)).await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut current = fixture.start(&stop);
    tokio::time::timeout(LIMIT, current.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert_eq!(fixture.proofs(), [Proof::Token("Bearer secret".to_owned())]);
    assert_eq!(fixture.store.get().unwrap().identity().uri(), WORKLOAD);
}

#[tokio::test]
async fn identity_when_half_of_the_life_is_over_renews_with_the_certificate_and_a_new_key() {
    // Backdated by 300 s: half of the life is over 2 s from now.
    let fixture = Fixture::new(Duration::from_secs(304)).await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut current = fixture.start(&stop);
    let first = tokio::time::timeout(LIMIT, current.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    let renewed = Proof::Certificate(WORKLOAD.to_owned());
    wait("a renewal by certificate", || fixture.proofs().contains(&renewed)).await;
    tokio::time::timeout(LIMIT, current.changed()).await.unwrap().unwrap();
    let second = current.borrow().clone().unwrap();
    assert_ne!(first.own.key.secret_der(), second.own.key.secret_der(), "every certificate has a key of its own");
}

#[tokio::test]
async fn identity_when_a_renewal_is_refused_falls_back_to_the_token() {
    let fixture = Fixture::new(Duration::from_secs(302)).await;
    fixture.signer.lock().unwrap().renewals = false;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    fixture.start(&stop);
    wait("a second certificate", || fixture.proofs().len() >= 2).await;
    assert!(fixture.proofs().iter().all(|proof| matches!(proof, Proof::Token(_))));
}

#[tokio::test]
async fn identity_when_the_roots_are_replaced_gets_a_certificate_of_the_new_authority() {
    let fixture = Fixture::new(Duration::from_secs(3600)).await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut current = fixture.start(&stop);
    tokio::time::timeout(LIMIT, current.wait_for(Option::is_some)).await.unwrap().unwrap();
    let fresh = Authority::create("cluster.local", Duration::from_secs(86400), SystemTime::now()).unwrap();
    let old = fixture.signer.lock().unwrap().authority.0.clone();
    fixture.signer.lock().unwrap().authority = fresh.clone();
    std::fs::write(fixture.directory.path().join("roots.pem"), format!("{old}{}", fresh.0)).unwrap();
    wait("a second certificate", || fixture.proofs().len() >= 2).await;
    let roots = || fixture.store.get().unwrap().root_certificates().len();
    wait("both roots", || roots() == 2).await;
}

#[tokio::test]
async fn identity_when_another_authority_is_said_to_sign_then_renews_without_waiting_for_half_of_its_life() {
    let fixture = Fixture::new(Duration::from_secs(3600)).await;
    let old = fixture.signer.lock().unwrap().authority.clone();
    let fresh = Authority::create("cluster.local", Duration::from_secs(86400), SystemTime::now()).unwrap();
    let of = |pair: &(String, String)| {
        let signing = Signing::from_pem(pair.0.as_bytes(), pair.1.as_bytes(), pair.0.as_bytes()).unwrap();
        signing.fingerprint().unwrap()
    };
    let roots = |signer: &(String, String)| {
        let text = announce(&of(signer), &format!("{}{}", old.0, fresh.0));
        std::fs::write(fixture.directory.path().join("roots.pem"), text).unwrap();
    };
    roots(&old);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut current = fixture.start(&stop);
    let first = tokio::time::timeout(LIMIT, current.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(first.issuer, of(&old));
    fixture.signer.lock().unwrap().authority = fresh.clone();
    roots(&fresh);
    let renewed = |held: &Option<Arc<Material>>| held.as_ref().is_some_and(|held| held.issuer == of(&fresh));
    let second = tokio::time::timeout(LIMIT, current.wait_for(renewed)).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(second.roots_sha256(), first.roots_sha256(), "the same roots are trusted");
    let renewal = Proof::Certificate(WORKLOAD.to_owned());
    assert_eq!(fixture.proofs(), [Proof::Token("Bearer secret".to_owned()), renewal]);
}

#[tokio::test]
async fn identity_when_the_control_plane_is_an_impostor_gives_it_no_token() {
    let mut fixture = Fixture::new(Duration::from_secs(3600)).await;
    fixture.address = serve(fixture.signer.clone(), "somebody-else").await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut current = fixture.start(&stop);
    let got = tokio::time::timeout(Duration::from_millis(700), current.wait_for(Option::is_some)).await;
    assert!(got.is_err(), "no certificate comes");
    assert!(fixture.proofs().is_empty(), "the token was not sent");
}
