//! When certificates of the authority end, when they are replaced, and how that is said: thirty days, seven days and one day
//! ahead, each a reason of its own, so that each is an event.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{IssuerType, MeshInstall, RotationStatus, USER_SECRET};
use leno_kubeutil::conditions::Wanted;
use leno_runtime::certs::describe;
use leno_runtime::trust::is_self_signed;
use rustls_pki_types::CertificateDer;

use super::CERTIFICATES;
use super::held::Held;

const DAY: i64 = 24 * 3600;

/// How close an end is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    Ended,
    OneDay,
    SevenDays,
    ThirtyDays,
    Far,
}

/// From when on an end is so close, before the end. What lives shortly by design is warned of in the last quarter of its life.
const STEPS: [(Closeness, i64); 4] = [
    (Closeness::Ended, 0),
    (Closeness::OneDay, DAY),
    (Closeness::SevenDays, 7 * DAY),
    (Closeness::ThirtyDays, 30 * DAY),
];

/// A certificate of the authority.
struct End {
    root: bool,
    name: String,
    not_after: Timestamp,
    lifetime: i64,
}

impl End {
    fn of(certificate: &CertificateDer<'static>) -> Option<Self> {
        let info = describe(certificate).ok()?;
        let (from, not_after) = (instant(info.not_before)?, instant(info.not_after)?);
        Some(End {
            root: is_self_signed(certificate),
            name: info.common_name.unwrap_or_default(),
            not_after,
            lifetime: not_after.as_second() - from.as_second(),
        })
    }

    /// When `before` seconds before the end are reached, or a quarter of the life if that is later.
    fn step(&self, before: i64) -> Timestamp {
        at(self.not_after.as_second() - before.min(self.lifetime / 4))
    }

    fn closeness(&self, now: Timestamp) -> Closeness {
        STEPS.iter().find(|(_, before)| self.step(*before) <= now).map_or(Closeness::Far, |(close, _)| *close)
    }

    fn reason(&self, closeness: Closeness) -> &'static str {
        match (self.root, closeness) {
            (true, Closeness::Ended) => "RootEnded",
            (true, Closeness::OneDay) => "RootEndsWithinOneDay",
            (true, Closeness::SevenDays) => "RootEndsWithinSevenDays",
            (true, _) => "RootEndsWithinThirtyDays",
            (false, Closeness::Ended) => "IntermediateEnded",
            (false, Closeness::OneDay) => "IntermediateEndsWithinOneDay",
            (false, Closeness::SevenDays) => "IntermediateEndsWithinSevenDays",
            (false, _) => "IntermediateEndsWithinThirtyDays",
        }
    }
}

/// What is to be said, and when time alone changes it. `problem` is what is wrong with what the user provides.
pub fn condition(
    now: Timestamp,
    install: &MeshInstall,
    held: &Held,
    problem: Option<String>,
    rotation: Option<&RotationStatus>,
) -> (Wanted, Option<Timestamp>) {
    let mut ends: Vec<End> = held.chain.iter().chain(held.ca.iter()).filter_map(End::of).collect();
    ends.sort_by_key(|end| (end.closeness(now), end.not_after));
    let steps = ends.iter().flat_map(|end| STEPS.iter().map(|(_, before)| end.step(*before)));
    let wake = steps.chain(due(install, held)).filter(|step| *step > now).min();
    let under_way = rotation.map(|rotation| match (rotation.step.as_str(), rotation.waiting_for.as_str()) {
        (_, "") => "the next step of the rotation follows at once".to_owned(),
        (_, waiting_for) => format!("waiting for {waiting_for}"),
    });
    let Some(first) = ends.first() else {
        return (Wanted::unknown(CERTIFICATES, "Unreadable", "no certificate of the authority can be read"), wake);
    };
    let closeness = first.closeness(now);
    let what = if first.root { "root" } else { "intermediate" };
    let end = format!("the {what} {:?} ends at {}", first.name, first.not_after);
    if let Some(problem) = problem {
        let message = format!("{problem}. What signed before goes on: {end}");
        return (Wanted::no(CERTIFICATES, "UserSecretUnusable", message), wake);
    }
    if closeness != Closeness::Far {
        let remedy = match (&under_way, held.issuer) {
            (Some(under_way), _) => format!("it is being replaced, {under_way}"),
            (None, IssuerType::SelfSigned) => {
                "the operator replaces it by itself as soon as spec.certificates lets it; the annotation mesh.leno.dev/rotate-root with a new value has it do so now".to_owned()
            }
            (None, IssuerType::Secret) => format!(
                "renew Secret {}/{USER_SECRET} (cert-manager does by itself, if its Certificate says renewBefore), and the mesh follows",
                install.spec.system_namespace(),
            ),
        };
        return (Wanted::no(CERTIFICATES, first.reason(closeness), format!("{end}; {remedy}")), wake);
    }
    let condition = match (rotation, under_way) {
        (Some(rotation), Some(under_way)) if rotation.step == "Distributing" => Wanted::yes(
            CERTIFICATES,
            "DistributingRoot",
            format!("a new root is trusted beside the old one, which goes on signing; {under_way}"),
        ),
        (Some(_), Some(under_way)) => Wanted::yes(
            CERTIFICATES,
            "RetiringRoot",
            format!("the new authority signs, and the old root is still trusted; {under_way}"),
        ),
        _ => {
            let next = match due(install, held) {
                Some(due) => format!("the operator replaces it from {due} on"),
                None => format!("Secret {}/{USER_SECRET} replaces it", install.spec.system_namespace()),
            };
            Wanted::yes(CERTIFICATES, "Current", format!("{end}; {next}"))
        }
    };
    (condition, wake)
}

/// When a root that the operator made is to be replaced; `None` for others.
pub fn due(install: &MeshInstall, held: &Held) -> Option<Timestamp> {
    let certificates = install.spec.certificates();
    let made = held.issuer == IssuerType::SelfSigned && certificates.issuer() == IssuerType::SelfSigned;
    let end = earliest(held.chain.get(..1)?)?;
    made.then(|| at(end.as_second().saturating_sub(certificates.rotate_before_seconds())))
}

/// When the first of them ends.
pub fn earliest(certificates: &[CertificateDer<'static>]) -> Option<Timestamp> {
    certificates.iter().filter_map(|certificate| instant(describe(certificate).ok()?.not_after)).min()
}

fn instant(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}
