//! The rotation driven through a small model of a mesh: proxies and replicas that follow the Secret whenever they like, an
//! operator that is killed at any point. What must hold at every moment is that everybody accepts everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use leno_api::proxies::v1::ProxyReport;
use leno_crds::meshinstall::{IssuerType, MeshInstall};
use leno_kubeutil::conditions::Status;
use leno_kubeutil::watch::Key;
use leno_runtime::certs::{Authority, certificates_from_pem, new_intermediate};
use leno_runtime::trust::{Fingerprint, Signing, roots_sha256};
use serde_json::{Value, json};

use super::held::{Certificates, create, patch};
use super::*;

const NAME: &str = "default";

fn root() -> Pair {
    let lifetime = Duration::from_secs(3650 * 24 * 3600);
    let (certificate, key) = Authority::create("cluster.local", lifetime, SystemTime::now()).unwrap();
    Pair { ca: certificate.clone(), certificate, key }
}

/// An authority under a root that its user keeps elsewhere, as cert-manager writes it.
fn intermediate(above: &Pair) -> Pair {
    let (certificate, key) =
        new_intermediate(&above.certificate, &above.key, "shop", Duration::from_secs(90 * 24 * 3600)).unwrap();
    Pair { certificate, key, ca: above.certificate.clone() }
}

fn user_secret(pair: &Pair) -> Secret {
    secret(json!({ "tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": pair.ca }))
}

fn secret(data: Value) -> Secret {
    serde_json::from_value(json!({
        "metadata": { "name": "leno-issuer", "namespace": "leno-system" },
        "data": data.as_object().unwrap().iter().map(|(key, text)| {
            (key.clone(), json!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text.as_str().unwrap())))
        }).collect::<serde_json::Map<_, _>>(),
    }))
    .unwrap()
}

/// What a process trusts and shows.
#[derive(Clone)]
struct Process {
    roots: Certificates,
    signer: Fingerprint,
    /// The roots under which what it shows is accepted.
    accepted_by: Certificates,
}

impl Process {
    fn accepts(&self, other: &Process) -> bool {
        other.accepted_by.iter().any(|root| self.roots.contains(root))
    }
}

/// A mesh in a few lines.
struct World {
    observed: Observed,
    proxies: BTreeMap<String, Process>,
    replicas: BTreeMap<String, Process>,
    /// Who does not follow at all.
    lagging: Option<String>,
    seed: u64,
}

impl World {
    fn new(spec: Value, seed: u64) -> Self {
        let install: MeshInstall = serde_json::from_value(json!({
            "metadata": { "name": NAME, "uid": "u", "generation": 1 }, "spec": spec,
        }))
        .unwrap();
        let mut world = World {
            observed: Observed { now: Timestamp::now(), ..Observed::default() },
            proxies: BTreeMap::new(),
            replicas: BTreeMap::new(),
            lagging: None,
            seed,
        };
        world.observed.installs.insert(Key::new("", NAME), Arc::new(install));
        world
    }

    fn install(&self) -> MeshInstall {
        self.observed.installs[&Key::new("", NAME)].as_ref().clone()
    }

    fn annotate(&mut self, value: &str) {
        let mut install = self.install();
        install.metadata.annotations =
            Some([(leno_crds::meshinstall::ROTATE_ROOT.to_owned(), value.to_owned())].into());
        self.observed.installs.insert(Key::new("", NAME), Arc::new(install));
    }

    fn provide(&mut self, pair: &Pair) {
        self.observed.issuers.insert(Key::new("leno-system", "leno-issuer"), Arc::new(user_secret(pair)));
    }

    fn authority(&self) -> Arc<Secret> {
        self.observed.authorities[&Key::new("leno-system", names::CA_SECRET)].clone()
    }

