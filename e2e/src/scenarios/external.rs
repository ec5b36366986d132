//! The demo on a cluster that the user has: a second local one, reached only by its kubeconfig and a loader command.

use crate::{
    bed::{Bed, ensure},
    cluster::{self, Cluster, run},
};
use anyhow::{Context, Result};

/// The name of the second cluster.
const NAME: &str = "users-own";

pub(super) fn demo_on_a_users_cluster(bed: &Bed) -> Result<()> {
    let cluster = Cluster::up(NAME.parse()?)?;
    let result = demo_on(bed, &cluster);
    cluster::lifecycle::down(NAME.parse()?)?;
    result
}

fn demo_on(bed: &Bed, cluster: &Cluster) -> Result<()> {
    let program = std::env::current_exe()?;
    let loader = program.with_file_name("leno-cluster");
    let start = |task: &str| -> Result<std::process::Command> {
        let mut command = cluster.command(&program)?;
        // As a user has it: a kubeconfig, a loader, and no word of a local cluster.
        command
            .env_remove("LENO_CLUSTER")
            .env("LENO_LOAD_IMAGE", format!("{} load-image --name {NAME}", loader.display()));
        command.arg(task);
        Ok(command)
    };
    let before = standing(cluster)?;
    let release = &bed.release;
    let said = run::output(start("demo")?.arg("--bin-dir").arg(&release.bin_dir).args([
        "--version",
        &release.version,
        "--previous-version",
        &release.previous_version,
    ]))
    .context("make demo with KUBECONFIG")?;
    for wanted in ["in force on 8 of 8 proxies", "user tester: 100 of 100 answers from v3", "What to type next"] {
        ensure(said.contains(wanted), || format!("the demo did not say {wanted:?}, but:\n{said}"))?;
    }
    run::output(&mut start("demo-down")?).context("make demo-down with KUBECONFIG")?;
    let left: Vec<String> = standing(cluster)?.into_iter().filter(|name| !before.contains(name)).collect();
    ensure(left.is_empty(), || format!("make demo-down left {left:?}"))
}

/// What of the kinds that outlive a namespace is on the cluster; definitions stay by design.
fn standing(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingadmissionpolicies";
    Ok(cluster.kubectl(["get", kinds, "-o", "name"])?.lines().map(str::to_owned).collect())
}
