//! Golden plans: `golden/<case>/in.yaml` holds what the operator observes, `out.yaml` what it does and says.
//!
//! Adding a case is adding a folder. `UPDATE_GOLDEN=1 cargo test -p leno-operator --test component golden` writes the outputs anew.
//! An observed object with the annotation `test/as-applied` stands for what the operator itself would have applied, with
//! the fields given in the case on top. Certificates are written as `@a`, `@b` and `@a+b`, for those in `authorities/`, in base64;
//! a document of kind `Clock` says what time it is, one of kind `ProxyReport` what a proxy tells, and one of kind `Replica`
//! what a replica of the control plane tells: roots and authority by the same letters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use leno_api::proxies::v1::ProxyReport;
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::apply::{HASH_ANNOTATION, differs};
use leno_kubeutil::watch::Key;
use leno_operator::observe::OWNED;
use leno_operator::plan::authority::ReplicaTrust;
use leno_operator::plan::{ObjectId, Observed, Plan, Step, leftovers, plan};
use leno_operator::report::{describe, status};
use leno_runtime::certs::certificates_from_pem;
use leno_runtime::trust::{roots_sha256, signer_fingerprint};
use serde::Deserialize;
use serde_json::{Value, json};

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value.clone()).unwrap())
}

fn key(value: &Value) -> Key {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    Key::new(text("/metadata/namespace"), text("/metadata/name"))
}

fn kind(value: &Value) -> &str {
    value["kind"].as_str().unwrap()
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The certificates that letters stand for, PEM.
fn authority(letters: &str) -> String {
    let folder = Path::new("tests/authorities");
    letters.split('+').map(|letter| fs::read_to_string(folder.join(format!("{letter}.crt"))).unwrap()).collect()
}

fn trusted(value: &Value) -> Vec<u8> {
    roots_sha256(&certificates_from_pem(authority(value["roots"].as_str().unwrap()).as_bytes()).unwrap()).to_vec()
}

fn signer(value: &Value) -> Vec<u8> {
    let signer = certificates_from_pem(authority(value["signer"].as_str().unwrap()).as_bytes()).unwrap();
    signer_fingerprint(&signer[0], &[]).unwrap().to_vec()
}

/// What stands for certificates in the cases, with what it stands for. An authority that no case looks into reads shorter.
fn stand_ins() -> Vec<(String, String)> {
    let encode = |text: String| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let empty = "-----BEGIN CERTIFICATE-----\nTGVubw==\n-----END CERTIFICATE-----\n";
    vec![
        ("@a+b".to_owned(), encode(authority("a+b"))),
        (encode(empty.to_owned()), encode(authority("a"))),
        ("@a".to_owned(), encode(authority("a"))),
        ("@b".to_owned(), encode(authority("b"))),
    ]
}

fn observe(documents: &[Value]) -> Observed {
    let mut observed = Observed { supported: vec!["0.1.0".to_owned(), "0.0.9".to_owned()], ..Observed::default() };
    for value in documents {
        match kind(value) {
            "MeshInstall" => drop(observed.installs.insert(key(value), typed::<MeshInstall>(value))),
            "Namespace" => drop(observed.namespaces.insert(key(value), typed(value))),
            "Pod" => drop(observed.pods.insert(key(value), typed(value))),
            "Clock" => observed.now = value["now"].as_str().unwrap().parse().unwrap(),
            "ProxyReport" => {
                let report = ProxyReport {
                    pod_uid: value["uid"].as_str().unwrap().to_owned(),
                    roots_sha256: trusted(value),
                    certificate_issuer_sha256: signer(value),
                    version: value["version"].as_str().unwrap_or_default().to_owned(),
                    ready: value["ready"] == true,
                    serving_since_ms: value["ready"].as_bool().unwrap_or_default().into(),
                    ..ProxyReport::default()
                };
                Arc::make_mut(&mut observed.reports).entry(key(value)).or_default().push(report);
            }
            "Replica" => {
                let said = ReplicaTrust { roots: trusted(value), signer: signer(value) };
                Arc::make_mut(&mut observed.replicas).insert(value["uid"].as_str().unwrap().to_owned(), said);
            }
            "Secret" if key(value).name == "leno-issuer" => drop(observed.issuers.insert(key(value), typed(value))),
            "Secret" => drop(observed.authorities.insert(key(value), typed(value))),
            other => {
                let kind = OWNED.iter().map(|(_, _, kind, _)| *kind).find(|kind| *kind == other).unwrap();
                observed.owned.insert(ObjectId { kind, key: key(value) }, typed::<DynamicObject>(value));
            }
        }
    }
    observed
}

/// Puts what would be applied under the objects that ask for it.
fn settle(documents: &mut [Value]) {
    let plans = plan(&observe(documents)).unwrap();
    for document in documents {
        let marked = document.pointer("/metadata/annotations/test~1as-applied").is_some();
        if !marked {
            continue;
        }
        let applied = plans.values().flat_map(|plan| &plan.steps).find_map(|step| match step {
            Step::Apply(desired) if desired.resource.kind == kind(document) && desired.name == key(document).name => {
                Some(desired.body.clone())
            }
            _ => None,
        });
        let mut applied = applied.expect("an object that the operator applies");
        merge(&mut applied, document);
        *document = applied;
    }
}

/// A step as it reads best: hashes say nothing to people, and change with every field.
fn readable(step: &Step, full: bool) -> Value {
    let body = |body: &Value| {
        let mut body = body.clone();
        if let Some(annotations) = body.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(HASH_ANNOTATION);
        }
        body
    };
    match step {
        Step::Finalizer { present } => json!({ "finalizer": present }),
        Step::CreateNamespace(desired) => json!({ "createNamespace": body(&desired.body) }),
        Step::CreateAuthority { also_trust, issuer } => {
            json!({ "createAuthority": { "alsoTrust": also_trust, "issuer": issuer.as_str() } })
        }
        Step::ChangeAuthority(change) => json!({ "changeAuthority": format!("{change:?}") }),
        Step::HandOverReplicas { replicas, .. } => json!({ "handOverReplicas": replicas }),
        Step::Apply(desired) if full => json!({ "apply": body(&desired.body) }),
        Step::Apply(desired) => json!({ "apply": desired.describe() }),
        Step::Delete(id) => json!({ "delete": format!("{} {}", id.kind, id.key) }),
        Step::Revision(step) => json!({ "revision": format!("{} to {}", step.pod, step.to) }),
        Step::Pod(step) => json!({ "pod": format!("{step:?}") }),
    }
}

