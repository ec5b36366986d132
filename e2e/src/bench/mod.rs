//! Leno beside Envoy, nginx and HAProxy: the same work in the same run on the same core.

mod backend;
mod cases;
mod client;
mod flame;
mod measure;
mod page;
mod peers;
mod shapes;
mod tools;
mod usage;

pub use flame::{Flame, flamegraph};

use crate::{cluster, differential::tls::Pki};
use anyhow::{Context, Result};
use cases::CASES;
use measure::{Bench, OTHER_CORE};
use peers::{Peer, Programs, present};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Where the figures of the last run are.
pub const LATEST: &str = "target/bench/latest.json";

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program `leno-proxy`, built as it is deployed.
    #[arg(long, value_name = "FILE")]
    pub leno: PathBuf,
    /// The program `envoy`; by default it is fetched into the cache folder.
    #[arg(long, value_name = "FILE", env = "LENO_ENVOY")]
    pub envoy: Option<PathBuf>,
    /// Five cases of two seconds, within two minutes.
    #[arg(long)]
    pub quick: bool,
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// How long each case is measured, in seconds; 2 in the quick run.
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    pub seconds: u64,
    /// Where the figures go.
    #[arg(long, value_name = "FILE", default_value = LATEST)]
    pub out: PathBuf,
    /// Also write the tables into this page.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md")]
    pub write_docs: Option<PathBuf>,
}

/// The programs and what they share, in a folder.
fn programs(leno: &Path, envoy: Option<&Path>, folder: &Path) -> Result<(Programs, Arc<Pki>)> {
    let envoy = match envoy {
        Some(path) => path.to_owned(),
        None => cluster::binaries::envoy(&cluster::Layout::from_environment("demo".parse()?)?)?,
    };
    let pki = Arc::new(Pki::new(folder)?);
    let (folder, tls) = (folder.to_owned(), folder.to_owned());
    Ok((Programs { leno: leno.to_owned(), envoy, folder, tls }, pki))
}

/// Measures, prints the table, and writes the figures.
///
/// # Errors
/// Where Leno or Envoy is missing, or Leno cannot be measured in a case in which Envoy can.
pub fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let folder = tempfile::Builder::new().prefix("leno-bench-").tempdir()?;
    // nginx's workers are another user.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let (programs, pki) = programs(&options.leno, options.envoy.as_deref(), folder.path())?;
    raise_file_limit()?;
    let peers = present(&programs)?;
    let backend = backend::start(OTHER_CORE)?;
    let seconds = if options.quick { 2 } else { options.seconds.max(1) };
    let bench = Bench { programs, backend, pki, time: Duration::from_secs(seconds), calls: !options.quick };
    let wanted = CASES.iter().filter(|case| {
        (!options.quick || case.quick) && options.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()))
    });
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    println!("{}", page::heading());
    for case in wanted {
        let mut of_case = Vec::new();
        // Envoy first: its rate sets the one at which latency is measured.
        let order =
            [Peer::Envoy, Peer::Leno, Peer::Nginx, Peer::Haproxy].into_iter().filter(|peer| peers.contains(peer));
        let mut envoy = None;
        for peer in order {
            match bench.measure(case, peer, envoy) {
                Ok(Some(row)) => {
                    if peer == Peer::Envoy {
                        envoy = row.rps;
                    }
                    of_case.push(row);
                }
                Ok(None) => {}
                Err(error) => {
                    missing.push(format!("{} in {}: {error:#}", peer.name(), case.name));
                    println!("not measured: {} in {}: {error:#}", peer.name(), case.name);
                }
            }
        }
        println!("{}", page::line(case.name, &of_case));
        rows.extend(of_case);
    }
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.out, serde_json::to_string_pretty(&rows)?).context("cannot write the figures")?;
    println!("{} measurements in {} s: {}", rows.len(), started.elapsed().as_secs(), options.out.display());
    if let Some(path) = &options.write_docs {
        page::write(path, &rows, &bench.programs.versions(), &missing)?;
        println!("written: {}", path.display());
    }
    Ok(!missing.iter().any(|line| line.starts_with("leno")))
}

/// Ten thousand connections need as many descriptors, here and in every proxy.
fn raise_file_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a limit that lives until they return.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    anyhow::ensure!(done, "cannot raise the limit of open files: {}", std::io::Error::last_os_error());
    Ok(())
}