    fn held(&self) -> Held {
        Held::read(&self.authority()).unwrap()
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    fn store(&mut self, object: Value) {
        let secret: Secret = serde_json::from_value(object).unwrap();
        self.observed.authorities.insert(Key::new("leno-system", names::CA_SECRET), Arc::new(secret));
    }

    fn pair(&self, issuer: IssuerType) -> Pair {
        match issuer {
            IssuerType::SelfSigned => root(),
            IssuerType::Secret => user::provided(&self.observed, &self.install()).unwrap(),
        }
    }

    /// One round of the operator. Gives the change that it made.
    fn operator(&mut self) -> Option<Change> {
        let install = self.install();
        match look(&self.observed, NAME, &install) {
            Look::Missing(Step::CreateAuthority { also_trust, issuer }) => {
                let desired =
                    create(&install, NAME, issuer, &self.pair(issuer), &also_trust, self.observed.now).unwrap();
                self.store(desired.body);
                None
            }
            Look::There(outlook) => {
                let change = outlook.change?;
                let pair = match &change {
                    Change::Prepare { issuer, .. } => Some(self.pair(*issuer)),
                    _ => None,
                };
                let secret = self.authority();
                let patch = patch(&secret, &install, &change, pair.as_ref(), self.observed.now).unwrap();
                let mut object = serde_json::to_value(secret.as_ref()).unwrap();
                merge(&mut object, &patch);
                self.store(object);
                Some(change)
            }
            Look::Missing(_) => panic!("another step"),
            Look::Broken(problem) => panic!("{problem}"),
        }
    }

    /// What the Secret says now, as a process that reads it follows it.
    fn following(&self) -> Process {
        let held = self.held();
        Process { signer: held.signer().unwrap(), accepted_by: held.ca.clone(), roots: held.roots }
    }

    fn add(&mut self, proxy: &str, replica: bool) {
        let process = self.following();
        let labels = if replica {
            json!({ "app.kubernetes.io/name": "leno-control-plane", "app.kubernetes.io/instance": NAME })
        } else {
            json!({ "mesh.leno.dev/rev": NAME })
        };
        let namespace = if replica { "leno-system" } else { "shop" };
        let annotations = if replica { json!({}) } else { json!({ "mesh.leno.dev/status": "injected" }) };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": proxy, "namespace": namespace, "uid": proxy, "labels": labels, "annotations": annotations },
            "status": { "phase": "Running" },
        }))
        .unwrap();
        self.observed.pods.insert(Key::new(namespace, proxy), Arc::new(pod));
        if replica { &mut self.replicas } else { &mut self.proxies }.insert(proxy.to_owned(), process);
        self.report();
    }

    fn remove(&mut self, proxy: &str) {
        self.observed.pods.remove(&Key::new("shop", proxy));
        self.proxies.remove(proxy);
        self.report();
    }

    fn report(&mut self) {
        let report = |(name, process): (&String, &Process)| {
            let report = ProxyReport {
                pod_uid: name.clone(),
                roots_sha256: roots_sha256(&process.roots).to_vec(),
                certificate_issuer_sha256: process.signer.to_vec(),
                ..ProxyReport::default()
            };
            (Key::new("shop", name.clone()), vec![report])
        };
        self.observed.reports = Arc::new(self.proxies.iter().map(report).collect());
        let said = |(name, process): (&String, &Process)| {
            let said = ReplicaTrust { roots: roots_sha256(&process.roots).to_vec(), signer: process.signer.to_vec() };
            (name.clone(), said)
        };
        self.observed.replicas = Arc::new(self.replicas.iter().map(said).collect());
    }

    /// Something happens to somebody: a kubelet brings the roots, a replica reads the Secret, a proxy renews.
    fn event(&mut self) {
        let all: Vec<String> = self.proxies.keys().chain(self.replicas.keys()).cloned().collect();
        let who = all[self.random(all.len())].clone();
        if self.lagging.as_ref() == Some(&who) {
            return;
        }
        let now = self.following();
        if let Some(replica) = self.replicas.get_mut(&who) {
            *replica = now;
        } else if self.random(2) == 0 {
            self.proxies.get_mut(&who).unwrap().roots = now.roots;
        } else {
            let replicas: Vec<Process> = self.replicas.values().cloned().collect();
            let signs = replicas[self.random(replicas.len())].clone();
            let proxy = self.proxies.get_mut(&who).unwrap();
            proxy.signer = signs.signer;
            proxy.accepted_by = signs.accepted_by;
        }
        self.report();
    }

    /// Everybody accepts everybody, and the API server accepts the webhook of every replica.
    fn check(&self) {
        let all: Vec<(&String, &Process)> = self.proxies.iter().chain(&self.replicas).collect();
        for (name, one) in &all {
            for (other_name, other) in &all {
                assert!(one.accepts(other), "{name} does not accept {other_name}");
            }
        }
        let webhook = Process { roots: self.held().roots, ..self.following() };
        assert!(self.replicas.values().all(|replica| webhook.accepts(replica)), "the webhook is not accepted");
        let secret = self.authority();
        for key in ["tls.crt", "tls.key", "roots.pem"] {
            assert!(held::text(&secret, key).unwrap().is_some(), "no {key}");
        }
    }

    /// Lets things happen until the authority is stable, or `limit` events have. The operator is killed half of the time.
    fn run(&mut self, limit: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..limit {
            self.event();
            self.check();
            if self.random(2) == 0 {
                changes.extend(self.operator());
                self.check();
            }
        }
        changes
    }

    fn is_stable_on(&self, pair: &Pair) -> bool {
        let held = self.held();
        let wanted = certificates_from_pem(pair.ca.as_bytes()).unwrap();
        held.next.is_none() && !held.previous && held.roots == wanted
    }
}

