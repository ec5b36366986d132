//! A failing case made small: everything that can be left out of it, a step at a time.

use super::super::{
    case::{Case, ClientTls, Request, Speaks},
    reply::Reply,
};
use super::clusters::backends;
use serde_json::{Value, json};

/// The case with only one of its requests.
pub(in super::super) fn alone(case: &Case, request: &Request) -> Case {
    Case { requests: vec![request.clone()], ..case.clone() }
}

/// Everything that is one step smaller: a virtual host, a route, a setting of one, a part of the request left out.
pub(in super::super) fn smaller(case: &Case) -> Vec<Case> {
    let mut found = Vec::new();
    let hosts = case.virtual_hosts.clone().unwrap_or_default();
    let with = |hosts: Vec<Value>| Case { virtual_hosts: Some(hosts), ..case.clone() };
    for at in 0..case.http_filters.len() {
        let mut fewer = case.clone();
        fewer.http_filters.remove(at);
        found.push(fewer);
    }
    for at in 0..case.logs.len() {
        let mut fewer = case.clone();
        fewer.logs.remove(at);
        found.push(fewer);
    }
    for (at, filter) in case.http_filters.iter().enumerate() {
        for key in keys(&filter["typed_config"]).into_iter().filter(|key| !key.starts_with('@')) {
            let mut fewer = case.clone();
            remove(&mut fewer.http_filters[at]["typed_config"], &key);
            found.push(fewer);
        }
    }
    for key in keys(&case.hcm) {
        let mut fewer = case.clone();
        remove(&mut fewer.hcm, &key);
        found.push(fewer);
    }
    for key in keys(&case.route_config) {
        let mut fewer = case.clone();
        remove(&mut fewer.route_config, &key);
        found.push(fewer);
    }
    for (at, host) in hosts.iter().enumerate() {
        if hosts.len() > 1 {
            let mut fewer = hosts.clone();
            fewer.remove(at);
            found.push(with(fewer));
        }
        let edit = |change: &dyn Fn(&mut Value)| {
            let mut changed = hosts.clone();
            change(&mut changed[at]);
            with(changed)
        };
        for key in keys(host).into_iter().filter(|key| !matches!(key.as_str(), "name" | "domains" | "routes")) {
            found.push(edit(&|host| remove(host, &key)));
        }
        let routes = host["routes"].as_array().cloned().unwrap_or_default();
        for (number, route) in routes.iter().enumerate() {
            if routes.len() > 1 {
                found.push(edit(&|host| {
                    if let Some(routes) = host["routes"].as_array_mut() {
                        routes.remove(number);
                    }
                }));
            }
            for part in ["", "match", "route", "redirect", "typed_per_filter_config"] {
                let place = if part.is_empty() { route } else { &route[part] };
                for key in keys(place).into_iter().filter(|key| !ESSENTIAL.contains(&key.as_str())) {
                    found.push(edit(&|host| {
                        let route = &mut host["routes"][number];
                        remove(if part.is_empty() { route } else { &mut route[part] }, &key);
                    }));
                }
            }
        }
    }
    let Some(request) = case.requests.first() else { return found };
    let mut with = |request: Request| found.push(alone(case, &request));
    for at in 0..request.headers.len() {
        let mut fewer = request.clone();
        fewer.headers.remove(at);
        with(fewer);
    }
    if !request.replies.is_empty() {
        let mut fewer = request.clone();
        fewer.replies.pop();
        with(fewer);
    }
    for at in 0..request.replies.len() {
        let mut changed = |change: &dyn Fn(&mut Reply)| {
            let mut request = request.clone();
            change(&mut request.replies[at]);
            with(request);
        };
        let reply = &request.replies[at];
        if !reply.headers.is_empty() {
            changed(&|reply| reply.headers.truncate(reply.headers.len() - 1));
        }
        if !reply.trailers.is_empty() {
            changed(&|reply| reply.trailers.clear());
        }
        if !reply.interim.is_empty() {
            changed(&|reply| reply.interim.clear());
        }
        if reply.size.is_some() {
            changed(&|reply| reply.size = None);
        }
        if reply.chunked || reply.until_close {
            changed(&|reply| (reply.chunked, reply.until_close) = (false, false));
        }
    }
    if !request.trailers.is_empty() {
        with(Request { trailers: Vec::new(), ..request.clone() });
    }
    if request.size.is_some() {
        with(Request { size: None, ..request.clone() });
    }
    if request.body.is_some() {
        with(Request { body: None, chunked: false, ..request.clone() });
    }
    if request.protocol == Speaks::H2 {
        with(Request { protocol: Speaks::H1, ..request.clone() });
    }
    if let Some((path, _)) = request.path.split_once('?') {
        with(Request { path: path.to_owned(), ..request.clone() });
    }
    if request.method != "GET" {
        with(Request { method: "GET".to_owned(), ..request.clone() });
    }
    found
}

