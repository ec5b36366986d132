//! Decisions over made-up connections and requests.

use super::*;

struct Request<'a> {
    path: &'a str,
    method: &'a str,
    tls: Option<TlsInfo>,
}

impl Facts for Request<'_> {
    fn destination(&self) -> SocketAddr {
        ([10, 0, 0, 1], 8080).into()
    }

    fn direct_source(&self) -> SocketAddr {
        ([192, 168, 1, 9], 4000).into()
    }

    fn remote(&self) -> SocketAddr {
        ([1, 2, 3, 4], 0).into()
    }

    fn server_name(&self) -> Option<&str> {
        Some("a.example")
    }

    fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_ref()
    }

    fn header(&self, wanted: &HeaderMatch) -> bool {
        wanted.matches((&*wanted.name == ":method").then_some(self.method.as_bytes()))
    }

    fn path(&self) -> Option<&[u8]> {
        Some(self.path.as_bytes())
    }
}

fn get(path: &str) -> Request<'_> {
    Request { path, method: "GET", tls: None }
}

fn rules(action: Action, permission: Permission, principal: Principal) -> Rules {
    let policy = Policy { name: "p".into(), permissions: vec![permission], principals: vec![principal] };
    Rules { action, policies: vec![policy] }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

#[test]
fn rules_when_one_policy_matches_then_the_action_decides() {
    for (action, matching, other) in
        [(Action::Allow, true, false), (Action::Deny, false, true), (Action::Log, true, true)]
    {
        let rules = rules(action, Permission::Path(exact("/a")), Principal::Any);
        let (name, logged): (Arc<str>, _) = ("p".into(), (rules.action == Action::Log).then_some(true));
        assert_eq!(rules.decide(&get("/a")), Verdict { allowed: matching, policy: Some(&name), logged });
        assert_eq!(rules.decide(&get("/b")), Verdict { allowed: other, policy: None, logged: logged.map(|_| false) });
    }
    let nobody = Rules { action: Action::Allow, policies: Vec::new() };
    assert!(!nobody.decide(&get("/a")).allowed, "allowed is only what a policy names");
}

#[test]
fn permissions_when_combined_then_each_counts() {
    let allows = |permission| rules(Action::Allow, permission, Principal::Any).decide(&get("/a")).allowed;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert!(allows(Permission::And(vec![
        Permission::DestinationIp(net("10.0.0.0/8")),
        Permission::DestinationPorts(8000, 8080),
        Permission::ServerName(StringMatch::Suffix(".example".into())),
        Permission::Not(Box::new(Permission::Path(exact("/b")))),
    ])));
    assert!(!allows(Permission::And(vec![Permission::Any, Permission::DestinationPorts(1, 8079)])));
    assert!(allows(Permission::Or(vec![Permission::Path(exact("/b")), Permission::Path(exact("/a"))])));
    assert!(!allows(Permission::Or(vec![])));
}

#[test]
fn principals_when_addresses_differ_then_each_kind_looks_at_its_own() {
    let allows = |principal| rules(Action::Allow, Permission::Any, principal).decide(&get("/")).allowed;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert!(allows(Principal::DirectSourceIp(net("192.168.0.0/16"))));
    assert!(allows(Principal::SourceIp(net("192.168.0.0/16"))));
    assert!(allows(Principal::RemoteIp(net("1.2.3.4/32"))) && !allows(Principal::RemoteIp(net("192.168.0.0/16"))));
    assert!(!allows(Principal::Authenticated(None)), "no TLS, no name");
    assert!(!allows(Principal::Not(Box::new(Principal::Any))));
}
