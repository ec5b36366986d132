//! The MeshInstall as an upgrade changes it: what is asked for, and what its status says.

use super::fleet::{FLEET, is_ready};
use crate::{
    bed::{Bed, condition_of, ensure},
    install::MESH,
};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(700);

/// The status of the MeshInstall, and its generation.
pub struct Seen(pub Value);

impl Seen {
    /// Of the default MeshInstall.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn now(bed: &Bed) -> Result<Seen> {
        Ok(Seen(bed.get(&MESH)?))
    }

    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, pointer: &str) -> i64 {
        self.0.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
    }

    /// Whether a change of release is under way.
    pub fn is_moving(&self) -> bool {
        self.0["status"]["upgrade"].is_object()
    }

    /// The step that is under way.
    pub fn step(&self) -> &str {
        self.text("/status/upgrade/step")
    }

    /// Pods in which the new release serves by now.
    pub fn moved(&self) -> i64 {
        self.number("/status/upgrade/wave/moved")
    }

    /// How the last change ended: from, to, result.
    pub fn last(&self) -> (&str, &str, &str) {
        (
            self.text("/status/lastUpgrade/from"),
            self.text("/status/lastUpgrade/to"),
            self.text("/status/lastUpgrade/result"),
        )
    }

    /// Whether this release is wanted and was rolled back.
    pub fn is_rejected(&self, version: &str) -> bool {
        let condition = condition_of(&self.0, "Upgrading").is_some_and(|condition| {
            condition["reason"] == "RolledBack" && condition["observedGeneration"] == self.0["metadata"]["generation"]
        });
        let (_, to, result) = self.last();
        condition
            && !self.is_moving()
            && result == "RolledBack"
            && to == version
            && self.text("/spec/version") == version
    }

    /// Pods by the release that serves in them, for people.
    pub fn versions(&self) -> String {
        let all = self.0["status"]["dataPlane"]["versions"].as_array().cloned().unwrap_or_default();
        let one = |entry: &Value| format!("{} x {}", entry["pods"], entry["version"].as_str().unwrap_or("?"));
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The release of the control plane, and of the data plane when it is of one.
    pub fn version(&self) -> String {
        let own = self.text("/status/version");
        match self.0["status"]["dataPlane"]["versions"].as_array().map(Vec::as_slice) {
            Some([one]) if one["version"] == own => own.to_owned(),
            Some([]) | None => own.to_owned(),
            _ => format!("{own} with {}", self.versions()),
        }
    }

    /// Whether everything runs `version` and nothing is under way.
    ///
    /// # Errors
    /// With what is otherwise.
    pub fn rests_on(&self, version: &str) -> Result<()> {
        let ready = condition_of(&self.0, "Ready").is_some_and(|ready| {
            ready["status"] == "True" && ready["observedGeneration"] == self.0["metadata"]["generation"]
        });
        ensure(ready && !self.is_moving(), || {
            format!("{}; {}", self.line(), condition_of(&self.0, "Ready").unwrap_or(&Value::Null))
        })?;
        self.runs(version)
    }

    /// Whether the control plane and every injected pod run `version`, wanted or not.
    ///
    /// # Errors
    /// With what runs.
    pub fn runs(&self, version: &str) -> Result<()> {
        let status = &self.0["status"];
        let (pods, versions) = (self.number("/status/dataPlane/total"), &status["dataPlane"]["versions"]);
        let all = pods == 0 || *versions == json!([{"version": version, "pods": pods}]);
        ensure(all && status["version"] == version, || self.line())
    }

    /// All of it that a person would look at, in a line.
    pub fn line(&self) -> String {
        let mut line = format!(
            "{} wanted {}, is {}, pods {}",
            self.text("/status/phase"),
            self.text("/spec/version"),
            self.text("/status/version"),
            self.versions()
        );
        if self.is_moving() {
            line += &format!(
                "; {} {}->{} wave {} {}/{} {}",
                self.step(),
                self.text("/status/upgrade/from"),
                self.text("/status/upgrade/to"),
                self.text("/status/upgrade/wave/summary"),
                self.moved(),
                self.number("/status/upgrade/wave/pods"),
                self.text("/status/upgrade/waitingFor"),
            );
            if !self.text("/status/upgrade/failure").is_empty() {
                line += &format!("; goes back: {}", self.text("/status/upgrade/failure"));
            }
        }
        line
    }
}

