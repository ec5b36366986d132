//! What becomes of requests, as outlier detection counts it: by each worker for itself, told to the one place that decides.

use super::Host;
use crate::config::{Care, ClusterId, Consecutive, OutlierDetection, Report};
use std::cell::Cell;

/// Requests after which counts are told, where rates matter.
const TELL_AFTER: u32 = 16;

/// What became of a request at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered with this status (of HTTP; gRPC's is mapped, see [`Outcome::grpc`]).
    Status(u16),
    /// It was not: no connection, or it broke.
    Failed,
    /// It was not in time.
    Timeout,
    /// There is a connection, whatever comes of it.
    Connected,
}

impl Outcome {
    /// An answer with a status of gRPC, as the status of HTTP that means the same.
    pub fn grpc(status: u16) -> Self {
        Self::Status(match status {
            0 => 200,
            1 => 499,
            3 | 9 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            11 => 400,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        })
    }
}

/// Counts of one endpoint, of one worker.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    server: Cell<u32>,
    gateway: Cell<u32>,
    local: Cell<u32>,
    answers: Cell<(u32, u32)>,
    way: Cell<(u32, u32)>,
}

/// Counts on or begins anew; true when the threshold is reached, and then it begins anew as well.
fn failed(count: &Cell<u32>, failed: bool, threshold: u32) -> bool {
    let now = if failed { count.get() + 1 } else { 0 };
    let reached = failed && now == threshold;
    count.set(if reached { 0 } else { now });
    reached
}

fn add(count: &Cell<(u32, u32)>, good: bool) {
    let (successes, all) = count.get();
    count.set((successes + u32::from(good), all + 1));
}

impl Tallies {
    /// Counts failures in a row from none: the endpoint is back, and what was before is not held against it.
    pub(super) fn begin_anew(&self) {
        [&self.server, &self.gateway, &self.local].into_iter().for_each(|count| count.set(0));
    }

    /// Takes in what became of a request. A count that has reached its threshold.
    fn note(&self, outcome: Outcome, settings: &OutlierDetection) -> [Option<Consecutive>; 2] {
        let outcome = match (outcome, &settings.failures) {
            (Outcome::Status(status), Some(failures)) => {
                Outcome::Status(if failures.contains(status) { 500 } else { 200 })
            }
            (outcome, _) => outcome,
        };
        let status = match (outcome, settings.split) {
            (Outcome::Connected, true) => {
                failed(&self.local, false, 0);
                add(&self.way, true);
                return [None, None];
            }
            (Outcome::Connected, false) => return [None, None],
            (Outcome::Status(status), _) => status,
            (Outcome::Failed | Outcome::Timeout, true) => {
                add(&self.way, false);
                let reached = failed(&self.local, true, settings.consecutive_local);
                return [reached.then_some(Consecutive::LocalFailures), None];
            }
            (Outcome::Failed, false) => 503,
            (Outcome::Timeout, false) => 504,
        };
        let bad = (500..600).contains(&status);
        add(&self.answers, !bad);
        let gateway = failed(&self.gateway, matches!(status, 502..=504), settings.consecutive_gateway);
        let server = failed(&self.server, bad, settings.consecutive_5xx);
        [gateway.then_some(Consecutive::GatewayErrors), server.then_some(Consecutive::ServerErrors)]
    }
}

impl Host {
    /// Takes note of what became of a request, for outlier detection.
    pub(super) fn note(&self, cluster: ClusterId, outcome: Outcome, settings: &OutlierDetection, care: &Care) {
        let tallies = &self.state.tallies;
        let address = self.address();
        for kind in tallies.note(outcome, settings).into_iter().flatten() {
            care.report(Report::Consecutive { cluster, address, kind });
        }
        if settings.counts_rates() && tallies.answers.get().1.max(tallies.way.get().1) >= TELL_AFTER {
            self.tell(cluster, care);
        }
    }

    /// Tells what was counted since the last time.
    pub(super) fn tell(&self, cluster: ClusterId, care: &Care) {
        let tallies = &self.state.tallies;
        let (answers, way) = (tallies.answers.take(), tallies.way.take());
        if answers.1 > 0 || way.1 > 0 {
            care.report(Report::Counts { cluster, address: self.address(), answers, way });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(tallies: &Tallies, outcome: Outcome, settings: &OutlierDetection) -> Vec<Consecutive> {
        tallies.note(outcome, settings).into_iter().flatten().collect()
    }

    #[test]
    fn tallies_when_failures_come_in_a_row_then_each_count_tells_at_its_threshold() {
        let settings = OutlierDetection { consecutive_5xx: 3, consecutive_gateway: 2, ..OutlierDetection::default() };
        let tallies = Tallies::default();
        assert_eq!(reached(&tallies, Outcome::Status(500), &settings), []);
        assert_eq!(reached(&tallies, Outcome::Status(503), &settings), []);
        let both = [Consecutive::GatewayErrors, Consecutive::ServerErrors];
        assert_eq!(reached(&tallies, Outcome::Failed, &settings), both, "no connection is a 503");
        assert_eq!(reached(&tallies, Outcome::Status(500), &settings), []);
        assert_eq!(reached(&tallies, Outcome::Status(200), &settings), []);
        assert_eq!(reached(&tallies, Outcome::Status(500), &settings), [], "a success begins anew");
    }

    #[test]
    fn tallies_when_the_endpoint_comes_back_then_failures_from_before_do_not_count() {
        use crate::config::{Endpoint, Failed};
        use std::sync::Arc;
        let settings = OutlierDetection::default();
        let at = |check| {
            let failed = Failed { check, ..Failed::default() };
            Arc::new(Endpoint { failed, ..Endpoint::new(([127, 0, 0, 1], 1).into()) })
        };
        let host = Host::new(at(false), Arc::default());
        let fails = |host: &Host| reached(&host.state.tallies, Outcome::Status(500), &settings);
        (0..4).for_each(|_| assert_eq!(fails(&host), []));
        let out = host.renewed(at(true));
        let back = out.renewed(at(false));
        (0..4).for_each(|_| assert_eq!(fails(&back), []));
        assert_eq!(fails(&back), [Consecutive::ServerErrors]);
    }

    #[test]
    fn tallies_when_the_way_is_kept_apart_then_answers_do_not_count_for_it() {
        let settings = OutlierDetection { consecutive_local: 2, split: true, ..OutlierDetection::default() };
        let tallies = Tallies::default();
        assert_eq!(reached(&tallies, Outcome::Timeout, &settings), []);
        assert_eq!(reached(&tallies, Outcome::Failed, &settings), [Consecutive::LocalFailures]);
        assert_eq!(reached(&tallies, Outcome::Failed, &settings), []);
        assert_eq!(reached(&tallies, Outcome::Connected, &settings), []);
        assert_eq!(reached(&tallies, Outcome::Failed, &settings), [], "a connection begins anew");
        assert_eq!(reached(&tallies, Outcome::Status(500), &settings), []);
        assert_eq!(reached(&tallies, Outcome::Failed, &settings), [Consecutive::LocalFailures], "an answer does not");
        assert_eq!((tallies.way.get(), tallies.answers.get()), ((1, 6), (0, 1)));
        assert_eq!(Outcome::grpc(14), Outcome::Status(503));
    }
}
