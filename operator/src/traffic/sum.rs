//! From what each replica says to what an object's status should say: pure.

use std::collections::{BTreeMap, BTreeSet};

use leno_api::status::v1::{Finding, ObjectReport, Report};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;

/// Condition: the object is valid.
pub const ACCEPTED: &str = "Accepted";
/// Condition: what the object names exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Condition: the object is in force on the proxies that it concerns.
pub const PROGRAMMED: &str = "Programmed";
/// Findings and rejections that a message names.
const NAMED: usize = 5;

/// A traffic object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its kind: `VirtualService` or `DestinationRule`.
    pub kind: String,
    /// Its namespace and name.
    pub key: Key,
}

/// What one replica knows.
#[derive(Debug, Default)]
struct View {
    objects: BTreeMap<Target, ObjectReport>,
    complete: bool,
}

/// What all replicas know.
#[derive(Debug, Default)]
pub struct Sums {
    views: BTreeMap<String, View>,
}

/// The figures of one object over all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The conditions.
    pub conditions: Vec<Wanted>,
    /// Whether it is in force everywhere.
    pub in_force: bool,
    /// Connected proxies that it concerns.
    pub affected: u32,
}

impl Sums {
    /// Takes in a report. Returns the objects that it is about.
    pub fn report(&mut self, replica: &str, report: Report) -> BTreeSet<Target> {
        let view = self.views.entry(replica.to_owned()).or_default();
        let mut touched = BTreeSet::new();
        if report.full {
            touched.extend(std::mem::take(&mut view.objects).into_keys());
            view.complete = true;
        }
        for object in report.objects {
            let Some(target) = object.object.as_ref().map(target) else { continue };
            touched.insert(target.clone());
            view.objects.insert(target, object);
        }
        for removed in &report.removed {
            view.objects.remove(&target(removed));
        }
        touched
    }

    /// Forgets a replica. Returns the objects that it knew.
    pub fn gone(&mut self, replica: &str) -> BTreeSet<Target> {
        self.views.remove(replica).map(|view| view.objects.into_keys().collect()).unwrap_or_default()
    }

    /// Replicas that have sent all they know.
    pub fn complete(&self) -> usize {
        self.views.values().filter(|view| view.complete).count()
    }

    /// What an object's status should say about `generation`; `None` while nobody has said anything about it.
    pub fn verdict(&self, target: &Target, generation: i64) -> Option<Verdict> {
        let complete: Vec<&View> = self.views.values().filter(|view| view.complete).collect();
        let reports: Vec<&ObjectReport> = complete.iter().filter_map(|view| view.objects.get(target)).collect();
        // An object that could not be read has no generation: 0. What is said about it is about the object as it is.
        let current: Vec<&&ObjectReport> =
            reports.iter().filter(|report| report.generation == generation || report.generation == 0).collect();
        if current.is_empty() {
            return None;
        }
        let findings: Vec<&Finding> = distinct(current.iter().flat_map(|report| &report.findings));
        let accepted = from_findings(ACCEPTED, &findings, "the object is valid");
        let resolved = from_findings(RESOLVED_REFS, &findings, "everything that the object names exists");
        let affected: u32 = current.iter().map(|report| report.affected).sum();
        let in_force: u32 = current.iter().map(|report| report.in_force).sum();
        let took = current.iter().map(|report| report.took_ms).max().unwrap_or(0);
        let behind = complete.len() - current.len();
        let rejections: Vec<String> = current
            .iter()
            .flat_map(|report| &report.rejections)
            .take(NAMED)
            .map(|rejection| format!("{}: {}", rejection.proxy, rejection.message))
            .collect();
        let programmed = from_findings(PROGRAMMED, &findings, "");
        let figures = format!("in force on {in_force} of {affected} proxies");
        let by_envoy: u32 = current.iter().map(|report| report.accepted_by_envoy).sum();
        let everywhere = behind == 0 && in_force == affected;
        let programmed = if is_false(&accepted) {
            Wanted::no(
                PROGRAMMED,
                "NotAccepted",
                "this generation is not in force, see Accepted; proxies keep the last good one",
            )
        } else if is_false(&programmed) {
            programmed
        } else if !rejections.is_empty() {
            Wanted::no(PROGRAMMED, "Rejected", format!("{figures}; refused by {}", rejections.join("; ")))
        } else if behind > 0 {
            Wanted::no(
                PROGRAMMED,
                "Pending",
                format!("{figures}; {behind} control plane replicas have not seen it yet"),
            )
        } else if affected == 0 {
            Wanted::yes(
                PROGRAMMED,
                "NotNeeded",
                join("no connected proxy is concerned", &remarks(PROGRAMMED, &findings)),
            )
        } else if everywhere {
            let remarks = remarks(PROGRAMMED, &findings);
            let figures = match by_envoy {
                0 => format!("{figures}, {took} ms"),
                _ => format!("{figures}, {took} ms; {by_envoy} of them run Envoy, which says that it accepted"),
            };
            Wanted::yes(PROGRAMMED, "Programmed", join(&figures, &remarks))
        } else {
            Wanted::no(PROGRAMMED, "Pending", figures)
        };
        let in_force = !is_false(&programmed);
        Some(Verdict { conditions: vec![accepted, resolved, programmed], in_force, affected })
    }
}

