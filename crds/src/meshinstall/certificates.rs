//! The authority of a mesh: where it comes from, when it is replaced, and what is seen of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The annotation of a MeshInstall that has the authority replaced: every value that was not there before does it once.
pub const ROTATE_ROOT: &str = "mesh.leno.dev/rotate-root";
/// The Secret of a user who provides the authority, in the namespace of the control plane.
pub const USER_SECRET: &str = "leno-issuer";
const DAY: i64 = 24 * 3600;

/// The authority that signs certificates of workloads, of the control plane and of its webhook. Whenever it is replaced, the
/// old root stays trusted beside the new one until every proxy and every replica of the control plane has acknowledged the
/// new one and shows a certificate of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("!has(self.rotateBeforeDays) || self.rotateBeforeDays < (has(self.rootLifetimeDays) ? self.rootLifetimeDays : 3650)",
     "rotateBeforeDays must be less than rootLifetimeDays, which is 3650 unless given"),
])))]
pub struct Certificates {
    /// Where the authority comes from, `SelfSigned` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<IssuerType>,
    /// How long a root lasts that the operator makes, in days; 3650 unless given. For roots that are made from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub root_lifetime_days: Option<i32>,
    /// How long before its end a root is replaced that the operator made, in days; a fifth of `rootLifetimeDays` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 36500))]
    pub rotate_before_days: Option<i32>,
    /// How long the old root stays trusted at least after the new one has begun to sign, in minutes; 1 unless given. For
    /// those who trust the mesh's roots and are no part of it; the mesh itself waits for acknowledgements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 525_600))]
    pub overlap_minutes: Option<i32>,
}

/// Where an authority comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IssuerType {
    /// The operator makes a root, and replaces it in time.
    #[default]
    SelfSigned,
    /// It is taken from the Secret `leno-issuer` in the namespace of the control plane: `tls.crt` (the certificate, followed by
    /// what leads to the root), `tls.key` and `ca.crt` (the root), as cert-manager writes them. The operator only reads it.
    /// When it changes, the mesh follows, with the same overlap.
    Secret,
}

impl IssuerType {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            IssuerType::SelfSigned => "SelfSigned",
            IssuerType::Secret => "Secret",
        }
    }
}

impl Certificates {
    /// Where the authority comes from.
    pub fn issuer(&self) -> IssuerType {
        self.issuer.unwrap_or_default()
    }

    /// How long a root lasts that the operator makes, seconds.
    pub fn root_lifetime_seconds(&self) -> i64 {
        i64::from(self.root_lifetime_days.unwrap_or(3650)) * DAY
    }

    /// How long before its end such a root is replaced, seconds.
    pub fn rotate_before_seconds(&self) -> i64 {
        self.rotate_before_days.map_or_else(|| self.root_lifetime_seconds() / 5, |days| i64::from(days) * DAY)
    }

    /// How long the old root stays trusted at least, seconds.
    pub fn overlap_seconds(&self) -> i64 {
        i64::from(self.overlap_minutes.unwrap_or(1)) * 60
    }
}

/// The authority as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificatesStatus {
    /// Where the authority comes from that signs now: `SelfSigned` or `Secret`.
    pub issuer: String,
    /// When its root ends; the earliest, where it has more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub root_not_after: Option<Time>,
    /// When the certificate that signs ends, and so every certificate that it signed: that of the root, or of an intermediate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub issuer_not_after: Option<Time>,
    /// SHA-256 of the roots that are trusted now (their DER forms, sorted, one after the other), hexadecimal: what proxies
    /// acknowledge.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub roots_sha256: String,
    /// Roots that are trusted now: more than one while one replaces another.
    #[serde(default)]
    pub trusted_roots: i32,
    /// The value of the annotation `mesh.leno.dev/rotate-root` that was last obeyed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rotate_root: String,
    /// The replacement that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
}

/// One authority replaces another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationStatus {
    /// `Distributing`: the new root is trusted beside the old one, which goes on signing, until all have acknowledged it.
    /// `Retiring`: the new one signs, and the old one is trusted until nobody shows a certificate of it.
    pub step: String,
    /// Since when, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub since: Option<Time>,
    /// Injected pods that are done with this step.
    pub pods: i32,
    /// Injected pods that must be.
    pub of_pods: i32,
    /// What is being waited for, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting_for: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_when_little_is_given_then_the_rest_has_meaning() {
        let default = Certificates::default();
        assert_eq!(default.issuer(), IssuerType::SelfSigned);
        assert_eq!((default.root_lifetime_seconds(), default.rotate_before_seconds()), (3650 * DAY, 730 * DAY));
        assert_eq!(default.overlap_seconds(), 60);
        let short: Certificates =
            serde_yaml::from_str("{issuer: Secret, rootLifetimeDays: 10, overlapMinutes: 0}").unwrap();
        assert_eq!((short.issuer(), short.rotate_before_seconds()), (IssuerType::Secret, 2 * DAY));
        assert_eq!(short.overlap_seconds(), 0);
    }
}
