//! What a pod's own labels and annotations say about its sidecar: Istio's, and Leno's where Istio has none.

use std::net::IpAddr;

use leno_core::service::{ENGINE_ANNOTATION, Engine};
use leno_kubeutil::sidecar::RESOURCE_OPTIONS;
use serde_json::{Map, Value, json};

/// Why a pod that reached the webhook is not injected, or cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// It does not want to, or must not be.
    Skip(&'static str),
    /// What it says makes no sense.
    Refuse(String),
}

/// What a pod says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Arguments of the capture container.
    pub(super) capture: Vec<String>,
    /// Whether probes are rewritten.
    pub(super) rewrite_probes: bool,
    /// What it wants for a sidecar, if not what the mesh has.
    pub(super) engine: Option<Engine>,
}

const PORTS: [(&str, &str); 3] = [
    ("traffic.sidecar.istio.io/includeInboundPorts", "--include-inbound-ports"),
    ("traffic.sidecar.istio.io/excludeInboundPorts", "--exclude-inbound-ports"),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", "--exclude-outbound-ports"),
];
const RANGES: [(&str, &str); 2] = [
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", "--include-outbound-cidrs"),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "--exclude-outbound-cidrs"),
];

impl Options {
    /// Reads a pod.
    pub(super) fn of(pod: &Value) -> Result<Self, No> {
        let empty = Map::new();
        let map = |pointer: &str| pod.pointer(pointer).and_then(Value::as_object).unwrap_or(&empty);
        let (labels, annotations) = (map("/metadata/labels"), map("/metadata/annotations"));
        let says = |key: &str, value: &str| [labels, annotations].iter().any(|map| map.get(key) == Some(&json!(value)));
        if says("sidecar.istio.io/inject", "false") || says("mesh.leno.dev/inject", "disabled") {
            return Err(No::Skip("the pod opted out"));
        }
        if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
            return Err(No::Skip("the pod uses the network of its node"));
        }
        let text = |key: &str| annotations.get(key).and_then(Value::as_str).map(str::trim);
        let mut capture = Vec::new();
        for (key, flag) in PORTS {
            if let Some(list) = text(key).filter(|list| *list != "*") {
                capture.extend(argument(flag, list, key, |item| item.parse::<u16>().is_ok_and(|port| port != 0))?);
            }
        }
        for (key, flag) in RANGES {
            if let Some(list) = text(key).filter(|list| *list != "*") {
                capture.extend(argument(flag, list, key, is_range)?);
            }
        }
        for (key, ..) in RESOURCE_OPTIONS {
            if let Some(text) = text(key).filter(|text| !is_quantity(text)) {
                return Err(No::Refuse(format!("{key}: {text:?} is no quantity, e.g. 100m or 64Mi")));
            }
        }
        let engine = match text(ENGINE_ANNOTATION) {
            None => None,
            Some(name) => match Engine::named(name) {
                Some(engine) => Some(engine),
                None => {
                    return Err(No::Refuse(format!("{ENGINE_ANNOTATION}: {name:?} is no engine; write leno or envoy")));
                }
            },
        };
        Ok(Options { engine, capture, rewrite_probes: text("sidecar.istio.io/rewriteAppHTTPProbers") != Some("false") })
    }
}

/// A flag with a list. An empty list means nothing for an exclusion, and "none" for an inclusion.
fn argument(flag: &str, list: &str, key: &str, valid: impl Fn(&str) -> bool) -> Result<Option<String>, No> {
    let items: Vec<&str> = list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if let Some(bad) = items.iter().find(|item| !valid(item)) {
        return Err(No::Refuse(format!("{key}: {bad:?} is not valid in a list separated by commas")));
    }
    let says_something = !items.is_empty() || flag.starts_with("--include");
    Ok(says_something.then(|| format!("{flag}={}", items.join(","))))
}

fn is_range(text: &str) -> bool {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= longest))
}

/// A quantity as Kubernetes writes it. The API server checks more.
fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    number.parse::<f64>().is_ok_and(|number| number >= 0.0)
        && ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&&text[number.len()..])
}
