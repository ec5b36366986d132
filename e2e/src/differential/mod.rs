//! One configuration, the same requests, two proxies: a stock Envoy and ours. What clients get, what back ends see, and
//! what the access log says is compared.

pub(crate) mod case;
mod client;
mod compare;
mod config;
mod proxies;
mod pulse;
mod random;
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
use tokio_util::sync::CancellationToken;

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
    /// The list of what is known to differ and is not meant to: each line is told and does not fail the run, and must go
    /// when it no longer differs.
    #[arg(long, default_value = "e2e/differential/pending.txt", value_name = "FILE")]
    pub pending: PathBuf,
    /// Write that list anew.
    #[arg(long)]
    pub write_pending: bool,
    /// Only the cases whose name contains this; no random ones.
    #[arg(long)]
    pub only: Option<String>,
    /// How many random requests to send besides; none where `--only` is given.
    #[arg(long, default_value_t = 200)]
    pub random: usize,
    /// The seed of the random ones.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write what fails at random into this folder, a case each, to be run again with `--cases`.
    #[arg(long, value_name = "DIR")]
    pub failing: Option<PathBuf>,
    /// How many of them are made small and printed.
    #[arg(long, default_value_t = 3)]
    pub shrink: usize,
    /// Do not run again what may have differed because the machine stood still.
    #[arg(long)]
    pub once: bool,
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

/// Random configurations in one pair of processes.
const AT_ONCE: usize = 250;
/// How often a case is run again at most that may have differed because the machine stood still.
const AGAIN: usize = 3;
/// In how many steps a random failure is made small at most.
const STEPS: usize = 25;

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
    let judged = if options.itself { (Kind::Envoy, envoy.clone()) } else { (Kind::Leno, options.leno.clone()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let session = Session { runtime, envoy, judged, again: if options.once { 0 } else { AGAIN } };
    let pending = std::fs::read_to_string(&options.pending).unwrap_or_default();
    let mut report = Report::new(&known, pending.lines(), options);
    for outcome in session.observe(cases)? {
        report.case(&outcome);
    }
    if options.only.is_none() {
        at_random(&session, options, &mut report)?;
    }
    report.finish()
}

/// Sends the random requests; what fails is made small and printed as the file of a case.
fn at_random(session: &Session, options: &Options, report: &mut Report<'_>) -> Result<()> {
    let cases = random::cases(options.seed, options.random.div_ceil(random::EACH));
    let mut failing = Vec::new();
    for some in cases.chunks(AT_ONCE) {
        for outcome in session.observe(some.to_vec())? {
            let unexplained = report.case(&outcome);
            if let Some(&first) = unexplained.first() {
                failing.push(random::alone(&outcome.case, &outcome.case.requests[first]));
            }
            if let Some(folder) = &options.failing {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                for number in unexplained {
                    let alone = random::alone(&outcome.case, &outcome.case.requests[number]);
                    let file = folder.join(format!("{}-{}.yaml", outcome.case.name, number + 1));
                    std::fs::write(&file, random::as_file(&alone))
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
            }
        }
    }
    for mut case in failing.into_iter().take(options.shrink) {
        for _ in 0..STEPS {
            let mut tries = random::smaller(&case);
            for (number, smaller) in tries.iter_mut().enumerate() {
                smaller.name = format!("smaller-{number}");
            }
            if tries.is_empty() {
                break;
            }
            let Some(next) = session.observe(tries)?.into_iter().find(|outcome| report.differs(outcome)) else { break };
            case = next.case;
        }
        println!("The smallest that fails:\n{}", random::as_file(&case));
    }
    Ok(())
}

/// A case with what was seen of it.
pub(crate) struct Outcome {
    case: case::Case,
    seen: run::CaseSeen,
    /// Envoy's words, where it does not take the configuration.
    judge_refuses: Option<String>,
    /// Ours.
    refuses: Option<String>,
}

/// The proxies that are compared.
struct Session {
    runtime: tokio::runtime::Runtime,
    envoy: PathBuf,
    judged: (Kind, PathBuf),
    /// How often a case is run again.
    again: usize,
}

impl Session {
    /// Runs cases in one pair of processes; where the machine stood still meanwhile, those that differ again, each alone, until
    /// it did not: what is in the proxies shows again, what was a limit of time that passed for nothing does not.
    fn observe(&self, cases: Vec<case::Case>) -> Result<Vec<Outcome>> {
        let pulse = pulse::Pulse::start();
        let mut outcomes = self.observe_once(cases)?;
        let stalled = pulse.stalled();
        for outcome in outcomes.iter_mut().filter(|outcome| report::differs(outcome)) {
            let mut stalled = stalled;
            for _ in 0..self.again {
                let Some(stall) = stalled.filter(|_| report::differs(outcome)) else { break };
                println!("again {}: the machine stood still for {stall:?}", outcome.case.name);
                let pulse = pulse::Pulse::start();
                if let Some(again) = self.observe_once(vec![outcome.case.clone()])?.pop() {
                    *outcome = again;
                }
                stalled = pulse.stalled();
            }
        }
        Ok(outcomes)
    }

    fn observe_once(&self, cases: Vec<case::Case>) -> Result<Vec<Outcome>> {
        let folder = tempfile::Builder::new().prefix("leno-differential-").tempdir()?;
        let pki = Arc::new(tls::Pki::new(folder.path())?);
        cases.iter().try_for_each(|case| config::write_files(case, &pki.folder))?;
        // Addresses of this run alone: others may run at the same time.
        let (x, y) = (rand::random_range(1..=250u8), rand::random_range(1..=250u8));
        let own = |last| Ipv4Addr::new(127, x, y, last);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let (placed, recorders) = self.runtime.block_on(place(cases, own(10), &pki, &stop))?;
        let start = |kind: Kind, path: &Path, own, name: &str| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder)?;
            Program { kind, path: path.to_owned(), own }.start(&placed, &folder, &pki)
        };
        let judge = start(Kind::Envoy, &self.envoy, own(1), "envoy")?;
        let judged = start(self.judged.0, &self.judged.1, own(2), "leno")?;
        let mut observed = self.runtime.block_on(run::all(&placed, &recorders, [&judge, &judged], &pki));
        run::add_logs(&mut observed, [&judge, &judged])?;
        let refused = |proxy: &proxies::Proxy, case: &case::Case| proxy.refused.get(&case.name).cloned();
        let outcomes = placed.into_iter().zip(observed).map(|(Placed { case, .. }, seen)| Outcome {
            judge_refuses: refused(&judge, &case),
            refuses: refused(&judged, &case),
            case,
            seen,
        });
        Ok(outcomes.collect())
    }
}

/// Starts the back ends of all cases.
async fn place(
    cases: Vec<case::Case>,
    ip: Ipv4Addr,
    pki: &tls::Pki,
    stop: &CancellationToken,
) -> Result<(Vec<Placed>, Vec<Arc<recorder::Recorder>>)> {
    let (mut placed, mut recorders) = (Vec::new(), Vec::new());
    for (number, case) in cases.into_iter().enumerate() {
        let recorder = Arc::new(recorder::Recorder::default());
        let mut backends: BTreeMap<String, SocketAddr> = BTreeMap::new();
        for (name, backend) in &case.backends {
            let address = recorder::start(name, backend, ip, &recorder, pki, stop).await?;
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
