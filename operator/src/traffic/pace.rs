//! When a status is written: at once when it says something new, later when only figures move, never twice the same.
//!
//! Proxies come and go all the time (a rolling restart, a control plane replica that hands its proxies to the other), and
//! each time figures move. Writing each would load the API server with every pod of the mesh. So a generation that is in
//! force stays so for [`HOLD`] before it is called pending again, and figures are written when they did not move for
//! [`STEADY`]. Pure: the time is handed in.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use leno_kubeutil::conditions::{Status, Wanted};
use tokio::time::Instant;

use super::sum::{PROGRAMMED, Verdict};

/// One object's status is written at most once in this time.
pub const EVERY: Duration = Duration::from_secs(1);
/// A new generation gets so long to come into force before it is called pending.
pub const GRACE: Duration = Duration::from_millis(300);
/// A generation that was in force is called pending only after so long.
pub const HOLD: Duration = Duration::from_secs(5);
/// Figures alone are written when they did not move for so long.
pub const STEADY: Duration = Duration::from_secs(3);
/// A status that the API server refused for a generation is tried again after so long, or with the next generation.
pub const REFUSED: Duration = Duration::from_secs(60);

/// What is remembered of one object.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// The last verdict and since when it is the same.
    seen: Option<(i64, Verdict, Instant)>,
    /// When the status was last written.
    written: Option<Instant>,
    /// The generation for which it was last refused, and when.
    refused: Option<(i64, Instant)>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// The status says it already.
    Nothing,
    /// Look again after so long.
    Later(Duration),
    /// Write these conditions.
    Now(Vec<Wanted>),
}

impl Pace {
    /// Decides from the verdict now and the conditions that the object has.
    pub fn decide(&mut self, generation: i64, verdict: &Verdict, conditions: &[Condition], now: Instant) -> Due {
        let since = match &self.seen {
            Some((seen_generation, seen, since)) if *seen_generation == generation && seen == verdict => *since,
            _ => now,
        };
        self.seen = Some((generation, verdict.clone(), since));
        let mut wanted = verdict.conditions.clone();
        let present =
            |kind: &str| conditions.iter().find(|one| one.type_ == kind && one.observed_generation == Some(generation));
        // How long it took is said once for each generation: a later proxy does not make it slower.
        if let (Some(programmed), Some(before)) =
            (wanted.iter_mut().find(|condition| condition.kind == PROGRAMMED), present(PROGRAMMED))
            && figures(&programmed.message).is_some()
            && figures(&programmed.message) == figures(&before.message)
            && programmed.reason == before.reason
        {
            programmed.message.clone_from(&before.message);
        }
        let same = |condition: &Wanted| {
            present(condition.kind).is_some_and(|present| {
                present.status == condition.status.as_str()
                    && present.reason == condition.reason
                    && present.message == condition.message
            })
        };
        if wanted.iter().all(same) {
            return Due::Nothing;
        }
        let programmed_before = present(PROGRAMMED);
        let is_pending = |condition: &Wanted| condition.status == Status::False && condition.reason == "Pending";
        let pending = wanted.iter().any(|condition| condition.kind == PROGRAMMED && is_pending(condition));
        let only_figures = wanted.iter().all(|condition| {
            present(condition.kind).is_some_and(|present| {
                present.status == condition.status.as_str() && present.reason == condition.reason
            })
        });
        let quiet = match programmed_before {
            Some(before) if pending && before.status == "True" => HOLD,
            _ if pending => GRACE,
            _ if only_figures => STEADY,
            _ => Duration::ZERO,
        };
        let by_quiet = quiet.saturating_sub(now.duration_since(since));
        let by_rate = self.written.map(|written| EVERY.saturating_sub(now.duration_since(written))).unwrap_or_default();
        let by_refusal = match self.refused {
            Some((refused, at)) if refused == generation => REFUSED.saturating_sub(now.duration_since(at)),
            _ => Duration::ZERO,
        };
        match by_quiet.max(by_rate).max(by_refusal) {
            Duration::ZERO => Due::Now(wanted),
            wait => Due::Later(wait),
        }
    }