fn merge(base: &mut Value, patch: &Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(json!({})), value);
                }
            }
        }
        (base, patch) => *base = patch.clone(),
    }
}

fn mesh(spec: Value, seed: u64) -> World {
    let mut world = World::new(spec, seed);
    world.operator();
    ["a", "b", "c", "d"].iter().for_each(|name| world.add(name, false));
    ["cp-1", "cp-2"].iter().for_each(|name| world.add(name, true));
    world
}

fn no_overlap() -> Value {
    json!({ "version": "0.1.0", "certificates": { "overlapMinutes": 0 } })
}

#[test]
fn rotation_when_asked_for_and_the_operator_is_killed_at_random_then_nobody_refuses_anybody_and_it_ends() {
    for seed in 0..8 {
        let mut world = mesh(no_overlap(), seed);
        let before = world.held();
        world.annotate("now");
        let changes = world.run(400);
        let held = world.held();
        assert!(held.next.is_none() && !held.previous && held.roots.len() == 1, "{seed}: {changes:?}");
        assert_ne!(held.roots, before.roots, "{seed}");
        assert_eq!(changes.len(), 3, "once, and not again: {changes:?}");
        assert_eq!(held.rotate_root.as_deref(), Some("now"));
    }
}

#[test]
fn rotation_when_a_proxy_lags_then_waits_for_it_and_goes_on_without_it_when_it_is_gone() {
    for (seed, who) in [(1, "b"), (2, "cp-2")] {
        let mut world = mesh(no_overlap(), seed);
        world.annotate("now");
        world.lagging = Some(who.to_owned());
        let changes = world.run(300);
        assert_eq!(changes.len(), 1, "{changes:?}");
        let Look::There(outlook) = look(&world.observed, NAME, &world.install()) else { panic!() };
        let rotation = outlook.status.rotation.unwrap();
        assert_eq!(rotation.step, "Distributing");
        assert!(rotation.waiting_for.contains(&format!("/{who} (not yet)")), "{}", rotation.waiting_for);
        assert_eq!((outlook.condition.status, outlook.condition.reason.as_str()), (Status::True, "DistributingRoot"));
        if who == "b" {
            world.remove("b");
        }
        world.lagging = None;
        assert_eq!(world.run(400).len(), 2);
        assert_eq!(world.held().roots.len(), 1);
    }
}

#[test]
fn rotation_when_pods_come_and_go_then_nobody_refuses_anybody() {
    let mut world = mesh(no_overlap(), 7);
    world.annotate("now");
    for round in 0..40 {
        world.add(&format!("new-{round}"), false);
        world.run(6);
        if round % 3 == 0 {
            world.remove(&format!("new-{round}"));
        }
    }
    world.run(1500);
    assert!(world.held().roots.len() == 1 && world.held().next.is_none());
}

