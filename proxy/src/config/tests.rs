use super::*;
use std::net::SocketAddr;

fn table(domains: &[&[&str]]) -> Result<RouteTable, TableError> {
    let hosts = domains
        .iter()
        .enumerate()
        .map(|(index, domains)| VirtualHost {
            name: Arc::from(index.to_string()),
            domains: domains.iter().map(|&domain| domain.into()).collect(),
            ..VirtualHost::default()
        })
        .collect();
    RouteTable::new("t", hosts, HeaderOps::default())
}

fn found(table: &RouteTable, authority: &str) -> Option<String> {
    table.host(Some(authority.as_bytes())).map(|host| host.name.to_string())
}

#[test]
fn virtual_host_when_several_domains_match_then_envoys_order_decides() {
    let table = table(&[
        &["*"],
        &["*.example.com"],
        &["*.deep.example.com", "*-x.example.com"],
        &["www.example.*"],
        &["www.example.com", "WWW.other.org:8080"],
    ])
    .unwrap();
    for (authority, want) in [
        ("www.example.com", "4"),
        ("WWW.Example.Com", "4"),
        ("a.example.com", "1"),
        ("a.deep.example.com", "2"),
        ("a-x.example.com", "2"),
        ("www.example.org", "3"),
        ("www.other.org:8080", "4"),
        ("www.other.org", "0"),
        ("", "0"),
        (".example.com", "0"),
    ] {
        assert_eq!(found(&table, authority).as_deref(), Some(want), "{authority}");
    }
}

#[test]
fn virtual_host_when_nothing_matches_then_there_is_none() {
    let table = table(&[&["a"], &["*.b"]]).unwrap();
    assert_eq!(found(&table, "c"), None);
    assert_eq!(found(&table, &"x".repeat(1000)), None);
}

#[test]
fn route_table_when_a_domain_is_taken_then_it_is_refused() {
    assert!(matches!(table(&[&["a"], &["A"]]), Err(TableError::DuplicateDomain { .. })));
    assert!(matches!(table(&[&["*"], &["*"]]), Err(TableError::DuplicateDomain { .. })));
    assert!(table(&[&["a*b", "*a*", ""]]).is_ok(), "a star elsewhere is a character like others");
}

#[test]
fn regex_when_matching_then_it_means_what_re2_says() {
    assert!(RegexMatch::new(r"/a/\d+").unwrap().is_match(b"/a/12"));
    assert!(!RegexMatch::new(r"/a/\d+").unwrap().is_match("/a/\u{0663}".as_bytes()));
    assert!(!RegexMatch::new("a|b").unwrap().is_match(b"ab"), "the whole text must match");
    assert!(RegexMatch::new(r"\pL+").unwrap().is_match("é".as_bytes()));
    assert!(RegexMatch::new("(").is_err());
    assert!(RegexMatch::new("((a{1000}){1000}){1000}").is_err(), "bounded");
    let rewrite = RegexRewrite::new("^/api/(.*)$", r"/v2/\1$").unwrap();
    assert_eq!(rewrite.apply(b"/api/x"), b"/v2/x$");
}

#[test]
fn header_match_when_missing_or_inverted_then_as_envoy() {
    let exact = |invert, missing_as_empty| HeaderMatch {
        name: "x".into(),
        test: HeaderTest::Text(StringMatch::Exact("1".into())),
        invert,
        missing_as_empty,
    };
    assert!(exact(false, false).matches([&b"1"[..]]));
    assert!(!exact(false, false).matches(None::<&[u8]>));
    assert!(!exact(true, false).matches(None::<&[u8]>));
    assert!(exact(true, true).matches(None::<&[u8]>));
    assert!(exact(true, false).matches([&b"2"[..]]));
    let range = HeaderMatch { test: HeaderTest::Range(1, 10), ..exact(false, false) };
    assert!(range.matches([&b"9"[..]]) && !range.matches([&b"10"[..]]) && !range.matches([&b"x"[..]]));
    // Of several values one is enough, and one is enough to fail an inverted condition.
    assert!(exact(false, false).matches([&b"2"[..], b"1"]) && !exact(true, false).matches([&b"2"[..], b"1"]));
    assert!(!exact(false, false).matches([&b"1,2"[..]]));
}

