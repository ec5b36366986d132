//! A stock Envoy acknowledges clusters only when all that are new to it have their endpoints, and asks for endpoints once: whatever
//! changes meanwhile, it must end with what it should hold, and wait for nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::common::Made;
use leno_controlplane::ads::session::{GRACE, Session};
use leno_controlplane::ads::{Configuration, Kind};
use leno_xds::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proptest::prelude::*;
use tokio::time::Instant;

/// The part of Envoy that warms clusters, and both directions of its stream.
#[derive(Default)]
struct Envoy {
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    active: BTreeMap<String, Vec<u8>>,
    warming: BTreeMap<String, Vec<u8>>,
    endpoints: BTreeMap<String, Vec<u8>>,
    /// The versions of what it has accepted, by kind.
    versions: BTreeMap<Kind, BTreeMap<String, String>>,
    asked: BTreeSet<String>,
    /// The acknowledgement of clusters that waits until none warms.
    withheld: Option<DeltaDiscoveryRequest>,
}

impl Envoy {
    fn new() -> Self {
        let mut envoy = Envoy::default();
        for kind in [Kind::Cluster, Kind::Listener] {
            envoy.send(kind, DeltaDiscoveryRequest::default());
        }
        envoy
    }

    fn reconnect(&mut self) {
        (self.requests, self.responses, self.withheld) = Default::default();
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener] {
            let asked = if kind == Kind::Endpoints { self.asked.iter().cloned().collect() } else { Vec::new() };
            if kind == Kind::Endpoints && asked.is_empty() {
                continue;
            }
            let initial_resource_versions = self.versions.get(&kind).cloned().unwrap_or_default().into_iter().collect();
            let request = DeltaDiscoveryRequest {
                resource_names_subscribe: asked,
                initial_resource_versions,
                ..DeltaDiscoveryRequest::default()
            };
            self.send(kind, request);
        }
    }

    fn send(&mut self, kind: Kind, request: DeltaDiscoveryRequest) {
        self.requests.push_back(DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..request });
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let kind = Kind::of(&response.type_url).unwrap();
        let mut request =
            DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..DeltaDiscoveryRequest::default() };
        let versions = self.versions.entry(kind).or_default();
        for resource in &response.resources {
            if kind != Kind::Endpoints || self.asked.contains(&resource.name) {
                versions.insert(resource.name.clone(), resource.version.clone());
            }
        }
        response.removed_resources.iter().for_each(|name| drop(versions.remove(name)));
        if kind != Kind::Cluster {
            for resource in response.resources {
                if let Some(cluster) = self.warming.remove(&resource.name) {
                    self.active.insert(resource.name.clone(), cluster);
                }
                // What nobody asks for any longer is passed over.
                if self.asked.contains(&resource.name) {
                    self.endpoints.insert(resource.name, resource.resource.unwrap().value);
                }
            }
            for name in response.removed_resources {
                if let Some(cluster) = self.warming.remove(&name) {
                    self.active.insert(name.clone(), cluster);
                }
                self.endpoints.remove(&name);
            }
            self.send(kind, request);
        } else {
            let (mut asked, mut dropped) = (Vec::new(), Vec::new());
            for resource in response.resources {
                let content = resource.resource.unwrap().value;
                if self.asked.insert(resource.name.clone()) {
                    asked.push(resource.name.clone());
                }
                // One that is the same as before is passed over.
                let newest = self.warming.get(&resource.name).or_else(|| self.active.get(&resource.name));
                if newest != Some(&content) {
                    self.warming.insert(resource.name, content);
                }
            }
            for name in response.removed_resources {
                self.warming.remove(&name);
                self.active.remove(&name);
                if self.asked.remove(&name) {
                    self.endpoints.remove(&name);
                    self.versions.entry(Kind::Endpoints).or_default().remove(&name);
                    dropped.push(name);
                }
            }
            if !asked.is_empty() || !dropped.is_empty() {
                self.send(
                    Kind::Endpoints,
                    DeltaDiscoveryRequest {
                        resource_names_subscribe: asked,
                        resource_names_unsubscribe: dropped,
                        ..DeltaDiscoveryRequest::default()
                    },
                );
            }
            request.type_url = kind.type_url().into();
            assert!(self.withheld.replace(request).is_none(), "sent before the last was acknowledged");
        }
        if self.warming.is_empty()
            && let Some(request) = self.withheld.take()
        {
            self.requests.push_back(request);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Each cluster that there should be, with the versions of itself and of its endpoints.
    Target(BTreeMap<u8, (u8, u8)>),
    Request,
    Response,
    /// The stream breaks; the next one begins with what Envoy has.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop::collection::btree_map(0..4u8, (0..3u8, 0..3u8), 0..4).prop_map(Step::Target),
        3 => Just(Step::Request),
        3 => Just(Step::Response),
    ]
}

