//! One configuration, the same requests, two proxies: a stock Envoy and ours. What clients get, what back ends see, and
//! what the access log says is compared.

pub(crate) mod case;
mod client;
mod compare;
mod config;
mod proxies;
mod recorder;
mod reply;
mod report;
mod run;
pub(crate) mod tls;
mod wire;

pub use case::CASES;

use crate::cluster;
use anyhow::{Context, Result, ensure};
use config::{FIRST_PORT, Placed};
use proxies::{Kind, Program};
use report::Report;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program `leno-proxy`.
    #[arg(long, value_name = "FILE")]
    pub leno: PathBuf,
    /// The program `envoy`; by default it is fetched into the cache folder.
    #[arg(long, value_name = "FILE", env = "LENO_ENVOY")]
    pub envoy: Option<PathBuf>,
    /// The folder of the hand-picked cases.
    #[arg(long, default_value = CASES, value_name = "DIR")]
    pub cases: PathBuf,
    /// The page that lists deliberate differences.
    #[arg(long, default_value = "docs/envoy-differences.md", value_name = "FILE")]
    pub known: PathBuf,
    /// Only the cases whose name contains this; no random ones.
    #[arg(long)]
    pub only: Option<String>,
    /// Print everything that was seen, not only what differs.
    #[arg(long)]
    pub all: bool,
    /// Beginnings of lines that are not compared, whatever the cases say.
    #[arg(long, value_name = "TEXT")]
    pub ignore: Vec<String>,
    /// Compare Envoy with itself: what then differs is the harness's fault.
    #[arg(long)]
    pub itself: bool,
}

/// Runs the cases; whether there is no unexplained difference.
///
/// # Errors
/// Where a case cannot be read or a proxy does not start at all.
pub fn run(options: &Options) -> Result<bool> {
    let known = known(&options.known)?;
    let cases = case::load(&options.cases, options.only.as_deref())?;
    ensure!(!cases.is_empty(), "there is no such case in {}", options.cases.display());
    let envoy = match &options.envoy {
        Some(path) => path.clone(),
        None => cluster::binaries::envoy(&cluster::Layout::from_environment("demo".parse()?)?)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = tempfile::Builder::new().prefix("leno-differential-").tempdir()?;
    let pki = Arc::new(tls::Pki::new(folder.path())?);
    // Addresses of this run alone: others may run at the same time.
    let (x, y) = (rand::random_range(1..=250u8), rand::random_range(1..=250u8));
    let own = |last| Ipv4Addr::new(127, x, y, last);
    let (placed, recorders) = runtime.block_on(place(cases, own(10), &pki))?;

    let second = if options.itself { (Kind::Envoy, envoy.clone()) } else { (Kind::Leno, options.leno.clone()) };
    let start = |(kind, path): (Kind, PathBuf), own, name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder)?;
        Program { kind, path, own }.start(&placed, &folder, &pki)
    };
    let judge = start((Kind::Envoy, envoy), own(1), "envoy")?;
    let judged = start(second, own(2), "leno")?;
    let mut observed = runtime.block_on(run::all(&placed, &recorders, [&judge, &judged], &pki));
    run::add_logs(&mut observed, [&judge, &judged])?;
    let mut report = Report::new(&known, options);
    for (placed, seen) in placed.iter().zip(observed) {
        report.case(&placed.case, seen, judge.refused.get(&placed.case.name), judged.refused.get(&placed.case.name));
    }
    Ok(report.finish())
}

/// Starts the back ends of all cases.
async fn place(
    cases: Vec<case::Case>,
    ip: Ipv4Addr,
    pki: &tls::Pki,
) -> Result<(Vec<Placed>, Vec<Arc<recorder::Recorder>>)> {
    let (mut placed, mut recorders) = (Vec::new(), Vec::new());
    for (number, case) in cases.into_iter().enumerate() {
        let recorder = Arc::new(recorder::Recorder::default());
        let mut backends: BTreeMap<String, SocketAddr> = BTreeMap::new();
        for (name, backend) in &case.backends {
            let address = recorder::start(name, backend, ip, &recorder, pki).await?;
            backends.insert(name.clone(), address);
        }
        let port = FIRST_PORT + u16::try_from(number).context("too many cases")?;
        placed.push(Placed { case, port, backends });
        recorders.push(recorder);
    }
    Ok((placed, recorders))
}

/// The ids of the deliberate differences: the headings of the third level.
fn known(page: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let ids = text.lines().filter_map(|line| line.strip_prefix("### "));
    Ok(ids.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}
