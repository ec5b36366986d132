//! Handshakes with certificates of a configuration's own.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair as RcgenKey, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::material::{KeyPair, Roots, TrustSettings, revocation_lists};
use super::sans::{SanKind, SanMatch};
use super::*;
use crate::config::StringMatch;

const LIMIT: Duration = Duration::from_secs(5);

/// A root and what it signs.
pub(crate) struct Ca(CertifiedIssuer<'static, RcgenKey>);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, RcgenKey::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Chain and key for DNS names, valid for these days.
    pub(crate) fn leaf(&self, names: &[&str], days: std::ops::Range<i64>) -> (String, String) {
        self.leaf_of(&RcgenKey::generate().unwrap(), names, days, 1)
    }

    fn leaf_of(&self, key: &RcgenKey, names: &[&str], days: std::ops::Range<i64>, serial: u64) -> (String, String) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(serial.into());
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::days(days.start);
        params.not_after = now + time::Duration::days(days.end);
        (params.signed_by(key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pair(&self, names: &[&str]) -> KeyPair {
        let (chain, key) = self.leaf(names, -1..1);
        pair(&chain, &key)
    }

    fn trust(&self) -> TrustSettings {
        let roots = Roots::from_pem(self.pem().as_bytes()).unwrap();
        TrustSettings { roots: Some(Arc::new(roots)), ..TrustSettings::default() }
    }

    fn revoking(&self, serial: u64) -> String {
        let now = time::OffsetDateTime::now_utc();
        let params = CertificateRevocationListParams {
            this_update: now - time::Duration::days(1),
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

fn pair(chain: &str, key: &str) -> KeyPair {
    KeyPair::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
}

fn inline(pair: KeyPair) -> Source<KeyPair> {
    Source::Inline(Arc::new(pair))
}

fn server(settings: ServerSettings, pairs: Vec<KeyPair>, trust: Option<TrustSettings>) -> ServerContext {
    ServerContext::new(
        [0; 32],
        settings,
        pairs.into_iter().map(inline).collect(),
        TrustSource { own: trust, secret: None },
    )
}

fn client(settings: ClientSettings, pair: Option<KeyPair>, trust: Option<TrustSettings>) -> ClientContext {
    ClientContext::new([0; 32], settings, pair.map(inline), TrustSource { own: trust, secret: None })
}

fn to(sni: &str) -> ClientSettings {
    ClientSettings { sni: sni.into(), sessions: 4, ..ClientSettings::default() }
}

type Side = Result<Secured<tokio::io::DuplexStream>, TlsError>;

/// One handshake with a byte there and back, so that a refusal comes to light that TLS 1.3 tells late.
async fn shake(server: &ServerContext, client: &ClientContext) -> (Side, Side) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let accept = async {
        let mut side = server.accept(far, LIMIT, &Pace::default()).await?;
        let byte = side.stream.read_u8().await.map_err(TlsError::Handshake)?;
        side.stream.write_u8(byte).await.map_err(TlsError::Handshake)?;
        side.stream.flush().await.map_err(TlsError::Handshake)?;
        Ok(side)
    };
    let connect = async {
        let mut side = client.connect(near, None, None, Alpn::Http1, LIMIT).await?;
        side.stream.write_u8(7).await.map_err(TlsError::Handshake)?;
        side.stream.flush().await.map_err(TlsError::Handshake)?;
        assert_eq!(side.stream.read_u8().await.map_err(TlsError::Handshake)?, 7);
        Ok(side)
    };
    tokio::time::timeout(LIMIT * 2, async { tokio::join!(accept, connect) }).await.expect("the handshake hangs")
}

fn message(side: Side) -> String {
    match side {
        Ok(_) => panic!("a handshake succeeded"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn handshake_when_names_and_root_fit_then_both_sides_know_what_was_agreed() {
    let ca = Ca::new("ca");
    let alpn: Vec<Arc<str>> = vec!["h2".into(), "http/1.1".into()];
    let server =
        server(ServerSettings { alpn: alpn.clone(), ..ServerSettings::default() }, vec![ca.pair(&["a.example"])], None);
    let settings = ClientSettings { alpn, match_server_name: true, ..to("a.example") };
    let (accepted, connected) = shake(&server, &client(settings, None, Some(ca.trust()))).await;
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(accepted.server_name.as_deref(), Some("a.example"));
    assert_eq!((accepted.info.version, accepted.info.cipher), ("TLSv1.3", "TLS_AES_128_GCM_SHA256"));
    assert_eq!(accepted.info.alpn.as_deref(), Some("h2"));
    assert!(accepted.info.peer().is_none() && accepted.info.local.is_some());
    assert!(connected.info.verified);
    assert_eq!(connected.info.peer().unwrap().dns, ["a.example".into()]);
}

#[tokio::test]
async fn handshake_when_the_server_is_not_trusted_or_not_named_then_the_client_refuses() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let server = server(ServerSettings::default(), vec![ca.pair(&["a.example"])], None);
    let text = message(shake(&server, &client(to("a.example"), None, Some(other.trust()))).await.1);
    assert!(text.contains("UnknownIssuer"), "{text}");
    let settings = ClientSettings { match_server_name: true, ..to("b.example") };
    let text = message(shake(&server, &client(settings, None, Some(ca.trust()))).await.1);
    assert!(text.contains("not for `b.example`"), "{text}");
    let names = |text: StringMatch| {
        let names = vec![SanMatch { kind: SanKind::Dns, text: Arc::new(text) }];
        client(to(""), None, Some(TrustSettings { names, ..ca.trust() }))
    };
    let text = message(shake(&server, &names(StringMatch::Exact("b.example".into()))).await.1);
    assert!(text.contains("none of its names"), "{text}");
    shake(&server, &names(StringMatch::Suffix(".example".into()))).await.1.unwrap();
    // Without a word about trust every certificate will do, but is known as not verified.
    assert!(!shake(&server, &client(to(""), None, None)).await.1.unwrap().info.verified);
}

#[tokio::test]
async fn client_certificate_when_required_or_optional_then_only_good_ones_pass() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    for required in [true, false] {
        let settings = ServerSettings { require_client_certificate: required, ..ServerSettings::default() };
        let server = server(settings, vec![ca.pair(&["a.example"])], Some(ca.trust()));
        let good = client(to(""), Some(ca.pair(&["spiffe://td/ns/a/sa/b"])), None);
        let accepted = shake(&server, &good).await.0.unwrap();
        assert!(accepted.info.verified);
        assert_eq!(accepted.info.peer().unwrap().uris, ["spiffe://td/ns/a/sa/b".into()]);
        message(shake(&server, &client(to(""), Some(other.pair(&["x"])), None)).await.0);
        let without = shake(&server, &client(to(""), None, None)).await.0;
        assert_eq!(without.is_ok(), !required);
    }
}

#[tokio::test]
async fn client_certificate_when_untrusted_ones_are_taken_then_they_are_known_as_such() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let trust = TrustSettings { accept_untrusted: true, ..ca.trust() };
    let server = server(ServerSettings::default(), vec![ca.pair(&["a"])], Some(trust));
    let bad = shake(&server, &client(to(""), Some(other.pair(&["x"])), None)).await.0.unwrap();
    assert!(!bad.info.verified && bad.info.peer().is_some());
    assert!(shake(&server, &client(to(""), Some(ca.pair(&["x"])), None)).await.0.unwrap().info.verified);
}

#[tokio::test]
async fn certificate_when_expired_or_revoked_then_it_is_refused_unless_allowed() {
    let ca = Ca::new("ca");
    let key = RcgenKey::generate().unwrap();
    let (old, old_key) = ca.leaf_of(&key, &["a"], -3..-1, 5);
    let expired = server(ServerSettings::default(), vec![pair(&old, &old_key)], None);
    let text = message(shake(&expired, &client(to(""), None, Some(ca.trust()))).await.1);
    assert!(text.contains("xpired"), "{text}");
    let lenient = TrustSettings { allow_expired: true, ..ca.trust() };
    shake(&expired, &client(to(""), None, Some(lenient))).await.1.unwrap();

    let (chain, key) = ca.leaf_of(&key, &["a"], -1..1, 9);
    let revoked = server(ServerSettings::default(), vec![pair(&chain, &key)], None);
    let with_list = |serial| {
        let lists = revocation_lists(ca.revoking(serial).as_bytes()).unwrap();
        client(to(""), None, Some(TrustSettings { crls: Some(Arc::new(lists)), ..ca.trust() }))
    };
    let text = message(shake(&revoked, &with_list(9)).await.1);
    assert!(text.contains("evoked"), "{text}");
    shake(&revoked, &with_list(8)).await.1.unwrap();
    // A list of somebody else says nothing about this one.
    let lists = revocation_lists(Ca::new("other").revoking(8).as_bytes()).unwrap();
    let settings = TrustSettings { crls: Some(Arc::new(lists)), ..ca.trust() };
    message(shake(&revoked, &client(to(""), None, Some(settings))).await.1);
}

#[tokio::test]
async fn certificate_when_roots_are_of_trust_domains_then_its_spiffe_id_tells_which_count() {
    let (one, other) = (Ca::new("one"), Ca::new("other"));
    let roots = |ca: &Ca| Roots::from_pem(ca.pem().as_bytes()).unwrap();
    let domains = [("one.example".into(), roots(&one)), ("other.example".into(), roots(&other))];
    let trust = TrustSettings { domains: Some(Arc::new(domains.into())), ..TrustSettings::default() };
    let own = Ca::new("own");
    let server = |trust: TrustSettings| server(ServerSettings::default(), vec![own.pair(&["a"])], Some(trust));
    let shown = |ca: &Ca, name: &str| client(to(""), Some(ca.pair(&[name])), None);
    // Nor does another wish make anybody known who is not.
    let trust = TrustSettings { accept_untrusted: true, ..trust };
    let taken = async |client: ClientContext| shake(&server(trust.clone()), &client).await.0.is_ok();
    assert!(taken(shown(&one, "spiffe://one.example/ns/a")).await);
    assert!(taken(shown(&other, "spiffe://other.example/ns/a")).await);
    let nobody = client(to(""), None, None);
    assert!(!taken(nobody).await, "who shows none is nobody");
    for (ca, name) in [
        // A domain's authority speaks for nobody of another one.
        (&other, "spiffe://one.example/ns/a"),
        (&one, "spiffe://third.example/ns/a"),
        (&one, "spiffe://one.example"),
        (&one, "one.example"),
    ] {
        assert!(!taken(shown(ca, name)).await, "{name}");
    }
    // Names are a condition besides.
    let names =
        vec![SanMatch { kind: SanKind::Uri, text: Arc::new(StringMatch::Exact("spiffe://one.example/ns/b".into())) }];
    let particular = server(TrustSettings { names, ..trust.clone() });
    assert!(shake(&particular, &shown(&one, "spiffe://one.example/ns/a")).await.0.is_err());
    assert!(shake(&particular, &shown(&one, "spiffe://one.example/ns/b")).await.0.is_ok());
}

/// Whose `keyUsage` does not say that its key signs certificates signs none, though it says that it is an authority.
#[tokio::test]
async fn certificate_when_an_intermediate_may_not_sign_certificates_then_it_is_refused() {
    let root = Ca::new("root");
    for (usages, good) in [
        (vec![KeyUsagePurpose::KeyCertSign], true),
        (Vec::new(), true),
        (vec![KeyUsagePurpose::DigitalSignature], false),
    ] {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.clone();
        let between = CertifiedIssuer::signed_by(params, RcgenKey::generate().unwrap(), &root.0).unwrap();
        let between = Ca(between);
        let chained = |name: &str| {
            let (leaf, key) = between.leaf(&[name], -1..1);
            pair(&(leaf + &between.pem()), &key)
        };
        let server_settings = ServerSettings { require_client_certificate: true, ..ServerSettings::default() };
        let asking = server(server_settings, vec![root.pair(&["a.example"])], Some(root.trust()));
        let (served, _) = shake(&asking, &client(to("a.example"), Some(chained("c")), Some(root.trust()))).await;
        assert_eq!(served.is_ok(), good, "a client by {usages:?}");
        let shown = server(ServerSettings::default(), vec![chained("a.example")], None);
        let (_, taken) = shake(&shown, &client(to("a.example"), None, Some(root.trust()))).await;
        assert_eq!(taken.is_ok(), good, "a server by {usages:?}");
    }
}

#[tokio::test]
async fn certificate_when_its_fingerprint_is_listed_then_it_needs_no_root() {
    let ca = Ca::new("ca");
    let good = ca.pair(&["a"]);
    let (hash, spki) = (good.facts().sha256, good.facts().spki_sha256);
    let server = server(ServerSettings::default(), vec![good], None);
    let asking = |hashes: Vec<[u8; 32]>, spki: Vec<[u8; 32]>| {
        client(to(""), None, Some(TrustSettings { hashes, spki, ..TrustSettings::default() }))
    };
    shake(&server, &asking(vec![hash], vec![])).await.1.unwrap();
    shake(&server, &asking(vec![[1; 32]], vec![spki])).await.1.unwrap();
    message(shake(&server, &asking(vec![[1; 32]], vec![])).await.1);
}

#[tokio::test]
async fn certificate_when_self_signed_and_its_own_root_then_it_is_trusted() {
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = RcgenKey::generate().unwrap();
    let own = params.self_signed(&key).unwrap().pem();
    let server = server(ServerSettings::default(), vec![pair(&own, &key.serialize_pem())], None);
    let roots = Roots::from_pem(own.as_bytes()).unwrap();
    let trust = TrustSettings { roots: Some(Arc::new(roots)), ..TrustSettings::default() };
    shake(&server, &client(to("a.example"), None, Some(trust))).await.1.unwrap();
}

#[tokio::test]
async fn certificate_when_there_are_several_then_name_and_algorithm_decide() {
    let ca = Ca::new("ca");
    let rsa = |names: &[&str]| {
        let key = RcgenKey::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let (chain, key) = ca.leaf_of(&key, names, -1..1, 1);
        pair(&chain, &key)
    };
    let pairs =
        vec![rsa(&["a.example"]), ca.pair(&["a.example"]), ca.pair(&["*.b.example"]), ca.pair(&["c.b.example"])];
    let server = server(ServerSettings::default(), pairs, None);
    let shown = async |sni: &str, ciphers: &[&str]| {
        let ciphers: Vec<String> = ciphers.iter().map(|name| (*name).to_owned()).collect();
        let highest = if ciphers.is_empty() { 13 } else { 12 };
        let params = TlsParams::new(12, highest, &ciphers, &[]).unwrap();
        let client = client(ClientSettings { params, ..to(sni) }, None, Some(ca.trust()));
        let side = shake(&server, &client).await.0.unwrap();
        let local = side.info.local.unwrap();
        (local.facts().dns[0].to_string(), local.is_ecdsa())
    };
    assert_eq!(shown("a.example", &[]).await, ("a.example".into(), true));
    assert_eq!(shown("a.example", &["ECDHE-RSA-AES128-GCM-SHA256"]).await, ("a.example".into(), false));
    assert_eq!(shown("x.b.example", &[]).await, ("*.b.example".into(), true));
    assert_eq!(shown("c.b.example", &[]).await, ("c.b.example".into(), true));
    // No certificate for that name: the first.
    assert_eq!(shown("other.example", &[]).await, ("a.example".into(), false));
}

#[tokio::test]
async fn protocols_when_none_is_common_then_the_connection_goes_on_without() {
    let ca = Ca::new("ca");
    let settings = ServerSettings { alpn: vec!["h2".into()], ..ServerSettings::default() };
    let server = server(settings, vec![ca.pair(&["a"])], None);
    let other = ClientSettings { alpn: vec!["http/1.1".into()], ..to("") };
    assert_eq!(shake(&server, &client(other, None, None)).await.0.unwrap().info.alpn, None);
}

#[tokio::test]
async fn protocols_when_a_client_offers_none_of_its_own_then_what_will_be_spoken_is_offered() {
    let ca = Ca::new("ca");
    let settings = ServerSettings { alpn: vec!["h2".into(), "http/1.1".into()], ..ServerSettings::default() };
    let server = server(settings, vec![ca.pair(&["a"])], None);
    let accepted = shake(&server, &client(to(""), None, None)).await.0.unwrap();
    assert_eq!(accepted.info.alpn.as_deref(), Some("http/1.1"));
}

#[tokio::test]
async fn versions_when_limited_then_only_they_are_spoken() {
    let ca = Ca::new("ca");
    let with = |lowest, highest| TlsParams::new(lowest, highest, &[], &[]).unwrap();
    let settings = ServerSettings { params: with(13, 13), ..ServerSettings::default() };
    let new = server(settings, vec![ca.pair(&["a"])], None);
    let old = client(ClientSettings { params: with(12, 12), ..to("") }, None, None);
    message(shake(&new, &old).await.1);
    let both = server(ServerSettings::default(), vec![ca.pair(&["a"])], None);
    let info = shake(&both, &old).await.1.unwrap().info;
    assert_eq!((info.version, info.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"));
}

#[tokio::test]
async fn session_when_the_certificates_stay_then_it_is_resumed_and_else_not() {
    let (ca, next) = (Ca::new("ca"), Ca::new("next"));
    let mut secrets = Secrets::default();
    let slots = vec![Source::Slot(secrets.key_pair("own"))];
    let trust = secrets.trust("roots");
    let settings = ServerSettings { require_client_certificate: true, ..ServerSettings::default() };
    let server = ServerContext::new([0; 32], settings, slots, TrustSource { own: None, secret: Some(trust) });
    let client = client(to("a"), Some(ca.pair(&["c"])), None);
    let text = message(shake(&server, &client).await.0);
    assert!(text.contains("`own` has not come"), "{text}");
    secrets.set("own", SecretValue::KeyPair(ca.pair(&["a"])), [1; 32]);
    secrets.set("roots", SecretValue::Trust(ca.trust()), [2; 32]);
    let kind = async || shake(&server, &client).await.1.unwrap().stream.get_ref().1.handshake_kind();
    assert_eq!(kind().await, Some(rustls::HandshakeKind::Full));
    assert_eq!(kind().await, Some(rustls::HandshakeKind::Resumed));
    let (mut before, _other) = shake(&server, &client).await;
    // Sent again as it is.
    secrets.set("own", SecretValue::KeyPair(ca.pair(&["a"])), [1; 32]);
    assert_eq!(kind().await, Some(rustls::HandshakeKind::Resumed));
    secrets.set("own", SecretValue::KeyPair(next.pair(&["a"])), [3; 32]);
    assert_eq!(kind().await, Some(rustls::HandshakeKind::Full));
    // A connection from before lives on, and a client whose root is no longer trusted does not come in again.
    before.as_mut().unwrap().stream.write_u8(1).await.unwrap();
    secrets.set("roots", SecretValue::Trust(next.trust()), [4; 32]);
    message(shake(&server, &client).await.0);
    assert_eq!(secrets.used().into_iter().collect::<Vec<_>>(), ["own", "roots"]);
}

#[test]
fn key_pair_when_unusable_then_the_error_names_the_part() {
    let ca = Ca::new("ca");
    let (chain, key) = ca.leaf(&["a"], -1..1);
    let (_, other) = ca.leaf(&["a"], -1..1);
    let read = |chain: &str, key: &str| KeyPair::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(read("", &key).contains("certificate chain"));
    assert!(read(&chain, "").contains("private key"));
    assert!(read(&chain, &other).contains("does not belong"));
    assert!(Roots::from_pem(b"nothing").unwrap_err().contains("no certificate"));
}

#[tokio::test]
async fn session_when_replicas_share_their_keys_then_each_resumes_those_of_the_other_and_a_stricter_one_does_not() {
    let ca = Ca::new("ca");
    let replica = |key: u8, required: bool, name: &str| {
        let keys = Arc::new(TicketKeys::new(&[vec![key; 80]]).unwrap());
        let settings = ServerSettings {
            tickets: Tickets::Shared(Source::Inline(keys)),
            require_client_certificate: required,
            ..ServerSettings::default()
        };
        server(settings, vec![ca.pair(&[name])], Some(ca.trust()))
    };
    let (first, client) = (replica(1, true, "a"), client(to("a"), Some(ca.pair(&["c"])), None));
    let kind = async |server: &ServerContext| {
        shake(server, &client).await.1.unwrap().stream.get_ref().1.handshake_kind()
            == Some(rustls::HandshakeKind::Resumed)
    };
    assert!(!kind(&first).await);
    assert!(kind(&replica(1, true, "a")).await, "a renewed certificate of the same names");
    for (other, why) in [
        (replica(2, true, "a"), "it has other keys"),
        (replica(1, false, "a"), "it asks for less"),
        (replica(1, true, "b"), "it is somebody else"),
    ] {
        assert!(kind(&first).await);
        assert!(!kind(&other).await, "{why}");
        assert!(!kind(&first).await, "what {why} sealed");
    }
}

#[tokio::test]
async fn session_when_the_clients_certificate_has_ended_since_then_it_is_not_resumed() {
    let ca = Ca::new("ca");
    let server = |trust: TrustSettings| {
        let keys = Source::Inline(Arc::new(TicketKeys::new(&[vec![1; 80]]).unwrap()));
        let settings = ServerSettings { tickets: Tickets::Shared(keys), ..ServerSettings::default() };
        server(settings, vec![ca.pair(&["a"])], Some(trust))
    };
    let (chain, key) = ca.leaf(&["c"], -3..-1);
    let client = client(to("a"), Some(pair(&chain, &key)), None);
    // As if it had been good when the session began.
    let before = server(TrustSettings { allow_expired: true, ..ca.trust() });
    shake(&before, &client).await.0.unwrap();
    let (again, _) = shake(&before, &client).await;
    assert_eq!(again.unwrap().stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    let text = message(shake(&server(ca.trust()), &client).await.0);
    assert!(text.contains("xpired"), "{text}");
}
