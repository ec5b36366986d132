//! `leno-proxy run`.

use crate::admin::Ports;
use crate::agent;
use crate::control::podinfo::PodInfo;
use crate::control::serving::Settings;
use crate::control::{self, End};
use crate::identity::Files;
use crate::slots::Folder;
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use std::error::Error;
use std::num::NonZero;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Workers when nothing is said: a sidecar seldom needs more, and each costs a thread and its pools.
const DEFAULT_WORKERS: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    In a pod (injection does this; everything else comes from environment and volumes):\n    \
    leno-proxy run --slot 0\n  \
    On a laptop, beside `leno-control-plane --config-dir ./yaml --root-out ./roots.pem`:\n    \
    echo -n dev:default/client > token\n    \
    POD_NAME=client POD_NAMESPACE=default leno-proxy run --control-plane 127.0.0.1:15012 \\\n      \
    --token ./token --roots ./roots.pem --folder ./run")]
pub(super) struct Flags {
    /// Which of the two slots this process is.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..2))]
    slot: u8,
    /// The folder that the slots share.
    #[arg(long, default_value = "/run/leno", value_name = "DIR")]
    folder: PathBuf,
    /// Name of the pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: String,
    /// Namespace of the pod.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pod_namespace: String,
    /// The pod's service account token for the control plane.
    #[arg(long, default_value = "/var/run/leno/token/token", value_name = "FILE")]
    token: PathBuf,
    /// The roots that the mesh trusts, PEM.
    #[arg(long, default_value = "/var/run/leno/token/roots.pem", value_name = "FILE")]
    roots: PathBuf,
    /// The folder with the pod's labels and annotations.
    #[arg(long, default_value = "/etc/leno/podinfo", value_name = "DIR")]
    podinfo: PathBuf,
    /// The control plane, instead of the one of the pod's revision.
    #[arg(long, env = "LENO_CONTROL_PLANE", value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// Namespace of the control plane.
    #[arg(long, env = "LENO_CONTROL_PLANE_NAMESPACE", default_value = "leno-system", value_name = "NAME")]
    control_plane_namespace: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    trust_domain: String,
    /// Worker threads; by default one a core that this container may use, at most 2.
    #[arg(long, env = "LENO_WORKERS", value_name = "N")]
    workers: Option<NonZero<usize>>,
    /// Port for connections from outside the pod.
    #[arg(long, default_value_t = 15006, value_name = "PORT")]
    inbound_port: u16,
    /// Port for connections of the app.
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    outbound_port: u16,
    /// Port of the admin server, on loopback; 0 for none.
    #[arg(long, default_value_t = 15000, value_name = "PORT")]
    admin_port: u16,
    /// Port of the readiness probe; 0 for none.
    #[arg(long, default_value_t = 15021, value_name = "PORT")]
    health_port: u16,
    /// Port of this proxy's metrics; 0 for none.
    #[arg(long, default_value_t = 15090, value_name = "PORT")]
    metrics_port: u16,
    /// Port of the pod's merged metrics; 0 for none.
    #[arg(long, default_value_t = 15020, value_name = "PORT")]
    merged_port: u16,
    /// What serves the traffic; the image says it.
    #[arg(long, env = "LENO_ENGINE", value_enum, default_value_t = EngineFlag::Leno)]
    engine: EngineFlag,
    /// Envoy's binary, with `--engine envoy`.
    #[arg(long, env = "LENO_ENVOY_BINARY", default_value = "/envoy", value_name = "FILE")]
    envoy: PathBuf,
    /// How long open connections may take to end when this slot leaves, in seconds.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    drain_limit: u64,
}

/// What serves the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineFlag {
    /// This very process.
    Leno,
    /// Envoy, under this process.
    Envoy,
}

pub(super) fn run(flags: Flags) -> Result<(), Box<dyn Error>> {
    leno_runtime::certs::install_crypto_provider();
    let settings = settings(flags)?;
    let runtime = super::runtime()?;
    let (end, shutdown) = runtime.block_on(async {
        let shutdown = leno_runtime::shutdown::signal()?;
        leno_runtime::shutdown::stay(crate::telemetry::logsink::reopen)?;
        // Those that came while the program before gave way to this one.
        signals().thread_unblock()?;
        let end = control::run(settings, shutdown.clone()).await?;
        Ok::<_, Box<dyn Error>>((end, shutdown))
    })?;
    if end == End::Leave {
        return Ok(());
    }
    // From now on they wait for the handlers of the next program; what has come is still heard here.
    signals().thread_block()?;
    runtime.block_on(async {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    });
    if shutdown.is_cancelled() {
        return Ok(());
    }
    drop(runtime);
    Err(again().into())
}

/// The signals that this process hears.
fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1].into_iter().collect()
}

/// Executes this program again, as it was called: the process, its environment and its place stay, everything else begins anew.
/// Gives why it could not.
fn again() -> std::io::Error {
    tracing::info!("beginning anew");
    crate::profile::end();
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).exec()
}

fn settings(flags: Flags) -> Result<Settings, String> {
    let control_plane = match &flags.control_plane {
        None => None,
        Some(text) => {
            let wrong = || format!("--control-plane: `{text}` is not HOST:PORT");
            let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port.parse().map_err(|_| wrong())?))
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Ok(Settings {
        slot: flags.slot,
        folder: Folder::new(flags.folder),
        pod: flags.pod_name,
        namespace: flags.pod_namespace,
        files: Files { token: flags.token, roots: flags.roots },
        podinfo: PodInfo::new(flags.podinfo),
        control_plane,
        control_plane_namespace: flags.control_plane_namespace,
        trust_domain: flags.trust_domain,
        workers: flags.workers.map_or(cores.min(DEFAULT_WORKERS), NonZero::get),
        inbound_port: flags.inbound_port,
        outbound_port: flags.outbound_port,
        ports: Ports {
            admin: flags.admin_port,
            health: flags.health_port,
            metrics: flags.metrics_port,
            merged: flags.merged_port,
        },
        drain_limit: Duration::from_secs(flags.drain_limit),
        envoy: (flags.engine == EngineFlag::Envoy).then_some(agent::Settings { binary: flags.envoy }),
    })
}