/// What no route can be without.
const ESSENTIAL: [&str; 15] = [
    "match",
    "route",
    "redirect",
    "direct_response",
    "name",
    "prefix",
    "path",
    "path_separated_prefix",
    "safe_regex",
    "cluster",
    "weighted_clusters",
    "path_redirect",
    "cluster_header",
    "connect_matcher",
    "path_match_policy",
];

fn keys(of: &Value) -> Vec<String> {
    of.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

fn remove(from: &mut Value, key: &str) {
    if let Some(map) = from.as_object_mut() {
        map.remove(key);
    }
}

fn of_tls(tls: &ClientTls) -> Value {
    json!({"sni": tls.sni, "alpn": tls.alpn, "certificate": tls.certificate})
}

/// The case as the file that it could become.
pub(in super::super) fn as_file(case: &Case) -> String {
    let request = case.requests.first();
    let mut sent = json!({});
    if let Some(request) = request {
        let usual = Request::default();
        for (key, value, same) in [
            ("method", json!(request.method), request.method == usual.method),
            ("path", json!(request.path), request.path == usual.path),
            ("host", json!(request.host), request.host == usual.host),
            ("protocol", json!("h2"), request.protocol == usual.protocol),
            ("headers", json!(request.headers), request.headers.is_empty()),
            ("body", json!(request.body), request.body.is_none()),
            ("chunked", json!(request.chunked), !request.chunked),
            ("size", json!(request.size), request.size.is_none()),
            ("trailers", json!(request.trailers), request.trailers.is_empty()),
            ("version", json!(request.version), request.version == usual.version),
            ("raw", json!(request.raw), request.raw.is_none()),
            ("then", json!(request.then), request.then.is_none()),
            ("tls", json!(request.tls.as_ref().map(of_tls)), request.tls.is_none()),
            ("settle", json!(request.settle), request.settle == 0),
            ("replies", json!(request.replies), request.replies.is_empty()),
        ] {
            if !same {
                sent[key] = value;
            }
        }
    }
    let mut file = json!({
        "about": "Found at random.",
        "backends": backends(),
        "virtual_hosts": case.virtual_hosts,
        "requests": [sent],
    });
    let named = |name: &str| file.to_string().contains(&format!("\"{name}\""));
    let clusters: Vec<Value> =
        case.clusters.iter().filter(|cluster| cluster["name"].as_str().is_some_and(named)).cloned().collect();
    for (key, value) in [
        ("hcm", case.hcm.clone()),
        ("route_config", case.route_config.clone()),
        ("http_filters", json!(case.http_filters)),
        ("logs", json!(case.logs)),
        ("clusters", json!(clusters)),
        ("transport_socket", json!(case.transport_socket)),
    ] {
        if value.as_object().is_some_and(|map| !map.is_empty()) || value.as_array().is_some_and(|list| !list.is_empty())
        {
            file[key] = value;
        }
    }
    serde_yaml::to_string(&file).unwrap_or_else(|_| file.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{EACH, cases};
    use super::*;

    #[test]
    fn cases_when_the_seed_is_the_same_then_they_are_the_same() {
        let texts = |seed| cases(seed, 5).iter().map(|case| format!("{case:?}")).collect::<Vec<_>>();
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
        assert!(cases(7, 50).iter().all(|case| case.virtual_hosts.is_some() && case.requests.len() == EACH));
    }

    #[test]
    fn smaller_when_repeated_then_it_ends() {
        let mut case = cases(1, 1).remove(0);
        case = alone(&case, &case.requests[0].clone());
        let mut steps = 0;
        while let Some(next) = smaller(&case).into_iter().next() {
            case = next;
            steps += 1;
            assert!(steps < 500);
        }
        assert!(as_file(&case).contains("virtual_hosts"));
    }
}
