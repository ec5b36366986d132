//! What holds for every input: the order of objects and endpoints does not matter, and no spec, however odd, makes the
//! control plane panic or take something of another object away.

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
    let path = Path::new("tests/golden").join(name).join("in.yaml");
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

fn subnet() -> impl Strategy<Value = Value> {
    prop::sample::select(vec!["10.0.0.0/8", "198.19.0.10", "fd00::/8", "10.0.0.0/33", "", "x"])
        .prop_map(|text| json!(text))
}

/// Conditions of every kind, any of which may be missing.
fn http_match() -> impl Strategy<Value = Value> {
    let part = prop_oneof![
        (prop::sample::select(vec!["uri", "scheme", "method", "authority"]), text_match()),
        (
            prop::sample::select(vec!["headers", "withoutHeaders", "queryParams"]),
            (text(), text_match()).prop_map(|(name, value)| json!({name.as_str().unwrap(): value}))
        ),
        (Just("port"), number()),
        (Just("sourceLabels"), text().prop_map(|value| json!({"app": value}))),
        (prop::sample::select(vec!["sourceNamespace", "statPrefix", "name"]), text()),
        (Just("gateways"), text().prop_map(|gateway| json!([gateway]))),
        (Just("ignoreUriCase"), any::<bool>().prop_map(|ignored| json!(ignored))),
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| json!(parts.into_iter().collect::<BTreeMap<_, _>>()))
}

fn connection_rule() -> impl Strategy<Value = Value> {
    (prop::collection::vec((subnet(), number(), text()), 0..3), prop::collection::vec(destination(), 0..3)).prop_map(
        |(matches, destinations)| {
            let matches: Vec<Value> = matches
                .into_iter()
                .map(|(subnet, port, label)| {
                    json!({"destinationSubnets": [subnet], "port": port, "sourceLabels": {"app": label}})
                })
                .collect();
            let route: Vec<Value> =
                destinations.into_iter().map(|to| json!({"destination": to, "weight": 1})).collect();
            json!({"match": matches, "route": route})
        },
    )
}

fn tls_rule() -> impl Strategy<Value = Value> {
    (prop::collection::vec(text(), 0..3), connection_rule()).prop_map(|(names, mut rule)| {
        for entry in rule["match"].as_array_mut().unwrap() {
            entry["sniHosts"] = json!(names);
        }
        rule
    })
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
        prop::collection::vec(http_match(), 0..3).prop_map(|matches| ("match", json!(matches))),
        (text(), text()).prop_map(|(name, namespace)| ("delegate", json!({"name": name, "namespace": namespace}))),
        Just(("delegate", json!({"name": "vs-1"}))),
        (destination(), number())
            .prop_map(|(to, share)| ("mirrors", json!([{"destination": to, "percentage": {"value": share}}]))),
        (text_match(), text()).prop_map(|(origin, age)| (
            "corsPolicy",
            json!({"allowOrigins": [origin], "maxAge": age, "unmatchedPreflights": "IGNORE"})
        )),
        (number(), text()).prop_map(|(share, status)| (
            "fault",
            json!({"abort": {"grpcStatus": status, "percentage": {"value": share}}})
        )),
        (number(), text()).prop_map(|(attempts, backoff)| (
            "retries",
            json!({"attempts": attempts, "backoff": backoff, "retryRemoteLocalities": true})
        )),
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
        prop::collection::vec(tls_rule(), 0..2),
        prop::collection::vec(connection_rule(), 0..2),
        prop::collection::vec(text(), 0..2),
    )
        .prop_map(|(hosts, http, tls, tcp, export_to)| {
            json!({"hosts": hosts, "http": http, "tls": tls, "tcp": tcp, "exportTo": export_to})
        })
}

/// A part of a traffic policy.
fn policy_part() -> impl Strategy<Value = (&'static str, Value)> {
    let places = || prop::sample::select(vec!["eu", "eu/a", "eu/*", "*", "a/b/c/d", "", "*/b"]).prop_map(str::to_owned);
    prop_oneof![
        prop::sample::select(vec!["RANDOM", "ROUND_ROBIN", "PASSTHROUGH", "LEAST_REQUEST"])
            .prop_map(|simple| ("loadBalancer", json!({"simple": simple, "warmupDurationSecs": "10s"}))),
        (text(), number()).prop_map(|(header, size)| (
            "loadBalancer",
            json!({"consistentHash": {"httpHeaderName": header, "maglev": {"tableSize": size}}})
        )),
        (places(), places(), number()).prop_map(|(from, to, share)| (
            "loadBalancer",
            json!({"localityLbSetting": {"distribute": [{"from": from, "to": {to: share}}]}})
        )),
        (places(), places(), text()).prop_map(|(from, to, label)| (
            "loadBalancer",
            json!({"localityLbSetting": {"failover": [{"from": from, "to": to}], "failoverPriority": [label]}})
        )),
        number().prop_map(|size| ("loadBalancer", json!({"zoneAwareLbSetting": {"minClusterSize": size}}))),
        (number(), text()).prop_map(|(limit, time)| (
            "connectionPool",
            json!({"tcp": {"maxConnections": limit, "connectTimeout": time, "idleTimeout": time},
                   "http": {"maxRetries": limit, "h2UpgradePolicy": "UPGRADE", "http2KeepAlive": {"interval": time}}})
        )),
        (number(), text()).prop_map(|(limit, time)| (
            "outlierDetection",
            json!({"consecutive5xxErrors": limit, "interval": time, "minHealthPercent": limit,
                   "outlierDetectionHttpErrorCodes": [limit]})
        )),
        (prop::sample::select(vec!["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]), text(), text())
            .prop_map(|(mode, sni, name)| ("tls", json!({"mode": mode, "sni": sni, "subjectAltNames": [name]}))),
        (text(), number()).prop_map(|(host, port)| ("tunnel", json!({"targetHost": host, "targetPort": port}))),
        Just(("proxyProtocol", json!({"version": "V2"}))),
        (number(), text())
            .prop_map(|(percent, time)| ("retryBudget", json!({"percent": percent, "budgetInterval": time}))),
    ]
}

fn policy() -> impl Strategy<Value = Value> {
    prop::collection::vec(policy_part(), 0..4).prop_map(|parts| json!(parts.into_iter().collect::<BTreeMap<_, _>>()))
}

fn destination_rule() -> impl Strategy<Value = Value> {
    (text(), text(), prop::collection::vec((text(), policy()), 0..3), number(), policy()).prop_map(
        |(host, label, subsets, limit, mut whole)| {
            let subsets: Vec<Value> = subsets
                .into_iter()
                .map(|(name, policy)| json!({"name": name, "labels": {"version": label}, "trafficPolicy": policy}))
                .collect();
            whole["portLevelSettings"] = json!([{"port": {"number": limit}, "loadBalancer": {"simple": "RANDOM"}}]);
            json!({
                "host": host,
                "subsets": subsets,
                "trafficPolicy": whole,
            })
        },
    )
}

proptest! {
    // Each translates a whole case twice.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn snapshot_when_objects_and_endpoints_are_shuffled_then_equal_bytes(
        seed in any::<u64>(),
        name in prop::sample::select(vec!["canary", "delegates", "localities", "merged-policies", "policies", "tls-routes"]),
    ) {
        let text = case(name);
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
        prop_assert_eq!(resolve::findings(&wanted), resolve::findings(&met));
        prop_assert_eq!(everything(&wanted), everything(&met));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

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
