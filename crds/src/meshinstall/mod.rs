//! `MeshInstall`: one object brings a mesh, changes it, and takes it away.
//!
//! Fields that may be left out stay out when the object is written back; what they then mean is in the getters of
//! [`MeshInstallSpec`], in one place for operator and control plane. The schema refuses what it can know to be wrong; the
//! operator checks the same again ([`MeshInstallSpec::problems`]), since objects can be written past a schema.

mod certificates;
mod definition;
mod problems;
mod revision;
mod status;
mod update;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use certificates::{Certificates, CertificatesStatus, IssuerType, ROTATE_ROOT, RotationStatus, USER_SECRET};
pub use definition::definition;
pub use problems::Problem;
pub use revision::{
    CANARY, ControlPlaneUpdateStrategy, ControlPlaneUpdateType, DEFAULT_GRACE_PERIOD, RevisionStatus, STABLE,
};
pub use status::{
    ControlPlaneStatus, DataPlaneStatus, Measured, MeshInstallStatus, PastUpgrade, UpgradeStatus, VersionCount,
    Wave as WaveStatus,
};
pub use update::{Gate, MaintenanceWindow, QuietGate, UpdateStrategy, UpdateType, Wave};

/// Where the control plane runs when nothing is said.
pub const DEFAULT_NAMESPACE: &str = "leno-system";
/// The trust domain when nothing is said.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Where images come from when nothing is said.
pub const DEFAULT_HUB: &str = "docker.io/leno";
/// Control plane replicas when nothing is said.
pub const DEFAULT_REPLICAS: i32 = 2;
/// The annotation on a MeshInstall that allows deleting it while injected pods run.
pub const ALLOW_DELETE_IN_USE: &str = "mesh.leno.dev/allow-delete-in-use";

/// A service mesh in this cluster: a control plane, and sidecars in the pods of the namespaces that ask for them. The
/// operator keeps it as written here. Delete the object to remove the mesh; that is refused while injected pods run.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mesh.leno.dev",
    version = "v1alpha1",
    kind = "MeshInstall",
    plural = "meshinstalls",
    singular = "meshinstall",
    shortname = "mesh",
    status = "MeshInstallStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("(has(self.namespace) ? self.namespace : 'leno-system') == (has(oldSelf.namespace) ? oldSelf.namespace : 'leno-system')",
     "spec.namespace cannot change; create another MeshInstall and move the workloads"),
    ("(has(self.mesh) && has(self.mesh.trustDomain) ? self.mesh.trustDomain : 'cluster.local') == (has(oldSelf.mesh) && has(oldSelf.mesh.trustDomain) ? oldSelf.mesh.trustDomain : 'cluster.local')",
     "spec.mesh.trustDomain cannot change, since every identity in the mesh contains it; create another MeshInstall and move the workloads"),
])))]
pub struct MeshInstallSpec {
    /// The release to run, exactly, for example `0.1.0`: images and manifests of that release. An operator knows its own
    /// release and the one before it, so upgrade the operator first.
    #[schemars(
        length(min = 5, max = 64),
        regex(pattern = r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?$")
    )]
    pub version: String,
    /// The namespace of the control plane, `leno-system` unless given. It is created when it does not exist. It cannot
    /// change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "namespace_name")]
    pub namespace: Option<String>,
    /// Where the images come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// The control plane: how many replicas, how large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneSpec>,
    /// The data plane: the sidecars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_plane: Option<DataPlaneSpec>,
    /// What holds for the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshSpec>,
    /// The authority that signs certificates, and when it is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Certificates>,
}

/// Where images come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Registry and path in front of the image names, for example `registry.example.com/leno`, `docker.io/leno` unless
    /// given. The images are `<hub>/control-plane:<version>`, `<hub>/proxy:<version>` and, for sidecars that run Envoy,
    /// `<hub>/envoy:<version>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = r"^([a-zA-Z0-9][-a-zA-Z0-9._:/]*[a-zA-Z0-9])?$"))]
    pub hub: Option<String>,
    /// When nodes pull images, `IfNotPresent` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Names of Secrets in the control plane's namespace with which its images are pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub pull_secrets: Vec<String>,
}

