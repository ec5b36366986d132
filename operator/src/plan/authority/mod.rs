//! The authority of a mesh: made once, replaced on schedule, on demand, or when its user replaces it, and never so that a
//! handshake fails.
//!
//! ```text
//! stable        one authority signs, its roots are trusted
//!   ↓ Prepare   the next one is put into the Secret; its roots are trusted too: Secret, ConfigMaps, webhook
//! Distributing  until every proxy and every replica says that it trusts exactly these roots
//!   ↓ Switch    the next one signs; the ConfigMaps announce it, and proxies renew
//! Retiring      until every proxy shows a certificate of it, every replica signs with it, and the overlap is over
//!   ↓ Retire    only its roots are trusted
//! stable
//! ```
//!
//! The step is what the Secret holds ([`held`]); whom it waits for is what is observed ([`acks`]); all of it is pure.

pub mod acks;
pub mod ends;
pub mod held;
pub mod user;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use leno_crds::meshinstall::{CertificatesStatus, IssuerType, MeshInstall, RotationStatus};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;
use leno_runtime::trust::{announce, hex, roots_sha256, without_announcement};

use self::acks::{Census, showing, trusting};
pub use self::acks::{ReplicaTrust, Replicas};
pub use self::held::{Change, Held, Pair};
use super::{Observed, Step};
use crate::names;

/// Condition: no certificate of the authority ends soon, and what its user provides can be used.
pub const CERTIFICATES: &str = "CertificatesCurrent";

/// The authority as it is, and what is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// The trusted roots, PEM.
    pub roots: String,
    /// The same for the ConfigMaps of proxies, with what signs now in front.
    pub announced: String,
    /// What is to be changed in the Secret.
    pub change: Option<Change>,
    /// What is to be said.
    pub condition: Wanted,
    /// The same in figures.
    pub status: CertificatesStatus,
    /// When time alone may change something.
    pub wake: Option<Timestamp>,
}

/// What there is.
pub enum Look {
    /// An authority.
    There(Box<Outlook>),
    /// None yet: what makes one.
    Missing(Step),
    /// One that cannot be used, or nothing to make one from.
    Broken(String),
}

/// Looks at the authority of one MeshInstall.
pub fn look(observed: &Observed, name: &str, install: &MeshInstall) -> Look {
    let system = install.spec.system_namespace();
    let issuer = install.spec.certificates().issuer();
    let Some(secret) = observed.authorities.get(&Key::new(system, names::CA_SECRET)) else {
        if issuer == IssuerType::Secret
            && let Err(problem) = user::provided(observed, install)
        {
            return Look::Broken(problem);
        }
        return Look::Missing(Step::CreateAuthority { also_trust: roots_in_use(observed, name), issuer });
    };
    match Held::read(secret).and_then(|held| held.signer().map(|signer| (held, signer))) {
        Err(problem) => Look::Broken(format!("Secret {system}/{}: {problem}", names::CA_SECRET)),
        Ok((held, signer)) => {
            let rotation = rotation(observed, name, install, &held);
            let provided = match issuer {
                IssuerType::Secret => user::provided(observed, install).map(Some),
                IssuerType::SelfSigned => Ok(None),
            };
            let change = change(observed.now, install, &held, provided.as_ref().ok(), rotation.as_ref());
            let roots = held::to_pem(&held.roots);
            let status = status(&held, rotation.as_ref());
            let (condition, wake) =
                ends::condition(observed.now, install, &held, provided.err(), status.rotation.as_ref());
            Look::There(Box::new(Outlook {
                announced: announce(&signer, &roots),
                roots,
                change,
                condition,
                status,
                wake: [wake, rotation.and_then(|rotation| rotation.not_before)].into_iter().flatten().min(),
            }))
        }
    }
}

/// A rotation that is under way.
struct Rotation {
    step: &'static str,
    what: &'static str,
    census: Census,
    /// The step does not end before this.
    not_before: Option<Timestamp>,
}

impl Rotation {
    fn is_complete(&self) -> bool {
        self.not_before.is_none() && self.census.is_complete()
    }
}

