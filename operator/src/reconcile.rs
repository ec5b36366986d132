//! The loop: observe, plan, apply, report; again after every change.
//!
//! Nothing is remembered from one round to the next but what saves writes, so a new leader goes on where the last stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use leno_kubeutil::apply::SETTLE;
use leno_kubeutil::backoff::Backoff;
use leno_kubeutil::events::{News, Recorder};
use leno_kubeutil::watch::Key;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::execute::Executor;
use crate::meter::History;
use crate::metrics::{Category, Metrics, What};
use crate::observe::Watches;
use crate::plan::{Observed, Plan, Step, leftovers, plan};
use crate::report::{Reporter, describe};

/// Changes are collected for so long after the first.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often what proxies report is remembered, for upgrades to compare with.
const REMEMBER: Duration = Duration::from_secs(10);
/// A look without a change, in case a watch lost one.
const AT_LATEST: Duration = Duration::from_secs(300);

/// Runs until `shutdown`.
pub async fn run(
    client: Client,
    watches: &Watches,
    recorder: Recorder,
    supported: Vec<String>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut loop_ = Loop {
        executor: Executor::new(client.clone()),
        reporter: Reporter::new(client, recorder.clone()),
        backoff: Backoff::new(),
        blocked: BTreeMap::new(),
        metrics,
        history: History::default(),
        settles: Instant::now(),
    };
    let leads_since = Timestamp::now();
    let mut due = Instant::now();
    let mut remember = tokio::time::interval(REMEMBER);
    remember.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = remember.tick() => {
                loop_.history.push(Timestamp::now(), &watches.reports().borrow().clone());
                continue;
            }
            () = tokio::time::sleep_until(due) => {}
            () = watches.changed() => tokio::time::sleep(DEBOUNCE).await,
        }
        for (key, error) in watches.malformed() {
            // The recorder publishes the same only once in a while.
            recorder.publish(malformed(&key, &error));
        }
        let started = Instant::now();
        let mut observed = watches.look(&supported);
        observed.now = Timestamp::now();
        observed.leads_since = leads_since;
        observed.history = loop_.history.clone();
        let next = loop_.round(&observed).await.min(AT_LATEST);
        due = when(Instant::now(), next, loop_.settles);
        loop_.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
    }
}

/// A MeshInstall that was written past its schema and cannot be read. Its mesh stays as it is.
fn malformed(key: &Key, error: &str) -> News {
    News {
        regarding: ObjectReference {
            api_version: Some("mesh.leno.dev/v1alpha1".to_owned()),
            kind: Some("MeshInstall".to_owned()),
            name: Some(key.name.clone()),
            ..ObjectReference::default()
        },
        warning: true,
        reason: "Malformed".to_owned(),
        action: "Read".to_owned(),
        note: format!("the MeshInstall cannot be read and its mesh stays as it is: {error}"),
    }
}

/// When to look next. What was written is looked at once it has settled, however many changes came meanwhile: an object
/// that somebody deletes just after it was written is not written again before.
fn when(now: Instant, next: Duration, settles: Instant) -> Instant {
    if settles > now { settles.min(now + next) } else { now + next }
}

/// How long until then; a moment at least.
fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default().max(SETTLE)
}

struct Loop {
    executor: Executor,
    reporter: Reporter,
    backoff: Backoff<String>,
    /// Installs whose last attempt failed: with what, and when to try again.
    blocked: BTreeMap<String, (String, Instant)>,
    metrics: Metrics,
    /// What proxies told in the last minute.
    history: History,
    /// When the last write of an object will have come back through its watch.
    settles: Instant,
}

impl Loop {
    /// One round for all MeshInstalls. Returns when the next is due without a change.
    async fn round(&mut self, observed: &Observed) -> Duration {
        self.metrics.plans.inc();
        let plans = match plan(observed) {
            Ok(plans) => plans,
            Err(error) => {
                tracing::error!(%error, "no plan can be made");
                return AT_LATEST;
            }
        };
        let mut next = AT_LATEST;
        self.blocked.retain(|name, _| plans.contains_key(name));
        self.reporter.retain(|name| plans.contains_key(name));
        for (name, plan) in &plans {
            next = next.min(self.one(name, plan, observed).await);
        }
        next.min(self.sweep(observed).await)
    }