#[test]
fn query_match_when_parameter_is_repeated_then_the_first_counts() {
    let query = QueryMatch { name: "a".into(), test: QueryTest::Text(StringMatch::Exact("1".into())) };
    assert!(query.matches(b"b=2&a=1&a=3"));
    assert!(!query.matches(b"a=3&a=1"));
    assert!(!query.matches(b""));
}

fn chain(name: &str, matches: ChainMatch) -> FilterChain {
    FilterChain { matches, ..FilterChain::new(name, Network::Http(Arc::default())) }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: Arc::from("l"),
        direction: Direction::Inbound,
        addresses: vec![SocketAddr::from(([0, 0, 0, 0], 15006))],
        bind: true,
        use_original_dst: true,
        chains: FilterChains::new(chains, Some(chain("default", ChainMatch::default()))).unwrap(),
        ..Listener::default()
    }
}

/// A connection from elsewhere to that address.
fn facts(destination: &str) -> Facts<'static> {
    Facts {
        destination: destination.parse().unwrap(),
        source: "192.168.1.9:4000".parse().unwrap(),
        direct_source: "192.168.1.9:4000".parse().unwrap(),
        transport: Transport::Raw,
        server_name: None,
        application_protocols: &[],
    }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

#[test]
fn chain_when_addresses_overlap_then_the_longest_range_counts_and_nothing_goes_back() {
    let to = |prefixes: &[&str]| ChainMatch {
        destination_prefixes: prefixes.iter().map(|text| net(text)).collect(),
        ..ChainMatch::default()
    };
    let from = |destination: &str, sources: &[&str]| ChainMatch {
        source_prefixes: sources.iter().map(|text| net(text)).collect(),
        ..to(&[destination])
    };
    let listener = listener(vec![
        chain("wide", to(&["10.0.0.0/8", "fd00::/8"])),
        chain("narrow", from("10.1.0.0/16", &["192.168.0.0/16"])),
        chain("host", to(&["10.1.1.1/32"])),
        chain("any6", to(&["::/0"])),
    ]);
    let name = |facts: Facts<'_>| listener.chain(&facts).map(|chain| chain.name.to_string()).unwrap();
    assert_eq!(name(facts("10.2.0.1:80")), "wide");
    assert_eq!(name(facts("[::ffff:10.2.0.1]:80")), "wide");
    assert_eq!(name(facts("10.1.2.3:80")), "narrow");
    assert_eq!(name(facts("10.1.1.1:80")), "host");
    assert_eq!(name(facts("[fd00::1]:80")), "wide");
    assert_eq!(name(facts("[2001::1]:80")), "any6");
    assert_eq!(name(facts("11.0.0.1:80")), "default", "a range of IPv6 is none of IPv4");
    let elsewhere = Facts { source: "172.16.0.1:1".parse().unwrap(), ..facts("10.1.2.3:80") };
    assert_eq!(name(elsewhere), "default", "the wider range is not gone back to");
}

#[test]
fn chain_when_sources_differ_then_type_address_and_port_count_in_this_order() {
    let typed = |source_type| ChainMatch { source_type, ..ChainMatch::default() };
    let listener = listener(vec![
        chain("local", typed(SourceType::SameIpOrLoopback)),
        chain("external", typed(SourceType::External)),
        chain("port", ChainMatch { source_ports: vec![7, 8], ..typed(SourceType::External) }),
        chain("direct", ChainMatch { direct_source_prefixes: vec![net("172.16.0.1/32")], ..ChainMatch::default() }),
    ]);
    let name = |source: &str, direct: &str| {
        let facts =
            Facts { source: source.parse().unwrap(), direct_source: direct.parse().unwrap(), ..facts("10.0.0.1:80") };
        listener.chain(&facts).map(|chain| chain.name.to_string()).unwrap()
    };
    assert_eq!(name("127.0.0.1:9", "127.0.0.1:9"), "local");
    assert_eq!(name("10.0.0.1:9", "10.0.0.1:9"), "local");
    assert_eq!(name("1.2.3.4:9", "1.2.3.4:9"), "external");
    assert_eq!(name("1.2.3.4:8", "1.2.3.4:8"), "port");
    assert_eq!(name("1.2.3.4:8", "172.16.0.1:9"), "direct");
}