fn rotation(observed: &Observed, name: &str, install: &MeshInstall, held: &Held) -> Option<Rotation> {
    if held.next.is_some() {
        let census = trusting(observed, name, install, &roots_sha256(&held.roots));
        return Some(Rotation { step: "Distributing", what: "trust both roots", census, not_before: None });
    }
    if !held.trusts_others() && !held.previous {
        return None;
    }
    let census = showing(observed, name, install, &held.signer().unwrap_or_default());
    let overlap = install.spec.certificates().overlap_seconds();
    let end = held.since.and_then(|since| Timestamp::from_second(since.as_second().saturating_add(overlap)).ok());
    let not_before = end.filter(|end| *end > observed.now);
    Some(Rotation { step: "Retiring", what: "use a certificate of the new authority", census, not_before })
}

/// The next change of the Secret. `provided` is what the user provides, if anything can be used; `Some(None)` when the
/// operator is to make one.
fn change(
    now: Timestamp,
    install: &MeshInstall,
    held: &Held,
    provided: Option<&Option<Pair>>,
    rotation: Option<&Rotation>,
) -> Option<Change> {
    let issuer = install.spec.certificates().issuer();
    let prepare = |why| Some(Change::Prepare { issuer, why });
    match (&held.next, provided) {
        // What was to sign is not wanted any more, and has never signed.
        (Some(_), _) if held.next_issuer != issuer => return Some(Change::Abandon),
        (Some((chain, ca)), Some(Some(pair))) if !user::is_same(pair, chain, ca) => {
            return if user::is_same(pair, &held.chain, &held.ca) {
                Some(Change::Abandon)
            } else {
                prepare("the user's Secret has changed again")
            };
        }
        _ => {}
    }
    match rotation {
        Some(rotation) if !rotation.is_complete() => return None,
        Some(_) if held.next.is_some() => return Some(Change::Switch),
        Some(_) => return Some(Change::Retire),
        None => {}
    }
    match provided? {
        Some(pair) if !user::is_same(pair, &held.chain, &held.ca) => prepare("the user's Secret is another"),
        Some(_) => None,
        None if held.issuer != IssuerType::SelfSigned => prepare("the operator is to make the authority"),
        None if held::asked(install).is_some_and(|value| held.rotate_root.as_deref() != Some(value)) => {
            prepare("the annotation asks for it")
        }
        None if ends::due(install, held).is_some_and(|due| due <= now) => prepare("its time has come"),
        None => None,
    }
}

fn status(held: &Held, rotation: Option<&Rotation>) -> CertificatesStatus {
    let time = |certificates: &[_]| ends::earliest(certificates).map(Time);
    CertificatesStatus {
        issuer: held.issuer.as_str().to_owned(),
        root_not_after: time(&held.ca),
        issuer_not_after: time(&held.chain),
        roots_sha256: hex(&roots_sha256(&held.roots)),
        trusted_roots: i32::try_from(held.roots.len()).unwrap_or(i32::MAX),
        rotate_root: held.rotate_root.clone().unwrap_or_default(),
        rotation: rotation.map(|rotation| {
            let lacking = rotation.census.lacking.len();
            let words = rotation.census.words(rotation.what);
            let waiting_for = match (rotation.census.is_complete(), rotation.not_before) {
                (false, _) => words,
                (true, Some(end)) => format!("the end of the overlap (spec.certificates.overlapMinutes) at {end}"),
                (true, None) => String::new(),
            };
            let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
            RotationStatus {
                step: rotation.step.to_owned(),
                since: held.since.map(Time),
                pods: count(rotation.census.pods - lacking),
                of_pods: count(rotation.census.pods),
                waiting_for,
            }
        }),
    }
}

/// The roots that proxies trust now, for when the Secret is gone and they are not.
fn roots_in_use(observed: &Observed, name: &str) -> String {
    let maps = observed.owned.iter().filter(|(id, object)| {
        id.kind == "ConfigMap" && object.labels().get(names::INSTANCE).is_some_and(|instance| instance == name)
    });
    let mut roots = maps
        .map(|(_, object): (_, &Arc<_>)| object)
        .filter_map(|object| object.data.pointer("/data/roots.pem").and_then(serde_json::Value::as_str));
    without_announcement(roots.next().unwrap_or_default()).to_owned()
}

#[cfg(test)]
mod tests;
