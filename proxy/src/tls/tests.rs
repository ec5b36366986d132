//! Handshakes over loopback sockets between workloads of meshes made here.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const LIMIT: Duration = Duration::from_secs(5);
const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

/// A mesh's root.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn leaf(&self, uris: &[&str], days: std::ops::Range<i64>) -> (String, String) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::days(days.start);
        params.not_after = now + time::Duration::days(days.end);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn credentials(&self, uri: &str) -> Credentials {
        self.credentials_trusting(uri, &self.pem())
    }

    fn credentials_trusting(&self, uri: &str, roots: &str) -> Credentials {
        let (chain, key) = self.leaf(&[uri], -1..1);
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes()).unwrap()
    }
}

fn store(credentials: Credentials) -> CredentialStore {
    let store = CredentialStore::new();
    store.set(credentials);
    store
}

fn id(uri: &str) -> Vec<Arc<str>> {
    vec![uri.into()]
}

type Side = Result<Established<TcpStream>, TlsError>;

/// One handshake; the client then sends a byte and the server answers it, so that a client learns of a refusal that
/// TLS 1.3 tells only after the handshake.
async fn shake(server: &CredentialStore, client: &Connector, expected: &[Arc<str>], alpn: Alpn) -> (Side, Side) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (io, _) = listener.accept().await.unwrap();
        let mut side = server::accept(io, server, LIMIT, &Pace::default()).await?;
        let byte = side.stream.read_u8().await.map_err(TlsError::Handshake)?;
        side.stream.write_u8(byte).await.map_err(TlsError::Handshake)?;
        side.stream.flush().await.map_err(TlsError::Handshake)?;
        Ok(side)
    };
    let connect = async {
        let io = TcpStream::connect(address).await.unwrap();
        let mut side =
            client.connect(io, expected, "outbound|9080||reviews.shop.svc.cluster.local", alpn, LIMIT).await?;
        side.stream.write_u8(7).await.map_err(TlsError::Handshake)?;
        side.stream.flush().await.map_err(TlsError::Handshake)?;
        assert_eq!(side.stream.read_u8().await.map_err(TlsError::Handshake)?, 7);
        Ok(side)
    };
    tokio::time::timeout(LIMIT * 2, async { tokio::join!(accept, connect) }).await.expect("the handshake hangs")
}