#[test]
fn overlap_when_it_is_not_over_then_both_roots_stay() {
    let mut world = mesh(json!({ "version": "0.1.0", "certificates": { "overlapMinutes": 60 } }), 3);
    world.annotate("now");
    assert_eq!(world.run(400).len(), 2);
    assert_eq!(world.held().roots.len(), 2);
    let Look::There(outlook) = look(&world.observed, NAME, &world.install()) else { panic!() };
    assert!(outlook.wake.is_some_and(|wake| wake > world.observed.now));
    world.observed.now = outlook.wake.unwrap();
    assert_eq!(world.run(20), [Change::Retire]);
}

#[test]
fn users_secret_when_it_is_renewed_then_the_mesh_follows_with_the_same_overlap() {
    let spec = json!({ "version": "0.1.0", "certificates": { "issuer": "Secret", "overlapMinutes": 0 } });
    for seed in 0..5 {
        let (first_root, second_root) = (root(), root());
        let mut world = World::new(spec.clone(), seed);
        world.provide(&intermediate(&first_root));
        world.operator();
        ["a", "b", "c"].iter().for_each(|name| world.add(name, false));
        world.add("cp-1", true);
        assert_eq!(world.run(50), []);
        assert_eq!(world.held().chain.len(), 1);
        // Another intermediate of the same root: the roots stay, and all get a certificate of it.
        world.provide(&intermediate(&first_root));
        assert_eq!(world.run(300).len(), 3);
        assert!(world.is_stable_on(&first_root));
        let signer = world.held().signer().unwrap();
        assert!(world.proxies.values().all(|proxy| proxy.signer == signer));
        // Another root, and while it is being distributed yet another, which is the one that counts.
        world.provide(&intermediate(&root()));
        world.run(3);
        world.provide(&intermediate(&second_root));
        world.run(500);
        assert!(world.is_stable_on(&second_root), "{seed}");
    }
}

#[test]
fn users_secret_when_it_turns_unusable_then_what_signed_goes_on_and_the_condition_names_key_and_remedy() {
    let spec = json!({ "version": "0.1.0", "certificates": { "issuer": "Secret", "overlapMinutes": 0 } });
    let (above, other) = (root(), root());
    let good = intermediate(&above);
    let mut world = World::new(spec, 1);
    world.provide(&good);
    world.operator();
    let before = world.held();
    let cases = [
        (json!({ "tls.key": good.key, "ca.crt": good.ca }), "no key tls.crt", "add it"),
        (json!({ "tls.crt": good.certificate, "ca.crt": good.ca }), "no key tls.key", "add it"),
        (json!({ "tls.crt": good.certificate, "tls.key": good.key }), "no key ca.crt", "add the root certificate"),
        (json!({ "tls.crt": "x", "tls.key": good.key, "ca.crt": good.ca }), "its key tls.crt", "as PEM"),
        (json!({ "tls.crt": good.certificate, "tls.key": "x", "ca.crt": good.ca }), "its key tls.key", "as PEM"),
        (json!({ "tls.crt": good.certificate, "tls.key": good.key, "ca.crt": "x" }), "its key ca.crt", "as PEM"),
        (
            json!({ "tls.crt": good.certificate, "tls.key": other.key, "ca.crt": good.ca }),
            "not the key of",
            "belong together",
        ),
        (
            json!({ "tls.crt": good.certificate, "tls.key": good.key, "ca.crt": other.ca }),
            "not be accepted",
            "leads from tls.crt",
        ),
    ];
    for (data, problem, remedy) in cases {
        world.observed.issuers.insert(Key::new("leno-system", "leno-issuer"), Arc::new(secret(data)));
        let Look::There(outlook) = look(&world.observed, NAME, &world.install()) else { panic!() };
        assert_eq!(outlook.change, None);
        let condition = outlook.condition;
        assert_eq!((condition.status, condition.reason.as_str()), (Status::False, "UserSecretUnusable"));
        for part in ["leno-system/leno-issuer", problem, remedy] {
            assert!(condition.message.contains(part), "{part:?} is not in {}", condition.message);
        }
    }
    assert_eq!(world.held(), before);
}

