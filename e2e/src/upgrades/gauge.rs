//! What clients counted, and what restarted, between two moments.

use super::fleet::{BEYOND, FIGURES, FLEET, LOADER};
use crate::bed::Bed;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Failures of a scenario that are kept in words.
const WORDS: usize = 20;

/// A lane's figures since its loader began, as the demo tells them.
#[derive(Clone, Debug, Default, Deserialize)]
struct Lane {
    requests: u64,
    failed: u64,
    injected: u64,
    ended: u64,
    total_us: u64,
    words: Vec<(u64, String)>,
}

/// Lanes by loader and name.
type Lanes = BTreeMap<String, Lane>;
/// App containers by pod and name: the pod's uid, how often it was restarted, and since when it runs.
type Apps = BTreeMap<String, (String, u64, String)>;

/// A moment.
pub struct Gauge {
    began: Instant,
    at_ms: u64,
    lanes: Lanes,
    apps: Apps,
}

/// What happened between two moments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Requests that were sent.
    pub requests: u64,
    /// Of them, those that failed and that no bad build failed on purpose.
    pub failed_requests: u64,
    /// Of them, those that a bad build failed on purpose.
    pub failed_by_the_bad_build: u64,
    /// Containers of the app that restarted.
    pub app_restarts: u64,
    /// Containers of the app whose pod is gone, or another.
    #[serde(default)]
    pub replaced_pods: u64,
    /// Streams and long connections that ended; each was opened again at once.
    pub ended_streams: u64,
    /// Mean time of a request, milliseconds.
    pub mean_ms: f64,
    /// How long it took.
    pub seconds: f64,
    /// Failed requests by loader and lane, those without left out.
    pub failures: BTreeMap<String, u64>,
    /// The last failures, and what restarted, in words.
    pub words: Vec<String>,
}

impl Gauge {
    /// Now.
    ///
    /// # Errors
    /// When a loader does not tell its figures, or the API server does not answer.
    pub fn begin(bed: &Bed) -> Result<Gauge> {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        Ok(Gauge { began: Instant::now(), at_ms, lanes: lanes(bed)?, apps: apps(bed)? })
    }

    /// What happened since.
    ///
    /// # Errors
    /// As [`Gauge::begin`].
    pub fn end(&self, bed: &Bed) -> Result<Counted> {
        let seconds = self.began.elapsed().as_secs_f64();
        let (lanes, apps) = (lanes(bed)?, apps(bed)?);
        let mut counted = self.compare(&lanes, &apps);
        counted.seconds = (seconds * 10.0).round() / 10.0;
        Ok(counted)
    }

    fn compare(&self, lanes: &Lanes, apps: &Apps) -> Counted {
        let mut counted = Counted::default();
        let mut total_us = 0;
        for (name, now) in lanes {
            // A loader that was replaced begins at zero; that it was is counted below.
            let before = self.lanes.get(name).filter(|before| before.requests <= now.requests).cloned();
            let before = before.unwrap_or_default();
            counted.requests += now.requests - before.requests;
            let injected = now.injected - before.injected;
            let failed = (now.failed - before.failed).saturating_sub(injected);
            counted.failed_requests += failed;
            counted.failed_by_the_bad_build += injected;
            counted.ended_streams += now.ended - before.ended;
            total_us += now.total_us - before.total_us;
            if failed > 0 {
                counted.failures.insert(name.clone(), failed);
            }
            let recent = now.words.iter().filter(|(at, words)| *at >= self.at_ms && !words.starts_with("ended:"));
            for (at, words) in recent {
                let seconds = (at - self.at_ms) as f64 / 1000.0;
                counted.words.push(format!("{seconds:.1} s, {name}: {words}"));
            }
        }
        counted.words.truncate(WORDS);
        counted.mean_ms = (total_us as f64 / counted.requests.max(1) as f64 / 10.0).round() / 100.0;
        for (name, before) in &self.apps {
            let Some(now) = apps.get(name).filter(|now| now.0 == before.0) else {
                counted.replaced_pods += 1;
                continue;
            };
            if now.1 > before.1 {
                counted.app_restarts += now.1 - before.1;
                counted.words.push(format!("{name} restarted at {}", now.2));
            } else if now.2 != before.2 {
                counted.app_restarts += 1;
                counted.words.push(format!("{name} runs since {}, not {}", now.2, before.2));
            }
        }
        counted
    }
}

