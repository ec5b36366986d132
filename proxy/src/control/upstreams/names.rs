//! Looks names up, again and again.

use super::{Event, Shared};
use crate::config::{ClusterId, Dns, DnsFamily};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one look-up may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// Addresses of one name at most: an answer over TCP, 64 KiB, has no more.
const MAX_ADDRESSES: usize = 4096;
/// A time to live with this bit is none (RFC 2181, section 8).
const NO_TIME: u32 = 1 << 31;
/// The time to live that the resolver gives to what it has from the file of hosts, which has none. A server that says the same is asked
/// again as if it said nothing.
const OF_FILE: u32 = 86_400;

/// Addresses, and how long they are good.
type Found = (Vec<IpAddr>, Duration);

/// Looks a name up for as long as the task lives.
pub(super) async fn look_up(shared: Rc<Shared>, dns: Arc<Dns>, name: Arc<str>, cluster: ClusterId, task: u64) {
    let literal: Option<IpAddr> = name.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let mut resolver = None;
    let mut failures = 0;
    loop {
        dns.stats.attempt.add(1);
        let found = match literal {
            Some(ip) => Some((vec![ip], Duration::ZERO)),
            None => {
                let Ok(_slot) = shared.look_ups.acquire().await else { return };
                ask(&mut resolver, &dns, &name).await
            }
        };
        match &found {
            Some((addresses, _)) => {
                dns.stats.success.add(1);
                if addresses.is_empty() {
                    dns.stats.empty.add(1);
                }
            }
            None => dns.stats.failure.add(1),
        }
        failures = if found.is_some() { 0 } else { failures + 1 };
        let wait = pause(&dns, found.as_ref().map(|found| found.1), failures, |bound| shared.rng.below(bound));
        let addresses = found.map(|found| found.0);
        if shared.events.send(Event::Resolved { cluster, task, addresses }).await.is_err() || literal.is_some() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// `None` when nothing could be found out; that there is no such name is something.
async fn ask(kept: &mut Option<TokioResolver>, dns: &Dns, name: &str) -> Option<Found> {
    let resolver = match kept {
        Some(resolver) => resolver,
        None => match build(dns) {
            Ok(built) => kept.insert(built),
            Err(error) => {
                tracing::warn!(name, error, "names cannot be looked up");
                return None;
            }
        },
    };
    match tokio::time::timeout(LOOKUP_LIMIT, resolver.lookup_ip(name)).await {
        Ok(Ok(found)) => {
            let answers = found.as_lookup().answers();
            let of_file = answers.iter().any(|record| record.ttl == OF_FILE);
            let senseless = of_file || answers.iter().any(|record| record.ttl & NO_TIME != 0);
            let good = match senseless {
                true => Duration::ZERO,
                false => found.valid_until().saturating_duration_since(Instant::now()),
            };
            let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
            if of_file {
                // The file is read once by each resolver.
                *kept = None;
            }
            if addresses.len() == MAX_ADDRESSES {
                tracing::warn!(name, most = MAX_ADDRESSES, "a name has more addresses than are used");
            }
            Some((addresses, good))
        }
        Ok(Err(error)) if error.is_nx_domain() || error.is_no_records_found() => Some((Vec::new(), Duration::ZERO)),
        Ok(Err(error)) => {
            tracing::debug!(name, %error, "a name could not be looked up");
            None
        }
        Err(_) => {
            tracing::debug!(name, limit = ?LOOKUP_LIMIT, "a name could not be looked up in time");
            None
        }
    }
}

fn build(dns: &Dns) -> Result<TokioResolver, String> {
    let mut builder = if dns.servers.is_empty() && !dns.tcp {
        TokioResolver::builder_tokio().map_err(|error| error.to_string())?
    } else if dns.servers.is_empty() {
        let (config, options) = read_system_conf().map_err(|error| error.to_string())?;
        let servers = config.name_servers().iter().map(|server| NameServerConfig::tcp(server.ip)).collect();
        let config = ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder
    } else {
        let servers = dns.servers.iter().map(|server| {
            let mut config =
                if dns.tcp { NameServerConfig::tcp(server.ip()) } else { NameServerConfig::udp_and_tcp(server.ip()) };
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.ip_strategy = match dns.family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    // How often is asked is what the configuration says.
    options.cache_size = 0;
    // Times to live as they are sent.
    options.positive_max_ttl = Some(Duration::from_secs(u32::MAX.into()));
    builder.build().map_err(|error| error.to_string())
}

/// How long to wait before the next look-up: `good` is how long the addresses are, if there are any.
fn pause(dns: &Dns, good: Option<Duration>, failures: u32, random: impl Fn(u64) -> u64) -> Duration {
    let below = |most: Duration| {
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random(millis.max(1)))
    };
    match (good, dns.failure_refresh) {
        (Some(good), _) if dns.respect_ttl && !good.is_zero() => good.max(dns.least) + below(dns.jitter),
        (None, Some((base, most))) => {
            // At random below a bound that doubles, and not at once.
            let bound = base.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
            below(bound).max(Duration::from_millis(1))
        }
        _ => dns.refresh + below(dns.jitter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_when_look_ups_fail_or_answers_say_how_long_they_are_good_then_it_follows() {
        let seconds = Duration::from_secs;
        let mut dns = Dns {
            stats: Default::default(),
            logical: false,
            names: Vec::new(),
            refresh: seconds(5),
            jitter: Duration::ZERO,
            failure_refresh: None,
            respect_ttl: false,
            family: DnsFamily::Auto,
            servers: Vec::new(),
            tcp: false,
            least: Duration::ZERO,
        };
        let most = |bound: u64| bound - 1;
        assert_eq!(pause(&dns, Some(seconds(60)), 0, |_| 0), seconds(5));
        assert_eq!(pause(&dns, None, 3, |_| 0), seconds(5));
        dns.respect_ttl = true;
        assert_eq!(pause(&dns, Some(seconds(60)), 0, |_| 0), seconds(60));
        dns.least = seconds(90);
        assert_eq!(pause(&dns, Some(seconds(60)), 0, |_| 0), seconds(90));
        assert_eq!(pause(&dns, Some(Duration::ZERO), 0, |_| 0), seconds(5));
        dns.failure_refresh = Some((seconds(1), seconds(3)));
        let waits: Vec<Duration> = (1..=3).map(|failures| pause(&dns, None, failures, most)).collect();
        let millis = Duration::from_millis;
        assert_eq!(waits, [millis(999), millis(1999), millis(2999)]);
    }
}