#[test]
fn chain_when_server_names_overlap_then_the_longest_counts() {
    let named = |names: &[&str]| ChainMatch {
        server_names: names.iter().map(|name| Arc::from(*name)).collect(),
        ..ChainMatch::default()
    };
    let listener = listener(vec![
        chain("exact", named(&["www.Example.com"])),
        chain("near", named(&["*.example.com"])),
        chain("far", named(&["*.com", "*.b.a.example.com"])),
        chain("none", named(&[])),
    ]);
    let name = |server_name| {
        let facts = Facts { server_name, ..facts("10.0.0.1:80") };
        listener.chain(&facts).map(|chain| chain.name.to_string()).unwrap()
    };
    assert_eq!(name(Some("www.example.com")), "exact");
    assert_eq!(name(Some("WWW.example.COM")), "exact");
    assert_eq!(name(Some("a.www.example.com")), "near");
    assert_eq!(name(Some("x.b.a.example.com")), "far");
    assert_eq!(name(Some("example.com")), "far");
    assert_eq!(name(Some("example.org")), "none");
    assert_eq!(name(None), "none");
}

#[test]
fn chains_when_two_match_the_same_or_a_name_is_malformed_then_they_are_refused() {
    let new = |chains: Vec<ChainMatch>| {
        FilterChains::new(chains.into_iter().map(|matches| chain("c", matches)).collect(), None).unwrap_err()
    };
    let named = |names: &[&str]| ChainMatch {
        server_names: names.iter().map(|name| Arc::from(*name)).collect(),
        ..ChainMatch::default()
    };
    assert_eq!(new(vec![ChainMatch::default(), ChainMatch::default()]), ChainError::Overlap { first: 0, second: 1 });
    assert_eq!(new(vec![named(&["a", "b"]), named(&["b", "c"])]), ChainError::Overlap { first: 0, second: 1 });
    for name in ["*", "a*.b", "*a.b", "a.*"] {
        assert_eq!(new(vec![named(&[name])]), ChainError::Wildcard(name.into()), "{name}");
    }
    let many: Vec<Arc<str>> = (0..2000).map(|index| index.to_string().into()).collect();
    let many = ChainMatch { server_names: many.clone(), application_protocols: many, ..ChainMatch::default() };
    assert_eq!(new(vec![many]), ChainError::TooMany);
}

#[test]
fn chain_when_there_are_thousands_then_each_is_found() {
    let chains = (0..5000).map(|index| {
        let name: Arc<str> = format!("host{index}.example.com").into();
        chain(&name, ChainMatch { server_names: vec![name.clone()], ..ChainMatch::default() })
    });
    let listener = listener(chains.collect());
    for index in 0..5000 {
        let name = format!("host{index}.example.com");
        let facts = Facts { server_name: Some(&name), ..facts("10.0.0.1:443") };
        assert_eq!(&*listener.chain(&facts).unwrap().name, name);
    }
}

#[test]
fn ports_when_complemented_then_each_is_on_one_side() {
    let set = PortSet(vec![(10, 20), (15, 30), (65535, 65535)]);
    let rest = set.complement();
    assert_eq!(rest, PortSet(vec![(0, 9), (31, 65534)]));
    assert_eq!(PortSet::default().complement(), PortSet::all());
    assert_eq!(PortSet::all().complement(), PortSet::default());
}

#[test]
fn bucket_when_empty_then_it_fills_with_time() {
    let bucket = Bucket::new(2, 1, std::time::Duration::from_secs(1));
    let start = std::time::Instant::now();
    let at = |seconds| bucket.take(start + std::time::Duration::from_millis(seconds));
    assert!(at(0) && at(0) && !at(0) && !at(900));
    assert!(at(1100) && !at(1200));
    assert!(at(60_000) && at(60_000) && !at(60_000), "no more than fits in");
}