    /// The status was written.
    pub fn wrote(&mut self, now: Instant) {
        self.written = Some(now);
    }

    /// The API server does not take a status for this generation.
    pub fn refused(&mut self, generation: i64, now: Instant) {
        self.refused = Some((generation, now));
    }
}

/// `in force on 12 of 12 proxies`, without what follows.
fn figures(message: &str) -> Option<&str> {
    message.starts_with("in force on").then(|| message.split([',', ';']).next().unwrap_or(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use leno_kubeutil::conditions;

    fn verdict(status: bool, message: &str) -> Verdict {
        let condition = if status {
            Wanted::yes(PROGRAMMED, "Programmed", message)
        } else {
            Wanted::no(PROGRAMMED, "Pending", message)
        };
        Verdict { conditions: vec![condition], in_force: status, affected: 1 }
    }

    fn written(generation: i64, verdict: &Verdict) -> Vec<Condition> {
        let mut list = Vec::new();
        for wanted in &verdict.conditions {
            conditions::set(&mut list, wanted, generation, Timestamp::UNIX_EPOCH);
        }
        list
    }

    #[test]
    fn status_when_a_generation_comes_into_force_then_is_written_at_once() {
        let now = Instant::now();
        let verdict = verdict(true, "in force on 2 of 2 proxies, 30 ms");
        assert_eq!(Pace::default().decide(1, &verdict, &[], now), Due::Now(verdict.conditions.clone()));
    }

    #[test]
    fn status_when_it_says_it_already_then_nothing_is_written_whatever_the_time_it_took() {
        let before = written(1, &verdict(true, "in force on 2 of 2 proxies, 30 ms"));
        let now = verdict(true, "in force on 2 of 2 proxies, 9000 ms");
        assert_eq!(Pace::default().decide(1, &now, &before, Instant::now()), Due::Nothing);
    }

    #[test]
    fn status_when_only_figures_move_then_waits_until_they_are_steady() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let before = written(1, &verdict(true, "in force on 2 of 2 proxies, 30 ms"));
        let three = verdict(true, "in force on 3 of 3 proxies, 30 ms");
        let four = verdict(true, "in force on 4 of 4 proxies, 30 ms");
        assert_eq!(pace.decide(1, &three, &before, start), Due::Later(STEADY));
        assert_eq!(pace.decide(1, &four, &before, start + STEADY), Due::Later(STEADY));
        assert!(matches!(pace.decide(1, &four, &before, start + STEADY * 2), Due::Now(_)));
    }

    #[test]
    fn status_when_a_proxy_joins_then_a_generation_in_force_is_not_called_pending() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let before = written(1, &verdict(true, "in force on 2 of 2 proxies, 30 ms"));
        assert_eq!(pace.decide(1, &verdict(false, "in force on 2 of 3 proxies"), &before, start), Due::Later(HOLD));
    }

    #[test]
    fn status_when_written_a_moment_ago_then_waits() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.wrote(start);
        let verdict = verdict(true, "in force on 2 of 2 proxies, 30 ms");
        assert_eq!(pace.decide(2, &verdict, &[], start), Due::Later(EVERY));
    }

    #[test]
    fn status_when_refused_then_waits_long_unless_there_is_a_new_generation() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.wrote(start);
        pace.refused(1, start);
        let verdict = verdict(true, "in force on 2 of 2 proxies, 30 ms");
        assert_eq!(pace.decide(1, &verdict, &[], start + EVERY), Due::Later(REFUSED - EVERY));
        assert!(matches!(pace.decide(1, &verdict, &[], start + REFUSED), Due::Now(_)));
        assert!(matches!(pace.decide(2, &verdict, &[], start + EVERY), Due::Now(_)));
    }
}
