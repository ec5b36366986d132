//! The capture rules as data: planned from the options by a pure function, and written in nft's syntax for people.
//!
//! Both chains are of type nat, which sees only the first packet of a connection: an established connection costs
//! nothing, and replacing the table does not touch it.

use super::{CaptureError, MAX_RULES, OWN_PORTS, Options};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Connections that the proxy opens to the app on behalf of a peer have these source addresses, so that they can be
/// told from connections of the app.
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// One condition of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The socket belongs to this user.
    Uid(u32),
    /// The packet leaves by the loopback interface.
    OutLoopback,
    /// The source is (or, with `false`, is not) in the network; also means that the packet is of its family.
    Source(IpNet, bool),
    /// The destination is (or, with `false`, is not) in the network; also means that the packet is of its family.
    Destination(IpNet, bool),
    /// The packet is TCP.
    Tcp,
    /// The packet is TCP to this port.
    TcpPort(u16),
}

/// What happens to the connection when all conditions of a rule hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes where it was going.
    Accept,
    /// It goes to this port of the pod itself.
    Redirect(u16),
}

/// A rule; a chain's rules are tried in order and the first that holds decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All of them must hold.
    pub matches: Vec<Match>,
    /// What then happens.
    pub action: Action,
}

/// The two rule chains of the table `inet leno`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// For connections that processes of the pod open.
    pub output: Vec<Rule>,
    /// For connections that come from outside the pod.
    pub prerouting: Vec<Rule>,
}

fn accept(matches: impl Into<Vec<Match>>) -> Rule {
    Rule { matches: matches.into(), action: Action::Accept }
}

fn redirect(port: u16, matches: impl Into<Vec<Match>>) -> Rule {
    Rule { matches: matches.into(), action: Action::Redirect(port) }
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn loopback() -> [IpNet; 2] {
    let v4 = Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).map_or_else(|_| host(Ipv4Addr::LOCALHOST.into()), IpNet::V4);
    [v4, IpNet::V6(Ipv6Net::from(Ipv6Addr::LOCALHOST))]
}

/// Plans the rules.
///
/// # Errors
/// When there would be more than [`MAX_RULES`], or two probes share a port.
pub fn plan(options: &Options) -> Result<Ruleset, CaptureError> {
    let rules = Ruleset { output: output(options), prerouting: prerouting(options) };
    let count = rules.output.len() + rules.prerouting.len();
    if count > MAX_RULES {
        return Err(CaptureError::TooMany(count));
    }
    let mut ports = std::collections::BTreeSet::new();
    for probe in &options.probes {
        if !ports.insert(probe.port) {
            return Err(CaptureError::ProbeTwice(probe.port));
        }
    }
    Ok(rules)
}

fn output(options: &Options) -> Vec<Rule> {
    let uid = Match::Uid(options.proxy_uid);
    let mut rules = Vec::new();
    // A pod that calls its own service: the proxy picked this very pod as the endpoint, and the call must still arrive
    // as an inbound one. What the inbound side then opens to the app has a source of its own and passes.
    for (loopback, source) in
        loopback().into_iter().zip([IpAddr::from(INBOUND_SOURCE_V4), IpAddr::from(INBOUND_SOURCE_V6)])
    {
        rules.push(redirect(
            options.inbound_port,
            [
                uid,
                Match::OutLoopback,
                Match::Destination(loopback, false),
                Match::Source(host(source), false),
                Match::Tcp,
            ],
        ));
    }
    rules.push(accept([uid]));
    rules.push(accept([Match::OutLoopback]));
    rules.extend(loopback().map(|network| accept([Match::Destination(network, true)])));
    rules.extend(options.exclude_outbound_ports.iter().map(|port| accept([Match::TcpPort(*port)])));
    rules.extend(options.exclude_outbound_cidrs.iter().map(|network| accept([Match::Destination(*network, true)])));
    match &options.include_outbound_cidrs {
        None => rules.push(redirect(options.outbound_port, [Match::Tcp])),
        Some(networks) => rules.extend(
            networks
                .iter()
                .map(|network| redirect(options.outbound_port, [Match::Destination(*network, true), Match::Tcp])),
        ),
    }
    rules
}