/// When nodes pull images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start of a container.
    Always,
    /// When the node does not have the image.
    #[default]
    IfNotPresent,
    /// Never: the image must be on the node.
    Never,
}

impl PullPolicy {
    /// As pods write it.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// The control plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("!has(self.replicas) || self.replicas >= 1 || has(self.autoscaling)",
     "replicas must be at least 1: without a control plane no pod can start in the mesh; delete the MeshInstall to remove it"),
])))]
pub struct ControlPlaneSpec {
    /// Replicas, all of which serve; 2 unless given. With `autoscaling` it is ignored: the autoscaler decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<i32>,
    /// Lets a HorizontalPodAutoscaler decide the number of replicas. It starts from the number that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// What one replica asks for and may use: `cpu`, `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How the control plane gets to another release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<ControlPlaneUpdateStrategy>,
}

/// Bounds and target of the autoscaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("!has(self.minReplicas) || self.minReplicas <= self.maxReplicas", "minReplicas must not be greater than maxReplicas"),
    ("has(self.minReplicas) || self.maxReplicas >= 2", "maxReplicas must be at least minReplicas, which is 2 unless given"),
])))]
pub struct Autoscaling {
    /// Fewest replicas, 2 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_replicas: Option<i32>,
    /// Most replicas.
    #[schemars(range(min = 1, max = 100))]
    pub max_replicas: i32,
    /// CPU use, in percent of what is requested, at which a replica is added; 80 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "targetCPUUtilizationPercentage")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_utilization_percentage: Option<i32>,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is set aside on the node, for example `{cpu: 100m, memory: 64Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, IntOrString>,
    /// What may be used at most, for example `{memory: 256Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, IntOrString>,
}

/// The data plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPlaneSpec {
    /// What the sidecars run, `leno` unless given. For pods that are created from now on (`status.dataPlane.toRestart` counts the
    /// others); the annotation `mesh.leno.dev/engine` on a pod goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// What one sidecar asks for and may use: `cpu`, `memory`. For pods that are created from now on (`status.dataPlane.toRestart`
    /// counts the others); the annotations `sidecar.istio.io/proxyCPU` and its like on a pod go before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How running sidecars get to another release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
}

/// What the sidecars run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Leno's own proxy.
    #[default]
    Leno,
    /// Envoy, under Leno's agent: the same control plane, certificates, probes and metrics.
    Envoy,
}

impl From<Engine> for leno_core::service::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Leno => leno_core::service::Engine::Leno,
            Engine::Envoy => leno_core::service::Engine::Envoy,
        }
    }
}

/// What holds for the whole mesh. Changes apply to running proxies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// The first part of every identity, `spiffe://<trustDomain>/ns/<namespace>/sa/<service account>`; `cluster.local`
    /// unless given. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub trust_domain: Option<String>,
    /// Whether sidecars accept traffic that is not mutual TLS, `Permissive` unless given. Between sidecars it always is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsMode>,
    /// What happens to traffic to destinations that no service is known for, `AllowAny` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<OutboundMode>,
    /// Which namespaces belong to the mesh, by their labels; all unless given. `kube-*` and the control plane's own never
    /// do. A namespace that two MeshInstalls select belongs to the older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_selector")]
    pub namespaces: Option<LabelSelector>,
}

/// Whether sidecars accept traffic that is not mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Mutual TLS from other sidecars, plain text from everybody else.
    #[default]
    Permissive,
    /// Mutual TLS only. Workloads without a sidecar cannot call those in the mesh.
    Strict,
}

/// What happens to traffic to unknown destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutboundMode {
    /// It passes unchanged.
    #[default]
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

