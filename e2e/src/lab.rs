//! Workloads for scenarios, written as they are needed: one call gives service account, service and deployment.

use crate::bed::Bed;
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Duration;

/// A namespace whose pods are injected.
pub const LAB: &str = "lab";
/// A namespace outside the mesh.
pub const OUTSIDE: &str = "outside";

/// How long a deployment may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// A deployment of the demo binary, with its service.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    namespace: String,
    version: String,
    replicas: u32,
    args: Vec<String>,
    service: Value,
    pod_labels: Value,
    pod_annotations: Value,
    container: Value,
    init_containers: Value,
}

impl App {
    /// An echo server on port 8080 behind a service `name` on port 80.
    pub fn echo(namespace: &str, name: &str) -> App {
        App {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            version: "v1".to_owned(),
            replicas: 1,
            args: ["echo", "--listen=0.0.0.0:8080"].map(str::to_owned).to_vec(),
            service: json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
            pod_labels: json!({}),
            pod_annotations: json!({}),
            container: json!({
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
            }),
            init_containers: json!([]),
        }
    }

    /// A place to send requests from; it has no service.
    pub fn client(namespace: &str, name: &str) -> App {
        let app = App::echo(namespace, name).args(&["idle"]);
        App { service: Value::Null, container: json!({}), ..app }
    }

    /// The arguments of the demo binary.
    pub fn args(mut self, args: &[&str]) -> App {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// The number of pods.
    pub fn replicas(self, replicas: u32) -> App {
        App { replicas, ..self }
    }

    /// The version label, and the version that answers carry.
    pub fn version(mut self, version: &str) -> App {
        self.version = version.to_owned();
        self.args.push(format!("--version={version}"));
        self
    }

    /// The spec of the service, but for its selector; `null` for none.
    pub fn service(self, service: Value) -> App {
        App { service, ..self }
    }

    /// Fields of the container, put over the usual ones.
    pub fn container(self, container: Value) -> App {
        App { container, ..self }
    }

    /// More labels of the pod.
    pub fn pod_labels(self, pod_labels: Value) -> App {
        App { pod_labels, ..self }
    }

    /// Annotations of the pod.
    pub fn pod_annotations(self, pod_annotations: Value) -> App {
        App { pod_annotations, ..self }
    }

    /// Init containers of the app.
    pub fn init_containers(self, init_containers: Value) -> App {
        App { init_containers, ..self }
    }

    /// The pod template, for what is not a deployment.
    pub fn template(&self, bed: &Bed) -> Value {
        let mut container = json!({
            "name": "app",
            "image": image(bed),
            "args": self.args,
            "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
            "securityContext": restricted(),
        });
        put(&mut container, &self.container);
        let mut labels = json!({"app": self.name, "version": self.version});
        put(&mut labels, &self.pod_labels);
        json!({
            "metadata": {"labels": labels, "annotations": self.pod_annotations},
            "spec": {
                "serviceAccountName": self.name,
                "automountServiceAccountToken": false,
                "initContainers": self.init_containers,
                "containers": [container],
            },
        })
    }

    /// All manifests, as a list in JSON.
    pub fn manifests(&self, bed: &Bed) -> String {
        let metadata = json!({"name": self.name, "namespace": self.namespace});
        let mut items = vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})];
        if self.service.is_object() {
            let mut spec = json!({"selector": {"app": self.name}});
            put(&mut spec, &self.service);
            items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
        }
        items.push(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "template": self.template(bed),
            },
        }));
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    /// Applies it.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn apply(&self, bed: &Bed) -> Result<()> {
        bed.apply(&self.manifests(bed)).map(drop)
    }

    /// Applies it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn deploy(&self, bed: &Bed) -> Result<()> {
        self.apply(bed)?;
        self.wait(bed)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait(&self, bed: &Bed) -> Result<()> {
        bed.wait_rollout(&self.namespace, &format!("deployment/{}", self.name), READY)
    }

    /// Removes what [`App::apply`] made, without waiting.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn remove(&self, bed: &Bed) -> Result<()> {
        let name = self.name.as_str();
        for kind in ["deployment", "service", "serviceaccount"] {
            bed.kubectl(&["-n", &self.namespace, "delete", kind, name, "--ignore-not-found", "--wait=false"])?;
        }
        Ok(())
    }
}

/// The image of the demo binary of this release.
pub fn image(bed: &Bed) -> String {
    format!("leno/demo:{}", bed.release.version)
}

/// What pod security "restricted" asks of a container.
pub fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn put(target: &mut Value, over: &Value) {
    if let (Some(target), Some(over)) = (target.as_object_mut(), over.as_object()) {
        target.extend(over.clone());
    }
}

/// A namespace, in the mesh or not.
pub fn namespace(name: &str, labels: Value) -> String {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string()
}

/// What most scenarios use: in the mesh `echo` (two pods, also headless, and with ports whose protocol is only found by
/// looking), `solo` (one pod), `stock` (TCP, the server speaks first) and `client`; outside of it `plain` and `client`.
fn apps() -> Vec<App> {
    let ports = json!({"ports": [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "looks", "port": 8081, "targetPort": 8080},
    ]});
    let stock = json!({"ports": [
        {"name": "tcp", "port": 9000, "targetPort": 9000},
        {"name": "looks", "port": 9001, "targetPort": 9000},
    ]});
    vec![
        App::echo(LAB, "echo").replicas(2).service(ports.clone()),
        App::echo(LAB, "solo").service(ports.clone()),
        App::echo(LAB, "stock").args(&["inventory", "--listen=0.0.0.0:9000"]).container(json!({})).service(stock),
        App::client(LAB, "client"),
        App::echo(OUTSIDE, "plain").service(ports),
        App::client(OUTSIDE, "client"),
    ]
}

/// Sets all of it up.
///
/// # Errors
/// When something is not ready in time.
pub fn set_up(bed: &Bed) -> Result<()> {
    bed.apply(&namespace(LAB, json!({"istio-injection": "enabled"})))?;
    bed.apply(&namespace(OUTSIDE, json!({})))?;
    let headless = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo-headless", "namespace": LAB},
        "spec": {"clusterIP": "None", "selector": {"app": "echo"}, "ports": [{"name": "http", "port": 8080, "targetPort": 8080}]},
    });
    bed.apply(&headless.to_string())?;
    let apps = apps();
    apps.iter().try_for_each(|app| app.apply(bed))?;
    apps.iter().try_for_each(|app| app.wait(bed))
}

/// Removes all of it, without waiting.
///
/// # Errors
/// With the API server's reason.
pub fn tear_down(bed: &Bed) -> Result<()> {
    bed.kubectl(&["delete", "namespace", LAB, OUTSIDE, "--ignore-not-found", "--wait=false"]).map(drop)
}