fn lanes(bed: &Bed) -> Result<Lanes> {
    let mut all = Lanes::new();
    for namespace in [FLEET, BEYOND] {
        let pod = format!("deploy/{LOADER}");
        let page = bed.wait("a loader's figures", Duration::from_secs(20), || {
            bed.demo(namespace, &pod, &["ask", FIGURES, "--print", "body"]).map(Some)
        })?;
        let lanes: BTreeMap<String, Lane> =
            serde_json::from_str(&page).with_context(|| format!("a loader says {page}"))?;
        all.extend(lanes.into_iter().map(|(name, lane)| (format!("{namespace}: {name}"), lane)));
    }
    Ok(all)
}

fn apps(bed: &Bed) -> Result<Apps> {
    let mut all = Apps::new();
    for namespace in [FLEET, BEYOND] {
        let pods = bed.get(&["pods", "-n", namespace])?;
        // Those that are about to go are gone.
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        for pod in pods["items"].as_array().into_iter().flatten().filter(stays) {
            all.extend(containers(pod));
        }
    }
    Ok(all)
}

/// The app's own containers of a pod; what Leno injected are init containers.
fn containers(pod: &Value) -> impl Iterator<Item = (String, (String, u64, String))> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pod["status"]["containerStatuses"].as_array().into_iter().flatten().map(move |status| {
        let name = format!(
            "{}/{} {}",
            text(&pod["metadata"]["namespace"]),
            text(&pod["metadata"]["name"]),
            text(&status["name"])
        );
        let since = text(&status["state"]["running"]["startedAt"]);
        (name, (text(&pod["metadata"]["uid"]), status["restartCount"].as_u64().unwrap_or(0), since))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(requests: u64, failed: u64, injected: u64, ended: u64) -> Lane {
        Lane { requests, failed, injected, ended, total_us: requests * 1000, words: Vec::new() }
    }

    fn app(uid: &str, restarts: u64) -> (String, u64, String) {
        (uid.to_owned(), restarts, "2026-01-01T00:00:00Z".to_owned())
    }

    #[test]
    fn compare_when_things_happen_between_then_only_these_are_counted() {
        let lanes = |lane: Lane| Lanes::from([("fleet: http1".to_owned(), lane)]);
        let apps = |one, two| Apps::from([("a/one app".to_owned(), one), ("a/two app".to_owned(), two)]);
        let before = Gauge {
            began: Instant::now(),
            at_ms: 0,
            lanes: lanes(lane(100, 7, 2, 1)),
            apps: apps(app("1", 3), app("2", 0)),
        };
        let same = before.compare(&lanes(lane(300, 7, 2, 1)), &apps(app("1", 3), app("2", 0)));
        assert_eq!((same.requests, same.failed_requests, same.app_restarts, same.ended_streams), (200, 0, 0, 0));
        assert_eq!(same.mean_ms, 1.0);
        let worse = before.compare(&lanes(lane(300, 20, 10, 4)), &apps(app("1", 5), app("3", 0)));
        assert_eq!((worse.failed_requests, worse.failed_by_the_bad_build, worse.ended_streams), (5, 8, 3));
        assert_eq!((worse.app_restarts, worse.replaced_pods, worse.failures["fleet: http1"]), (2, 1, 5));
        let replaced = before.compare(&lanes(lane(10, 1, 0, 0)), &Apps::new());
        assert_eq!((replaced.requests, replaced.failed_requests, replaced.replaced_pods), (10, 1, 2));
    }
}
