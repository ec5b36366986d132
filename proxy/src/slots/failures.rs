//! How often a slot that should serve did not, or ended soon: what is remembered from process to process.
//!
//! Whoever is active writes it; the file lies in the folder that the slots share, and is gone with the pod.

use super::{Folder, SlotError};
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::time::{Duration, SystemTime};

/// Failures that are longer ago than this, with none since, do not count any more.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// How long the other slot is left alone after its first failure; doubled by each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 2048;
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 8192;

/// The failures of one slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many followed each other.
    pub count: u32,
    /// When the last one was, milliseconds since the Unix epoch.
    pub last_ms: u64,
    /// What it was.
    pub reason: String,
}

impl Failures {
    /// What is remembered of a slot; nothing, when the file is not there or makes no sense.
    pub fn read(folder: &Folder, slot: u8, now: SystemTime) -> Self {
        let mut text = String::new();
        let read =
            std::fs::File::open(folder.failures(slot)).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        let failures: Self = read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default();
        if failures.since(now) > FORGOTTEN { Self::default() } else { failures }
    }

    /// Adds one and writes it down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, folder: &Folder, slot: u8, reason: &str, now: SystemTime) -> Result<(), SlotError> {
        let end = reason.char_indices().map(|(at, _)| at).take_while(|at| *at <= MAX_REASON).last().unwrap_or(0);
        let reason = if reason.len() > MAX_REASON { &reason[..end] } else { reason };
        *self = Self { count: self.count.saturating_add(1), last_ms: millis(now), reason: reason.to_owned() };
        let path = folder.failures(slot);
        let fresh = path.with_extension("new");
        let text = serde_json::to_string(self).map_err(std::io::Error::other)?;
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|source| SlotError::Path {
            doing: "writing",
            path,
            source,
        })
    }

    /// Forgets them.
    pub fn clear(&mut self, folder: &Folder, slot: u8) {
        *self = Self::default();
        if let Err(error) = std::fs::remove_file(folder.failures(slot))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, slot, "the failures of a slot cannot be forgotten");
        }
    }

    /// How long from now the slot is to be left alone.
    pub fn pause(&self, now: SystemTime) -> Duration {
        let Some(doublings) = self.count.checked_sub(1) else { return Duration::ZERO };
        let whole = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(doublings.min(16))).min(LONGEST_PAUSE);
        whole.saturating_sub(self.since(now))
    }

    /// The time since the last one; none, when the clock was set back.
    fn since(&self, now: SystemTime) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.last_ms))
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_when_they_follow_each_other_are_kept_and_the_pause_grows_to_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::new(directory.path());
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut failures = Failures::read(&folder, 1, begun);
        assert_eq!(failures.pause(begun), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            failures.add(&folder, 1, &"x".repeat(10_000), begun).unwrap();
            assert_eq!(Failures::read(&folder, 1, begun), failures);
            pauses.push(failures.pause(begun).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 120, 120]);
        assert_eq!(failures.pause(begun + Duration::from_secs(100)), Duration::from_secs(20));
        assert_eq!(Failures::read(&folder, 1, begun + Duration::from_secs(700)), Failures::default());
        assert_eq!(Failures::read(&folder, 0, begun), Failures::default(), "each slot has its own");
        failures.clear(&folder, 1);
        assert_eq!(Failures::read(&folder, 1, begun), Failures::default());
    }
}
