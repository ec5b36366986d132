//! The review protocol: `admission.k8s.io/v1` in, a JSON patch (RFC 6902) out.
//! See <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::inject::{Decision, Mesh, inject};

/// The review does not parse.
#[derive(Debug, thiserror::Error)]
#[error("this is no AdmissionReview of admission.k8s.io/v1 with a pod: {0}")]
pub(super) struct ReviewError(serde_json::Error);

#[derive(Deserialize)]
struct Review {
    request: Asked,
}

#[derive(Deserialize)]
struct Asked {
    uid: String,
    #[serde(default)]
    namespace: String,
    object: Value,
}

/// The answer to a review, and one word about it.
pub(super) fn answer(body: &[u8], mesh: &Mesh) -> Result<(Vec<u8>, &'static str), ReviewError> {
    let Review { request } = serde_json::from_slice(body).map_err(ReviewError)?;
    let text = |pointer: &str| request.object.pointer(pointer).and_then(Value::as_str);
    let pod = text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or_default();
    let (response, result) = match inject(&request.object, mesh) {
        Decision::Patch(patch) => {
            tracing::info!(namespace = request.namespace, pod, "injected");
            let patch = serde_json::to_vec(&patch).map_err(ReviewError)?;
            let patch = STANDARD.encode(patch);
            (json!({"uid": request.uid, "allowed": true, "patchType": "JSONPatch", "patch": patch}), "injected")
        }
        Decision::Skip(reason) => {
            tracing::info!(namespace = request.namespace, pod, reason, "not injected");
            (json!({"uid": request.uid, "allowed": true}), "skipped")
        }
        Decision::Refuse(message) => {
            tracing::warn!(namespace = request.namespace, pod, message, "refused");
            let status = json!({"code": 400, "reason": "BadRequest", "message": format!("Leno cannot inject this pod: {message}")});
            (json!({"uid": request.uid, "allowed": false, "status": status}), "refused")
        }
    };
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok((serde_json::to_vec(&review).map_err(ReviewError)?, result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(object: Value) -> Value {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u-1", "namespace": "shop", "object": object}});
        let (answer, _) = answer(review.to_string().as_bytes(), &Mesh::default()).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    #[test]
    fn review_when_the_pod_is_injected_then_has_the_uid_and_a_patch() {
        let answer = ask(json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], true);
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert!(serde_json::from_slice::<Value>(&patch).unwrap().as_array().is_some_and(|patch| !patch.is_empty()));
    }

    #[test]
    fn review_when_an_annotation_is_wrong_then_refuses_and_names_it() {
        let annotations = json!({"traffic.sidecar.istio.io/excludeInboundPorts": "http"});
        let answer = ask(json!({"metadata": {"name": "a", "annotations": annotations}, "spec": {"containers": []}}));
        assert_eq!(answer["response"]["allowed"], false);
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.contains("traffic.sidecar.istio.io/excludeInboundPorts"), "{message}");
    }

    #[test]
    fn review_when_it_is_something_else_then_an_error() {
        assert!(answer(b"{}", &Mesh::default()).is_err());
    }
}
