//! What holds for every input: the order of objects and endpoints does not matter, and no spec, however odd, makes the
//! control plane panic or take something of another object away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use leno_controlplane::build::build;
use leno_controlplane::resolve::{self, scope_of};
use leno_controlplane::source::{Source, folder::Folder};
use leno_controlplane::stores::Stores;
use leno_controlplane::translate::{self, Resources};
use leno_core::{ObjectKey, Snapshot};
use leno_crds::istio::destination_rule::{DestinationRule, DestinationRuleSpec};
use leno_crds::istio::virtual_service::{VirtualService, VirtualServiceSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

fn case(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("in.yaml");
    std::fs::read_to_string(path).unwrap()
}

fn stores(text: &str) -> Stores {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in.yaml"), text).unwrap();
    Folder::open(dir.path()).unwrap().stores().clone()
}

/// Everything that every proxy is sent, endpoints included.
fn everything(snapshot: &Snapshot) -> BTreeMap<ObjectKey, (Resources, Vec<Option<String>>)> {
    let mut all = BTreeMap::new();
    for pod in snapshot.workloads.keys() {
        let scope = scope_of(snapshot, pod).unwrap();
        let (ir, _) = resolve::resolve(snapshot, &scope);
        let versions = translate::endpoint_names(&ir)
            .map(|name| translate::endpoints(snapshot, &scope, &name.to_string()).map(|made| made.version))
            .collect();
        all.insert(pod.clone(), (translate::translate(&ir), versions));
    }
    all
}

/// Texts that specs may hold, the odd ones too.
fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "reviews", "reviews.shop.svc.cluster.local", "", "*", "*.shop.svc.cluster.local", "v1", "/", "/a", "(", r"\d+",
            "5s", "0s", "-1s", "1h", "mesh", "503", "5xx", "reset", "x-header", "Host", ":path", "%", "%REQ(a)%", ".", "a|b",
        ])
        .prop_map(|text| json!(text)),
        1 => "\\PC{0,8}".prop_map(|text| json!(text)),
    ]
}

fn number() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![-1i64, 0, 1, 2, 80, 100, 9080, 65535, 65536, 2_147_483_647])
        .prop_map(|number| json!(number))
}

fn text_match() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(prop::sample::select(vec!["exact", "prefix", "regex"]), text(), 0..2)
        .prop_map(|fields| json!(fields))
}

fn destination() -> impl Strategy<Value = Value> {
    (text(), prop::option::of(text()), prop::option::of(number())).prop_map(|(host, subset, port)| {
        let mut value = json!({"host": host});
        if let Some(subset) = subset {
            value["subset"] = subset;
        }
        if let Some(port) = port {
            value["port"] = json!({"number": port});
        }
        value
    })
}

fn headers() -> impl Strategy<Value = Value> {
    (text(), text(), text()).prop_map(
        |(name, value, removed)| json!({"request": {"set": {name.as_str().unwrap(): value}, "remove": [removed]}}),
    )
}

/// One rule out of many parts, any of which may be missing.
fn http_rule() -> impl Strategy<Value = Value> {
    let part = prop_oneof![
        text_match().prop_map(|uri| ("match", json!([{"uri": uri}]))),
        (text(), text_match())
            .prop_map(|(name, value)| ("match", json!([{"headers": {name.as_str().unwrap(): value}}]))),
        prop::collection::vec((destination(), prop::option::of(number())), 0..3).prop_map(|targets| {
            let targets: Vec<Value> = targets
                .into_iter()
                .map(|(destination, weight)| match weight {
                    Some(weight) => json!({"destination": destination, "weight": weight}),
                    None => json!({"destination": destination}),
                })
                .collect();
            ("route", json!(targets))
        }),
        (text(), text()).prop_map(|(uri, authority)| ("redirect", json!({"uri": uri, "authority": authority}))),
        number().prop_map(|status| ("directResponse", json!({"status": status}))),
        text().prop_map(|uri| ("rewrite", json!({"uri": uri}))),
        text().prop_map(|pattern| ("rewrite", json!({"uriRegexRewrite": {"match": pattern, "rewrite": "\\1"}}))),
        text().prop_map(|timeout| ("timeout", timeout)),
        (number(), text()).prop_map(|(attempts, on)| ("retries", json!({"attempts": attempts, "retryOn": on}))),
        destination().prop_map(|mirror| ("mirror", mirror)),
        headers().prop_map(|headers| ("headers", headers)),
        (text(), number()).prop_map(|(delay, percent)| (
            "fault",
            json!({"delay": {"fixedDelay": delay, "percentage": {"value": percent}}})
        )),
    ];
    prop::collection::vec(part, 0..6)
        .prop_map(|parts| parts.into_iter().collect::<BTreeMap<_, _>>())
        .prop_map(|rule| json!(rule))
}

