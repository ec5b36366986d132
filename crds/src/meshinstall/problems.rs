//! What is wrong with a spec by itself.

use super::MeshInstallSpec;

/// Something in a spec that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, of a bounded set.
    pub reason: &'static str,
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl MeshInstallSpec {
    /// What is wrong with the spec by itself. The schema refuses the same; this is for objects written past it.
    /// `supported` are the releases that the operator can render.
    pub fn problems(&self, supported: &[String]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |reason, field, message: String| problems.push(Problem { reason, field, message });
        if !supported.contains(&self.version) {
            problem(
                "UnknownVersion",
                "spec.version",
                format!(
                    "spec.version: this operator does not know release {:?}, only {}; upgrade the operator first (its Helm chart), or write one of these",
                    self.version,
                    supported.join(" and "),
                ),
            );
        }
        if self.autoscaling().is_none() && self.replicas() < 1 {
            problem(
                "NoReplicas",
                "spec.controlPlane.replicas",
                format!(
                    "spec.controlPlane.replicas: {} leaves no control plane, and no pod could start in the mesh; write at least 1, or delete the MeshInstall to remove the mesh",
                    self.replicas(),
                ),
            );
        }
        if let Some(autoscaling) = self.autoscaling()
            && (autoscaling.min_replicas() < 1 || autoscaling.max_replicas < autoscaling.min_replicas())
        {
            problem(
                "BadAutoscaling",
                "spec.controlPlane.autoscaling",
                format!(
                    "spec.controlPlane.autoscaling: from {} to {} replicas is no range; minReplicas must be at least 1 and not greater than maxReplicas",
                    autoscaling.min_replicas(),
                    autoscaling.max_replicas,
                ),
            );
        }
        let certificates = self.certificates();
        if certificates.root_lifetime_seconds() <= 0
            || !(0..certificates.root_lifetime_seconds()).contains(&certificates.rotate_before_seconds())
            || certificates.overlap_seconds() < 0
        {
            problem(
                "BadCertificates",
                "spec.certificates",
                "spec.certificates: a root must last at least a day and be replaced less than its lifetime before its end; write rootLifetimeDays of at least 1, a smaller rotateBeforeDays, and overlapMinutes of at least 0".to_owned(),
            );
        }
        if !is_dns_name(self.trust_domain()) {
            problem(
                "BadTrustDomain",
                "spec.mesh.trustDomain",
                format!(
                    "spec.mesh.trustDomain: {:?} cannot be part of an identity; write a DNS name in lower case such as cluster.local",
                    self.trust_domain(),
                ),
            );
        }
        if self.system_namespace().starts_with("kube-") || !is_dns_label(self.system_namespace()) {
            problem(
                "BadNamespace",
                "spec.namespace",
                format!(
                    "spec.namespace: {:?} cannot hold a control plane; write the name of a namespace that is not Kubernetes' own",
                    self.system_namespace(),
                ),
            );
        }
        problems
    }
}

fn is_dns_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|byte| inside(*byte))
        && bytes.last().is_some_and(|byte| inside(*byte))
        && bytes.iter().all(|byte| inside(*byte) || *byte == b'-')
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshinstall::{MtlsMode, OutboundMode};

    fn spec(yaml: &str) -> MeshInstallSpec {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn reasons(spec: &MeshInstallSpec) -> Vec<&'static str> {
        spec.problems(&["0.1.0".to_owned(), "0.0.9".to_owned()]).iter().map(|problem| problem.reason).collect()
    }

    #[test]
    fn spec_when_only_the_version_is_given_then_the_rest_has_meaning() {
        let spec = spec("version: 0.1.0");
        assert_eq!(spec.system_namespace(), "leno-system");
        assert_eq!(spec.trust_domain(), "cluster.local");
        assert_eq!((spec.replicas(), spec.mtls(), spec.outbound()), (2, MtlsMode::Permissive, OutboundMode::AllowAny));
        assert_eq!(spec.image("proxy"), "docker.io/leno/proxy:0.1.0");
        assert!(reasons(&spec).is_empty());
    }

    #[test]
    fn spec_when_the_design_writes_it_then_it_parses() {
        let spec = spec(
            "{version: 0.0.9, namespace: leno-system, image: {hub: '', pullPolicy: IfNotPresent}, \
             controlPlane: {replicas: 2, autoscaling: null, resources: {}}, dataPlane: {engine: leno, resources: {}}, \
             mesh: {trustDomain: cluster.local, mtls: Permissive, outbound: AllowAny, namespaces: {}}}",
        );
        assert!(reasons(&spec).is_empty());
        assert_eq!(spec.image("control-plane"), "docker.io/leno/control-plane:0.0.9");
    }

    #[test]
    fn spec_when_it_cannot_be_then_every_problem_names_its_field() {
        let spec = spec(
            "{version: 9.9.9, namespace: kube-system, controlPlane: {replicas: 0}, dataPlane: {engine: envoy}, \
             mesh: {trustDomain: 'Not A Domain'}}",
        );
        assert_eq!(reasons(&spec), ["UnknownVersion", "NoReplicas", "BadTrustDomain", "BadNamespace"]);
        for problem in spec.problems(&[]) {
            assert!(problem.message.starts_with(problem.field), "{}", problem.message);
        }
    }
}
