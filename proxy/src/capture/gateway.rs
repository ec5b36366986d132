//! Addresses of the default gateways, from where a kubelet on a bridged pod network probes.
//!
//! Read from `/proc/net/route` and `/proc/net/ipv6_route` (formats: Linux `net/ipv4/fib_trie.c`, `net/ipv6/route.c`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The default gateways of the calling process's network namespace, IPv4 and IPv6; empty when there is none.
pub fn default_gateways() -> BTreeSet<IpAddr> {
    // A node without IPv6 has no such file, which is the same as no gateway.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = parse_v4(&read("/proc/net/route")).into_iter().map(IpAddr::from);
    let v6 = parse_v6(&read("/proc/net/ipv6_route")).into_iter().map(IpAddr::from);
    v4.chain(v6).collect()
}

fn parse_v4(table: &str) -> Vec<Ipv4Addr> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (destination, gateway) = (fields.next()?, fields.next()?);
            let mask = fields.nth(4)?;
            // Written as a number of the machine's byte order that holds the address in network order.
            let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
            (destination == "00000000" && mask == "00000000" && !gateway.is_unspecified()).then_some(gateway)
        })
        .collect()
}

fn parse_v6(table: &str) -> Vec<Ipv6Addr> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (destination, prefix) = (fields.next()?, fields.next()?);
            let gateway = Ipv6Addr::from(u128::from_str_radix(fields.nth(2)?, 16).ok()?);
            let default = prefix == "00" && destination.bytes().all(|byte| byte == b'0');
            (default && !gateway.is_unspecified()).then_some(gateway)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_when_the_table_has_a_default_route_is_found() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010012C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t000012C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(parse_v4(table), ["198.18.0.1".parse::<Ipv4Addr>().unwrap()]);
        }
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";
        assert_eq!(parse_v6(table), ["fe80::1".parse::<Ipv6Addr>().unwrap()]);
    }
}
