//! Traffic capture: the nftables rules that lead a pod's TCP connections into the proxy.
//!
//! A short init container runs this once, before the app's own containers; it is the only part of Leno that has
//! `NET_ADMIN`. The rules are planned from flags alone ([`rules`]), printed in nft's syntax for people (`--dry-run`),
//! and written to the kernel over netlink by an encoder of our own ([`netlink`]): the image holds no other program. The
//! table `inet leno` belongs to Leno and is replaced as a whole in one transaction, so running the command again, or
//! with other flags, is safe at any time, and an error leaves what was there before.

pub mod gateway;
mod loopback;
pub mod netlink;
pub mod rules;

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

/// Most rules that a plan may have; beyond it the flags are refused. A pod's worth is below fifty.
pub const MAX_RULES: usize = 1000;

/// Ports of the proxy itself that are never captured: merged metrics, health, proxy metrics.
pub const OWN_PORTS: [u16; 3] = [15020, 15021, 15090];

/// Why capture could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The flags ask for more rules than the bound.
    #[error(
        "the flags ask for {0} capture rules and at most {MAX_RULES} are accepted; name fewer ports, CIDRs or probes"
    )]
    TooMany(usize),
    /// A flag names one probe port twice.
    #[error("--probe names port {0} twice; every probe needs a port of its own")]
    ProbeTwice(u16),
    /// The kernel refused a part of the transaction; nothing has changed.
    #[error("the kernel refused {what}: {source}; {}", remedy(source))]
    Kernel {
        /// The table, chain or rule that was refused, in nft's syntax.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The netlink socket failed.
    #[error("netlink socket: {doing}: {source}; {}", remedy(source))]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What to do about an error of the kernel, for the message.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "capture needs CAP_NET_ADMIN: allow it for the init container, or opt the namespace out of injection"
        }
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "the node's kernel needs nf_tables with nft_redir for the inet family (Linux 5.2 or newer)"
        }
        _ => "see the node's kernel log",
    }
}

/// A probe of the app: connections of the kubelet to `port` go straight to `app_port`, in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The port that the injected pod's probe names (15100 and up).
    pub port: u16,
    /// The app's own port.
    pub app_port: u16,
}

impl FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not PORT=APPPORT, e.g. 15100=8080");
        let (port, app_port) = text.split_once('=').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
        Ok(Self { port: number(port)?, app_port: number(app_port)? })
    }
}

/// What to capture. Sets are sorted, so that equal options give equal rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// User id of the proxy, whose own connections are not captured.
    pub proxy_uid: u32,
    /// Port of the proxy's inbound listener.
    pub inbound_port: u16,
    /// Port of the proxy's outbound listener.
    pub outbound_port: u16,
    /// Only these inbound ports are captured; `None` is all of them.
    pub include_inbound_ports: Option<BTreeSet<u16>>,
    /// Inbound ports that are not captured.
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// Only connections to these destinations are captured; `None` is all of them.
    pub include_outbound_cidrs: Option<BTreeSet<IpNet>>,
    /// Destinations that are not captured.
    pub exclude_outbound_cidrs: BTreeSet<IpNet>,
    /// Destination ports that are not captured.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Probes of the app.
    pub probes: BTreeSet<Probe>,
    /// Where probes come from; a connection to a probe port from elsewhere is captured like any other.
    pub probe_sources: BTreeSet<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            proxy_uid: 1337,
            inbound_port: 15006,
            outbound_port: 15001,
            include_inbound_ports: None,
            exclude_inbound_ports: BTreeSet::new(),
            include_outbound_cidrs: None,
            exclude_outbound_cidrs: BTreeSet::new(),
            exclude_outbound_ports: BTreeSet::new(),
            probes: BTreeSet::new(),
            probe_sources: BTreeSet::new(),
        }
    }
}

/// Replaces the table of the calling thread's network namespace by one with the planned rules, all at once. Where there
/// is IPv6 the loopback device gets `::6`, from which the proxy connects to the app.
///
/// # Errors
/// When the plan is too large or the kernel refuses it; the rules that were there before then stay.
pub fn install(options: &Options) -> Result<(), CaptureError> {
    let plan = rules::plan(options)?;
    loopback::add_source()?;
    netlink::replace(&plan)
}

/// Removes the table; the address on the loopback device stays, which harms nobody. It is no error when there is none.
///
/// # Errors
/// When the kernel refuses it.
pub fn clean() -> Result<(), CaptureError> {
    netlink::remove()
}
