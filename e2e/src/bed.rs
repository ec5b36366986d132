//! A cluster with Leno on it, as tests and the demo use it: through `kubectl`, as a person would.

use crate::{
    cluster::{self, Target},
    figures::{Counted, Figures},
    metrics::{self, Sample},
};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(100);

/// What the programs and images of this run are.
#[derive(Clone, Debug, clap::Args)]
pub struct Release {
    /// The folder of the built programs.
    #[arg(long)]
    pub bin_dir: PathBuf,
    /// Their version.
    #[arg(long)]
    pub version: String,
    /// The version before it.
    #[arg(long)]
    pub previous_version: String,
    /// What the sidecars run.
    #[arg(long, value_enum, default_value_t)]
    pub engine: Engines,
}

/// What the sidecars of a run are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Engines {
    /// Leno's own proxy.
    #[default]
    Leno,
    /// Envoy.
    Envoy,
    /// Envoy for some of the workloads, Leno's own proxy for the others.
    Mixed,
}

impl Engines {
    /// A manifest of the tree with these engines: the MeshInstall names one, workloads of the shop have an annotation.
    fn put_into(self, manifest: String) -> String {
        const ENVOY_IN_THE_SHOP: [&str; 3] =
            ["{app: front, version: v1}", "{app: reviews, version: v2}", "{app: ratings, version: v1}"];
        // Envoy alone needs about 70 MiB.
        let larger = |manifest: String| manifest.replace("limits: {memory: 128Mi}", "limits: {memory: 256Mi}");
        match self {
            Engines::Leno => manifest,
            Engines::Envoy => larger(manifest).replace("engine: leno", "engine: envoy"),
            Engines::Mixed => ENVOY_IN_THE_SHOP.iter().fold(larger(manifest), |text, labels| {
                let annotated = format!("metadata: {{labels: {labels}, annotations: {{mesh.leno.dev/engine: envoy}}}}");
                text.replace(&format!("metadata: {{labels: {labels}}}"), &annotated)
            }),
        }
    }
}

/// A cluster to work on.
pub struct Bed {
    /// The cluster.
    pub target: Target,
    /// The programs and images.
    pub release: Release,
    /// What was measured.
    pub figures: Figures,
}

impl Bed {
    /// Takes the user's cluster, or starts the local one of that name.
    ///
    /// # Errors
    /// When the cluster does not start; the message says what is missing.
    pub fn start(name: &str, release: Release) -> Result<Bed> {
        let target = cluster::target(name.parse()?)?;
        Ok(Bed { target, release, figures: Figures::default() })
    }

