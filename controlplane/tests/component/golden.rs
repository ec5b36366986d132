//! Golden cases: what a folder of objects comes to, for the proxies named and in status.
//!
//! A case is a folder in `tests/golden` with an `in.yaml` of objects. Comment lines say what to look at:
//!
//! ```yaml
//! # proxy: shop/client-1         the pod whose proxy is meant; any number of them
//! # absent: kubernetes://shop/gone   a secret that proxies ask for and nobody has, for the judge
//! # show: routes reviews.*       listeners, clusters, secrets, routes or endpoints by name; without any such line, all
//! ```
//!
//! `xds.yaml` is what the proxies are sent, `status.yaml` what is said about the objects. `UPDATE_GOLDEN=1 cargo test -p
//! leno-controlplane --test component golden` writes both anew and deletes what belongs to no case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leno_controlplane::build::build;
use leno_controlplane::resolve::{self, Scope, scope_of};
use leno_controlplane::source::{Source, folder::Folder};
use leno_controlplane::stores::Stores;
use leno_controlplane::translate::{self, CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resources, SECRET};
use leno_core::{Finding, ObjectKey, Snapshot};
use serde_json::{Value, json};

const TYPES: [(&str, &str); 5] =
    [("listeners", LISTENER), ("clusters", CLUSTER), ("secrets", SECRET), ("routes", ROUTE), ("endpoints", ENDPOINTS)];

/// Tests begin in the folder of their package, whose path may have been another when they were built.
fn root() -> &'static Path {
    Path::new("tests/golden")
}

/// The objects of a case, read as `--config-dir` reads them.
fn stores(case: &Path) -> Stores {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("in.yaml"), dir.path().join("in.yaml")).unwrap();
    Folder::open(dir.path()).unwrap().stores().clone()
}

/// Everything that a proxy is sent.
fn resources(snapshot: &Snapshot, scope: &Scope) -> Resources {
    let (ir, _) = resolve::resolve(snapshot, scope);
    let mut resources = translate::translate(&ir);
    let endpoints = translate::endpoint_names(&ir).map(|cluster| {
        let name = cluster.to_string();
        let made = translate::endpoints(snapshot, scope, &name).expect("a cluster that was translated");
        (name, Arc::new(made))
    });
    let one_by_one: BTreeMap<_, _> = endpoints.collect();
    assert_eq!(one_by_one, translate::all_endpoints(snapshot, scope, &ir));
    resources.by_type.insert(ENDPOINTS, one_by_one);
    resources
}

/// The values of the comment lines `# name: value`.
fn directives<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# ")?.strip_prefix(name)?.strip_prefix(": "))
        .map(str::trim)
        .collect()
}

/// Whether a name fits a pattern with `*` at its end or nowhere.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn xds(text: &str, stores: &Stores) -> Value {
    let snapshot = build(stores);
    let show: Vec<(&str, &str)> =
        directives(text, "show").into_iter().map(|line| line.split_once(' ').expect("a type and a name")).collect();
    for (kind, _) in &show {
        assert!(TYPES.iter().any(|(known, _)| known == kind), "{kind} is not one of {TYPES:?}");
    }
    let mut proxies = BTreeMap::new();
    for proxy in directives(text, "proxy") {
        let (namespace, name) = proxy.split_once('/').expect("namespace/pod");
        let scope = scope_of(&snapshot, &ObjectKey::new(namespace, name)).expect("the pod is in the case");
        let resources = resources(&snapshot, &scope);
        let mut types = BTreeMap::new();
        for (kind, type_url) in TYPES {
            let mut named = BTreeMap::new();
            for (name, resource) in resources.of(type_url).into_iter().flatten() {
                if show.is_empty() || show.iter().any(|(shown, pattern)| *shown == kind && fits(pattern, name)) {
                    let mut value = leno_xds::json::any_to_value(&resource.body).unwrap();
                    if let Value::Object(fields) = &mut value {
                        fields.remove("@type");
                    }
                    named.insert(name.clone(), value);
                }
            }
            if !named.is_empty() {
                types.insert(kind, named);
            }
        }
        proxies.insert(proxy, types);
    }
    json!(proxies)
}

fn status(findings: &[Finding]) -> Value {
    let mut objects: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for finding in findings {
        let said = json!({
            "condition": finding.condition.as_str(),
            "failing": finding.failing(),
            "reason": finding.reason.as_str(),
            "field": finding.field,
            "message": finding.message,
        });
        objects.entry(finding.object.to_string()).or_default().push(said);
    }
    json!(objects)
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("in.yaml").exists())
        .collect();
    cases.sort();
    cases
}