/// The same with reconnects, and with no target that was there before.
fn step_forward() -> impl Strategy<Value = Step> {
    prop_oneof![8 => step(), 1 => Just(Step::Reconnect)]
}

fn forward(steps: &mut [Step]) {
    for (at, step) in (0..).zip(steps) {
        if let Step::Target(clusters) = step {
            clusters
                .values_mut()
                .for_each(|(cluster, endpoints)| (*cluster, *endpoints) = (at + *cluster, at + *endpoints));
        }
    }
}

fn made(clusters: &BTreeMap<u8, (u8, u8)>) -> Made {
    clusters.iter().fold(Made::default(), |made, (name, (cluster, endpoints))| {
        let name = format!("cluster-{name}");
        made.with(Kind::Cluster, &name, &format!("c{cluster}")).with(Kind::Endpoints, &name, &format!("e{endpoints}"))
    })
}

/// What a configuration holds of a kind.
fn contents(configuration: &Configuration, kind: Kind) -> BTreeMap<String, Vec<u8>> {
    let entries = configuration.of(kind).iter();
    entries.map(|(name, entry)| (name.to_string(), entry.resource.body.value.clone())).collect()
}

fn run(steps: &[Step]) {
    let (mut now, mut envoy) = (Instant::now(), Envoy::new());
    let mut session = Session::new(now);
    let mut target = Arc::new(Configuration::default());
    let drain = (0..200).flat_map(|_| [Step::Request, Step::Response]);
    for (id, step) in steps.iter().cloned().chain(drain).enumerate() {
        match step {
            Step::Target(clusters) => {
                target = Arc::new(Configuration::assemble(id as u64 + 1, &made(&clusters).resources(), Some(&target)));
                session.set_target(target.clone(), now);
            }
            Step::Request => {
                let Some(request) = envoy.requests.pop_front() else { continue };
                session.request(Kind::of(&request.type_url).unwrap(), &request, now);
            }
            Step::Response => {
                let Some(response) = envoy.responses.pop_front() else { continue };
                envoy.take(response);
            }
            Step::Reconnect => {
                envoy.reconnect();
                session = Session::new(now);
                session.set_target(target.clone(), now);
            }
        }
        while let Some(response) = session.next(now) {
            envoy.responses.push_back(response);
        }
    }
    now += GRACE * 2;
    assert!(session.next(now).is_none() && envoy.requests.is_empty() && envoy.responses.is_empty());
    assert!(envoy.warming.is_empty(), "warms for ever: {:?}", envoy.warming.keys());
    assert_eq!(envoy.active, contents(&target, Kind::Cluster));
    assert_eq!(envoy.endpoints, contents(&target, Kind::Endpoints));
    assert!(session.progress(now).outstanding.is_empty());
}

#[test]
fn envoy_when_a_cluster_changes_while_it_warms_then_gets_its_endpoints_for_both() {
    let target = |cluster| Step::Target(BTreeMap::from([(0, (cluster, 0))]));
    run(&[target(0), Step::Request, Step::Response, target(1)]);
}

#[test]
fn envoy_when_a_cluster_goes_while_it_warms_then_is_told_that_it_has_no_endpoints() {
    let target = |clusters: &[u8]| Step::Target(clusters.iter().map(|name| (*name, (0, 0))).collect());
    run(&[target(&[0]), Step::Request, Step::Response, target(&[1])]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn envoy_whatever_changes_then_ends_with_what_it_should_hold(steps in prop::collection::vec(step(), 0..60)) {
        run(&[&[Step::Target(BTreeMap::from([(3, (0, 0))]))], &steps[..]].concat());
    }

    #[test]
    fn envoy_when_streams_break_as_well_then_ends_with_what_it_should_hold(
        mut steps in prop::collection::vec(step_forward(), 0..60)
    ) {
        steps.insert(0, Step::Target(BTreeMap::from([(3, (0, 0))])));
        forward(&mut steps);
        run(&steps);
    }
}