    /// A program in the cluster's network.
    ///
    /// # Errors
    /// When the cluster is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        Ok(self.target.command(program)?)
    }

    /// Runs kubectl and gives what it printed.
    ///
    /// # Errors
    /// With kubectl's own words.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// As [`Bed::kubectl`], with something on its standard input.
    ///
    /// # Errors
    /// With kubectl's own words.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command("kubectl")?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl does not start")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Applies a file of the tree, such as `config/samples/shop.yaml`.
    ///
    /// # Errors
    /// As [`Bed::apply`], or when there is no such file.
    pub fn apply_file(&self, path: &str) -> Result<String> {
        self.apply(&self.read(path)?)
    }

    /// A file of the tree, with the images of this release.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, path: &str) -> Result<String> {
        let text = std::fs::read_to_string(Path::new(path)).with_context(|| format!("cannot read {path}"))?;
        let text = text.replace("leno/demo:0.1.0", &format!("leno/demo:{}", self.release.version));
        Ok(self.release.engine.put_into(text))
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["get"].iter().chain(arguments).chain(&["-o", "json"]).copied().collect();
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Looks until `look` finds something, at most for `limit`. An error of `look` counts as nothing found yet.
    ///
    /// # Errors
    /// After `limit`, with `what` and the last reason.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let start = Instant::now();
        let mut last;
        loop {
            match look() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => last = String::new(),
                Err(error) => last = format!(": {error:#}"),
            }
            if start.elapsed() >= limit {
                bail!("waited {} s for {what}{last}", limit.as_secs());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Fails unless `holds` stays true for all of `window`.
    ///
    /// # Errors
    /// With what `holds` said, and after how long.
    pub fn stays(&self, what: &str, window: Duration, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < window {
            holds().with_context(|| format!("{what}, after {:.1} s", start.elapsed().as_secs_f64()))?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Runs the demo binary in a pod and gives what it printed.
    ///
    /// # Errors
    /// With its words, when it fails.
    pub fn demo(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> =
            ["-n", namespace, "exec", pod, "--", "/leno-demo"].iter().chain(arguments).copied().collect();
        self.kubectl(&all)
    }

    /// Sends one request from a pod and gives its answer: `status`, `headers`, `body`.
    ///
    /// # Errors
    /// When there was no answer.
    pub fn ask(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["ask"].iter().chain(arguments).copied().collect();
        let printed = self.demo(namespace, pod, &all)?;
        serde_json::from_str(&printed).with_context(|| format!("the answer is not JSON: {printed}"))
    }

    /// The proxy's metrics of a pod, as a scraper gets them.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn proxy_metrics(&self, namespace: &str, pod: &str) -> Result<Vec<Sample>> {
        let page = self.demo(namespace, pod, &["ask", "http://127.0.0.1:15090/stats/prometheus", "--print", "body"])?;
        Ok(metrics::parse(&page))
    }

    /// The pods of a namespace that a selector chooses and that are not being deleted, oldest first.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector, "--sort-by=.metadata.creationTimestamp"])?;
        let all = list["items"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// The one pod that a selector chooses.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, selector: &str) -> Result<Value> {
        self.pods(namespace, selector)?.into_iter().next().with_context(|| format!("{namespace} has no pod {selector}"))
    }

    /// Patches an object by a merge patch.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn patch(&self, object: &[&str], patch: &Value) -> Result<String> {
        let patch = patch.to_string();
        let all: Vec<&str> = ["patch"].iter().chain(object).chain(&["--type=merge", "-p", &patch]).copied().collect();
        self.kubectl(&all)
    }

    /// Events about an object, each as `Type Reason: message`.
    ///
    /// # Errors
    /// With the API server's reason.
    pub fn events(&self, kind: &str, name: &str) -> Result<Vec<String>> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let list = self.get(&["events", "-A", "--field-selector", &selector])?;
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .iter()
            .map(|event| format!("{} {}: {}", text(event, "type"), text(event, "reason"), text(event, "message")))
            .collect())
    }

    /// Ends the main process of a container with SIGKILL; gives whether this bed can: only on the local cluster, where the
    /// processes of pods are this machine's.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, namespace: &str, pod: &str, container: &str) -> Result<bool> {
        self.kill_program(namespace, pod, container, |_| true)
    }

    /// As [`Bed::kill`], the first process whose name `fits`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill_program(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<bool> {
        if !matches!(self.target, Target::Local(_)) {
            return Ok(false);
        }
        let value = self.get(&["pod", pod, "-n", namespace])?;
        let id = ["containerStatuses", "initContainerStatuses"]
            .iter()
            .flat_map(|list| value["status"][list].as_array().into_iter().flatten())
            .find(|status| status["name"] == container)
            .and_then(|status| status["containerID"].as_str())
            .and_then(|id| id.rsplit('/').next())
            .with_context(|| format!("{namespace}/{pod} has no running container {container}"))?
            .to_owned();
        let process = std::fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .find(|pid| {
                let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
                read("cgroup").is_ok_and(|groups| groups.contains(&id))
                    && read("comm").is_ok_and(|name| fits(name.trim()))
            })
            .with_context(|| format!("no process belongs to container {container} of {namespace}/{pod}"))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL)?;
        Ok(true)
    }

    /// Waits until a condition of an object is `True`, and gives its message.
    ///
    /// # Errors
    /// After `limit`, with the condition as it is.
    pub fn wait_condition(&self, object: &[&str], condition: &str, limit: Duration) -> Result<String> {
        self.wait(&format!("{condition} of {}", object.join(" ")), limit, || {
            let value = self.get(object)?;
            let generation = &value["metadata"]["generation"];
            let found = condition_of(&value, condition).ok_or_else(|| anyhow!("there is no such condition"))?;
            if found["status"] == "True" && found["observedGeneration"] == *generation {
                return Ok(Some(found["message"].as_str().unwrap_or_default().to_owned()));
            }
            bail!("{found}")
        })
    }

    /// Waits until every pod that a selector names is ready.
    ///
    /// # Errors
    /// After `limit`, with what the pods say.
    pub fn wait_rollout(&self, namespace: &str, kind_and_name: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        match self.kubectl(&["-n", namespace, "rollout", "status", kind_and_name, &timeout]) {
            Ok(_) => Ok(()),
            Err(error) => {
                let pods = self.kubectl(&["-n", namespace, "get", "pods", "-o", "wide"]).unwrap_or_default();
                Err(error.context(pods))
            }
        }
    }

    /// Runs the counting client in a pod (`deploy/client`, say) and gives what it counted.
    ///
    /// # Errors
    /// When it could not be run; failed requests are counted, not errors.
    pub fn client(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Counted> {
        self.load(namespace, pod, arguments)?.finish()
    }

    /// Starts the counting client in a pod; [`Load::finish`] waits for it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn load(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Load> {
        let child = self
            .command("kubectl")?
            .args(["-n", namespace, "exec", pod, "--", "/leno-demo", "client"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Load(child))
    }

    /// Starts the counting client in a pod for as long as it takes: [`Load::stop`] ends it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn load_until_stopped(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Load> {
        let child = self
            .command("kubectl")?
            .args(["-n", namespace, "exec", "-i", pod, "--", "/leno-demo", "client", "--until-closed"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Load(child))
    }

    /// Starts watching which version answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn watch(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Watch> {
        let mut child = self
            .command("kubectl")?
            .args(["-n", namespace, "exec", pod, "--", "/leno-demo", "watch"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { child, lines })
    }
}