#[test]
fn issuer_when_it_changes_both_ways_then_the_authority_follows() {
    let mut world = mesh(no_overlap(), 5);
    let above = root();
    world.provide(&intermediate(&above));
    let of = |world: &mut World, issuer: &str| {
        let mut install = world.install();
        install.spec = serde_json::from_value(
            json!({ "version": "0.1.0", "certificates": { "issuer": issuer, "overlapMinutes": 0 } }),
        )
        .unwrap();
        world.observed.installs.insert(Key::new("", NAME), Arc::new(install));
    };
    of(&mut world, "Secret");
    world.run(500);
    assert!(world.is_stable_on(&above) && world.held().issuer == IssuerType::Secret);
    // Back before anything has signed: what was prepared is taken out again.
    of(&mut world, "SelfSigned");
    world.lagging = Some("a".to_owned());
    world.run(60);
    of(&mut world, "Secret");
    world.lagging = None;
    world.run(300);
    assert!(world.is_stable_on(&above));
    of(&mut world, "SelfSigned");
    world.run(500);
    assert!(!world.is_stable_on(&above) && world.held().issuer == IssuerType::SelfSigned);
    assert_eq!(world.held().roots.len(), 1);
}

#[test]
fn end_when_thirty_seven_and_one_days_ahead_then_each_has_its_reason_and_time_alone_wakes() {
    let mut world = mesh(json!({ "version": "0.1.0", "certificates": { "rotateBeforeDays": 0 } }), 1);
    let end = ends::earliest(&world.held().ca).unwrap();
    let day = 24 * 3600;
    let mut reasons = Vec::new();
    world.observed.now = Timestamp::from_second(end.as_second() - 40 * day).unwrap();
    for _ in 0..5 {
        let Look::There(outlook) = look(&world.observed, NAME, &world.install()) else { panic!() };
        reasons.push((outlook.condition.status, outlook.condition.reason));
        world.observed.now = outlook.wake.unwrap_or(end);
    }
    let wanted = [
        (Status::True, "Current"),
        (Status::False, "RootEndsWithinThirtyDays"),
        (Status::False, "RootEndsWithinSevenDays"),
        (Status::False, "RootEndsWithinOneDay"),
        (Status::False, "RootEnded"),
    ];
    let reasons: Vec<(Status, &str)> = reasons.iter().map(|(status, reason)| (*status, reason.as_str())).collect();
    assert_eq!(reasons, wanted);
}

#[test]
fn schedule_when_a_fifth_of_the_life_is_left_then_a_new_root_is_prepared() {
    let mut world = mesh(no_overlap(), 1);
    assert_eq!(world.operator(), None);
    let end = ends::earliest(&world.held().ca).unwrap();
    world.observed.now = Timestamp::from_second(end.as_second() - 730 * 24 * 3600).unwrap();
    assert!(matches!(world.operator(), Some(Change::Prepare { issuer: IssuerType::SelfSigned, .. })));
}

#[test]
fn secret_when_it_is_of_a_release_before_rotation_then_is_stable_and_rotates() {
    let mut world = mesh(no_overlap(), 9);
    let mut object = serde_json::to_value(world.authority().as_ref()).unwrap();
    object["data"].as_object_mut().unwrap().remove("ca.crt");
    object["metadata"].as_object_mut().unwrap().remove("annotations");
    world.store(object);
    assert_eq!(world.run(20), []);
    world.annotate("1");
    assert_eq!(world.run(400).len(), 3);
    let signing = world.authority();
    let read = |key: &str| held::text(&signing, key).unwrap().unwrap();
    let signing =
        Signing::from_pem(read("tls.crt").as_bytes(), read("tls.key").as_bytes(), read("roots.pem").as_bytes())
            .unwrap();
    assert!(signing.owns_its_key());
}