fn prerouting(options: &Options) -> Vec<Rule> {
    let mut rules: Vec<Rule> = OWN_PORTS.iter().map(|port| accept([Match::TcpPort(*port)])).collect();
    // Probes stand before the excluded ports: a probe port never belongs to the app.
    for probe in &options.probes {
        rules.extend(
            options.probe_sources.iter().map(|source| {
                redirect(probe.app_port, [Match::Source(host(*source), true), Match::TcpPort(probe.port)])
            }),
        );
    }
    rules.extend(options.exclude_inbound_ports.iter().map(|port| accept([Match::TcpPort(*port)])));
    match &options.include_inbound_ports {
        None => rules.push(redirect(options.inbound_port, [Match::Tcp])),
        Some(ports) => {
            rules.extend(ports.iter().map(|port| redirect(options.inbound_port, [Match::TcpPort(*port)])));
        }
    }
    rules
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut address = |side: &str, network: &IpNet, is: bool| {
            let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
            let not = if is { "" } else { "!= " };
            if network.prefix_len() == network.max_prefix_len() {
                write!(f, "{family} {side} {not}{}", network.addr())
            } else {
                write!(f, "{family} {side} {not}{}", network.trunc())
            }
        };
        match self {
            Match::Source(network, is) => address("saddr", network, *is),
            Match::Destination(network, is) => address("daddr", network, *is),
            Match::Uid(uid) => write!(f, "meta skuid {uid}"),
            Match::OutLoopback => write!(f, "oifname \"lo\""),
            Match::Tcp => write!(f, "meta l4proto tcp"),
            Match::TcpPort(port) => write!(f, "tcp dport {port}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        match self.action {
            Action::Accept => write!(f, "accept"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet leno {{")?;
        for (hook, rules) in [("output", &self.output), ("prerouting", &self.prerouting)] {
            writeln!(f, "\tchain {hook} {{\n\t\ttype nat hook {hook} priority -100; policy accept;")?;
            for rule in rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Probe;
    use std::collections::BTreeSet;

    #[test]
    fn plan_with_every_option_reads_as_expected() {
        let options = Options {
            exclude_inbound_ports: BTreeSet::from([22]),
            include_outbound_cidrs: Some(BTreeSet::from([
                "198.19.0.0/16".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
            ])),
            exclude_outbound_cidrs: BTreeSet::from(["169.254.169.254/32".parse().unwrap()]),
            exclude_outbound_ports: BTreeSet::from([53]),
            probes: BTreeSet::from([Probe { port: 15100, app_port: 8080 }]),
            probe_sources: BTreeSet::from(["198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            ..Options::default()
        };
        insta::assert_snapshot!(plan(&options).unwrap(), @r#"
        table inet leno {
        	chain output {
        		type nat hook output priority -100; policy accept;
        		meta skuid 1337 oifname "lo" ip daddr != 127.0.0.0/8 ip saddr != 127.0.0.6 meta l4proto tcp redirect to :15006
        		meta skuid 1337 oifname "lo" ip6 daddr != ::1 ip6 saddr != ::6 meta l4proto tcp redirect to :15006
        		meta skuid 1337 accept
        		oifname "lo" accept
        		ip daddr 127.0.0.0/8 accept
        		ip6 daddr ::1 accept
        		tcp dport 53 accept
        		ip daddr 169.254.169.254 accept
        		ip daddr 198.19.0.0/16 meta l4proto tcp redirect to :15001
        		ip6 daddr fd00::/8 meta l4proto tcp redirect to :15001
        	}
        	chain prerouting {
        		type nat hook prerouting priority -100; policy accept;
        		tcp dport 15020 accept
        		tcp dport 15021 accept
        		tcp dport 15090 accept
        		ip saddr 198.18.0.1 tcp dport 15100 redirect to :8080
        		ip6 saddr fd00::1 tcp dport 15100 redirect to :8080
        		tcp dport 22 accept
        		meta l4proto tcp redirect to :15006
        	}
        }
        "#);
    }

    #[test]
    fn plan_with_too_many_ports_is_refused() {
        let options = Options { exclude_outbound_ports: (1..=1000).collect(), ..Options::default() };
        assert!(matches!(plan(&options), Err(CaptureError::TooMany(_))));
    }

    #[test]
    fn plan_with_a_probe_port_named_twice_is_refused() {
        let probes = BTreeSet::from([Probe { port: 15100, app_port: 1 }, Probe { port: 15100, app_port: 2 }]);
        let options = Options { probes, ..Options::default() };
        assert!(matches!(plan(&options), Err(CaptureError::ProbeTwice(15100))));
    }
}
