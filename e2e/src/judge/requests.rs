//! `e2e/judge/<case>.yaml`: requests to send through Envoy, and what must become of them.

use serde::Deserialize;
use std::{collections::BTreeMap, net::SocketAddr, path::Path};

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Requests {
    /// The pod, as `namespace/name`, whose proxy Envoy is; the first meshed pod of the case where it is left out.
    pub pod: Option<String>,
    /// Whether Envoy asks for all of a kind at once (`GRPC`) instead of for what changed (`DELTA_GRPC`).
    #[serde(default)]
    pub state_of_the_world: bool,
    /// Pods (`namespace/name`) that show another pod's certificate.
    #[serde(default)]
    pub impostors: BTreeMap<String, String>,
    /// Envoy runs under our agent, as in an injected pod, and not by itself.
    #[serde(default)]
    pub agent: bool,
    /// The requests, sent in order.
    #[serde(default)]
    pub requests: Vec<RequestCase>,
    /// With `agent`: what must have been counted at the end.
    #[serde(default)]
    pub counted: Vec<Counted>,
}

/// A metric.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Its name.
    pub name: String,
    /// Labels that its samples must have.
    pub labels: BTreeMap<String, String>,
    /// The sum of these samples.
    pub sum: f64,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in clear text with prior knowledge.
    Http2,
    /// Bytes; the client speaks first.
    Tcp,
    /// Bytes; the server speaks first.
    ServerFirst,
    /// The first message of TLS, with the authority as server name; nobody finishes the handshake.
    Tls,
}

/// One request, or several equal ones.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestCase {
    /// Where the client connects to: a service's address, or a pod's.
    pub to: SocketAddr,
    /// Another pod (`namespace/name`) that sends it to the judged one; the judged pod's own app where it is left out.
    pub from: Option<String>,
    /// With `from`: speaks mutual TLS as a sidecar would.
    #[serde(default)]
    pub mutual_tls: bool,
    /// What is spoken.
    #[serde(default)]
    pub protocol: Protocol,
    /// The HTTP method; GET where it is left out.
    pub method: Option<String>,
    /// The authority; the address where it is left out.
    pub host: Option<String>,
    /// Path and query; `/` where it is left out.
    pub path: Option<String>,
    /// Headers to send.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How often to send it; once where it is left out.
    #[serde(default = "once")]
    pub times: u32,
    /// What must become of each.
    #[serde(default)]
    pub expect: Expect,
}

fn once() -> u32 {
    1
}

/// What must become of a request. What is left out is not looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expect {
    /// The HTTP status; 200 where it is left out.
    pub status: Option<u16>,
    /// The connection is refused, or ends without an answer.
    #[serde(default)]
    pub refused: bool,
    /// The pods (`namespace/name`) that answer: each of them at least once, and none else.
    #[serde(default)]
    pub pods: Vec<String>,
    /// Whether the last hop is mutual TLS.
    pub mutual_tls: Option<bool>,
    /// Path and query as the pod sees them.
    pub path: Option<String>,
    /// The authority as the pod sees it.
    pub authority: Option<String>,
    /// The HTTP version as the pod sees it, such as `HTTP/2.0`.
    pub version: Option<String>,
    /// Headers as the pod sees them; `null` for one that must not be there.
    #[serde(default)]
    pub headers: BTreeMap<String, Option<String>>,
    /// Headers of the answer; `null` for one that must not be there.
    #[serde(default)]
    pub response_headers: BTreeMap<String, Option<String>>,
}

impl Requests {
    /// Reads the file; without one there are no requests.
    ///
    /// # Errors
    /// When it does not parse, with the place.
    pub fn read(path: &Path) -> anyhow::Result<Requests> {
        use anyhow::Context;
        if !path.exists() {
            return Ok(Requests::default());
        }
        serde_yaml::from_str(&std::fs::read_to_string(path)?).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_when_a_field_is_misspelt_then_the_file_is_refused() {
        let good = "requests:\n- to: 10.0.0.1:80\n  expect: {status: 404, headers: {x-a: null}}\n";
        let parsed: Requests = serde_yaml::from_str(good).unwrap();
        assert_eq!((parsed.requests[0].times, parsed.requests[0].expect.status), (1, Some(404)));
        assert_eq!(parsed.requests[0].expect.headers["x-a"], None);
        assert!(serde_yaml::from_str::<Requests>("requests:\n- to: 10.0.0.1:80\n  expects: {}\n").is_err());
    }
}