fn target(object: &leno_api::status::v1::ObjectRef) -> Target {
    Target { kind: object.kind.clone(), key: Key::new(object.namespace.clone(), object.name.clone()) }
}

fn is_false(condition: &Wanted) -> bool {
    condition.status == leno_kubeutil::conditions::Status::False
}

fn distinct<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<&'a Finding> {
    let mut seen = BTreeSet::new();
    let key = |finding: &Finding| {
        (finding.condition.clone(), finding.field.clone(), finding.reason.clone(), finding.message.clone())
    };
    let mut list: Vec<&Finding> = findings.filter(|finding| seen.insert(key(finding))).collect();
    list.sort_by_key(|finding| (finding.field.clone(), finding.message.clone()));
    list
}

fn from_findings(kind: &'static str, findings: &[&Finding], fine: &str) -> Wanted {
    let failing: Vec<&&Finding> =
        findings.iter().filter(|finding| finding.condition == kind && finding.failing).collect();
    match failing.first() {
        Some(first) => Wanted::no(kind, &first.reason, listed(&failing)),
        None => {
            let remarks: Vec<&&Finding> = findings.iter().filter(|finding| finding.condition == kind).collect();
            match remarks.first() {
                Some(first) => Wanted::yes(kind, &first.reason, join(fine, &listed(&remarks))),
                None => Wanted::yes(kind, kind, fine),
            }
        }
    }
}

fn remarks(kind: &str, findings: &[&Finding]) -> String {
    let remarks: Vec<&&Finding> =
        findings.iter().filter(|finding| finding.condition == kind && !finding.failing).collect();
    listed(&remarks)
}

fn listed(findings: &[&&Finding]) -> String {
    let mut lines: Vec<String> = findings
        .iter()
        .take(NAMED)
        .map(|finding| match finding.field.as_str() {
            "" => finding.message.clone(),
            field => format!("{field}: {}", finding.message),
        })
        .collect();
    if findings.len() > NAMED {
        lines.push(format!("and {} more", findings.len() - NAMED));
    }
    lines.join("; ")
}

