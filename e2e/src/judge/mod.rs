//! A stock Envoy as judge: it connects to our control plane for every golden case, must get everything active, and must send
//! requests where the case says.
//!
//! ```text
//!  control plane (--config-dir)        the judged pod                        all other pods
//!   169.254.N.2:15012 ────────────── Envoy, capture, its own app ────────── recording servers
//!        a network namespace              another                                a third
//! ```
//!
//! The namespaces have no name and no route out. Nothing is shared between cases but the programs.

mod case;
mod client;
mod control_plane;
mod envoy;
mod peers;
pub(crate) mod process;
mod requests;
mod secrets;
mod space;

pub use requests::{Expect, Protocol, RequestCase, Requests};

use crate::cluster::{Layout, binaries, error::require_root, run};
use anyhow::{Context, Result, bail};
use case::{Case, Pod};
use client::Senders;
use control_plane::{ControlPlane, Credentials};
use envoy::{Envoy, Taken};
use peers::Peer;
use space::Space;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Where the golden cases are, seen from the root of the tree.
pub const CASES: &str = "controlplane/tests/golden";
/// Where the requests to them are.
pub const REQUESTS: &str = "e2e/judge";
/// Judges the cases under `folder` whose name contains `only`, prints a line a case and `N passed, N failed`, and gives
/// whether none failed.
///
/// # Errors
/// When there is nothing to judge, or without root.
pub fn judge(bin_dir: &Path, folder: &Path, requests: &Path, only: Option<&str>) -> Result<bool> {
    require_root("judging with Envoy", "it makes network namespaces and captures traffic in them")?;
    let layout = Layout::from_environment("judge".parse()?)?;
    let program = binaries::envoy(&layout)?;
    let bin_dir = bin_dir.canonicalize().with_context(|| bin_dir.display().to_string())?;
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("in.yaml").is_file())
        .filter(|path| only.is_none_or(|only| path.to_string_lossy().contains(only)))
        .collect();
    folders.sort();
    if folders.is_empty() {
        bail!("{} has no case to judge", folder.display());
    }
    for entry in std::fs::read_dir(requests).with_context(|| requests.display().to_string())? {
        let path = entry?.path();
        let case = folder.join(path.file_stem().unwrap_or_default());
        if !case.join("in.yaml").is_file() {
            bail!("{} belongs to no case: there is no {}", path.display(), case.display());
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut passed, mut failed) = (0, 0);
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let start = Instant::now();
        let result = runtime.block_on(one_case(&bin_dir, &program, &folder, requests));
        let took = start.elapsed().as_secs_f64();
        match result {
            Ok(said) => {
                println!("judge {name} ... ok ({took:.1} s; {said})");
                passed += 1;
            }
            Err(error) => {
                println!("judge {name} ... FAILED ({took:.1} s): {error:#}");
                failed += 1;
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    Ok(failed == 0)
}

async fn one_case(bin_dir: &Path, program: &Path, folder: &Path, requests: &Path) -> Result<String> {
    let case = Case::read(folder, requests)?;
    let scratch = scratch()?;
    let control_plane = ControlPlane::start(bin_dir, &case, scratch.path()).await?;
    let mut credentials = BTreeMap::new();
    for pod in case.pods.values().filter(|pod| pod.meshed) {
        credentials.insert(pod.key.clone(), Arc::new(control_plane.sign(&pod.key).await?));
    }
    let mut said = Vec::new();
    for (number, pod) in case.judged()?.iter().enumerate() {
        let requests = if number == 0 { case.requests.requests.as_slice() } else { &[] };
        let judged = Judged {
            number: number + 1,
            bin_dir,
            program,
            case: &case,
            control_plane: &control_plane,
            credentials: &credentials,
        };
        let taken = judged.pod(pod, requests).await.with_context(|| {
            format!("as {}; the control plane says:\n{}\nand", pod.key, control_plane.process.tail(8))
        })?;
        said.push(format!(
            "{}: {} listeners, {} clusters, {} requests",
            pod.key,
            taken.listeners,
            taken.clusters,
            requests.len()
        ));
    }
    Ok(said.join("; "))
}

/// A folder that Envoy's user can enter.
fn scratch() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("leno-judge-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

struct Judged<'a> {
    /// Which pod of the case this is: the cable to the control plane and its addresses (link-local, RFC 3927) follow.
    number: usize,
    bin_dir: &'a Path,
    program: &'a Path,
    case: &'a Case,
    control_plane: &'a ControlPlane,
    credentials: &'a BTreeMap<String, Arc<Credentials>>,
}

impl Judged<'_> {
    async fn pod(&self, pod: &Pod, requests: &[RequestCase]) -> Result<Taken> {
        let scratch = scratch()?;
        let (own, others) = (Space::new()?, Space::new()?);
        self.wire(pod, &own, &others)?;
        let mut capture = own.command(self.bin_dir.join("leno-proxy"));
        run::output(capture.arg("capture").env("POD_IPS", pod.addresses[0].to_string())).context("capture")?;
        let mut serving = Vec::new();
        for address in &self.case.served {
            let Some(at) = self.case.pod_at(address.ip()) else {
                // An endpoint that is no pod.
                let (space, pod) = (others.clone(), address.ip().to_string());
                serving.push(Task(Peer { space, address: *address, pod, credentials: None }.serve()?));
                continue;
            };
            let (space, shows) = if at.key == pod.key { (&own, None) } else { (&others, Some(self.shown_by(at)?)) };
            let peer =
                Peer { space: space.clone(), address: *address, pod: at.key.clone(), credentials: shows.flatten() };
            serving.push(Task(peer.serve()?));
        }
        let credentials = self.credentials.get(&pod.key).with_context(|| format!("{} has no certificate", pod.key))?;
        serving.push(Task(secrets::serve(&scratch.path().join("sds.sock"), credentials)?));
        let (address, wanted) = (format!("169.254.{}.2", self.number), &self.case.requests);
        let mut envoy = if wanted.agent {
            let agent = self.bin_dir.join("leno-proxy");
            Envoy::start_under_agent(self.program, &agent, &own, scratch.path(), &pod.key, &address, credentials)?
        } else {
            let whole = wanted.state_of_the_world;
            Envoy::start(self.program, &own, scratch.path(), &pod.key, &address, credentials, whole)?
        };
        let taken = envoy.active(&self.case.absent).await?;
        let senders = Senders { case: self.case, own: &own, others: &others, credentials: self.credentials };
        for (number, request) in requests.iter().enumerate() {
            senders.check(request).await.with_context(|| {
                format!("request {} to {}\nEnvoy says:\n{}\nand", number + 1, request.to, envoy.tail())
            })?;
        }
        envoy.refused_nothing()?;
        envoy.counted(&wanted.counted).await.context("what the agent counts")?;
        Ok(taken)
    }

    /// What a pod shows to its peers; nothing where it is not meshed.
    fn shown_by(&self, pod: &Pod) -> Result<Option<Arc<Credentials>>> {
        let owner = self.case.requests.impostors.get(&pod.key).unwrap_or(&pod.key);
        if !pod.meshed {
            return Ok(None);
        }
        let found = self
            .credentials
            .get(owner)
            .with_context(|| format!("{owner}, whose certificate {} shows, has none", pod.key))?;
        Ok(Some(found.clone()))
    }

    /// Addresses and cables: the judged pod's on its own side, all others on theirs.
    fn wire(&self, pod: &Pod, own: &Space, others: &Space) -> Result<()> {
        own.join("peers", others, "pod")?;
        let number = self.number;
        own.join("control", &self.control_plane.space, &format!("envoy{number}"))?;
        own.ip(&format!("address add 169.254.{number}.1/30 dev control"))?;
        self.control_plane.space.ip(&format!("address add 169.254.{number}.2/30 dev envoy{number}"))?;
        for address in &pod.addresses {
            // On the cable and not on the loopback device: captured connections are led to the address of the device that
            // they came in by.
            own.own(*address, "peers")?;
        }
        for other in self.case.pods.values().filter(|other| other.key != pod.key) {
            for address in &other.addresses {
                others.own(*address, "lo")?;
            }
        }
        let strangers =
            self.case.served.iter().map(std::net::SocketAddr::ip).filter(|ip| self.case.pod_at(*ip).is_none());
        for address in strangers.collect::<std::collections::BTreeSet<_>>() {
            others.own(address, "lo")?;
        }
        for (family, wanted) in [("-4", true), ("-6", false)] {
            let Some(address) = pod.addresses.iter().find(|address| address.is_ipv4() == wanted) else { continue };
            own.ip(&format!("{family} route add default dev peers src {address}"))?;
            others.ip(&format!("{family} route add default dev pod"))?;
        }
        Ok(())
    }
}

/// A task that ends with its owner.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
