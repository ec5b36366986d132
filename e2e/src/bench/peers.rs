//! Starts the proxies that are compared.

use super::shapes::{Shape, Site, bootstrap, config_file, haproxy, nginx};
use crate::judge::process::Process;
use anyhow::{Context, Result, bail, ensure};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const READY: Duration = Duration::from_secs(20);

/// A proxy to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Ours.
    Leno,
    /// The peer to beat.
    Envoy,
    /// What is possible.
    Nginx,
    /// What is possible.
    Haproxy,
}

impl Peer {
    /// All of them, in the order of the table.
    pub const ALL: [Peer; 4] = [Peer::Leno, Peer::Envoy, Peer::Nginx, Peer::Haproxy];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Leno => "leno",
            Peer::Envoy => "envoy",
            Peer::Nginx => "nginx",
            Peer::Haproxy => "haproxy",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `leno-proxy`.
    pub leno: PathBuf,
    /// `envoy`.
    pub envoy: PathBuf,
    /// The folder for configurations and logs.
    pub folder: PathBuf,
    /// Keys and certificates.
    pub tls: PathBuf,
}

/// A running proxy, or two in a row.
pub struct Running {
    /// Where clients connect.
    pub listen: SocketAddr,
    processes: Vec<Process>,
}

impl Running {
    /// The processes' ids.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// Fails where one has ended.
    ///
    /// # Errors
    /// With its last words.
    pub fn alive(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::alive)
    }
}

impl Drop for Running {
    /// Ends the children too: nginx's workers would outlive a master that is killed.
    fn drop(&mut self) {
        let own = self.pids();
        let all: Vec<u32> =
            own.iter().flat_map(|&pid| super::usage::tree(pid)).filter(|pid| !own.contains(pid)).collect();
        self.processes.clear();
        for pid in all {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
                .ok();
        }
    }
}

/// A free address on the loopback device.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// What a start needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The shape; [`Shape::Outbound`] stands for both sidecars.
    pub shape: Shape,
    /// Where it leads.
    pub to: SocketAddr,
    /// Threads.
    pub workers: usize,
    /// The back end speaks gRPC.
    pub grpc: bool,
    /// The core that the proxy is tied to.
    pub core: Option<usize>,
}

impl Programs {
    /// Starts a proxy; none where it cannot do the shape.
    ///
    /// # Errors
    /// Where it refuses its configuration or does not listen.
    pub fn start(&self, peer: Peer, wanted: Wanted) -> Result<Option<Running>> {
        if wanted.shape != Shape::Outbound {
            return Ok(self
                .one(peer, wanted, 0)?
                .map(|(listen, process)| Running { listen, processes: vec![process] }));
        }
        let inbound = Wanted { shape: Shape::Inbound, ..wanted };
        let Some((between, server)) = self.one(peer, inbound, 1)? else { return Ok(None) };
        let Some((listen, client)) = self.one(peer, Wanted { to: between, ..wanted }, 0)? else { return Ok(None) };
        Ok(Some(Running { listen, processes: vec![client, server] }))
    }

    fn one(&self, peer: Peer, wanted: Wanted, number: usize) -> Result<Option<(SocketAddr, Process)>> {
        let Wanted { shape, to, workers, grpc, core } = wanted;
        let (listen, admin) = (free()?, free()?);
        let sidecar = matches!(shape, Shape::Outbound | Shape::Inbound);
        let site = Site { listen, admin, to, tls: &self.tls, workers, sidecar };
        let config = config_file(&self.folder, peer.name(), number);
        let text = match peer {
            Peer::Leno | Peer::Envoy => Some(serde_json::to_string(&bootstrap(shape, &site))?),
            Peer::Nginx => nginx(shape, grpc, &site, &self.folder),
            Peer::Haproxy => haproxy(shape, &site, &self.folder),
        };
        let Some(text) = text else { return Ok(None) };
        std::fs::write(&config, text)?;
        let command = self.command(peer, &config, workers, core);
        let mut process = Process::start(&format!("{}-{number}", peer.name()), &self.folder, command)?;
        let start = Instant::now();
        while TcpStream::connect_timeout(&listen, Duration::from_millis(200)).is_err() {
            process.alive()?;
            ensure!(start.elapsed() < READY, "{} does not listen after {READY:?}:\n{}", peer.name(), process.tail(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some((listen, process)))
    }

    fn command(&self, peer: Peer, config: &Path, workers: usize, core: Option<usize>) -> Command {
        let program = match peer {
            Peer::Leno => self.leno.clone(),
            Peer::Envoy => self.envoy.clone(),
            Peer::Nginx => "/usr/sbin/nginx".into(),
            Peer::Haproxy => "/usr/sbin/haproxy".into(),
        };
        let mut command = match core {
            Some(core) => {
                let mut tied = Command::new("taskset");
                tied.args(["-c", &core.to_string()]).arg(program);
                tied
            }
            None => Command::new(program),
        };
        let workers = workers.to_string();
        match peer {
            Peer::Leno => command.arg("serve").arg("--config").arg(config).args(["--concurrency", &workers]),
            Peer::Envoy => command.arg("--config-path").arg(config).args([
                "--concurrency",
                &workers,
                "--disable-hot-restart",
                "--log-level",
                "error",
            ]),
            Peer::Nginx => command.arg("-c").arg(config).arg("-p").arg(&self.folder),
            Peer::Haproxy => command.arg("-db").arg("-f").arg(config),
        };
        command
    }

    /// The versions of the programs, for the page.
    pub fn versions(&self) -> Vec<(Peer, String)> {
        let ask = |program: &Path, flag: &str| -> Result<String> {
            let output = Command::new(program).arg(flag).output()?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().find(|line| !line.trim().is_empty()).context("says nothing")?;
            Ok(line.trim().to_owned())
        };
        let programs: [(Peer, &Path, &str); 4] = [
            (Peer::Leno, &self.leno, "--version"),
            (Peer::Envoy, &self.envoy, "--version"),
            (Peer::Nginx, Path::new("/usr/sbin/nginx"), "-v"),
            (Peer::Haproxy, Path::new("/usr/sbin/haproxy"), "-v"),
        ];
        programs.into_iter().filter_map(|(peer, program, flag)| Some((peer, ask(program, flag).ok()?))).collect()
    }
}

/// The peers that are there; fails where one of the two that matter is missing.
///
/// # Errors
/// Where Leno or Envoy is not where it is said to be.
pub fn present(programs: &Programs) -> Result<Vec<Peer>> {
    for (peer, path) in [(Peer::Leno, &programs.leno), (Peer::Envoy, &programs.envoy)] {
        if !path.exists() {
            bail!("there is no {} at {}", peer.name(), path.display());
        }
    }
    let there = |peer: &Peer| match peer {
        Peer::Nginx => Path::new("/usr/sbin/nginx").exists(),
        Peer::Haproxy => Path::new("/usr/sbin/haproxy").exists(),
        _ => true,
    };
    Ok(Peer::ALL.into_iter().filter(there).collect())
}