fn virtual_service() -> impl Strategy<Value = Value> {
    (
        prop::collection::vec(text(), 0..3),
        prop::collection::vec(http_rule(), 0..3),
        prop::collection::vec(destination(), 0..2),
        prop::collection::vec(text(), 0..2),
    )
        .prop_map(|(hosts, http, tcp, export_to)| {
            let tcp: Vec<Value> =
                tcp.into_iter().map(|destination| json!({"route": [{"destination": destination}]})).collect();
            json!({"hosts": hosts, "http": http, "tcp": tcp, "exportTo": export_to})
        })
}

fn destination_rule() -> impl Strategy<Value = Value> {
    (text(), text(), prop::collection::vec(text(), 0..3), number(), text()).prop_map(
        |(host, label, subsets, limit, timeout)| {
            let subsets: Vec<Value> =
                subsets.into_iter().map(|name| json!({"name": name, "labels": {"version": label}})).collect();
            json!({
                "host": host,
                "subsets": subsets,
                "trafficPolicy": {
                    "connectionPool": {"tcp": {"maxConnections": limit, "connectTimeout": timeout}},
                    "portLevelSettings": [{"port": {"number": limit}, "loadBalancer": {"simple": "RANDOM"}}],
                },
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn snapshot_when_objects_and_endpoints_are_shuffled_then_equal_bytes(seed in any::<u64>()) {
        let text = case("canary");
        let mut documents: Vec<&str> = text.split("\n---\n").collect();
        let mut random = seed;
        let mut next = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound
        };
        for at in (1..documents.len()).rev() {
            documents.swap(at, next(at + 1));
        }
        let shuffled_text = documents.join("\n---\n");
        let mut shuffled = stores(&shuffled_text);
        for slice in shuffled.endpoint_slices.values_mut() {
            let slice = Arc::make_mut(slice);
            for at in (1..slice.endpoints.len()).rev() {
                slice.endpoints.swap(at, next(at + 1));
            }
        }
        let (wanted, met) = (build(&stores(&text)), build(&shuffled));
        prop_assert_eq!(&wanted, &met);
        prop_assert_eq!(everything(&wanted), everything(&met));
    }

    #[test]
    fn pipeline_when_specs_are_odd_then_never_panics_and_services_stay(
        rules in prop::collection::vec(virtual_service(), 0..3),
        policies in prop::collection::vec(destination_rule(), 0..3),
    ) {
        let mut stores = stores(&case("service-http"));
        let before = build(&stores);
        for (index, spec) in rules.into_iter().enumerate() {
            // What does not fit the type never gets this far.
            let Ok(spec) = serde_json::from_value::<VirtualServiceSpec>(spec) else { continue };
            let mut object = VirtualService::new(&format!("vs-{index}"), spec);
            object.metadata.namespace = Some("shop".into());
            stores.virtual_services.insert(ObjectKey::new("shop", format!("vs-{index}")), Arc::new(object));
        }
        for (index, spec) in policies.into_iter().enumerate() {
            let Ok(spec) = serde_json::from_value::<DestinationRuleSpec>(spec) else { continue };
            let mut object = DestinationRule::new(&format!("dr-{index}"), spec);
            object.metadata.namespace = Some("shop".into());
            stores.destination_rules.insert(ObjectKey::new("shop", format!("dr-{index}")), Arc::new(object));
        }
        let snapshot = build(&stores);
        prop_assert_eq!(&before.services, &snapshot.services);
        resolve::findings(&snapshot);
        let (all, plain) = (everything(&snapshot), everything(&before));
        for (pod, (resources, _)) in &all {
            for (type_url, named) in &plain[pod].0.by_type {
                for name in named.keys() {
                    prop_assert!(resources.by_type[type_url].contains_key(name), "{pod} has lost {name}");
                }
            }
        }
    }
}
