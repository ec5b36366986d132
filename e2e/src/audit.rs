//! What Leno writes to the cluster, from the API server's audit log.

use crate::{
    bed::Bed,
    cluster::Target,
    install::{MESH, SYSTEM},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The audit log of a local cluster.
pub struct Audit(PathBuf);

impl Audit {
    /// Of the bed's cluster; `None` where it cannot be read from here.
    pub fn of(bed: &Bed) -> Option<Audit> {
        match &bed.target {
            Target::Local(cluster) => Some(Audit(cluster.audit_log())),
            Target::External(_) => None,
        }
    }

    /// Where the log ends now.
    ///
    /// # Errors
    /// When there is none.
    pub fn end(&self) -> Result<usize> {
        Ok(fs::metadata(&self.0).with_context(|| self.0.display().to_string())?.len() as usize)
    }

    /// Writes of operator and control plane since then, but for leases and token reviews.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes(&self, from: usize) -> Result<Vec<String>> {
        let text = fs::read(&self.0)?;
        let text = String::from_utf8_lossy(text.get(from..).unwrap_or_default());
        let by_us = format!("system:serviceaccount:{SYSTEM}:leno-");
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| {
                event["stage"] == "ResponseComplete"
                    && event["user"]["username"].as_str().is_some_and(|user| user.starts_with(&by_us))
            })
            .filter(|event| {
                matches!(event["verb"].as_str(), Some("create" | "update" | "patch" | "delete" | "deletecollection"))
            })
            .filter(|event| !matches!(event["objectRef"]["resource"].as_str(), Some("leases" | "tokenreviews")))
            .map(|event| {
                let body = event.get("requestObject").map(|body| format!(": {body}")).unwrap_or_default();
                format!(
                    "{} {} {}/{} at {}{body}",
                    event["verb"],
                    event["objectRef"]["resource"],
                    event["objectRef"]["namespace"],
                    event["objectRef"]["name"],
                    event["requestReceivedTimestamp"]
                )
            })
            .collect())
    }

    /// Waits until nothing was written for ten seconds.
    ///
    /// # Errors
    /// After a minute.
    pub fn settle(&self, bed: &Bed) -> Result<()> {
        let mut from = self.end()?;
        let mut quiet = Instant::now();
        bed.wait("ten seconds without a write", Duration::from_secs(60), || {
            let seen = self.writes(from)?;
            if !seen.is_empty() {
                from = self.end()?;
                quiet = Instant::now();
            }
            Ok((quiet.elapsed() > Duration::from_secs(10)).then_some(()))
        })
    }

    /// Fails at the first write within `window`. `meanwhile` is called each second.
    ///
    /// # Errors
    /// With what was written.
    pub fn stays_quiet(&self, bed: &Bed, window: Duration, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        let from = self.end()?;
        let before = bed.get(&MESH)?["status"].to_string();
        bed.stays("at rest", window, || {
            meanwhile()?;
            let seen = self.writes(from)?;
            std::thread::sleep(Duration::from_secs(1));
            if seen.is_empty() { Ok(()) } else { bail!("{} writes: {}; before: {before}", seen.len(), seen.join("; ")) }
        })
    }
}