/// Deletes what belongs to no case: files of other names, and folders without objects.
fn delete_stale() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("in.yaml").exists() {
            if path.is_dir() {
                std::fs::remove_dir_all(&path).unwrap()
            } else {
                std::fs::remove_file(&path).unwrap()
            }
            continue;
        }
        for entry in std::fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if !["in.yaml", "xds.yaml", "status.yaml"].contains(&name.as_str()) {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

#[test]
fn golden_cases_when_translated_then_as_written() {
    let update = std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1");
    if update {
        delete_stale();
    }
    let mut differing = Vec::new();
    let cases = cases();
    assert!(cases.len() >= 15, "the cases are in tests/golden");
    for case in cases {
        let text = std::fs::read_to_string(case.join("in.yaml")).unwrap();
        let stores = stores(&case);
        let findings = resolve::findings(&build(&stores));
        for (file, value) in [("xds.yaml", xds(&text, &stores)), ("status.yaml", status(&findings))] {
            let path = case.join(file);
            let wanted = serde_yaml::to_string(&value).unwrap();
            if update {
                std::fs::write(&path, wanted).unwrap();
            } else if std::fs::read_to_string(&path).unwrap_or_default() != wanted {
                differing.push(path);
            }
        }
    }
    assert!(differing.is_empty(), "run with UPDATE_GOLDEN=1 and look at the difference: {differing:#?}");
}

#[test]
fn golden_cases_when_built_again_then_equal_bytes_and_versions() {
    for case in cases() {
        let text = std::fs::read_to_string(case.join("in.yaml")).unwrap();
        let first = stores(&case);
        // Objects read anew have other addresses in memory, and nothing else that is different.
        let second = stores(&case);
        let pods: Vec<ObjectKey> = first.pods.keys().cloned().collect();
        let snapshots = [build(&first), build(&second)];
        assert_eq!(snapshots[0], snapshots[1], "{}", case.display());
        for pod in pods {
            let made =
                snapshots.each_ref().map(|snapshot| scope_of(snapshot, &pod).map(|scope| resources(snapshot, &scope)));
            assert_eq!(made[0], made[1], "{}: {pod}", case.display());
        }
        assert!(!directives(&text, "proxy").is_empty(), "{}: name a proxy", case.display());
    }
}

#[test]
fn golden_cases_when_translated_then_every_message_is_of_a_known_form_and_every_reference_is_kept() {
    for case in cases() {
        let stores = stores(&case);
        let snapshot = build(&stores);
        for pod in stores.pods.keys() {
            let Some(scope) = scope_of(&snapshot, pod) else { continue };
            let resources = resources(&snapshot, &scope);
            let mut all = Vec::new();
            for (_, named) in resources.by_type.iter() {
                for (name, resource) in named {
                    assert_eq!(leno_xds::json::unknown_fields(&resource.body).unwrap(), Vec::<String>::new(), "{name}");
                    all.push(leno_xds::json::any_to_value(&resource.body).unwrap());
                }
            }
            let known =
                |type_url: &str, name: &str| resources.of(type_url).is_some_and(|named| named.contains_key(name));
            for value in &all {
                references(value, &mut |field, name| {
                    let kept = match field {
                        "cluster" => known(CLUSTER, name),
                        "service_name" => known(ENDPOINTS, name),
                        "route_config_name" => known(ROUTE, name),
                        _ => true,
                    };
                    assert!(kept, "{}: {pod}: {field} {name} does not exist", case.display());
                });
            }
        }
    }
}

/// All texts with the name of their field.
fn references(value: &Value, visit: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                match value {
                    // Metadata has fields of the same name that are something else.
                    _ if field == "metadata" || field == "filter_metadata" => {}
                    Value::String(text) => visit(field, text),
                    value => references(value, visit),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, visit)),
        _ => {}
    }
}

/// The first configuration of a case stays in force when a later form of an object is not valid.
#[test]
fn builder_when_an_object_becomes_invalid_then_its_last_valid_form_stays() {
    let mut stores = stores(&root().join("canary"));
    let mut builder = leno_controlplane::build::Builder::default();
    let good = builder.build(&stores);
    let (key, object) = stores.virtual_services.pop_first().expect("the case has one");
    let mut bad = (*object).clone();
    for rule in &mut bad.spec.http {
        for destination in &mut rule.route {
            destination.weight = Some(-1);
        }
    }
    stores.virtual_services.insert(key.clone(), Arc::new(bad));
    let after = builder.build(&stores);
    assert_eq!(good.routes, after.routes);
    let message = &after.findings.first().expect("it is reported").message;
    assert!(message.contains("last valid form"), "{message}");
    // Nobody remembers anything in a process that starts with it: it is left out, and all else is there.
    let fresh = leno_controlplane::build::build(&stores);
    assert!(fresh.routes.is_empty());
    assert_eq!(fresh.services, good.services);
    // Valid again, it is as before.
    stores.virtual_services.insert(key, object);
    assert_eq!(builder.build(&stores), good);
}
