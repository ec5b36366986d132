//! Bringing Leno onto a cluster, as the README tells a user to: images, Helm chart, `MeshInstall`, shop.

use crate::{
    bed::Bed,
    cluster::{images, run::Progress},
};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// The namespace that the operator is installed to.
pub const SYSTEM: &str = "leno-system";

/// The MeshInstall of the scenarios and the demo, for kubectl.
pub const MESH: [&str; 2] = ["meshinstall", "default"];

/// How long a mesh may take to be ready before it is an error.
const READY: Duration = Duration::from_secs(120);

/// Builds the images under both versions and brings them to the cluster, those with Envoy when asked to.
///
/// # Errors
/// When a program is not built, or the images cannot be.
pub fn load_images(bed: &Bed, envoy: bool, progress: &mut Progress) -> Result<()> {
    let release = &bed.release;
    let folder = tempfile::tempdir()?;
    let mut all: Vec<String> = ["operator", "control-plane", "proxy", "demo"].map(str::to_owned).to_vec();
    let mut meshed: Vec<String> = ["control-plane", "proxy"].map(str::to_owned).to_vec();
    if envoy {
        all.push("envoy".to_owned());
        meshed.push("envoy".to_owned());
    }
    let mut wanted =
        images::images(&release.bin_dir, &all, &release.version, &release.previous_version, &release.version)?;
    let previous = &release.previous_version;
    wanted.extend(images::images(&release.bin_dir, &meshed, previous, "", previous)?);
    for archive in images::build(&wanted, folder.path())? {
        bed.target.load_image(&archive)?;
    }
    progress.done("built the images and brought them to the cluster");
    Ok(())
}

/// Installs the operator with Helm, CRDs included, and waits until it runs.
///
/// # Errors
/// With Helm's words.
pub fn operator(bed: &Bed, progress: &mut Progress) -> Result<()> {
    let version = format!("image.tag={}", bed.release.version);
    let output = bed
        .command("helm")?
        .args(["upgrade", "--install", "leno", "helm/leno", "--namespace", SYSTEM, "--create-namespace"])
        .args(["--set", &version, "--wait", "--timeout", "120s"])
        .output()
        .context("helm does not start")?;
    if !output.status.success() {
        let pods = bed.kubectl(&["-n", SYSTEM, "describe", "pods"]).unwrap_or_default();
        let tail: String =
            pods.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        bail!("helm: {}\n{tail}", String::from_utf8_lossy(&output.stderr).trim());
    }
    progress.done("installed the operator with Helm");
    Ok(())
}

/// Applies the sample `MeshInstall` and waits until it is Ready; gives the time it took.
///
/// # Errors
/// When it is not Ready in time, with its conditions.
pub fn mesh(bed: &Bed, progress: &mut Progress) -> Result<Duration> {
    let manifest = bed.read("config/samples/meshinstall.yaml")?;
    let start = Instant::now();
    bed.apply(&manifest)?;
    bed.wait_condition(&["meshinstall", "default"], "Ready", READY)?;
    progress.done("the mesh is Ready");
    Ok(start.elapsed())
}

/// Deploys the demo shop and waits until all of it is ready.
///
/// # Errors
/// When a deployment is not ready in time.
pub fn shop(bed: &Bed, progress: &mut Progress) -> Result<()> {
    bed.apply_file("config/samples/shop.yaml")?;
    for name in ["inventory", "details", "ratings", "reviews-v1", "reviews-v2", "reviews-v3", "front", "client"] {
        bed.wait_rollout("shop", &format!("deployment/{name}"), Duration::from_secs(120))?;
    }
    progress.done("the shop is open");
    Ok(())
}