/// A condition in the status of an object.
pub fn condition_of<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Fails with `message` unless `holds`.
///
/// # Errors
/// When it does not hold.
pub fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(anyhow!(message())) }
}

/// A counting client under way.
pub struct Load(Child);

impl Load {
    /// Ends one that was begun by [`Bed::load_until_stopped`] and gives what it counted.
    ///
    /// # Errors
    /// When it did not run.
    pub fn stop(mut self) -> Result<Counted> {
        // The client sees the end of its standard input.
        drop(self.0.stdin.take());
        self.finish()
    }

    /// Waits for its end and gives what it counted.
    ///
    /// # Errors
    /// When it did not run.
    pub fn finish(mut self) -> Result<Counted> {
        let (mut output, mut errors) = (String::new(), String::new());
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_string(&mut output)?;
        }
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut errors)?;
        }
        self.0.wait()?;
        serde_json::from_str(output.trim()).with_context(|| format!("the client printed {output:?}, {errors:?}"))
    }
}

/// Tells when another version answers.
pub struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    /// Waits until `version` answers with success, and gives the time of the first such answer (milliseconds since the
    /// Unix epoch).
    ///
    /// # Errors
    /// After `limit`.
    pub fn until(&self, version: &str, limit: Duration) -> Result<u64> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .map_err(|_| anyhow!("waited {} s for an answer of {version}", limit.as_secs()))?;
            let seen: Value = serde_json::from_str(&line)?;
            if seen["version"] == version {
                return seen["at_ms"].as_u64().context("no time");
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
