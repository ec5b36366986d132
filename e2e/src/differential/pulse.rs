//! Notices when the machine itself stands still: what hangs meanwhile says nothing about a proxy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(20);
/// A beat that is so late says that nothing ran; half of the shortest limit of time in cases.
const STALL: Duration = Duration::from_millis(100);

/// A thread that looks at the clock until it is dropped.
pub struct Pulse {
    worst: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Pulse {
    /// Begins.
    pub fn start() -> Self {
        let (worst, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (latest, ends) = (worst.clone(), over.clone());
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let since = Instant::now();
                thread::sleep(BEAT);
                let late = since.elapsed().saturating_sub(BEAT).as_millis();
                latest.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { worst, over }
    }

    /// How long nothing ran, where that was long.
    pub fn stalled(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.worst.load(Ordering::Relaxed))).filter(|&worst| worst > STALL)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
