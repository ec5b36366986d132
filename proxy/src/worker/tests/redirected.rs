//! Connections that the kernel redirected to the proxy, in a network namespace of the test's own.
//!
//! Needs root and the programs `ip` and `nft`; `LENO_SKIP_ROOT_TESTS=1` leaves it out knowingly.

use super::*;
use std::process::Command;

fn run(program: &str, arguments: &str) {
    let output =
        Command::new(program).args(arguments.split(' ')).output().unwrap_or_else(|_| panic!("{program} is needed"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs in a thread with a network of its own; threads that it starts share that network.
fn alone(test: impl FnOnce() + Send + 'static) {
    if std::env::var_os("LENO_SKIP_ROOT_TESTS").is_some() {
        return;
    }
    let thread = thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root, or LENO_SKIP_ROOT_TESTS=1");
        run("ip", "link set lo up");
        // An answer to it must find its way, in pods as well.
        run("ip", "-6 addr add ::6/128 dev lo");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn greet(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(format!("from {peer}\n").as_bytes());
        }
    });
}

#[test]
fn connection_when_redirected_then_its_original_destination_decides() {
    alone(|| {
        greet("127.0.0.50:9999");
        greet("[::1]:9999");
        let proxy = Proxy::start(
            1,
            http(Action::Direct(DirectResponse { code: 200, body: Box::default(), format: None, content_type: None })),
            vec![],
        );
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let addresses = vec![proxy.address, v6.local_addr().unwrap()];
        let listener = |name: &str, addresses: Vec<SocketAddr>, bind, network| {
            Arc::new(Listener {
                name: name.into(),
                addresses,
                bind,
                use_original_dst: bind,
                detect_timeout: Duration::ZERO,
                chains: FilterChains::new(Vec::new(), Some(FilterChain::new(name, network))).unwrap(),
                ..Listener::default()
            })
        };
        let targets = vec![TcpTarget::all(FIRST)];
        let passthrough = TcpProxy { idle_timeout: LIMIT, ..TcpProxy::new(targets) };
        let say = |text: &str| {
            http(Action::Direct(DirectResponse {
                code: 200,
                body: text.as_bytes().into(),
                format: None,
                content_type: None,
            }))
        };
        let cluster = Cluster {
            bind: Some(SourceBind { v4: Some([127, 0, 0, 6].into()), v6: "::6".parse().ok() }),
            ..Cluster::new(FIRST, "PassthroughCluster", ClusterKind::OriginalDst)
        };
        let v6_address = addresses[1];
        let root = Root {
            listeners: Listeners::new(vec![
                listener("virtualOutbound", addresses, true, Network::Tcp(Arc::new(passthrough))),
                listener("vip", vec!["127.0.0.51:80".parse().unwrap()], false, say("by address")),
                listener("port", vec!["0.0.0.0:80".parse().unwrap()], false, say("by port")),
            ]),
            clusters: vec![Some(Arc::new(cluster))],
            ..Root::default()
        };
        proxy.wait(proxy.workers().publish(Arc::new(root)));
        let more = vec![ListenSocket { address: v6_address, socket: v6 }];
        proxy.wait(proxy.workers().listen(more)).unwrap();
        run("nft", "add table inet test");
        run("nft", "add chain inet test out { type nat hook output priority -100 ; }");
        let (four, six) = (proxy.address.port(), v6_address.port());
        let rule = "add rule inet test out";
        run("nft", &format!("{rule} ip saddr != 127.0.0.6 tcp dport {{ 80, 9999 }} redirect to :{four}"));
        run("nft", &format!("{rule} ip6 saddr != ::6 tcp dport 9999 redirect to :{six}"));

        let ask = |address: &str| Side::connect(address.parse().unwrap()).ask(&get("/")).body;
        assert_eq!(ask("127.0.0.51:80"), "by address");
        assert_eq!(ask("127.0.0.52:80"), "by port");
        let hear = |address: &str| Side::connect(address.parse().unwrap()).rest();
        assert_eq!(hear("127.0.0.50:9999"), "from 127.0.0.6\n");
        assert_eq!(hear("[::1]:9999"), "from ::6\n");
    });
}
