//! Scenario tests: what users rely on, seen on a real Kubernetes with real clients. They run in this order on one
//! cluster, each leaves the mesh as it found it, and a failed one does not stop the others (but the first, which installs).

mod canary;

use crate::{
    bed::{Bed, Release},
    cluster::{self, run::Progress},
    install,
};
use anyhow::Result;
use std::time::Instant;

/// The local cluster that the scenarios use; `make demo` has another.
pub const CLUSTER: &str = "test";

/// A scenario: what it shows, and how.
type Scenario = (&'static str, fn(&Bed) -> Result<()>);

/// All of them, in order.
const ALL: &[Scenario] = &[
    ("canary_when_weights_change_then_shares_follow", canary::shares_follow_weights),
    ("route_by_header_when_user_matches_then_v3_answers", canary::header_selects_v3),
    ("front_page_over_http_grpc_and_tcp_then_every_hop_answers", canary::every_hop_answers),
    ("virtual_service_when_changed_then_in_force_within_500_ms", canary::change_is_in_force_quickly),
    ("two_sidecars_then_added_latency_and_memory_are_small", canary::latency_and_memory),
];

/// Runs the scenarios whose name contains `only`, prints `N passed, N failed`, and gives whether none failed.
///
/// # Errors
/// When there is no cluster to run them on.
pub fn run(release: Release, only: Option<&str>, keep: bool) -> Result<bool> {
    let mut progress = Progress::new("scenarios");
    let bed = Bed::start(CLUSTER, release)?;
    progress.done("the cluster is there");
    let (mut passed, mut failed) = (0, Vec::new());
    match installed(&bed, &mut progress) {
        Ok(()) => passed += 1,
        Err(error) => failed.push(("install_on_a_fresh_cluster_then_ready", error)),
    }
    if failed.is_empty() {
        for (name, scenario) in ALL.iter().filter(|(name, _)| only.is_none_or(|only| name.contains(only))) {
            println!("scenario {name} ...");
            let start = Instant::now();
            let result = scenario(&bed);
            let took = start.elapsed().as_secs_f64();
            match result {
                Ok(()) => {
                    println!("scenario {name} ... ok ({took:.1} s)");
                    passed += 1;
                }
                Err(error) => {
                    println!("scenario {name} ... FAILED ({took:.1} s): {error:#}");
                    failed.push((name, error));
                }
            }
        }
    }
    bed.figures.write("target/scenarios/latest.json".as_ref())?;
    for (name, error) in &failed {
        println!("\nfailed: {name}\n  {error:#}");
    }
    progress.finished("figures are in target/scenarios/latest.json");
    println!("\n{passed} passed, {} failed", failed.len());
    if !keep && matches!(bed.target, cluster::Target::Local(_)) {
        cluster::lifecycle::down(CLUSTER.parse()?)?;
    }
    Ok(failed.is_empty())
}

/// The first scenario: everything is installed, with its time.
fn installed(bed: &Bed, progress: &mut Progress) -> Result<()> {
    install::load_images(bed, progress)?;
    install::operator(bed, progress)?;
    let took = install::mesh(bed, progress)?;
    bed.figures.add("meshinstall_applied_to_ready", took.as_secs_f64(), "s");
    install::shop(bed, progress)?;
    bed.apply_file("config/samples/canary/destination-rule.yaml")?;
    Ok(())
}
