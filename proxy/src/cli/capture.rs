//! `leno-proxy capture`.

use crate::capture::gateway::default_gateways;
use crate::capture::{CaptureError, Options, Probe, clean, install, rules};
use clap::Args;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

/// A list, or `*` for everything.
#[derive(Debug, Clone, PartialEq, Eq)]
enum List<T: Ord> {
    All,
    Some(BTreeSet<T>),
}

impl<T: Ord + FromStr> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        let parse = |item: &str| item.parse().map_err(|_| format!("`{item}` is not understood"));
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Ok(Self::Some(items.map(parse).collect::<Result<_, _>>()?))
    }
}

impl<T: Ord + Clone> List<T> {
    fn included(&self) -> Option<BTreeSet<T>> {
        match self {
            Self::All => None,
            Self::Some(items) => Some(items.clone()),
        }
    }

    fn excluded(&self, field: &str) -> Result<BTreeSet<T>, String> {
        match self {
            Self::All => Err(format!("--{field}: `*` would exclude everything; opt the pod out of injection instead")),
            Self::Some(items) => Ok(items.clone()),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    leno-proxy capture\n  \
    leno-proxy capture --exclude-outbound-ports 5432 --probe 15100=8080 --dry-run\n  \
    leno-proxy capture --clean")]
pub(super) struct Flags {
    /// User id of the proxy; its own connections are not captured.
    #[arg(long, default_value_t = 1337, value_name = "UID")]
    proxy_uid: u32,
    /// Port of the proxy for connections from outside the pod.
    #[arg(long, default_value_t = 15006, value_name = "PORT")]
    inbound_port: u16,
    /// Port of the proxy for connections of the app.
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    outbound_port: u16,
    /// Inbound ports to capture, with commas between; `*` is all.
    #[arg(long, default_value = "*", value_name = "PORTS")]
    include_inbound_ports: List<u16>,
    /// Inbound ports not to capture.
    #[arg(long, default_value = "", value_name = "PORTS")]
    exclude_inbound_ports: List<u16>,
    /// Destinations to capture, with commas between; `*` is all.
    #[arg(long, default_value = "*", value_name = "CIDRS")]
    include_outbound_cidrs: List<IpNet>,
    /// Destinations not to capture.
    #[arg(long, default_value = "", value_name = "CIDRS")]
    exclude_outbound_cidrs: List<IpNet>,
    /// Destination ports not to capture.
    #[arg(long, default_value = "", value_name = "PORTS")]
    exclude_outbound_ports: List<u16>,
    /// A probe of the app: connections of the kubelet to PORT go to APPPORT. Repeat it for each probe.
    #[arg(long, value_name = "PORT=APPPORT")]
    probe: Vec<Probe>,
    /// Where probes come from, with commas between; may be repeated. The pod's default gateways are always among them.
    #[arg(long, env = "HOST_IPS", value_name = "IPS", value_delimiter = ',')]
    probe_source: Vec<IpAddr>,
    /// Prints the rules in nft's syntax and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Removes the rules.
    #[arg(long, conflicts_with = "dry_run")]
    clean: bool,
}

/// Why the command ends with an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Flags(String),
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

pub(super) fn run(flags: &Flags) -> Result<(), Failure> {
    if flags.clean {
        return Ok(clean()?);
    }
    let options = options(flags).map_err(Failure::Flags)?;
    if flags.dry_run {
        print!("{}", rules::plan(&options)?);
        return Ok(());
    }
    install(&options)?;
    tracing::info!(probes = options.probes.len(), sources = ?options.probe_sources, "traffic is captured");
    Ok(())
}

fn options(flags: &Flags) -> Result<Options, String> {
    let mut probe_sources: BTreeSet<IpAddr> = flags.probe_source.iter().copied().collect();
    if !flags.probe.is_empty() {
        probe_sources.extend(default_gateways());
        if probe_sources.is_empty() {
            return Err("--probe: where do probes come from? Name it with --probe-source".to_owned());
        }
    }
    Ok(Options {
        proxy_uid: flags.proxy_uid,
        inbound_port: flags.inbound_port,
        outbound_port: flags.outbound_port,
        include_inbound_ports: flags.include_inbound_ports.included(),
        exclude_inbound_ports: flags.exclude_inbound_ports.excluded("exclude-inbound-ports")?,
        include_outbound_cidrs: flags.include_outbound_cidrs.included(),
        exclude_outbound_cidrs: flags.exclude_outbound_cidrs.excluded("exclude-outbound-cidrs")?,
        exclude_outbound_ports: flags.exclude_outbound_ports.excluded("exclude-outbound-ports")?,
        probes: flags.probe.iter().copied().collect(),
        probe_sources,
    })
}
