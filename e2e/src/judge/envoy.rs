//! A stock Envoy in the place of a pod's proxy: its bootstrap, and whether it has taken everything.

use super::{
    control_plane::{self, Credentials},
    process::{Process, get},
    requests::Counted,
    space::Space,
};
use crate::metrics;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs::File,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    time::{Duration, Instant},
};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15090;
/// How long Envoy may take to have everything active.
const ACTIVE: Duration = Duration::from_secs(8);
/// Capture leaves this user alone.
pub(super) const USER: u32 = 1337;

/// A running Envoy.
pub(super) struct Envoy {
    process: Process,
    space: Space,
}

/// What Envoy has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) listeners: usize,
    pub(super) clusters: usize,
    pub(super) routes: usize,
}

impl Envoy {
    /// Starts it as the proxy of `pod`; the control plane is at `address`.
    pub(super) fn start(
        program: &Path,
        space: &Space,
        folder: &Path,
        pod: &str,
        address: &str,
        own: &Credentials,
        state_of_the_world: bool,
    ) -> Result<Envoy> {
        let (namespace, name) = pod.split_once('/').context("a pod is namespace/name")?;
        let bootstrap =
            bootstrap(&format!("leno~{name}.{namespace}"), address, &folder.join("sds.sock"), own, state_of_the_world);
        // Opened here and run by its descriptor: its user need not be able to reach the cache folder.
        let file = File::open(program).with_context(|| program.display().to_string())?;
        let descriptor = nix::unistd::dup(&file)?;
        let mut command = space.command_as(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), Some(USER));
        command.arg0("envoy");
        command.args(["--config-yaml", &bootstrap.to_string(), "--concurrency", "1", "--disable-hot-restart"]);
        command.args(["--log-level", "warning", "--drain-time-s", "1"]);
        let process = Process::start("envoy", folder, command)?;
        Ok(Envoy { process, space: space.clone() })
    }

    /// Starts it under our agent, as in the pod that injection makes: `run --slot 0` and what the image says.
    pub(super) fn start_under_agent(
        program: &Path,
        agent: &Path,
        space: &Space,
        folder: &Path,
        pod: &str,
        address: &str,
        own: &Credentials,
    ) -> Result<Envoy> {
        let (namespace, name) = pod.split_once('/').context("a pod is namespace/name")?;
        let (token, roots, run) = (folder.join("token"), folder.join("roots.pem"), folder.join("run"));
        std::fs::write(&token, format!("dev:{pod}"))?;
        std::fs::write(&roots, own.roots_pem())?;
        std::fs::create_dir(&run)?;
        nix::unistd::chown(&run, Some(nix::unistd::Uid::from_raw(USER)), None)?;
        // Opened here, as above; Envoy's descriptor is handed on by the agent.
        let open = |path: &Path| -> Result<std::os::fd::OwnedFd> {
            Ok(nix::unistd::dup(&File::open(path).with_context(|| path.display().to_string())?)?)
        };
        let (agent, program) = (open(agent)?, open(program)?);
        let path = |descriptor: &std::os::fd::OwnedFd| format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let mut command = space.command_as(path(&agent), Some(USER));
        command.arg0("leno-proxy");
        command.args([
            "run",
            "--slot",
            "0",
            "--workers",
            "1",
            "--control-plane",
            &format!("{address}:{}", control_plane::PORT),
        ]);
        command.arg("--token").arg(&token).arg("--roots").arg(&roots).arg("--folder").arg(&run);
        command.env("POD_NAME", name).env("POD_NAMESPACE", namespace);
        command.env("LENO_ENGINE", "envoy").env("LENO_ENVOY_BINARY", path(&program));
        let process = Process::start("agent", folder, command)?;
        Ok(Envoy { process, space: space.clone() })
    }

    /// Waits until the agent has counted all of this.
    pub(super) async fn counted(&self, wanted: &[Counted]) -> Result<()> {
        for Counted { name, labels, sum } in wanted {
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let start = Instant::now();
            loop {
                let (_, page) = get(&self.space, METRICS, "/stats/prometheus")?;
                let found = metrics::sum(&metrics::parse(&page), name, &labels);
                if found == *sum {
                    break;
                }
                if start.elapsed() > ACTIVE {
                    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with(name.as_str())).collect();
                    bail!("{name} with {labels:?} is {found} and must be {sum}:\n{}", lines.join("\n"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Waits until everything that the control plane sent is active; secrets that are `absent` may be waited for.
    pub(super) async fn active(&mut self, absent: &BTreeSet<String>) -> Result<Taken> {
        let start = Instant::now();
        loop {
            self.process.alive()?;
            let last = match self.look(absent) {
                Ok(taken) => return Ok(taken),
                Err(error) => error,
            };
            if start.elapsed() > ACTIVE {
                bail!("after {} s: {last:#}\nEnvoy says:\n{}", ACTIVE.as_secs(), self.process.tail(20));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Fails when Envoy has refused an update since its start.
    pub(super) fn refused_nothing(&self) -> Result<()> {
        let (_, stats) = get(&self.space, ADMIN, "/stats?usedonly&filter=update_rejected")?;
        let refused: Vec<&str> = stats.lines().filter(|line| !line.ends_with(": 0")).collect();
        ensure!(refused.is_empty(), "updates were refused: {}\n{}", refused.join(", "), self.process.tail(20));
        Ok(())
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        self.process.tail(12)
    }

    fn look(&self, absent: &BTreeSet<String>) -> Result<Taken> {
        let (status, state) = get(&self.space, ADMIN, "/ready")?;
        let (_, dump) = get(&self.space, ADMIN, "/config_dump")?;
        let dump: Value = serde_json::from_str(&dump).context("/config_dump is not JSON")?;
        self.refused_nothing()?;
        let taken = judge(&dump, absent)?;
        ensure!(status == 200, "/ready says {status}: {}", state.trim());
        Ok(taken)
    }
}

/// Whether a config dump shows everything as active, but for secrets that are `absent`.
///
/// # Errors
/// With the names of what is warming or in error.
pub(super) fn judge(dump: &Value, absent: &BTreeSet<String>) -> Result<Taken> {
    let mut taken = Taken::default();
    let mut wrong = Vec::new();
    for section in dump["configs"].as_array().into_iter().flatten() {
        let list = |name: &str| section[name].as_array().into_iter().flatten();
        for listener in list("dynamic_listeners") {
            let name = listener["name"].as_str().unwrap_or("?");
            if let Some(details) = listener["error_state"]["details"].as_str() {
                wrong.push(format!("listener {name} is in error: {details}"));
            } else if listener["warming_state"].is_object() {
                wrong.push(format!("listener {name} is warming"));
            } else if listener["active_state"].is_object() {
                taken.listeners += 1;
            } else {
                wrong.push(format!("listener {name} is not active"));
            }
        }
        for cluster in list("dynamic_warming_clusters") {
            wrong.push(format!("cluster {} is warming", cluster["cluster"]["name"].as_str().unwrap_or("?")));
        }
        for cluster in list("dynamic_active_clusters") {
            match cluster["error_state"]["details"].as_str() {
                Some(details) => wrong.push(format!("cluster {} is in error: {details}", cluster["cluster"]["name"])),
                None => taken.clusters += 1,
            }
        }
        for route in list("dynamic_route_configs") {
            match route["error_state"]["details"].as_str() {
                Some(details) => {
                    wrong.push(format!("route configuration {} is in error: {details}", route["route_config"]["name"]))
                }
                None => taken.routes += 1,
            }
        }
        for secret in list("dynamic_warming_secrets") {
            if secret["name"].as_str().is_none_or(|name| !absent.contains(name)) {
                wrong.push(format!("secret {} is warming", secret["name"]));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(taken.listeners >= 2, "there are {} listeners, and the two virtual ones at least must be", taken.listeners);
    ensure!(taken.clusters >= 1, "there are no clusters");
    Ok(taken)
}

fn bootstrap(node: &str, control_plane: &str, secrets: &Path, own: &Credentials, state_of_the_world: bool) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "5s"});
    let text = |text: String| json!({"inline_string": text});
    let http2 = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let one = |name: &str, address: Value| {
        json!({
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        })
    };
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "localhost",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{"certificate_chain": text(own.chain_pem()), "private_key": text(own.key_pem())}],
            "validation_context": {
                "trusted_ca": text(own.roots_pem()),
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
            },
        },
    });
    json!({
        "node": {"id": node, "cluster": "judge"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": if state_of_the_world { "GRPC" } else { "DELTA_GRPC" },
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {"clusters": [
            {
                "name": "control-plane",
                "type": "STATIC",
                "connect_timeout": "2s",
                "typed_extension_protocol_options": http2,
                "load_assignment": one("control-plane", json!({"socket_address": {
                    "address": control_plane, "port_value": control_plane::PORT,
                }})),
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            },
            {
                "name": "sds-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": http2,
                "load_assignment": one("sds-grpc", json!({"pipe": {"path": secrets}})),
            },
            {
                // Nobody reads the log here, but Envoy wants to know where it would go.
                "name": "als-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": http2,
                "load_assignment": one("als-grpc", json!({"pipe": {"path": secrets}})),
            },
        ]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(listener: Value, clusters: Value) -> Value {
        let active = json!({"name": "a", "active_state": {}});
        json!({"configs": [{"dynamic_listeners": [active, listener]}, clusters]})
    }

    #[test]
    fn judge_when_everything_is_active_then_it_is_counted() {
        let good = dump(
            json!({"name": "b", "active_state": {}}),
            json!({"dynamic_active_clusters": [{"cluster": {"name": "c"}}]}),
        );
        assert_eq!(judge(&good, &BTreeSet::new()).unwrap(), Taken { listeners: 2, clusters: 1, routes: 0 });
    }

    #[test]
    fn judge_when_something_warms_or_is_in_error_then_it_is_named() {
        let active = json!({"dynamic_active_clusters": [{"cluster": {"name": "c"}}]});
        for (listener, clusters, words) in [
            (json!({"name": "b", "warming_state": {}}), active.clone(), "listener b is warming"),
            (
                json!({"name": "b", "active_state": {}, "error_state": {"details": "no"}}),
                active.clone(),
                "listener b is in error: no",
            ),
            (
                json!({"name": "b", "active_state": {}}),
                json!({"dynamic_warming_clusters": [{"cluster": {"name": "c"}}]}),
                "cluster c is warming",
            ),
            (json!({"name": "b"}), active, "listener b is not active"),
        ] {
            assert!(
                judge(&dump(listener, clusters), &BTreeSet::new()).unwrap_err().to_string().contains(words),
                "{words}"
            );
        }
    }
}
