//! A case: configuration as data, requests, and what is known of the difference between the proxies.

use super::reply::Reply;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// The folder of the hand-picked cases.
pub const CASES: &str = "e2e/differential/cases";

/// One file of the folder. Cluster names are local to it; places `${port:NAME}`, `${address:NAME}`, `${cluster:NAME}`,
/// `${file:NAME}` and `${tls}` are filled in wherever they stand.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// The differences of `docs/envoy-differences.md` that all of its requests show.
    #[serde(default)]
    pub difference: Option<String>,
    /// Its back ends by name; each has a cluster of its name. `a` and `b` over HTTP/1 where nothing is said.
    #[serde(default = "usual")]
    pub backends: BTreeMap<String, Backend>,
    /// Clusters, laid over the ones of the back ends. `endpoints: [NAME, …]` stands for a load assignment.
    #[serde(default)]
    pub clusters: Vec<Value>,
    /// Routes of a single virtual host for all domains.
    #[serde(default)]
    pub routes: Option<Vec<Value>>,
    /// Or virtual hosts.
    #[serde(default)]
    pub virtual_hosts: Option<Vec<Value>>,
    /// Laid over the route configuration.
    #[serde(default)]
    pub route_config: Value,
    /// HTTP filters before the router.
    #[serde(default)]
    pub http_filters: Vec<Value>,
    /// Laid over the router's configuration.
    #[serde(default)]
    pub router: Value,
    /// Laid over the HTTP connection manager.
    #[serde(default)]
    pub hcm: Value,
    /// Further logs, each a `format` (as `log_format`) and a `filter`, whose lines are compared as they are. A line begins with the
    /// request's id (`%REQ(X-TEST-ID)% = `), or is JSON that has it as `id`.
    #[serde(default)]
    pub logs: Vec<Value>,
    /// Network filters before the HTTP connection manager.
    #[serde(default)]
    pub network_filters: Vec<Value>,
    /// The transport socket of the listener's only filter chain.
    #[serde(default)]
    pub transport_socket: Option<Value>,
    /// Laid over the listener.
    #[serde(default)]
    pub listener: Value,
    /// Files by name, for both proxies; `${file:NAME}` is the path of one.
    #[serde(default)]
    pub files: BTreeMap<String, Value>,
    /// Laid over the bootstrap, which all cases share.
    #[serde(default)]
    pub bootstrap: Value,
    /// Runtime values, shared by all cases.
    #[serde(default)]
    pub runtime: Value,
    /// Beginnings of lines that are not compared.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// In order.
    pub requests: Vec<Request>,
}

pub(super) fn usual() -> BTreeMap<String, Backend> {
    ["a", "b"].into_iter().map(|name| (name.to_owned(), Backend::default())).collect()
}

/// A recording back end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backend {
    /// What it speaks.
    pub protocol: Speaks,
    /// Over TLS, with the certificate of `backend.example`.
    pub tls: bool,
    /// Asks for a client certificate.
    pub client_certificate: bool,
    /// The first bytes that it says on a connection (TCP).
    pub greeting: String,
}

/// What a back end speaks.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2.
    H2,
    /// Gives every byte back.
    Tcp,
    /// Nothing listens.
    Dead,
    /// Connections are taken, and nothing is ever said.
    Mute,
}

/// A request, or several alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// A name for reports; else its method and path.
    pub name: String,
    /// HTTP/1.1, HTTP/2 or TCP.
    pub protocol: Speaks,
    /// Over TLS.
    pub tls: Option<ClientTls>,
    /// The method.
    pub method: String,
    /// The path, with the query.
    pub path: String,
    /// The host; empty for none.
    pub host: String,
    /// Headers, `name: value`.
    pub headers: Vec<String>,
    /// The body.
    pub body: Option<String>,
    /// A body of so many bytes.
    pub size: Option<usize>,
    /// HTTP/1: the body goes in chunks.
    pub chunked: bool,
    /// Trailers, `name: value`.
    pub trailers: Vec<String>,
    /// HTTP/1: `1.0` or `1.1`.
    pub version: String,
    /// Instead of all of the above: these very bytes; `${id}` and `${reply}` are filled in.
    pub raw: Option<String>,
    /// What the back end answers, by attempt.
    pub replies: Vec<Reply>,
    /// How often it is sent.
    pub times: u32,
    /// All at once, each on a connection of its own; the answers are compared without regard to their order.
    pub together: bool,
    /// Milliseconds between one of those and the next.
    pub stagger: u64,
    /// Only the shares of the back ends are compared, not which one got which request.
    pub shares: bool,
    /// On the connection of the request before.
    pub keep: bool,
    /// After 101 or the answer to CONNECT: sent, and expected back.
    pub then: Option<String>,
    /// The client goes away after so many milliseconds.
    pub leave: Option<u64>,
    /// Milliseconds to wait before it is sent.
    pub pause: u64,
    /// Milliseconds to wait afterwards for what back ends still see (mirrors).
    pub settle: u64,
    /// Where the connection comes from, as `127.0.0.N`.
    pub source: Option<std::net::Ipv4Addr>,
    /// The difference of `docs/envoy-differences.md` that it shows.
    pub difference: Option<String>,
    /// Beginnings of lines that are not compared.
    pub ignore: Vec<String>,
    /// What the status must be, so that a case shows what it says it does.
    pub status: Option<u16>,
    /// Which back end must get it.
    pub backend: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            name: String::new(),
            protocol: Speaks::H1,
            tls: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: "example.com".to_owned(),
            headers: Vec::new(),
            body: None,
            size: None,
            chunked: false,
            trailers: Vec::new(),
            version: "1.1".to_owned(),
            raw: None,
            replies: Vec::new(),
            times: 1,
            together: false,
            stagger: 0,
            shares: false,
            keep: false,
            then: None,
            leave: None,
            pause: 0,
            settle: 0,
            source: None,
            difference: None,
            ignore: Vec::new(),
            status: None,
            backend: None,
        }
    }
}

impl Request {
    /// Whether the answer to it has no body.
    pub fn is_head(&self) -> bool {
        self.raw.as_ref().map_or(self.method == "HEAD", |raw| raw.starts_with("HEAD "))
    }

    /// A name for reports.
    pub fn title(&self) -> String {
        match (&self.name, &self.raw) {
            (name, _) if !name.is_empty() => name.clone(),
            (_, Some(raw)) => format!("{:?}", raw.chars().take(60).collect::<String>()),
            _ => format!("{} {}{}", self.method, self.host, self.path),
        }
    }
}

/// How a client does TLS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTls {
    /// The server name; none where empty.
    pub sni: String,
    /// Application protocols to offer.
    pub alpn: Vec<String>,
    /// The certificate to show: `client`, `other` or `foreign` (of another authority).
    pub certificate: Option<String>,
}

/// Reads the cases whose names contain `only`, by name.
pub fn load(folder: &Path, only: Option<&str>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_none_or(|ending| ending != "yaml") || !only.is_none_or(|only| stem.contains(only)) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let mut case: Case = serde_yaml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        ensure!(!case.requests.is_empty(), "{} sends nothing", path.display());
        case.name = stem;
        cases.push(case);
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}
