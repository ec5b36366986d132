use super::*;
use crate::balance::Rng;
use crate::config::{Action, DirectResponse, HeaderOps, HeaderTest, QueryMatch, QueryTest, RegexMatch, StringMatch};
use proptest::prelude::*;

fn request(method: &str, authority: &str, path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(method.as_bytes());
    head.set_authority(authority.as_bytes());
    head.set_path(path.as_bytes());
    for (name, value) in headers {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
    let action = Action::Direct(DirectResponse { code: 200, body: Box::default(), format: None, content_type: None });
    Arc::new(Route::new(name, matches, action))
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    let host = VirtualHost { name: "h".into(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
    RouteTable::new("t", vec![host], HeaderOps::default()).unwrap()
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::default() }
}

fn found(table: &RouteTable, request: &RequestHead) -> Option<String> {
    match select(table, request, Asker { certificate: Certificate::default(), dynamic: None, rng: &Rng::new(1) }) {
        Choice::Route(selected) => Some(selected.route.name.to_string()),
        Choice::NeedsTls => Some("needs TLS".to_owned()),
        Choice::None => None,
    }
}

#[test]
fn route_when_paths_match_then_the_first_is_taken() {
    let table = table(vec![
        route("exact", path(PathMatch::Exact("/a".into()))),
        route("regex", path(PathMatch::Regex(RegexMatch::new(r"/r/\d+").unwrap()))),
        route("separated", path(PathMatch::SeparatedPrefix("/api".into()))),
        route("any case", RouteMatch { case_sensitive: false, ..path(PathMatch::Prefix("/CASE".into())) }),
        route("prefix", path(PathMatch::Prefix("/p".into()))),
    ]);
    for (target, want) in [
        ("/a", Some("exact")),
        ("/a?x=1", Some("exact")),
        ("/a/", None),
        ("/r/12?q", Some("regex")),
        ("/r/12/x", None),
        ("/api", Some("separated")),
        ("/api/x", Some("separated")),
        ("/apis", None),
        ("/case/x", Some("any case")),
        ("/pq", Some("prefix")),
    ] {
        assert_eq!(found(&table, &request("GET", "h", target, &[])).as_deref(), want, "{target}");
    }
}

#[test]
fn route_when_headers_query_and_method_are_asked_for_then_all_must_hold() {
    let text = |text: &str| HeaderTest::Text(StringMatch::Exact(text.into()));
    let header = |name: &str, test| HeaderMatch { name: name.into(), test, invert: false, missing_as_empty: false };
    let table = table(vec![route(
        "r",
        RouteMatch {
            headers: vec![header(":method", text("GET")), header("x-user", text("b"))],
            query: vec![QueryMatch { name: "v".into(), test: QueryTest::Text(StringMatch::Exact("3".into())) }],
            ..RouteMatch::default()
        },
    )]);
    let joined = [("X-User", "a"), ("x-user", "b")];
    assert!(found(&table, &request("GET", "h", "/?v=3", &joined)).is_some());
    assert!(found(&table, &request("POST", "h", "/?v=3", &joined)).is_none());
    assert!(found(&table, &request("GET", "h", "/?v=4", &joined)).is_none());
    assert!(found(&table, &request("GET", "h", "/?v=3", &joined[..1])).is_none());
}

#[test]
fn path_when_rewritten_then_query_stays() {
    let prefix = path(PathMatch::Prefix("/api/".into()));
    let rewrite = PathRewrite::Prefix("/".into());
    assert_eq!(rewritten_path(&rewrite, &prefix, b"/api/x?a=/api/").unwrap(), b"/x?a=/api/");
    let regex = PathRewrite::regex("^/(a)/(.*)$", r"/\2/\1").unwrap();
    assert_eq!(rewritten_path(&regex, &prefix, b"/a/b?q").unwrap(), b"/b/a?q");
    let whole = path(PathMatch::Regex(RegexMatch::new(r"/items/\d+").unwrap()));
    let to = |text: &str| PathRewrite::Prefix(text.into());
    assert_eq!(rewritten_path(&to("/a/b"), &whole, b"/items/12?v=1").unwrap(), b"/a/b?v=1");
    assert_eq!(rewritten_path(&to("/api/"), &path(PathMatch::Any), b"/x?q").unwrap(), b"/api/x?q");
    let lines = PathRewrite::regex("x", "\r\nhost: evil").unwrap();
    assert_eq!(rewritten_path(&lines, &prefix, b"/x"), None);
}

#[test]
fn authority_when_it_has_a_port_then_it_is_stripped() {
    for (authority, want) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")] {
        assert_eq!(without_port(authority.as_bytes()), want.as_bytes());
    }
}

proptest! {
    /// A separated prefix is a prefix, and an exact match is a separated prefix.
    #[test]
    fn route_when_stricter_match_holds_then_looser_holds(prefix in "/[ab/]{0,4}", target in "/[ab/]{0,6}") {
        let holds = |want| path_matches(&path(want), target.as_bytes());
        let exact = holds(PathMatch::Exact(prefix.as_str().into()));
        let separated = holds(PathMatch::SeparatedPrefix(prefix.as_str().into()));
        let begins = holds(PathMatch::Prefix(prefix.as_str().into()));
        prop_assert!(!exact || separated);
        prop_assert!(!separated || begins);
        prop_assert_eq!(begins, target.starts_with(&prefix));
    }
}
