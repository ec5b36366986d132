//! What the new release must not do worse than the old one.

use leno_crds::meshinstall::{Gate, Measured, QuietGate};

/// Rates of so many failed requests or fewer are chance.
const CHANCE: i64 = 2;

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look on.
    Wait(String),
    /// Go on.
    Pass,
    /// Turn back.
    Fail {
        /// CamelCase, of a bounded set.
        reason: &'static str,
        /// What was seen.
        message: String,
    },
}

/// Judges a release by what its proxies counted, `elapsed` seconds of looking at it after all of a wave serve. What fails by much fails at once,
/// not at the end of the window; what is slow must be slow for half of it, since a busy moment is nobody's fault. `times` says
/// whether it is known enough to compare how long requests take.
pub fn judge(gate: &Gate, old: &Measured, new: &Measured, elapsed: i64, times: bool) -> Verdict {
    let fail = |reason, message: String| Verdict::Fail { reason, message };
    if new.rejected > old.rejected {
        return fail(
            "ConfigurationRejected",
            format!("the new release refused configuration {} times, the old {} times", new.rejected, old.rejected),
        );
    }
    let grown = new.resident_mebibytes - old.resident_mebibytes;
    if old.resident_mebibytes > 0 && grown > gate.max_memory_increase_mebibytes() {
        return fail(
            "Memory",
            format!(
                "a proxy of the new release takes {} MiB, those of the old at most {} MiB; allowed are {} MiB more",
                new.resident_mebibytes,
                old.resident_mebibytes,
                gate.max_memory_increase_mebibytes(),
            ),
        );
    }
    let enough = new.requests >= gate.min_requests();
    if enough {
        let (was, is) = (percent(old), percent(new));
        if new.failures > CHANCE && is - was > gate.max_failure_increase_percent() as f64 {
            return fail(
                "Failures",
                format!(
                    "{} of {} requests failed ({is:.1} %), with the old release {was:.1} %; allowed are {} percentage points more",
                    new.failures,
                    new.requests,
                    gate.max_failure_increase_percent(),
                ),
            );
        }
        // Without anything to compare with, slow is no news.
        if times && old.requests >= gate.min_requests() && elapsed * 2 >= gate.window_seconds() {
            for (what, was, is) in [("mean", old.mean_ms, new.mean_ms), ("90th percentile", old.p90_ms, new.p90_ms)] {
                let more = is - was;
                if more > gate.max_latency_increase_milliseconds()
                    && more * 100 > was * gate.max_latency_increase_percent()
                {
                    return fail(
                        "Latency",
                        format!(
                            "requests take {is} ms ({what}), with the old release {was} ms; allowed are {} % and {} ms more",
                            gate.max_latency_increase_percent(),
                            gate.max_latency_increase_milliseconds(),
                        ),
                    );
                }
            }
        }
    }
    let window = gate.window_seconds();
    if elapsed < window {
        return Verdict::Wait(format!("the gate to look at the new release for {window} s"));
    }
    if !enough && gate.when_quiet() == QuietGate::Wait {
        return Verdict::Wait(format!("{} requests, of which {} came so far", gate.min_requests(), new.requests));
    }
    Verdict::Pass
}

/// Of two measurements of the old release the worse in every respect.
pub fn worse(before: Measured, meanwhile: &Measured) -> Measured {
    let fails_more = percent(meanwhile) > percent(&before);
    let (requests, failures) =
        if fails_more { (meanwhile.requests, meanwhile.failures) } else { (before.requests, before.failures) };
    Measured {
        requests,
        failures,
        p90_ms: before.p90_ms.max(meanwhile.p90_ms),
        mean_ms: before.mean_ms.max(meanwhile.mean_ms),
        rejected: before.rejected,
        resident_mebibytes: before.resident_mebibytes.max(meanwhile.resident_mebibytes),
    }
}

