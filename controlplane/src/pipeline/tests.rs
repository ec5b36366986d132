//! The whole pipeline with made-up pure steps: who is told of what, and what is made again.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use leno_core::service::{Locality, Workload};
use leno_core::{Host, Identity};
use leno_runtime::metrics::Registry;
use tokio::sync::{mpsc, watch};

use crate::acks::Acknowledgements;
use crate::ads::{Configs, Kind, PodIdentity, Target};
use crate::translate::{CLUSTER, ENDPOINTS};

const WAIT: Duration = Duration::from_secs(10);

/// What the made-up steps were asked for, for the test that runs on this thread's pipeline.
static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// How often findings were made.
static FINDINGS: AtomicUsize = AtomicUsize::new(0);

/// A scope is a namespace; it has one cluster, whose content is the mesh's cluster name.
struct Fake;

impl Compile for Fake {
    type Scope = String;
    type Builder = ();
    type Shared = ();

    fn build((): &mut (), stores: &Stores) -> Arc<Snapshot> {
        let workload = |key: &ObjectKey| Workload {
            pod: key.clone(),
            uid: "u".into(),
            identity: Identity::new("cluster.local", &key.namespace, "default"),
            name: key.name.clone(),
            app: String::new(),
            version: String::new(),
            labels: Default::default(),
            addresses: Vec::new(),
            node: String::new(),
            locality: Locality::default(),
            meshed: true,
            engine: leno_core::service::Engine::Leno,
            inbound: BTreeMap::new(),
        };
        Arc::new(Snapshot {
            mesh: stores.mesh.clone(),
            workloads: stores.pods.keys().map(|key| (key.clone(), Arc::new(workload(key)))).collect(),
            endpoints: stores
                .endpoint_slices
                .keys()
                .map(|key| (Host::of_service(&key.name, &key.namespace, "cluster.local"), BTreeMap::default()))
                .collect(),
            ..Snapshot::default()
        })
    }

    fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<String> {
        snapshot.workloads.get(pod).map(|workload| workload.pod.namespace.clone())
    }

    fn resources(snapshot: &Snapshot, scope: &String, (): &mut ()) -> Resources {
        CALLS.lock().unwrap().push(format!("resources {scope}"));
        let resource = |kind: &'static str, content: &str| {
            let body = prost_types::Any { type_url: kind.into(), value: content.into() };
            let name = format!("outbound|80||a.{scope}.svc.cluster.local");
            (kind, BTreeMap::from([(name, Arc::new(Resource::new(body, BTreeSet::new())))]))
        };
        let clusters = resource(CLUSTER, &snapshot.mesh.cluster);
        Resources { by_type: [clusters, resource(ENDPOINTS, &snapshot.endpoints.len().to_string())].into() }
    }

    fn endpoints(snapshot: &Snapshot, scope: &String, cluster: &str) -> Option<Resource> {
        CALLS.lock().unwrap().push(format!("endpoints {scope} {cluster}"));
        let body = prost_types::Any { type_url: ENDPOINTS.into(), value: snapshot.endpoints.len().to_string().into() };
        Some(Resource::new(body, BTreeSet::new()))
    }

    fn findings(_: &Snapshot) -> Vec<Finding> {
        FINDINGS.fetch_add(1, Ordering::Relaxed);
        Vec::new()
    }
}

/// A source that a test feeds with whole states.
struct Fed {
    states: mpsc::Receiver<(Lane, Stores)>,
    stores: Stores,
}

impl Source for Fed {
    async fn changed(&mut self) -> Option<Lane> {
        let (lane, stores) = self.states.recv().await?;
        self.stores = stores;
        Some(lane)
    }

    fn stores(&mut self) -> &Stores {
        &self.stores
    }
}

fn peer(namespace: &str, pod: &str) -> PodIdentity {
    PodIdentity { pod: ObjectKey::new(namespace, pod), uid: "u".into(), service_account: "default".into() }
}

fn stores(cluster: &str, slices: &[&str]) -> Stores {
    let mut stores = Stores::default();
    stores.mesh.cluster = cluster.into();
    for (namespace, pod) in [("shop", "one"), ("shop", "two"), ("bank", "three")] {
        stores.pods.insert(ObjectKey::new(namespace, pod), Arc::default());
    }
    for name in slices {
        stores.endpoint_slices.insert(ObjectKey::new("shop", *name), Arc::default());
    }
    stores
}