fn say(observed: &Observed, name: &str, plan: &Plan) -> Value {
    let install = &observed.installs[&Key::new("", name)];
    let settled = plan.steps.iter().all(|step| match step {
        Step::Apply(desired) if desired.resource.kind == "Deployment" => {
            let id = ObjectId {
                kind: "Deployment",
                key: Key::new(desired.namespace.clone().unwrap(), desired.name.clone()),
            };
            observed.owned.get(&id).is_some_and(|object| !differs(desired, object))
        }
        _ => true,
    });
    let report = describe(observed, name, install, plan, settled, None);
    let before = install.status.clone().unwrap_or_default();
    let (status, transitions) =
        status(&report, install.metadata.generation.unwrap_or(0), &before, Timestamp::UNIX_EPOCH);
    let transitions: Vec<String> =
        transitions.iter().map(|one| format!("{} {} {}", one.kind, one.status.as_str(), one.reason)).collect();
    json!({ "status": status, "transitions": transitions })
}

fn run(case: &Path) -> String {
    let mut text = fs::read_to_string(case.join("in.yaml")).unwrap();
    for (short, long) in stand_ins() {
        text = text.replace(&short, &long);
    }
    let mut documents: Vec<Value> =
        serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect();
    settle(&mut documents);
    let observed = observe(&documents);
    let plans: BTreeMap<String, Plan> = plan(&observed).unwrap();
    let full = text.starts_with("# full");
    let mut out = serde_json::Map::new();
    for (name, plan) in &plans {
        let steps: Vec<Value> = plan.steps.iter().map(|step| readable(step, full)).collect();
        let mut said = say(&observed, name, plan);
        said["steps"] = json!(steps);
        out.insert(name.clone(), said);
    }
    let swept: Vec<String> = leftovers(&observed).iter().map(|id| format!("{} {}", id.kind, id.key)).collect();
    if !swept.is_empty() {
        out.insert("(leftovers)".to_owned(), json!(swept));
    }
    let mut out = serde_yaml::to_string(&Value::Object(out)).unwrap();
    for (short, long) in stand_ins() {
        out = out.replace(&long, &short);
    }
    out
}

#[test]
fn plan_when_a_case_is_observed_then_is_the_golden_one() {
    let folder = Path::new("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in cases {
        let (out, golden) = (run(&case), case.join("out.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &out).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != out {
            wrong.push(format!("{}:\n{out}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 writes these anew:\n{}", wrong.join("\n"));
}

#[test]
fn plan_when_made_twice_then_is_the_same() {
    let folder = Path::new("tests/golden");
    for entry in fs::read_dir(folder).unwrap() {
        let case = entry.unwrap().path();
        assert_eq!(run(&case), run(&case), "{}", case.display());
    }
}