    async fn one(&mut self, name: &str, plan: &Plan, observed: &Observed) -> Duration {
        let Some(install) = observed.installs.get(&Key::new("", name)) else { return AT_LATEST };
        let wakes = [
            plan.upgrade.as_ref().and_then(|outcome| outcome.wake),
            plan.revisions.as_ref().and_then(|revisions| revisions.wake),
        ];
        let mut next = wakes.into_iter().flatten().min().unwrap_or(AT_LATEST);
        if let Some(wake) = plan.authority.as_ref().and_then(|authority| authority.wake) {
            next = next.min(until(wake, observed.now));
        }
        let settled = plan.steps.iter().all(|step| match step {
            Step::Apply(desired) if desired.resource.kind == "Deployment" => !self.executor.is_due(desired, observed),
            Step::CreateNamespace(_) | Step::CreateAuthority { .. } | Step::HandOverReplicas { .. } => false,
            _ => true,
        });
        let waiting = self.blocked.get(name).map(|(_, until)| until.saturating_duration_since(Instant::now()));
        match waiting {
            Some(wait) if !wait.is_zero() => next = next.min(wait),
            _ => {
                let done = self.executor.run(name, install, &plan.steps, observed).await;
                self.metrics.writes.get_or_create(&What { what: "object" }).inc_by(done.writes);
                match done.error {
                    None => {
                        self.blocked.remove(name);
                        self.backoff.succeeded(&name.to_owned());
                    }
                    Some(error) => {
                        self.metrics.errors.get_or_create(&Category { category: error.category() }).inc();
                        let wait = self.backoff.failed(name.to_owned());
                        self.blocked.insert(name.to_owned(), (error.to_string(), Instant::now() + wait));
                        next = next.min(wait);
                    }
                }
                if done.writes > 0 {
                    self.settles = Instant::now() + SETTLE;
                }
            }
        }
        if plan.steps.iter().any(|step| matches!(step, Step::Finalizer { present: false })) {
            return next;
        }
        let problem = self.blocked.get(name).map(|(problem, _)| problem.as_str());
        match self.reporter.report(name, install, &describe(observed, name, install, plan, settled, problem)).await {
            Ok((wrote, wait)) => {
                self.metrics.writes.get_or_create(&What { what: "install_status" }).inc_by(u64::from(wrote));
                next.min(wait.unwrap_or(AT_LATEST))
            }
            // Gone or replaced meanwhile: the watch will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => next,
            Err(error) => {
                tracing::warn!(install = name, %error, "the status cannot be written");
                self.metrics.errors.get_or_create(&Category { category: "Status" }).inc();
                next.min(Duration::from_secs(5))
            }
        }
    }

    /// Removes what belongs to no MeshInstall any more.
    async fn sweep(&mut self, observed: &Observed) -> Duration {
        let orphans: Vec<Step> = leftovers(observed).into_iter().map(Step::Delete).collect();
        if orphans.is_empty() {
            return AT_LATEST;
        }
        let nobody = leno_crds::meshinstall::MeshInstall::default();
        let done = self.executor.run("(none)", &nobody, &orphans, observed).await;
        self.metrics.writes.get_or_create(&What { what: "object" }).inc_by(done.writes);
        if done.error.is_some() { Duration::from_secs(30) } else { AT_LATEST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_when_something_was_written_then_comes_again_once_that_settled_whatever_came_between() {
        let now = Instant::now();
        let (settles, later) = (now + SETTLE, now + Duration::from_secs(1));
        assert_eq!(when(later, AT_LATEST, settles), settles);
        assert_eq!(when(later, Duration::from_millis(5), settles), later + Duration::from_millis(5));
        assert_eq!(when(settles, AT_LATEST, settles), settles + AT_LATEST);
    }
}