fn message(side: Side) -> String {
    match side {
        Ok(side) => panic!("a handshake with {} succeeded", side.peer),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn handshake_when_both_are_of_the_mesh_then_each_knows_the_other() {
    let ca = Ca::new("mesh");
    let server = store(ca.credentials(REVIEWS));
    let client = Connector::new(store(ca.credentials(FRONT)));
    for alpn in Alpn::ALL {
        let (accepted, connected) = shake(&server, &client, &id(REVIEWS), alpn).await;
        let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
        assert_eq!(accepted.peer.uri(), FRONT);
        assert_eq!(connected.peer.uri(), REVIEWS);
        assert_eq!((accepted.alpn, connected.alpn), (Some(alpn), Some(alpn)));
        assert_eq!(accepted.server_name.as_deref(), Some("outbound_.9080_._.reviews.shop.svc.cluster.local"));
        let (_, state) = accepted.stream.get_ref();
        assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn handshake_when_another_workload_of_the_mesh_answers_then_it_is_refused_by_name() {
    let ca = Ca::new("mesh");
    let impostor = store(ca.credentials("spiffe://cluster.local/ns/shop/sa/impostor"));
    let client = Connector::new(store(ca.credentials(FRONT)));
    let text = message(shake(&impostor, &client, &id(REVIEWS), Alpn::Http1).await.1);
    assert!(text.contains("sa/impostor") && text.contains(REVIEWS), "{text}");
    // Nor does a prefix do.
    let longer = id("spiffe://cluster.local/ns/shop/sa/impostor2");
    message(shake(&impostor, &client, &longer, Alpn::Http1).await.1);
}

#[tokio::test]
async fn handshake_when_a_namespace_is_named_then_any_workload_of_it_and_nobody_else_will_do() {
    let ca = Ca::new("mesh");
    let client = Connector::new(store(ca.credentials(FRONT)));
    let namespace = id("spiffe://cluster.local/ns/shop/sa/");
    shake(&store(ca.credentials(REVIEWS)), &client, &namespace, Alpn::Http1).await.1.unwrap();
    for other in ["spiffe://cluster.local/ns/shop2/sa/reviews", "spiffe://other.domain/ns/shop/sa/reviews"] {
        let text = message(shake(&store(ca.credentials(other)), &client, &namespace, Alpn::Http1).await.1);
        assert!(text.contains(other), "{text}");
    }
}

#[tokio::test]
async fn handshake_when_a_session_was_made_with_the_endpoint_then_an_impostor_cannot_resume_it() {
    let ca = Ca::new("mesh");
    let server = store(ca.credentials(REVIEWS));
    let client = Connector::new(store(ca.credentials(FRONT)));
    shake(&server, &client, &id(REVIEWS), Alpn::H2).await.1.unwrap();
    let (_, again) = shake(&server, &client, &id(REVIEWS), Alpn::H2).await;
    let again = again.unwrap();
    assert_eq!(again.stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    // The same server, the same session cache, but another identity is wanted.
    message(shake(&server, &client, &id("spiffe://cluster.local/ns/shop/sa/ratings"), Alpn::H2).await.1);
    // The endpoint's address is now somebody else's.
    server.set(ca.credentials("spiffe://cluster.local/ns/shop/sa/impostor"));
    message(shake(&server, &client, &id(REVIEWS), Alpn::H2).await.1);
}

#[tokio::test]
async fn handshake_when_a_peer_is_of_another_mesh_then_both_sides_refuse() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let client = Connector::new(store(theirs.credentials_trusting(FRONT, &ours.pem())));
    let (accepted, connected) = shake(&store(ours.credentials(REVIEWS)), &client, &id(REVIEWS), Alpn::Tcp).await;
    message(accepted);
    message(connected);
    let client = Connector::new(store(ours.credentials(FRONT)));
    message(shake(&store(theirs.credentials(REVIEWS)), &client, &id(REVIEWS), Alpn::Tcp).await.1);
}

#[tokio::test]
async fn handshake_when_the_trust_domain_differs_then_the_server_refuses_it_under_the_same_root() {
    let ca = Ca::new("mesh");
    let client = Connector::new(store(ca.credentials("spiffe://other.domain/ns/shop/sa/front")));
    let text = message(shake(&store(ca.credentials(REVIEWS)), &client, &id(REVIEWS), Alpn::Tcp).await.0);
    assert!(text.contains("other.domain") && text.contains("trust domain cluster.local"), "{text}");
}

#[tokio::test]
async fn handshake_when_no_identity_is_named_then_anybody_of_the_trust_domain_will_do() {
    let ca = Ca::new("mesh");
    let client = Connector::new(store(ca.credentials(FRONT)));
    shake(&store(ca.credentials(REVIEWS)), &client, &[], Alpn::Tcp).await.1.unwrap();
    let other = store(ca.credentials("spiffe://other.domain/ns/shop/sa/reviews"));
    message(shake(&other, &client, &[], Alpn::Tcp).await.1);
}

#[tokio::test]
async fn handshake_when_a_certificate_has_expired_then_it_is_refused() {
    let ca = Ca::new("mesh");
    let old = |uri| {
        let (chain, key) = ca.leaf(&[uri], -3..-1);
        store(Credentials::from_pem(chain.as_bytes(), key.as_bytes(), ca.pem().as_bytes()).unwrap())
    };
    let client = Connector::new(store(ca.credentials(FRONT)));
    let text = message(shake(&old(REVIEWS), &client, &id(REVIEWS), Alpn::Tcp).await.1);
    assert!(text.to_lowercase().contains("expired"), "{text}");
    let text =
        message(shake(&store(ca.credentials(REVIEWS)), &Connector::new(old(FRONT)), &id(REVIEWS), Alpn::Tcp).await.0);
    assert!(text.to_lowercase().contains("expired"), "{text}");
}

#[tokio::test]
async fn handshake_when_the_client_shows_no_certificate_then_it_is_refused() {
    let ca = Ca::new("mesh");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::ExactServer {
            roots: roots.into(),
            expected: id(REVIEWS),
            trust_domain: "cluster.local".into(),
            provider,
        }))
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let pace = Pace::default();
    let server = store(ca.credentials(REVIEWS));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let (accepted, _) =
        tokio::join!(server::accept(far, &server, LIMIT, &pace), connector.connect("a.b".try_into().unwrap(), near));
    assert!(matches!(accepted, Err(TlsError::Handshake(_))));
}

#[tokio::test]
async fn rotation_when_the_credentials_change_then_old_connections_live_and_new_ones_use_the_new() {
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let both = first.pem() + &second.pem();
    let server = store(first.credentials_trusting(REVIEWS, &both));
    let front = store(first.credentials_trusting(FRONT, &both));
    let client = Connector::new(front.clone());
    let (accepted, connected) = shake(&server, &client, &id(REVIEWS), Alpn::Tcp).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    // The server moves to the new root while the client still shows a certificate of the old one.
    server.set(second.credentials_trusting(REVIEWS, &both));
    shake(&server, &client, &id(REVIEWS), Alpn::Tcp).await.1.unwrap();
    // Both have moved, the old root is no longer trusted.
    server.set(second.credentials(REVIEWS));
    front.set(second.credentials(FRONT));
    let (again, other) = shake(&server, &client, &id(REVIEWS), Alpn::Tcp).await;
    again.unwrap();
    let kind = other.unwrap().stream.get_ref().1.handshake_kind();
    assert_eq!(kind, Some(rustls::HandshakeKind::Full), "a session outlived the rotation");
    // One that stayed behind is out.
    let late = Connector::new(store(first.credentials_trusting(FRONT, &both)));
    message(shake(&server, &late, &id(REVIEWS), Alpn::Tcp).await.0);
    // The connection from before still carries bytes.
    connected.stream.write_all(b"still here").await.unwrap();
    connected.stream.flush().await.unwrap();
    let mut read = [0; 10];
    tokio::time::timeout(LIMIT, accepted.stream.read_exact(&mut read)).await.expect("no bytes").unwrap();
    assert_eq!(&read, b"still here");
}

#[tokio::test]
async fn handshake_when_the_peer_is_silent_then_it_ends_in_time() {
    let ca = Ca::new("mesh");
    let (_near, far) = tokio::io::duplex(1024);
    let bound = Duration::from_millis(50);
    let accepted = server::accept(far, &store(ca.credentials(REVIEWS)), bound, &Pace::default()).await;
    assert!(matches!(accepted, Err(TlsError::Timeout(limit)) if limit == bound));
}

#[tokio::test]
async fn handshake_when_there_is_no_certificate_yet_then_the_error_says_so() {
    let (_near, far) = tokio::io::duplex(1024);
    assert!(matches!(
        server::accept(far, &CredentialStore::new(), LIMIT, &Pace::default()).await,
        Err(TlsError::NoCertificate)
    ));
}

#[test]
fn credentials_when_unusable_then_the_error_names_the_part() {
    let ca = Ca::new("mesh");
    let (chain, key) = ca.leaf(&[REVIEWS], -1..1);
    let (other, _) = ca.leaf(&[REVIEWS, FRONT], -1..1);
    let (none, none_key) = ca.leaf(&[], -1..1);
    let pem = ca.pem();
    let read = |chain: &str, key: &str, roots: &str| {
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes()).unwrap_err().to_string()
    };
    assert!(read("", &key, &pem).contains("chain"));
    assert!(read(&chain, "", &pem).contains("private key"));
    assert!(read(&chain, &key, "").contains("0 roots"));
    assert!(read(&other, &key, &pem).contains("2 URI names"));
    assert!(read(&none, &none_key, &pem).contains("0 URI names"));
    assert!(read(&chain, &none_key, &pem).contains("TLS configuration"));
}