/// Changes the spec.
///
/// # Errors
/// With the API server's reason.
pub fn spec(bed: &Bed, spec: &Value) -> Result<()> {
    bed.patch(&MESH, &json!({"spec": spec})).map(drop)
}

/// Looks until `reached` finds what it looks for, and prints what has changed in between.
///
/// # Errors
/// After `limit`, with the last state.
pub fn follow<T>(
    bed: &Bed,
    what: &str,
    limit: Duration,
    mut reached: impl FnMut(&Seen) -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    let (mut last, mut why) = (String::new(), String::new());
    loop {
        match Seen::now(bed) {
            Ok(seen) => {
                let line = seen.line();
                if line != last {
                    println!("    {:6.1} s  {line}", begin.elapsed().as_secs_f64());
                    last = line;
                }
                match reached(&seen) {
                    Ok(Some(found)) => return Ok(found),
                    Ok(None) => why.clear(),
                    Err(error) => why = format!(": {error:#}"),
                }
            }
            // The API server may be away: that is a part of some scenarios.
            Err(error) => why = format!(": {error:#}"),
        }
        if begin.elapsed() >= limit {
            bail!("waited {} s for {what}; {last}{why}", limit.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until everything runs `version` and nothing is under way, and asks the pods too.
///
/// # Errors
/// After `limit`, with the last state.
pub fn rests_on(bed: &Bed, version: &str, limit: Duration) -> Result<()> {
    // The API server may be just about to come back.
    let before = bed.wait("the MeshInstall", Duration::from_secs(60), || Seen::now(bed).map(Some))?;
    let before = before.0["status"]["lastUpgrade"].clone();
    // Between a change of the spec and its first step the old state looks like rest: it must hold for a moment.
    let since = Cell::new(None);
    let back = follow(bed, &format!("everything to run {version}"), limit, |seen| match seen.rests_on(version) {
        Ok(()) => {
            let at = since.get().unwrap_or_else(Instant::now);
            since.set(Some(at));
            Ok((at.elapsed() > Duration::from_secs(3)).then_some(None))
        }
        // It will not be tried again by itself.
        Err(_) if seen.is_rejected(version) && seen.0["status"]["lastUpgrade"] != before => {
            Ok(Some(Some(seen.0["status"]["lastUpgrade"].to_string())))
        }
        Err(error) => {
            since.set(None);
            Err(error)
        }
    })?;
    if let Some(last) = back {
        bail!("release {version} was rolled back: {last}");
    }
    in_every_pod(bed, version)
}

/// Whether both slots of every pod of the fleet have the image of `version`, and the pods are ready.
///
/// # Errors
/// With the pod that is otherwise.
pub fn in_every_pod(bed: &Bed, version: &str) -> Result<()> {
    // A pod whose idle slot crashed is not ready before that slot runs again.
    bed.wait("every pod to have it in both slots and to be ready", Duration::from_secs(90), || {
        everywhere(bed, version).map(Some)
    })
}

fn everywhere(bed: &Bed, version: &str) -> Result<()> {
    let pods = bed.get(&["pods", "-n", FLEET])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = &pod["metadata"]["name"];
        ensure(is_ready(pod), || format!("pod {name} is not ready: {}", pod["status"]["conditions"]))?;
        for slot in slots(pod) {
            let image = slot["image"].as_str().unwrap_or_default();
            ensure(image.ends_with(&format!(":{version}")), || {
                format!("the status says {version}, and {} of pod {name} is {image}", slot["name"])
            })?;
        }
    }
    Ok(())
}

/// The injected proxies of a pod.
pub fn slots(pod: &Value) -> impl Iterator<Item = &Value> {
    let all = pod["spec"]["initContainers"].as_array();
    all.into_iter().flatten().filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with("leno-proxy-")))
}
