//! The local cluster itself: it runs pods, survives being interrupted, and leaves nothing behind.
//!
//! Uses a cluster of its own, so it runs beside the others; without root it says so and passes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leno_e2e::cluster::{Cluster, Layout, Name, lifecycle, run};

/// What is left of a cluster on this machine, for people to read; empty when nothing is.
fn remains(layout: &Layout) -> std::io::Result<Vec<String>> {
    let state = layout.state().display().to_string();
    let mut found = Vec::new();
    for path in [layout.state(), layout.netns_path()] {
        if path.exists() {
            found.push(format!("path {}", path.display()));
        }
    }
    let cgroup = layout.cgroup_root();
    for entry in std::fs::read_dir("/sys/fs/cgroup")?.filter_map(Result::ok) {
        if entry.path().join(cgroup.trim_start_matches('/')).exists() {
            found.push(format!("control group in {}", entry.path().display()));
        }
    }
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&state) {
            found.push(format!("process {:?}: {command}", entry.file_name()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|line| line.contains(&state)).map(|line| format!("mount {line}")));
    Ok(found)
}

/// Stops the cluster also when the test fails.
struct Stop(Name);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = lifecycle::down(self.0.clone());
    }
}

fn leno_cluster(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno-cluster"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env_remove("LENO_CLUSTER").env_remove("KUBECONFIG");
    command
}

#[test]
fn cluster_when_interrupted_and_started_again_then_it_runs_pods_and_a_stop_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a local cluster needs root");
        return;
    }
    let name: Name = "lifecycle".parse().unwrap();
    let layout = Layout::from_environment(name.clone()).unwrap();
    let _stop = Stop(name.clone());
    lifecycle::down(name.clone()).unwrap();

    // Interrupted once as soon as the network is there, once when programs run.
    for trace in [layout.netns_path(), layout.logs().join("etcd.log")] {
        let mut interrupted = leno_cluster(&["up", "--name", "lifecycle"]).spawn().unwrap();
        let what = format!("{} to appear", trace.display());
        // Programs may have to be built first.
        let limit = Duration::from_secs(1800);
        run::wait_for(&what, limit, Duration::from_millis(5), "", || trace.exists()).unwrap();
        interrupted.kill().unwrap();
        interrupted.wait().unwrap();
        assert!(Cluster::attach(name.clone()).is_err(), "a half-started cluster must not pass for a running one");
    }

    let started = Instant::now();
    let cluster = Cluster::up(name.clone()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(120), "took {:?}", started.elapsed());
    cluster.kubectl(["create", "deployment", "sleeper", "--image=leno/pause:1", "--replicas=2"]).unwrap();
    let wait = ["wait", "--for=condition=Available", "deployment/sleeper", "--timeout=60s"];
    cluster.kubectl(wait).unwrap();

    // A second start finds it running: the pods stay.
    let pods = |cluster: &Cluster| cluster.kubectl(["get", "pods", "-o", "name"]).unwrap();
    let before = pods(&cluster);
    assert_eq!(before.lines().count(), 2);
    assert_eq!(pods(&Cluster::up(name.clone()).unwrap()), before);

    // What is done is in the audit log, which other tests prove things from.
    let audit = std::fs::read_to_string(cluster.audit_log()).unwrap();
    assert!(audit.lines().any(|line| line.contains(r#""verb":"create""#) && line.contains("deployments")));

    lifecycle::down(name).unwrap();
    assert_eq!(remains(&layout).unwrap(), Vec::<String>::new());
    assert!(Path::new(&layout.cache.join("bin")).is_dir(), "the programs stay for the next start");
}
