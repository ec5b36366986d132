//! A profile of the CPU time of this process, while somebody wants one.
//!
//! The kernel's timer of the process's CPU time interrupts whoever runs, [`RATE`] times a second of it. The handler of that signal
//! only copies registers and the newest part of the stack into a socket ([`sample`]): it takes no lock and no memory. A thread of
//! its own finds out who called whom, from the tables by which panics unwind ([`stacks`]), and counts. Nothing of this is there
//! while no profile is taken.
//!
//! Bounds: [`MAX_TIME`] for one profile, [`MAX_STACKS`] different stacks of [`MAX_FRAMES`] calls each, and [`sample::STACK`] bytes
//! of a stack. What is beyond is counted as lost, which the profile tells.

mod pprof;
mod sample;
mod stacks;

use sample::{Sample, Ticks};
use stacks::Stacks;
use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Samples in a second of CPU time.
pub const RATE: u32 = 99;
/// How long samples are taken at most; a profile that is not fetched earlier ends by itself.
pub const MAX_TIME: Duration = Duration::from_secs(120);
/// Different stacks of one profile at most.
const MAX_STACKS: usize = 20_000;
/// Calls of one stack at most.
const MAX_FRAMES: usize = 128;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// One is being taken already.
    #[error("a profile is being taken already; it ends after {} s at most", MAX_TIME.as_secs())]
    Running,
    /// None was begun.
    #[error("no profile is being taken")]
    Stopped,
    /// The kernel does not let us, or this program cannot be read.
    #[error("cannot be taken: {0}")]
    Unable(#[from] std::io::Error),
}

/// How a profile is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `profile.proto`, compressed: what `pprof` and `go tool pprof` read.
    Pprof,
    /// A line a stack, its calls separated by semicolons, and how often it was seen: what flame graphs are made from.
    Folded,
}

/// What was counted.
struct Counted {
    stacks: HashMap<Box<[u64]>, u64>,
    lost: u64,
    began: SystemTime,
    took: Duration,
}

struct Running {
    stop: Arc<AtomicBool>,
    collector: JoinHandle<(Stacks, Counted)>,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

/// Begins to take samples, for [`MAX_TIME`] at most.
///
/// # Errors
/// When samples are taken already, or cannot be.
pub fn start() -> Result<(), ProfileError> {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if running.is_some() {
        return Err(ProfileError::Running);
    }
    let stacks = Stacks::of_this_program()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (ticks, samples) = Ticks::start(RATE)?;
    let stopped = stop.clone();
    let collector = std::thread::Builder::new()
        .name("profile".to_owned())
        .spawn(move || collect(stacks, ticks, &samples, &stopped))?;
    *running = Some(Running { stop, collector });
    Ok(())
}

/// Ends the taking of samples and gives the profile.
///
/// # Errors
/// When none was begun, or it cannot be written.
pub fn stop(form: Form) -> Result<Vec<u8>, ProfileError> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Running { stop, collector } = running.ok_or(ProfileError::Stopped)?;
    stop.store(true, Ordering::Relaxed);
    let broken = |_| ProfileError::Unable(std::io::Error::other("the thread that counts has failed"));
    let (stacks, counted) = collector.join().map_err(broken)?;
    Ok(match form {
        Form::Pprof => {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&pprof::profile(&stacks, &counted))?;
            packed.finish()?
        }
        Form::Folded => folded(&stacks, &counted).into_bytes(),
    })
}

/// Takes no more samples, at once: before this process executes another program, which would not know the signal.
pub fn end() {
    sample::disarm();
}

fn collect(stacks: Stacks, ticks: Ticks, samples: &OwnedFd, stop: &AtomicBool) -> (Stacks, Counted) {
    let (began, since) = (SystemTime::now(), Instant::now());
    let mut counted = Counted { stacks: HashMap::new(), lost: 0, began, took: Duration::ZERO };
    let mut unwinder = stacks.unwinder();
    let mut sample = Sample::default();
    let mut ticks = Some(ticks);
    loop {
        if ticks.is_some() && (stop.load(Ordering::Relaxed) || since.elapsed() >= MAX_TIME) {
            // What was sent before is still read.
            counted.lost += ticks.take().map_or(0, Ticks::end);
            counted.took = since.elapsed();
        }
        if sample.receive(samples) {
            let calls = unwinder.calls(&sample, MAX_FRAMES);
            let full = counted.stacks.len() >= MAX_STACKS;
            match counted.stacks.get_mut(&*calls) {
                Some(count) => *count += 1,
                None if full => counted.lost += 1,
                None => _ = counted.stacks.insert(calls, 1),
            }
        } else if ticks.is_none() {
            drop(unwinder);
            return (stacks, counted);
        }
    }
}

fn folded(stacks: &Stacks, counted: &Counted) -> String {
    let mut lines: Vec<String> = Vec::with_capacity(counted.stacks.len());
    for (calls, count) in &counted.stacks {
        let names: Vec<String> = calls.iter().rev().map(|at| stacks.name(*at).replace(';', ":")).collect();
        lines.push(format!("{} {count}\n", names.join(";")));
    }
    if counted.lost > 0 {
        lines.push(format!("[lost] {}\n", counted.lost));
    }
    lines.sort_unstable();
    lines.concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use prost::Message as _;
    use std::io::Read as _;

    /// There is one profiler for all tests.
    pub(crate) static ONE: Mutex<()> = Mutex::new(());

    #[inline(never)]
    fn burns_time(until: Instant) -> u64 {
        let mut sum = 0u64;
        while Instant::now() < until {
            for number in 0..10_000u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
            }
        }
        sum
    }

    #[inline(never)]
    fn calls_what_burns(until: Instant) -> u64 {
        std::hint::black_box(burns_time(until)).wrapping_add(1)
    }

    #[test]
    fn profile_when_a_thread_works_then_it_tells_who_called_whom() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        start().unwrap();
        assert!(matches!(start(), Err(ProfileError::Running)));
        calls_what_burns(Instant::now() + Duration::from_millis(700));
        let text = String::from_utf8(stop(Form::Folded).unwrap()).unwrap();
        let found = text.lines().any(|line| {
            let caller = line.find("calls_what_burns");
            caller.zip(line.find("burns_time")).is_some_and(|(caller, called)| caller < called)
        });
        assert!(found, "{text}");
        assert!(matches!(stop(Form::Folded), Err(ProfileError::Stopped)));

        start().unwrap();
        calls_what_burns(Instant::now() + Duration::from_millis(700));
        let packed = stop(Form::Pprof).unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
        let profile = pprof::Profile::decode(&plain[..]).unwrap();
        assert!(!profile.sample.is_empty() && profile.period == i64::from(1_000_000_000 / RATE));
        assert!(profile.string_table.iter().any(|name| name.contains("burns_time")), "{:?}", profile.string_table);
        let known = |id: &u64| profile.location.iter().any(|location| location.id == *id);
        assert!(profile.sample.iter().all(|sample| sample.location_id.iter().all(known)));
    }
}
