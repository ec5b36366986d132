//! What there is to say about a configuration object: findings, which end up in its status conditions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::object::ObjectRef;

/// The condition of an object's status that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Condition {
    /// The object is valid.
    Accepted,
    /// What the object names exists.
    ResolvedRefs,
    /// The object is in force on the proxies.
    Programmed,
}

impl Condition {
    /// The condition's type, as it is written in a status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::Programmed => "Programmed",
        }
    }
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// The condition is false because of it.
    Failing,
    /// A remark; the condition may well be true.
    Remark,
}

/// Why there is a finding: a bounded set, in CamelCase as the Kubernetes API conventions ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The object could not be read at all.
    Malformed,
    /// A field has a value that means nothing.
    InvalidValue,
    /// A regular expression does not compile (RE2 syntax).
    InvalidRegex,
    /// A duration does not parse.
    InvalidDuration,
    /// Weights from which no shares can be made.
    InvalidWeights,
    /// More or fewer than one of several fields is given that exclude each other.
    NotExactlyOne,
    /// A host that is named is no service of the mesh.
    HostNotFound,
    /// A subset that is named is in no DestinationRule of the host.
    SubsetNotFound,
    /// A VirtualService whose rules are to be taken over does not exist, or is not for this namespace.
    DelegateNotFound,
    /// A port that is named is not one of the service, or none is named and the service has several.
    PortNotFound,
    /// A Secret that is named does not exist, may not be read, or does not hold what is needed.
    CredentialNotFound,
    /// An older object claims the same host.
    Conflict,
    /// The object tries to shape the traffic of another namespace.
    NotPermitted,
    /// A field that this release does not act upon yet.
    NotYetInForce,
    /// Nothing is wrong, but the object has no effect as it stands.
    NoEffect,
}

impl Reason {
    /// The reason, as it is written in a status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed",
            Self::InvalidValue => "InvalidValue",
            Self::InvalidRegex => "InvalidRegex",
            Self::InvalidDuration => "InvalidDuration",
            Self::InvalidWeights => "InvalidWeights",
            Self::NotExactlyOne => "NotExactlyOne",
            Self::HostNotFound => "HostNotFound",
            Self::SubsetNotFound => "SubsetNotFound",
            Self::DelegateNotFound => "DelegateNotFound",
            Self::PortNotFound => "PortNotFound",
            Self::CredentialNotFound => "CredentialNotFound",
            Self::Conflict => "Conflict",
            Self::NotPermitted => "NotPermitted",
            Self::NotYetInForce => "NotYetInForce",
            Self::NoEffect => "NoEffect",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that a person should know about one field of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// The object.
    pub object: ObjectRef,
    /// Its `metadata.generation` that was looked at; 0 when it has none.
    pub generation: i64,
    /// The condition that the finding is about.
    pub condition: Condition,
    /// Whether the condition is false because of it.
    pub severity: Severity,
    /// Why.
    pub reason: Reason,
    /// The field, as a path from the root: `spec.http[0].route[0].destination.host`. Empty for the whole object.
    pub field: String,
    /// What is wrong and what to do, for a person.
    pub message: String,
}

impl Finding {
    /// Whether the condition is false because of this finding.
    pub fn failing(&self) -> bool {
        self.severity == Severity::Failing
    }
}
