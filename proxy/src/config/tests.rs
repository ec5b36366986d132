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
    table.host(authority.as_bytes()).map(|host| host.name.to_string())
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
fn route_table_when_a_domain_is_taken_or_malformed_then_it_is_refused() {
    assert!(matches!(table(&[&["a"], &["A"]]), Err(TableError::DuplicateDomain { .. })));
    assert!(matches!(table(&[&["*"], &["*"]]), Err(TableError::DuplicateDomain { .. })));
    assert!(matches!(table(&[&["a*b"]]), Err(TableError::BadDomain { .. })));
    assert!(matches!(table(&[&["*a*"]]), Err(TableError::BadDomain { .. })));
    assert!(matches!(table(&[&[""]]), Err(TableError::BadDomain { .. })));
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
    assert!(exact(false, false).matches(Some(b"1")));
    assert!(!exact(false, false).matches(None));
    assert!(!exact(true, false).matches(None));
    assert!(exact(true, true).matches(None));
    assert!(exact(true, false).matches(Some(b"2")));
    let range = HeaderMatch { test: HeaderTest::Range(1, 10), ..exact(false, false) };
    assert!(range.matches(Some(b"9")) && !range.matches(Some(b"10")) && !range.matches(Some(b"x")));
}

#[test]
fn query_match_when_parameter_is_repeated_then_the_first_counts() {
    let query = QueryMatch { name: "a".into(), test: QueryTest::Text(StringMatch::Exact("1".into())) };
    assert!(query.matches(b"b=2&a=1&a=3"));
    assert!(!query.matches(b"a=3&a=1"));
    assert!(!query.matches(b""));
}

fn chain(name: &str, matches: ChainMatch) -> FilterChain {
    FilterChain { name: Arc::from(name), matches, tls: None, network: Network::Http(Arc::default()) }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: Arc::from("l"),
        direction: Direction::Inbound,
        addresses: vec![SocketAddr::from(([0, 0, 0, 0], 15006))],
        bind: true,
        use_original_dst: true,
        inspect: Inspect::default(),
        detect_timeout: std::time::Duration::ZERO,
        continue_on_timeout: true,
        chains,
        default_chain: Some(chain("default", ChainMatch::default())),
    }
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
        let facts = Facts { destination_port: port, transport, server_name: None, application_protocols: protocols };
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
