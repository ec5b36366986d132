//! How apply behaves towards an API server, played by a handler.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use leno_kubeutil::apply::{Applier, Desired, Outcome};
use serde_json::{Value, json};

type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// A client whose server answers every request with the status and body given, and writes down what was asked.
fn client(code: u16, answer: Value) -> (Client, Requests) {
    let requests: Requests = Arc::default();
    let seen = requests.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().push((request.method().to_string(), request.uri().to_string()));
        let response = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
        async move { Ok::<_, std::convert::Infallible>(response.unwrap()) }
    });
    (Client::new(service, "default"), requests)
}

fn config_map() -> Desired {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "leno-root", "namespace": "shop" },
        "data": { "roots.pem": "x" } });
    Desired::new(&object, "configmaps").unwrap()
}

fn stored(desired: &Desired, version: &str) -> Value {
    let mut body = desired.body.clone();
    body["metadata"]["resourceVersion"] = json!(version);
    body
}

#[tokio::test]
async fn apply_when_nothing_is_there_then_creates_as_our_manager() {
    let desired = config_map();
    let (client, requests) = client(201, stored(&desired, "1"));
    let outcome = Applier::new(client, "leno-operator").apply(&desired, None).await.unwrap();
    assert_eq!(outcome, Outcome::Created);
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].0, "PATCH");
    assert!(requests[0].1.starts_with("/api/v1/namespaces/shop/configmaps/leno-root?"), "{}", requests[0].1);
    assert!(requests[0].1.contains("fieldManager=leno-operator") && requests[0].1.contains("force=true"));
}

#[tokio::test]
async fn apply_when_everything_is_as_wanted_then_asks_nothing() {
    let desired = config_map();
    let (client, requests) = client(500, json!({}));
    let observed = serde_json::from_value(stored(&desired, "1")).unwrap();
    let outcome = Applier::new(client, "leno-operator").apply(&desired, Some(&observed)).await.unwrap();
    assert_eq!(outcome, Outcome::Unchanged);
    assert!(requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn apply_when_a_write_changes_nothing_then_is_not_repeated() {
    let desired = config_map();
    let mut there = stored(&desired, "7");
    there["data"]["roots.pem"] = json!("normalised by the server");
    let (client, requests) = client(200, there.clone());
    let observed = serde_json::from_value(there).unwrap();
    let mut applier = Applier::new(client, "leno-operator");
    for _ in 0..5 {
        assert_eq!(applier.apply(&desired, Some(&observed)).await.unwrap(), Outcome::Unchanged);
    }
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn apply_when_forbidden_then_the_error_names_the_object_and_a_category() {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": "configmaps is forbidden" });
    let (client, _) = client(403, status);
    let error = Applier::new(client, "leno-operator").apply(&config_map(), None).await.unwrap_err();
    assert_eq!(error.category(), "Forbidden");
    assert!(error.to_string().contains("ConfigMap shop/leno-root"), "{error}");
}