impl MeshInstallSpec {
    /// The namespace of the control plane.
    pub fn system_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.mesh.as_ref().and_then(|mesh| mesh.trust_domain.as_deref()).unwrap_or(DEFAULT_TRUST_DOMAIN)
    }

    /// Whether plain text is accepted.
    pub fn mtls(&self) -> MtlsMode {
        self.mesh.as_ref().and_then(|mesh| mesh.mtls).unwrap_or_default()
    }

    /// What happens to traffic to unknown destinations.
    pub fn outbound(&self) -> OutboundMode {
        self.mesh.as_ref().and_then(|mesh| mesh.outbound).unwrap_or_default()
    }

    /// Which namespaces belong to the mesh; `None` or empty is all.
    pub fn namespaces(&self) -> Option<&LabelSelector> {
        self.mesh.as_ref().and_then(|mesh| mesh.namespaces.as_ref())
    }

    /// What the sidecars run.
    pub fn engine(&self) -> Engine {
        self.data_plane.as_ref().and_then(|data_plane| data_plane.engine).unwrap_or_default()
    }

    /// The autoscaler's settings.
    pub fn autoscaling(&self) -> Option<&Autoscaling> {
        self.control_plane.as_ref().and_then(|control_plane| control_plane.autoscaling.as_ref())
    }

    /// Replicas of the control plane when there is no autoscaler.
    pub fn replicas(&self) -> i32 {
        self.control_plane.as_ref().and_then(|control_plane| control_plane.replicas).unwrap_or(DEFAULT_REPLICAS)
    }

    /// When nodes pull images.
    pub fn pull_policy(&self) -> PullPolicy {
        self.image.as_ref().and_then(|image| image.pull_policy).unwrap_or_default()
    }

    /// The image of a component (`control-plane`, `proxy`, `envoy`) in the wanted release.
    pub fn image(&self, component: &str) -> String {
        self.image_of(component, &self.version)
    }

    /// The image of a component in another release.
    pub fn image_of(&self, component: &str, version: &str) -> String {
        let hub = self.image.as_ref().and_then(|image| image.hub.as_deref()).filter(|hub| !hub.is_empty());
        format!("{}/{component}:{}", hub.unwrap_or(DEFAULT_HUB).trim_end_matches('/'), version)
    }

    /// The authority that signs certificates.
    pub fn certificates(&self) -> Certificates {
        self.certificates.clone().unwrap_or_default()
    }

    /// How running sidecars get to another release.
    pub fn update_strategy(&self) -> UpdateStrategy {
        self.data_plane.as_ref().and_then(|data_plane| data_plane.update_strategy.clone()).unwrap_or_default()
    }
}

impl Autoscaling {
    /// Fewest replicas.
    pub fn min_replicas(&self) -> i32 {
        self.min_replicas.unwrap_or(DEFAULT_REPLICAS)
    }

    /// CPU use, in percent of what is requested, at which a replica is added.
    pub fn target_cpu(&self) -> i32 {
        self.target_cpu_utilization_percentage.unwrap_or(80)
    }
}

fn namespace_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 63,
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "x-kubernetes-validations": crate::schema::rules(&[
            ("!self.startsWith('kube-')", "namespaces kube-* are Kubernetes' own; name another, such as leno-system"),
        ]),
    })
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "x-kubernetes-int-or-string": true,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
        },
    })
}

pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": { "type": "string", "maxLength": 63 },
                "description": "Labels that must be there, with these values.",
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 64,
                "description": "Conditions on labels, all of which must hold.",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "minLength": 1, "maxLength": 317, "description": "The label." },
                        "operator": {
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "What must hold of it.",
                        },
                        "values": {
                            "type": "array",
                            "maxItems": 64,
                            "items": { "type": "string", "maxLength": 63 },
                            "description": "The values for `In` and `NotIn`.",
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "message": "In and NotIn need values; Exists and DoesNotExist take none",
                    }],
                },
            },
        },
    })
}
