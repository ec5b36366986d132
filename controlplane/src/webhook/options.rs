//! What a pod's own labels and annotations say about its sidecar: Istio's, and Leno's where Istio has none.

use std::net::IpAddr;
use std::path::Path;

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
    /// Volumes for the sidecar, besides those of the pod.
    pub(super) volumes: Vec<Value>,
    /// Where the sidecar finds volumes.
    pub(super) mounts: Vec<Value>,
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

const VOLUMES: &str = "sidecar.istio.io/userVolume";
const MOUNTS: &str = "sidecar.istio.io/userVolumeMount";
/// Most entries of each.
const MAX_VOLUMES: usize = 32;
/// Folders of the sidecar's own.
const OWN_FOLDERS: [&str; 3] = ["/var/run/leno", "/run/leno", "/etc/leno"];

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
        let (volumes, mounts) = (named(VOLUMES, text(VOLUMES))?, named(MOUNTS, text(MOUNTS))?);
        for mount in &mounts {
            let path = mount["mountPath"].as_str().unwrap_or_default();
            if !is_free(Path::new(path)) {
                return Err(No::Refuse(format!("{MOUNTS}: mountPath {path:?} is no folder for a sidecar's volume")));
            }
        }
        Ok(Options {
            volumes,
            mounts,
            engine,
            capture,
            rewrite_probes: text("sidecar.istio.io/rewriteAppHTTPProbers") != Some("false"),
        })
    }
}

/// Whether a volume may be mounted there: not over what the sidecar has of its own, nor over what holds that.
fn is_free(path: &Path) -> bool {
    let plain = path.is_absolute() && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    plain && OWN_FOLDERS.iter().all(|own| !path.starts_with(own) && !Path::new(own).starts_with(path))
}

/// Volumes or mounts: an object by their names, as Istio has it, or a list of objects with a `name`.
fn named(key: &str, text: Option<&str>) -> Result<Vec<Value>, No> {
    let no = |wrong: &str| {
        let example = r#"{"certs": {…}}"#;
        No::Refuse(format!("{key}: {wrong}; write JSON like {example}, with names that do not begin with leno-"))
    };
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    let entries = match serde_json::from_str(text).map_err(|error| no(&error.to_string()))? {
        Value::Array(entries) => entries,
        Value::Object(entries) => entries
            .into_iter()
            .map(|(name, mut entry)| {
                if let Some(entry) = entry.as_object_mut() {
                    entry.insert("name".to_owned(), Value::String(name));
                }
                entry
            })
            .collect(),
        _ => return Err(no("it is neither an object nor a list")),
    };
    if entries.len() > MAX_VOLUMES {
        return Err(no(&format!("there are more than {MAX_VOLUMES}")));
    }
    let fits =
        |entry: &Value| entry["name"].as_str().is_some_and(|name| !name.is_empty() && !name.starts_with("leno-"));
    if entries.iter().all(fits) { Ok(entries) } else { Err(no("an entry has no name of its own")) }
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
