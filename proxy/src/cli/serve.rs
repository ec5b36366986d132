//! `leno-proxy serve`.

use crate::control::standalone::{self, Settings};
use crate::xds::bootstrap::Bootstrap;
use clap::{Args, ValueEnum};
use std::error::Error;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    leno-proxy serve --config bootstrap.yaml --concurrency 2\n\n\
    with a bootstrap.yaml that passes everything on port 10000 to port 8080:\n\n  \
    admin:\n    \
    address: {socket_address: {address: 127.0.0.1, port_value: 9901}}\n  \
    static_resources:\n    \
    listeners:\n    \
    - name: web\n      \
    address: {socket_address: {address: 0.0.0.0, port_value: 10000}}\n      \
    filter_chains:\n      \
    - filters:\n        \
    - name: http\n          \
    typed_config:\n            \
    \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n            \
    stat_prefix: web\n            \
    route_config:\n              \
    virtual_hosts:\n              \
    - name: all\n                \
    domains: [\"*\"]\n                \
    routes: [{match: {prefix: /}, route: {cluster: app}}]\n            \
    http_filters:\n            \
    - name: router\n              \
    typed_config:\n                \
    \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router\n    \
    clusters:\n    \
    - name: app\n      \
    load_assignment:\n        \
    cluster_name: app\n        \
    endpoints:\n        \
    - lb_endpoints:\n          \
    - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}")]
pub(super) struct Flags {
    /// Envoy's bootstrap (envoy.config.bootstrap.v3.Bootstrap), YAML or JSON.
    #[arg(short, long, alias = "config-path", value_name = "FILE")]
    config: PathBuf,
    /// Worker threads; by default one a core that this process may use.
    #[arg(long, value_name = "N")]
    concurrency: Option<NonZero<usize>>,
    /// Serve, or only say whether the bootstrap would be taken.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    mode: Mode,
    /// How long connections may take to end whose listener or filter chain is gone, in seconds; when the process leaves, at most 20.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    drain_time_s: u64,
    /// How connections end whose listener or filter chain is gone, and those that /drain_listeners asks to: more and more of them with
    /// an answer while the time for it goes by, or all with their next one.
    #[arg(long, value_enum, default_value_t = DrainStrategy::Gradual)]
    drain_strategy: DrainStrategy,
    /// Writes the address of the admin server to this file.
    #[arg(long, value_name = "FILE")]
    admin_address_path: Option<PathBuf>,
    /// The node's name for management servers, instead of the bootstrap's.
    #[arg(long, value_name = "ID")]
    service_node: Option<String>,
    /// The node's cluster for management servers, instead of the bootstrap's.
    #[arg(long, value_name = "NAME")]
    service_cluster: Option<String>,
    /// The zone in which the node is, instead of the bootstrap's.
    #[arg(long, value_name = "NAME")]
    service_zone: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DrainStrategy {
    /// More and more of them.
    Gradual,
    /// All at once.
    Immediate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Serves.
    Serve,
    /// Reads the bootstrap, converts its resources, and ends: with status 0 when all would be taken.
    Validate,
}

pub(super) fn run(flags: Flags) -> Result<(), Box<dyn Error>> {
    leno_runtime::certs::install_crypto_provider();
    let mut bootstrap = Bootstrap::read(&flags.config)?;
    if let Some(id) = flags.service_node {
        bootstrap.node.id = id;
    }
    if let Some(cluster) = flags.service_cluster {
        bootstrap.node.cluster = cluster;
    }
    if let Some(zone) = flags.service_zone {
        bootstrap.node.locality.get_or_insert_default().zone = zone;
    }
    let within = |error| format!("{}: {error}", flags.config.display());
    if flags.mode == Mode::Validate {
        standalone::validate(bootstrap).map_err(within)?;
        println!("configuration '{}' OK", flags.config.display());
        return Ok(());
    }
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let settings = Settings {
        bootstrap,
        workers: flags.concurrency.map_or_else(cores, NonZero::get),
        drain_limit: Duration::from_secs(flags.drain_time_s),
        drain_at_once: flags.drain_strategy == DrainStrategy::Immediate,
        admin_address_path: flags.admin_address_path.clone(),
    };
    super::runtime()?.block_on(async {
        let shutdown = leno_runtime::shutdown::signal()?;
        leno_runtime::shutdown::stay(crate::telemetry::logsink::reopen)?;
        Ok(standalone::run(settings, shutdown).await.map_err(within)?)
    })
}
