//! The app's probes, so that they keep their meaning: the kubelet asks a port of Leno's, which the kernel leads to the app's
//! own (see the capture rules), past the proxy. Probes then work under strict mutual TLS, and while the proxy is swapped.
//!
//! `exec` probes stay as they are, as do probes of another host than the pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The first port that probes are led to.
pub(super) const FIRST_PORT: u16 = 15100;
/// The last one: more different probes than that stay as they are.
pub(super) const LAST_PORT: u16 = 15199;
const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];

/// Which port of Leno's leads to which of the app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProbePorts {
    by_own: BTreeMap<u16, u16>,
}

impl ProbePorts {
    /// Reads the arguments of a capture container that is there already.
    pub(super) fn from_arguments(arguments: &[Value]) -> Self {
        let values = arguments.windows(2).filter(|pair| pair[0] == "--probe").filter_map(|pair| pair[1].as_str());
        let parse = |text: &str| {
            let (own, app) = text.split_once('=')?;
            Some((own.parse().ok()?, app.parse().ok()?))
        };
        ProbePorts { by_own: values.filter_map(parse).collect() }
    }

    /// As arguments of the capture container.
    pub(super) fn arguments(&self) -> Vec<String> {
        self.by_own.iter().flat_map(|(own, app)| ["--probe".to_owned(), format!("{own}={app}")]).collect()
    }

    fn lead_to(&mut self, app: u16) -> Option<u16> {
        if let Some((own, _)) = self.by_own.iter().find(|(_, known)| **known == app) {
            return Some(*own);
        }
        let own = self.by_own.keys().next_back().map_or(Some(FIRST_PORT), |last| last.checked_add(1))?;
        (own <= LAST_PORT).then(|| {
            self.by_own.insert(own, app);
            own
        })
    }

    /// Rewrites the probes of one container. Doing it again changes nothing.
    pub(super) fn rewrite(&mut self, container: &mut Value) {
        let named: BTreeMap<String, u16> = container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| Some((port["name"].as_str()?.to_owned(), port_number(&port["containerPort"])?)))
            .collect();
        for probe in PROBES {
            for action in ["httpGet", "tcpSocket", "grpc"] {
                let Some(Value::Object(action)) = container.get_mut(probe).and_then(|probe| probe.get_mut(action))
                else {
                    continue;
                };
                if action.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
                    continue;
                }
                let port = action.get("port").and_then(|port| match port {
                    Value::String(name) => named.get(name).copied().or_else(|| name.parse().ok()),
                    port => port_number(port),
                });
                let Some(port) = port.filter(|port| !self.by_own.contains_key(port)) else { continue };
                if let Some(own) = self.lead_to(port) {
                    action.insert("port".to_owned(), json!(own));
                }
            }
        }
    }
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}
