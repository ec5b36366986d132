//! Envoy as a child process: started, watched, started again when it dies, ended in order.
//!
//! An Envoy that dies is started again at once, and then after growing pauses of at most two seconds. One that dies more than
//! [`MAX_RESTARTS`] times within [`WINDOW`] is given up: the slot's process ends with an error, the other slot takes over, and the
//! kubelet starts the container anew.

use super::admin;
use crate::control::traffic::Standing;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often Envoy may die within [`WINDOW`].
pub const MAX_RESTARTS: usize = 5;
/// The time in which deaths are counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Longest pause before it is started again.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often a starting Envoy is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(50);
/// How long an Envoy without these listeners is left alone; then it is started again, since what it could not bind may be free.
const REFUSAL_LIMIT: Duration = Duration::from_secs(30);
/// The listeners of captured traffic, as Envoy lists them.
const LISTENERS: [&str; 2] = ["virtualInbound::", "virtualOutbound::"];
/// How long Envoy may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program.
    pub binary: PathBuf,
    /// Its bootstrap, JSON.
    pub bootstrap: String,
    /// Worker threads.
    pub workers: usize,
    /// How long a drain lasts at most.
    pub drain: Duration,
    /// Where its admin server will listen.
    pub admin: PathBuf,
}

impl Spec {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config-yaml").arg(&self.bootstrap);
        command.args(["--concurrency", &self.workers.to_string()]);
        command.args(["--drain-time-s", &self.drain.as_secs().to_string(), "--drain-strategy", "immediate"]);
        // Both slots are in one network namespace, and hot restart would need shared memory.
        command.args(["--disable-hot-restart", "--log-level", "warning"]);
        command.args([
            "--log-format",
            r#"{"timestamp":"%Y-%m-%dT%T.%eZ","level":"%l","target":"envoy::%n","message":"%j"}"#,
        ]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        // SAFETY: the closure runs in the child between fork and exec and makes only system calls.
        unsafe {
            command.pre_exec(|| {
                // An Envoy without its agent would serve on without certificates or metrics.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }
}

/// The running Envoy.
#[derive(Debug)]
pub struct Process {
    standing: watch::Receiver<Standing>,
    restarts: Arc<AtomicU64>,
    pid: Arc<AtomicU32>,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Process {
    /// Starts it; it is also ended by `stop`.
    pub fn start(spec: Spec, stop: CancellationToken) -> Self {
        let (sender, standing) = watch::channel(Standing::Starting);
        let restarts = Arc::new(AtomicU64::new(0));
        let end = stop.child_token();
        let pid = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(keep(spec, sender, restarts.clone(), pid.clone(), end.clone()));
        Self { standing, restarts, pid, end, task }
    }

    /// Whether it serves.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// How often it has died and was started again.
    pub fn restarts(&self) -> Arc<AtomicU64> {
        self.restarts.clone()
    }

    /// The number of its process; 0 while there is none.
    pub fn pid(&self) -> Arc<AtomicU32> {
        self.pid.clone()
    }

    /// Ends it, and returns when it is gone.
    pub async fn end(self) {
        self.end.cancel();
        self.task.await.ok();
    }
}

/// Keeps one Envoy alive until `end`.
async fn keep(
    spec: Spec,
    standing: watch::Sender<Standing>,
    restarts: Arc<AtomicU64>,
    pid: Arc<AtomicU32>,
    end: CancellationToken,
) {
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        let ended = once(&spec, &standing, &pid, &end).await;
        pid.store(0, Ordering::Relaxed);
        let why = match ended {
            Ok(None) => return,
            Ok(Some(status)) => format!("Envoy ended by itself: {status}"),
            Err(error) => format!("Envoy does not serve: {}: {error}", spec.binary.display()),
        };
        deaths.retain(|death| death.elapsed() < WINDOW);
        deaths.push(Instant::now());
        if deaths.len() > MAX_RESTARTS {
            tracing::error!(%why, "it has died too often; giving up");
            standing.send_replace(Standing::Lost(format!("{why}; {} times within {WINDOW:?}", deaths.len()).into()));
            return;
        }
        let pause = pause(deaths.len());
        tracing::error!(%why, again_in = ?pause, "starting it again");
        standing.send_replace(Standing::Starting);
        restarts.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The first death costs nothing, the next ones pauses that double.
fn pause(deaths: usize) -> Duration {
    let doublings = u32::try_from(deaths.saturating_sub(2)).unwrap_or(u32::MAX).min(8);
    if deaths < 2 { Duration::ZERO } else { (Duration::from_millis(100) * 2u32.pow(doublings)).min(MAX_PAUSE) }
}

/// One life. `None` when it was ended by `end`.
async fn once(
    spec: &Spec,
    standing: &watch::Sender<Standing>,
    pid: &AtomicU32,
    end: &CancellationToken,
) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    let mut child = spec.command().spawn()?;
    pid.store(child.id().unwrap_or(0), Ordering::Relaxed);
    let ready = async {
        let mut without = None;
        loop {
            match look(&spec.admin).await {
                Look::Serves => return true,
                Look::Starting => without = None,
                Look::WithoutListeners if without.get_or_insert_with(Instant::now).elapsed() > REFUSAL_LIMIT => {
                    return false;
                }
                Look::WithoutListeners => {}
            }
            tokio::time::sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        status = child.wait() => return status.map(Some),
        () = end.cancelled() => { finish(child).await; return Ok(None) }
        ready = ready => if !ready {
            finish(child).await;
            return Err(std::io::Error::other("it has refused the listeners of the pod's traffic, its log says why"));
        }
    }
    tracing::info!(took = ?begun.elapsed(), "Envoy serves");
    standing.send_replace(Standing::Serves);
    tokio::select! {
        status = child.wait() => status.map(Some),
        () = end.cancelled() => { finish(child).await; Ok(None) }
    }
}

/// How far a starting Envoy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It has not got everything.
    Starting,
    /// It calls itself ready, and does not listen for the pod's traffic: it has refused these listeners.
    WithoutListeners,
    /// It listens.
    Serves,
}

async fn look(envoy: &Path) -> Look {
    if !admin::ask(envoy, hyper::Method::GET, "/ready").await.is_ok_and(|page| page.status == 200) {
        return Look::Starting;
    }
    let Ok(page) = admin::ask(envoy, hyper::Method::GET, "/listeners").await else { return Look::Starting };
    let names = String::from_utf8_lossy(&page.body);
    let all = LISTENERS.iter().all(|wanted| names.lines().any(|line| line.starts_with(wanted)));
    if all { Look::Serves } else { Look::WithoutListeners }
}

/// Asks it to end, and ends it when it does not.
async fn finish(mut child: Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).ok();
    }
    if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
        child.kill().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(binary: &str) -> Spec {
        let admin = PathBuf::from("/nonexistent/envoy.sock");
        Spec { binary: binary.into(), bootstrap: "{}".into(), workers: 1, drain: Duration::from_secs(1), admin }
    }

    #[tokio::test]
    async fn engine_when_it_dies_again_and_again_then_is_given_up() {
        let process = Process::start(spec("/bin/false"), CancellationToken::new());
        let mut standing = process.standing();
        let lost = |standing: &Standing| matches!(standing, Standing::Lost(why) if why.contains("ended by itself"));
        tokio::time::timeout(Duration::from_secs(20), standing.wait_for(lost)).await.unwrap().unwrap();
        assert_eq!(process.restarts().load(Ordering::Relaxed), MAX_RESTARTS as u64);
    }

    #[test]
    fn pause_when_deaths_follow_each_other_then_grows_to_a_bound() {
        let pauses: Vec<_> = (1..=8).map(|deaths| pause(deaths).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