fn percent(measured: &Measured) -> f64 {
    if measured.requests == 0 { 0.0 } else { measured.failures as f64 * 100.0 / measured.requests as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(requests: i64, failures: i64, p90_ms: i64) -> Measured {
        Measured { requests, failures, p90_ms, mean_ms: p90_ms / 2, ..Measured::default() }
    }

    fn reason(old: &Measured, new: &Measured, elapsed: i64) -> &'static str {
        match judge(&Gate::default(), old, new, elapsed, true) {
            Verdict::Wait(_) => "wait",
            Verdict::Pass => "pass",
            Verdict::Fail { reason, .. } => reason,
        }
    }

    #[test]
    fn gate_when_nothing_is_worse_then_passes_at_the_end_of_its_window() {
        let (old, new) = (measured(1000, 10, 5), measured(500, 6, 5));
        assert_eq!(reason(&old, &new, 29), "wait");
        assert_eq!(reason(&old, &new, 30), "pass");
    }

    #[test]
    fn gate_when_one_in_ten_fails_then_fails_at_once_but_not_for_what_failed_before() {
        assert_eq!(reason(&measured(1000, 0, 5), &measured(100, 10, 5), 1), "Failures");
        assert_eq!(reason(&measured(1000, 100, 5), &measured(100, 10, 5), 30), "pass");
        assert_eq!(reason(&measured(1000, 0, 5), &measured(60, 2, 5), 30), "pass", "two are chance");
    }

    #[test]
    fn gate_when_slower_by_much_then_fails_but_not_for_a_few_milliseconds() {
        assert_eq!(reason(&measured(1000, 0, 5), &measured(100, 0, 250), 14), "wait", "a busy moment");
        assert_eq!(reason(&measured(1000, 0, 5), &measured(100, 0, 250), 15), "Latency");
        assert_eq!(reason(&measured(1000, 0, 5), &measured(100, 0, 50), 30), "pass");
        assert_eq!(reason(&measured(1000, 0, 1000), &measured(100, 0, 1200), 30), "pass");
        assert_eq!(reason(&measured(0, 0, 0), &measured(100, 0, 1200), 30), "pass", "nothing to compare with");
    }

    #[test]
    fn gate_when_it_is_not_known_how_long_requests_take_then_only_failures_count() {
        let (old, slow) = (measured(1000, 0, 5), measured(100, 0, 250));
        assert_eq!(judge(&Gate::default(), &old, &slow, 30, false), Verdict::Pass);
        let fails = judge(&Gate::default(), &old, &measured(100, 10, 250), 1, false);
        assert!(matches!(fails, Verdict::Fail { reason: "Failures", .. }), "{fails:?}");
    }

    #[test]
    fn gate_when_configuration_is_refused_or_memory_grows_then_fails_without_a_request() {
        let refused = Measured { rejected: 1, ..Measured::default() };
        assert_eq!(reason(&Measured::default(), &refused, 0), "ConfigurationRejected");
        assert_eq!(reason(&refused, &refused, 30), "pass", "the old one refuses it as well");
        let memory = |resident_mebibytes| Measured { resident_mebibytes, ..Measured::default() };
        assert_eq!(reason(&memory(14), &memory(90), 0), "Memory");
    }

    #[test]
    fn gate_when_the_old_release_becomes_slow_as_well_then_the_node_is_to_blame() {
        let old = worse(measured(1000, 0, 5), &measured(100, 5, 250));
        assert_eq!(reason(&old, &measured(100, 5, 250), 30), "pass");
        assert_eq!(reason(&old, &measured(100, 20, 250), 30), "Failures");
        assert_eq!(worse(measured(10, 1, 5), &Measured::default()), measured(10, 1, 5));
    }

    #[test]
    fn gate_when_quiet_then_proceeds_or_waits_as_told() {
        assert_eq!(reason(&Measured::default(), &measured(3, 3, 5), 30), "pass");
        let gate = Gate { when_quiet: Some(QuietGate::Wait), ..Gate::default() };
        assert!(matches!(judge(&gate, &Measured::default(), &measured(3, 0, 5), 300, true), Verdict::Wait(_)));
    }
}