fn join(first: &str, second: &str) -> String {
    match (first, second) {
        (one, "") | ("", one) => one.to_owned(),
        (first, second) => format!("{first}; {second}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_api::status::v1::{ObjectRef, Rejection};
    use leno_kubeutil::conditions::Status;

    fn object(generation: i64, affected: u32, in_force: u32, took_ms: u64) -> ObjectReport {
        ObjectReport {
            object: Some(ObjectRef {
                group: "networking.istio.io".to_owned(),
                kind: "VirtualService".to_owned(),
                namespace: "shop".to_owned(),
                name: "reviews".to_owned(),
            }),
            generation,
            affected,
            in_force,
            took_ms,
            ..ObjectReport::default()
        }
    }

    fn reviews() -> Target {
        Target { kind: "VirtualService".to_owned(), key: Key::new("shop", "reviews") }
    }

    fn full(objects: Vec<ObjectReport>) -> Report {
        Report { full: true, objects, ..Report::default() }
    }

    fn programmed(sums: &Sums, generation: i64) -> Wanted {
        sums.verdict(&reviews(), generation).unwrap().conditions.swap_remove(2)
    }

    #[test]
    fn figures_when_some_proxies_run_envoy_then_it_is_said() {
        let mut sums = Sums::default();
        sums.report("a", full(vec![ObjectReport { accepted_by_envoy: 2, ..object(3, 7, 7, 21) }]));
        sums.report("b", full(vec![ObjectReport { accepted_by_envoy: 1, ..object(3, 5, 5, 38) }]));
        let wanted = "in force on 12 of 12 proxies, 38 ms; 3 of them run Envoy, which says that it accepted";
        assert_eq!(programmed(&sums, 3).message, wanted);
    }

    #[test]
    fn figures_when_all_replicas_agree_then_are_summed_and_the_slowest_counts() {
        let mut sums = Sums::default();
        sums.report("a", full(vec![object(3, 7, 7, 21)]));
        sums.report("b", full(vec![object(3, 5, 5, 38)]));
        let condition = programmed(&sums, 3);
        assert_eq!((condition.status, condition.reason.as_str()), (Status::True, "Programmed"));
        assert_eq!(condition.message, "in force on 12 of 12 proxies, 38 ms");
    }

    #[test]
    fn figures_when_a_replica_has_an_older_generation_then_are_pending() {
        let mut sums = Sums::default();
        sums.report("a", full(vec![object(3, 7, 7, 21)]));
        sums.report("b", full(vec![object(2, 5, 5, 38)]));
        assert_eq!(programmed(&sums, 3).reason, "Pending");
        assert!(sums.verdict(&reviews(), 4).is_none());
    }

    #[test]
    fn object_when_no_proxy_is_concerned_then_is_not_needed() {
        let mut sums = Sums::default();
        sums.report("a", full(vec![object(1, 0, 0, 0)]));
        let condition = programmed(&sums, 1);
        assert_eq!((condition.status, condition.reason.as_str()), (Status::True, "NotNeeded"));
    }

    #[test]
    fn object_when_a_finding_fails_then_its_condition_names_the_field_and_nothing_is_programmed() {
        let mut sums = Sums::default();
        let mut report = object(1, 4, 4, 1);
        report.findings.push(Finding {
            condition: "Accepted".to_owned(),
            failing: true,
            reason: "InvalidRegex".to_owned(),
            field: "spec.http[0].match[0].uri.regex".to_owned(),
            message: "does not compile".to_owned(),
        });
        sums.report("a", full(vec![report.clone()]));
        sums.report("b", full(vec![report]));
        let conditions = sums.verdict(&reviews(), 1).unwrap().conditions;
        assert_eq!(conditions[0].message, "spec.http[0].match[0].uri.regex: does not compile");
        assert_eq!((conditions[0].status, conditions[2].reason.as_str()), (Status::False, "NotAccepted"));
    }

    #[test]
    fn object_when_a_proxy_refuses_it_then_the_message_names_the_proxy() {
        let mut sums = Sums::default();
        let mut report = object(1, 4, 3, 0);
        report.rejections.push(Rejection { proxy: "shop/web-1".to_owned(), message: "no such cluster".to_owned() });
        sums.report("a", full(vec![report]));
        let condition = programmed(&sums, 1);
        assert_eq!(condition.reason, "Rejected");
        assert!(condition.message.contains("shop/web-1: no such cluster"), "{}", condition.message);
    }

    #[test]
    fn object_when_it_could_not_be_read_then_its_status_says_so_whatever_its_generation() {
        let mut sums = Sums::default();
        let mut report = object(0, 0, 0, 0);
        report.findings.push(Finding {
            condition: "Accepted".to_owned(),
            failing: true,
            reason: "Malformed".to_owned(),
            message: "the object could not be read".to_owned(),
            ..Finding::default()
        });
        sums.report("a", full(vec![report]));
        let verdict = sums.verdict(&reviews(), 7).unwrap();
        assert_eq!((verdict.conditions[0].reason.as_str(), verdict.in_force), ("Malformed", false));
    }

    #[test]
    fn replica_when_gone_then_its_figures_do_not_count() {
        let mut sums = Sums::default();
        sums.report("a", full(vec![object(1, 2, 2, 5)]));
        sums.report("b", full(vec![object(1, 3, 1, 0)]));
        assert_eq!(sums.gone("b"), BTreeSet::from([reviews()]));
        assert_eq!(programmed(&sums, 1).message, "in force on 2 of 2 proxies, 5 ms");
    }
}
