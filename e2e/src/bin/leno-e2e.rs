//! The demo and the tests that need a cluster, from the command line.

use clap::{Parser, Subcommand};
use leno_e2e::{bed::Release, bench, cluster, demo, differential, judge, scenarios, upgrades};
use std::{path::PathBuf, process::ExitCode};

/// Leno's demo and scenario tests; `make demo` and `make scenarios` call it.
///
/// Example: `leno-e2e scenarios --bin-dir target/release --version 0.1.0 --previous-version 0.0.9 --only canary`
#[derive(Parser)]
#[command(name = "leno-e2e", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install Leno on a local cluster (or on that of KUBECONFIG) and run a canary release.
    Demo(Release),
    /// Remove what the demo made.
    DemoDown,
    /// Let a stock Envoy take every golden case from our control plane.
    Judge {
        /// The folder of the built programs.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The folder of the cases.
        #[arg(long, default_value = judge::CASES)]
        cases: PathBuf,
        /// The folder of the requests to send.
        #[arg(long, default_value = judge::REQUESTS)]
        requests: PathBuf,
        /// Only those whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Measure our proxy beside Envoy, nginx and HAProxy.
    Bench(bench::Options),
    /// Draw where our proxy's time goes.
    Flamegraph(bench::Flame),
    /// Compare our proxy with a stock Envoy: one configuration, the same requests.
    Differential(differential::Options),
    /// Run the scenario tests.
    Scenarios {
        #[command(flatten)]
        release: Release,
        #[command(flatten)]
        options: scenarios::Options,
    },
    /// Change releases under load, with bad builds and with everything breaking that can.
    Upgrades {
        #[command(flatten)]
        release: Release,
        #[command(flatten)]
        options: upgrades::Options,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Demo(release) => demo::run(release).map(|()| true),
        Task::DemoDown => demo::down().map(|()| true),
        Task::Judge { bin_dir, cases, requests, only } => judge::judge(&bin_dir, &cases, &requests, only.as_deref()),
        Task::Bench(options) => bench::run(&options),
        Task::Flamegraph(options) => bench::flamegraph(&options),
        Task::Differential(options) => differential::run(&options),
        Task::Upgrades { release, options } => upgrades::run(release, &options),
        Task::Scenarios { release, options } => scenarios::run(release, &options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leno-e2e: {error:#}");
            ExitCode::from(error.downcast_ref::<cluster::Error>().map_or(1, cluster::Error::exit_code))
        }
    }
}