#[test]
fn chain_when_port_matches_but_nothing_below_then_default() {
    let alpn: Vec<Arc<str>> = vec![Arc::from("leno-http/1.1")];
    let tls = |port| ChainMatch {
        destination_port: port,
        transport: Some(Transport::Tls),
        application_protocols: alpn.clone(),
        ..ChainMatch::default()
    };
    let raw = |port| ChainMatch { destination_port: port, transport: Some(Transport::Raw), ..ChainMatch::default() };
    let listener =
        listener(vec![chain("p-tls", tls(Some(80))), chain("any-raw", raw(None)), chain("any-tls", tls(None))]);
    let name = |port, transport, protocols: &[Arc<str>]| {
        let facts = Facts { transport, application_protocols: protocols, ..facts(&format!("10.0.0.1:{port}")) };
        listener.chain(&facts).map(|chain| chain.name.to_string()).unwrap()
    };
    assert_eq!(name(80, Transport::Tls, &alpn), "p-tls");
    assert_eq!(name(80, Transport::Raw, &[]), "default", "Envoy does not go back to chains without a port");
    assert_eq!(name(81, Transport::Raw, &[]), "any-raw");
    assert_eq!(name(81, Transport::Tls, &alpn), "any-tls");
    assert_eq!(name(81, Transport::Tls, &[]), "default");
}

#[test]
fn listeners_when_destination_is_known_then_address_wins_over_port() {
    let virtual_one = |name: &str, address: &str| {
        Arc::new(Listener {
            name: Arc::from(name),
            direction: Direction::Outbound,
            addresses: vec![address.parse().unwrap()],
            bind: false,
            ..listener(Vec::new())
        })
    };
    let listeners = Listeners::new(vec![
        Arc::new(listener(Vec::new())),
        virtual_one("vip", "10.0.0.1:80"),
        virtual_one("port", "0.0.0.0:80"),
    ]);
    let name = |address: &str| {
        listeners.by_destination(Direction::Outbound, address.parse().unwrap()).map(|l| l.name.to_string())
    };
    assert_eq!(name("10.0.0.1:80").as_deref(), Some("vip"));
    assert_eq!(name("[::ffff:10.0.0.1]:80").as_deref(), Some("vip"));
    assert_eq!(name("10.0.0.2:80").as_deref(), Some("port"));
    assert_eq!(name("10.0.0.2:81"), None);
    assert!(listeners.by_destination(Direction::Inbound, "10.0.0.1:80".parse().unwrap()).is_none());
    assert!(listeners.bound("0.0.0.0:15006".parse().unwrap()).is_some());
}

#[test]
fn addresses_when_sorted_then_families_take_turns_and_the_preferred_one_begins() {
    let all: Vec<SocketAddr> =
        ["1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1", "[::1]:1", "[::2]:1"].map(|text| text.parse().unwrap()).into();
    let sorted = |order: Eyeballs, all: &[SocketAddr]| -> Vec<String> {
        order.sort(all.to_vec()).iter().map(|address| address.ip().to_string()).collect()
    };
    let usual = Eyeballs::default();
    assert_eq!(sorted(usual, &all), ["1.1.1.1", "::1", "1.1.1.2", "::2", "1.1.1.3"]);
    let v6 = Eyeballs { first_v6: Some(true), count: 1 };
    assert_eq!(sorted(v6, &all), ["::1", "1.1.1.1", "::2", "1.1.1.2", "1.1.1.3"]);
    let two = Eyeballs { first_v6: None, count: 2 };
    assert_eq!(sorted(two, &all), ["1.1.1.1", "1.1.1.2", "::1", "1.1.1.3", "::2"]);
    assert_eq!(sorted(Eyeballs { first_v6: Some(true), count: 9 }, &all[..2]), ["1.1.1.1", "1.1.1.2"]);
    assert_eq!(sorted(usual, &all[..1]), [""; 0], "one needs no order");
}
