//! The cluster's first process. It has process id 1 in a process namespace of its own and prepares the node's file
//! system, starts the node's programs, starts those again that end, and reaps what pods leave behind.
//!
//! It exists in two stages, because a process cannot move itself into a process namespace, only its children:
//! [`start`] runs this program again as the outer stage, which starts the inner one and ends.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::setsid;

use super::settings::Daemon;
use super::{Error, Layout, netns};

/// The sub-command under which this program is the supervisor; processes are recognised by it.
pub const COMMAND: &str = "supervise";
/// The pause before a program that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long a single attempt to reach the address that a program waits for may take.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// The pause between two such attempts.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

fn log_file(folder: &Path, name: &str) -> Result<File, Error> {
    let path = folder.join(format!("{name}.log"));
    OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", path))
}

/// Starts the supervisor of a prepared cluster. It outlives this process.
///
/// # Errors
/// Where the program cannot be started.
pub fn start(layout: &Layout, program: &Path) -> Result<(), Error> {
    let mut outer = Command::new(program);
    let log = log_file(&layout.logs(), "supervisor")?;
    let log_too = log.try_clone().map_err(Error::io("share", layout.logs()))?;
    outer.arg(COMMAND).arg("--state").arg(layout.state()).stdin(Stdio::null()).stdout(log).stderr(log_too);
    outer.current_dir("/");
    netns::enter_before_exec(layout, &mut outer)?;
    // SAFETY: the closure runs in the child between fork and exec and makes two system calls; it allocates nothing
    // and takes no lock.
    unsafe {
        outer.pre_exec(|| {
            setsid().map_err(io::Error::from)?;
            unshare(CloneFlags::CLONE_NEWPID).map_err(io::Error::from)
        });
    }
    let status = outer.status().map_err(Error::io("run", program))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("{} {COMMAND}", program.display()),
        status: status.to_string(),
        output: format!("see {}", layout.logs().join("supervisor.log").display()),
    })
}

/// The outer stage: starts the inner one, which becomes the first process of the new process namespace.
///
/// # Errors
/// Where the inner stage cannot be started.
pub fn outer(state: &Path) -> Result<(), Error> {
    // Not its path: the file may have been built anew meanwhile.
    let program = Path::new("/proc/self/exe");
    let mut inner = Command::new(program);
    inner.arg0("leno-cluster").arg(COMMAND).arg("--state").arg(state).arg("--inner").stdin(Stdio::null());
    // SAFETY: as above, one system call.
    unsafe {
        inner.pre_exec(|| unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from));
    }
    // Dropping the handle leaves the child running.
    inner.spawn().map(drop).map_err(Error::io("run", program))
}

/// Gives the node folders of its own, so that every program can use its usual paths and nothing of it outlives the
/// mount namespace.
fn prepare_node(state: &Path) -> Result<(), Error> {
    let none = None::<&str>;
    let mounting = |what: &str| Error::system(format!("mount {what}"));
    // What the machine unmounts must go here too, or one cluster would keep the other's namespace alive; what is
    // mounted here must not go back. Among themselves the node's programs share.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(mounting("/ as slave"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).map_err(mounting("/ as shared"))?;
    for (folder, target) in [("var-lib", "/var/lib"), ("var-log", "/var/log")] {
        let source = state.join(folder);
        mount(Some(&source), target, none, MsFlags::MS_BIND, none).map_err(mounting(target))?;
    }
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), safe, Some("mode=755,size=512m")).map_err(mounting("/run"))?;
    // `/proc` must show the processes of this namespace, or kubelet and containerd would look at others.
    mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, none).map_err(mounting("/proc"))?;
    for folder in ["/run/lock", "/run/netns", "/run/kubelet-volume-plugins"] {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    Ok(())
}

/// The inner stage: runs for as long as the cluster does.
///
/// # Errors
/// Where the node cannot be prepared.
pub fn inner(state: &Path) -> Result<(), Error> {
    prepare_node(state)?;
    let path = state.join("daemons.json");
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let daemons: Vec<Daemon> =
        serde_json::from_slice(&text).map_err(|error| Error::Corrupt { path, problem: error.to_string() })?;
    let search = search_path(&daemons);
    let logs = state.join("log");
    let running = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for daemon in &daemons {
            let (running, search, logs) = (&running, &search, &logs);
            scope.spawn(move || start_when_possible(daemon, search, logs, running));
        }
        loop {
            let ended = match wait() {
                Ok(WaitStatus::Exited(process, code)) => Some((process, format!("exit code {code}"))),
                Ok(WaitStatus::Signaled(process, signal, _)) => Some((process, format!("signal {signal}"))),
                Ok(_) => None,
                Err(Errno::ECHILD) => {
                    std::thread::sleep(CONNECT_PAUSE);
                    None
                }
                Err(_) => None,
            };
            let Some((process, how)) = ended else { continue };
            let daemon = running.lock().unwrap_or_else(PoisonError::into_inner).remove(&process.as_raw());
            if let Some(daemon) = daemon {
                eprintln!("{} ended: {how}", daemon.name);
                let (running, search, logs) = (&running, &search, &logs);
                scope.spawn(move || {
                    std::thread::sleep(RESTART_PAUSE);
                    start_when_possible(daemon, search, logs, running);
                });
            }
        }
    })
}

/// Where programs find each other: our own first (containerd looks for its shim), then the system's.
fn search_path(daemons: &[Daemon]) -> String {
    let mut folders: Vec<String> = Vec::new();
    for folder in daemons.iter().filter_map(|daemon| daemon.program.parent()) {
        let folder = folder.display().to_string();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.push("/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    folders.join(":")
}

fn reachable(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok()
}

/// Starts a program as soon as what it waits for answers. Tries for ever: the cluster's start has its own limit.
fn start_when_possible<'a>(daemon: &'a Daemon, search: &str, logs: &Path, running: &Mutex<BTreeMap<i32, &'a Daemon>>) {
    while daemon.after.is_some_and(|address| !reachable(address)) {
        std::thread::sleep(CONNECT_PAUSE);
    }
    loop {
        match start_daemon(daemon, search, logs, running) {
            Ok(()) => return,
            Err(error) => eprintln!("{} cannot start: {error}", daemon.name),
        }
        std::thread::sleep(RESTART_PAUSE);
    }
}

fn start_daemon<'a>(
    daemon: &'a Daemon,
    search: &str,
    logs: &Path,
    running: &Mutex<BTreeMap<i32, &'a Daemon>>,
) -> Result<(), Error> {
    let log = log_file(logs, &daemon.name)?;
    let log_too = log.try_clone().map_err(Error::io("share", logs))?;
    let mut command = Command::new(&daemon.program);
    command.args(&daemon.arguments).stdin(Stdio::null()).stdout(log).stderr(log_too);
    command.env_clear().env("PATH", search).env("HOME", "/run");
    // Held over the start: the program may end before its number is written down, and the reaper must find it then.
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn().map_err(Error::io("run", &daemon.program))?;
    let process = i32::try_from(child.id()).unwrap_or_default();
    running.insert(process, daemon);
    eprintln!("{} started", daemon.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_path_when_programs_share_folders_then_each_is_named_once_and_first() {
        let daemon = |program: &str| Daemon {
            name: "x".to_owned(),
            program: program.into(),
            arguments: Vec::new(),
            after: None,
        };
        let path = search_path(&[daemon("/a/x"), daemon("/b/y"), daemon("/a/z")]);
        assert_eq!(path, "/a:/b:/usr/sbin:/usr/bin:/sbin:/bin");
    }
}
