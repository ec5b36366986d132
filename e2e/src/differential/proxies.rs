//! Starts the two proxies on one configuration. Where a proxy refuses it, the cases at fault are found and left out.

use super::{
    config::{ADMIN_PORT, Placed, Places, bootstrap},
    tls::Pki,
};
use crate::judge::process::Process;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long a proxy may take to listen.
const READY: Duration = Duration::from_secs(60);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The judge.
    Envoy,
    /// The judged.
    Leno,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Envoy => "envoy",
            Kind::Leno => "leno",
        }
    }
}

/// A proxy to start.
pub struct Program {
    /// Which.
    pub kind: Kind,
    /// Its executable.
    pub path: PathBuf,
    /// The address that its listeners get.
    pub own: Ipv4Addr,
}

/// A running proxy.
pub struct Proxy {
    /// The process; ends with this value.
    pub process: Process,
    /// The address of its listeners.
    pub own: Ipv4Addr,
    /// The cases that it refused, with its words.
    pub refused: BTreeMap<String, String>,
}

impl Program {
    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.path);
        match self.kind {
            Kind::Envoy => {
                command.arg("--config-path").arg(config).args(["--concurrency", "1", "--log-level", "warning"]);
                command.args(["--disable-hot-restart", "--file-flush-interval-msec", "20"]);
            }
            Kind::Leno => {
                command.arg("serve").arg("--config").arg(config).args(["--concurrency", "1"]);
            }
        }
        command
    }

    /// Starts it with as many of the cases as it takes.
    pub fn start(&self, cases: &[Placed], folder: &Path, pki: &Pki) -> Result<Proxy> {
        let mut refused = BTreeMap::new();
        loop {
            let taken: Vec<&Placed> = cases.iter().filter(|case| !refused.contains_key(&case.case.name)).collect();
            match self.attempt(&taken, folder, pki) {
                Ok(process) => return Ok(Proxy { process, own: self.own, refused }),
                Err(words) => {
                    let mut named = at_fault(&taken, &words.to_string());
                    // Words that repeat the configuration name everybody.
                    if named.is_empty() || named.len() > 3 {
                        named.clear();
                        let before = refused.len();
                        for case in &taken {
                            if let Err(words) = self.attempt(&[case], folder, pki) {
                                refused.insert(case.case.name.clone(), telling(&words.to_string(), &case.case.name));
                            }
                        }
                        if refused.len() == before {
                            return Err(words.context(format!("{} takes each case, and not all", self.kind.name())));
                        }
                    }
                    let words = words.to_string();
                    refused.extend(named.into_iter().map(|name| (name.clone(), telling(&words, &name))));
                }
            }
        }
    }

    fn attempt(&self, cases: &[&Placed], folder: &Path, pki: &Pki) -> Result<Process> {
        let places = Places { own: self.own, tls: &pki.folder };
        // JSON, which is YAML too: the dialects of YAML do not agree on what needs quotes.
        let config = folder.join(format!("{}.json", self.kind.name()));
        std::fs::write(&config, serde_json::to_string_pretty(&bootstrap(cases.iter().copied(), &places)?)?)?;
        let mut process = Process::start(self.kind.name(), folder, self.command(&config))?;
        let start = Instant::now();
        // The last listener and the admin page: both stand when all do.
        let wanted = cases.iter().map(|case| case.port).chain([ADMIN_PORT]);
        for port in wanted {
            loop {
                process.alive()?;
                let address = SocketAddr::from((self.own, port));
                if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                    break;
                }
                if start.elapsed() > READY {
                    let case = cases.iter().find(|case| case.port == port).map_or("admin", |case| &case.case.name);
                    bail!("{case:?} does not listen after {READY:?}:\n{}", process.tail(20));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        process.alive().context("ended at once")?;
        Ok(process)
    }
}

/// The cases whose names stand in the words of a proxy.
fn at_fault(cases: &[&Placed], words: &str) -> Vec<String> {
    let bounded = |name: &str| {
        words.match_indices(name).any(|(at, _)| {
            let outside = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
            outside(words[..at].chars().next_back()) && outside(words[at + name.len()..].chars().next())
        })
    };
    cases.iter().map(|case| case.case.name.clone()).filter(|name| bounded(name)).collect()
}

/// The line that tells most: the last one with the case's name, or the last one at all.
fn telling(words: &str, case: &str) -> String {
    let lines = || words.lines().rev().filter(|line| !line.trim().is_empty() && !line.contains("\"static_resources\""));
    let line = lines().find(|line| line.contains(case)).or_else(|| lines().next());
    line.unwrap_or(words).chars().take(400).collect()
}