async fn ready(target: &mut watch::Receiver<Target>) -> Arc<crate::ads::Configuration> {
    let ready = tokio::time::timeout(WAIT, target.wait_for(|target| matches!(target, Target::Ready(_)))).await;
    match &*ready.expect("no configuration came").unwrap() {
        Target::Ready(configuration) => configuration.clone(),
        other => panic!("{other:?}"),
    }
}

async fn next(target: &mut watch::Receiver<Target>) -> Arc<crate::ads::Configuration> {
    target.mark_unchanged();
    tokio::time::timeout(WAIT, target.changed()).await.expect("nothing changed").unwrap();
    ready(target).await
}

/// One test, since what the steps were asked for is counted in one place.
#[tokio::test]
async fn pipeline_when_things_change_then_makes_and_tells_only_what_is_needed() {
    let calls = || std::mem::take(&mut *CALLS.lock().unwrap());
    let (feed, states) = mpsc::channel(4);
    let metrics = Metrics::new(&Registry::new());
    let publisher = Arc::new(Publisher::<Fake>::new(Arc::new(Acknowledgements::new()), metrics.clone()));
    let source = Fed { states, stores: Stores::default() };
    let shutdown = CancellationToken::new();
    let (first, is_first) = tokio::sync::oneshot::channel();
    let on_first = || first.send(()).unwrap();
    let task = tokio::spawn(run(source, publisher.clone(), metrics, on_first, shutdown.clone()));

    // A pod that connects before anything is known gets its configuration when it is.
    let mut one = publisher.follow(&peer("shop", "one"));
    assert!(matches!(&*one.borrow(), Target::Unknown));
    feed.send((Lane::All, stores("c1", &["a"]))).await.unwrap();
    let configuration = ready(&mut one).await;
    is_first.await.unwrap();
    assert_eq!(calls(), ["resources shop"]);

    // A pod of the same scope shares it; one of another scope has its own; one that is not known waits; another uid is foreign.
    let mut two = publisher.follow(&peer("shop", "two"));
    assert!(Arc::ptr_eq(&ready(&mut two).await, &configuration));
    let mut three = publisher.follow(&peer("bank", "three"));
    assert!(!Arc::ptr_eq(&ready(&mut three).await, &configuration));
    assert_eq!(calls(), ["resources bank"]);
    let mut foreign = publisher.follow(&PodIdentity { uid: "other".into(), ..peer("shop", "one") });
    let told = tokio::time::timeout(WAIT, foreign.wait_for(|target| matches!(target, Target::Foreign))).await;
    assert!(told.unwrap().is_ok());

    // Endpoints of one service change: nothing else is made again.
    feed.send((Lane::Endpoints, stores("c1", &[]))).await.unwrap();
    let after = next(&mut one).await;
    assert_eq!(calls(), ["endpoints shop outbound|80||a.shop.svc.cluster.local"]);
    let version = |configuration: &crate::ads::Configuration, kind| {
        configuration.of(kind).values().next().unwrap().version.clone()
    };
    assert_eq!(version(&after, Kind::Cluster), version(&configuration, Kind::Cluster));
    assert_ne!(version(&after, Kind::Endpoints), version(&configuration, Kind::Endpoints));

    // A change that makes no difference for a scope is told to nobody.
    three.mark_unchanged();
    two.mark_unchanged();
    let mut same = stores("c1", &[]);
    same.services.insert(ObjectKey::new("x", "y"), Arc::default());
    feed.send((Lane::All, same)).await.unwrap();
    feed.send((Lane::All, stores("c2", &[]))).await.unwrap();
    let last = next(&mut one).await;
    assert_ne!(version(&last, Kind::Cluster), version(&after, Kind::Cluster));
    assert_ne!(version(&last, Kind::Endpoints), version(&after, Kind::Endpoints), "endpoints follow their cluster");

    // A pod that is gone from the store keeps what it has.
    one.mark_unchanged();
    let mut fewer = stores("c3", &[]);
    fewer.pods.remove(&ObjectKey::new("shop", "one"));
    feed.send((Lane::All, fewer)).await.unwrap();
    next(&mut two).await;
    assert!(matches!(&*one.borrow(), Target::Ready(kept) if Arc::ptr_eq(kept, &last)));

    // Of c1, c2 and c3, each a moment after they were told: what is found wrong does not depend on endpoints.
    let found = async {
        while FINDINGS.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, found).await.expect("three times");
    assert_eq!(FINDINGS.load(Ordering::Relaxed), 3);

    // A pod that connects while a change waits for quiet does not make it forgotten.
    feed.send((Lane::All, stores("c4", &["a"]))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let _late = publisher.follow(&peer("shop", "two"));
    next(&mut one).await;
    shutdown.cancel();
    task.await.unwrap();
}
