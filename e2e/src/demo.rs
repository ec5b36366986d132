//! `make demo`: from a bare machine to a canary release on a mesh, with progress all along.

use crate::{
    bed::{Bed, Engines, Release},
    cluster::{self, Target, run::Progress},
    figures::FIGURES,
    install, scenarios,
};
use anyhow::Result;
use std::time::Duration;

/// The local cluster that the demo uses.
pub const CLUSTER: &str = "demo";

/// The steps of the canary: file, share of v2 in percent.
const STEPS: [(&str, f64); 4] = [("000", 0.0), ("010", 10.0), ("050", 50.0), ("100", 100.0)];

/// Runs the demo.
///
/// # Errors
/// With what did not work, and what to do.
pub fn run(release: Release) -> Result<()> {
    let mut progress = Progress::new("demo");
    let bed = Bed::start(CLUSTER, release)?;
    progress.done("the cluster is there");
    install::load_images(&bed, bed.release.engine != Engines::Leno, &mut progress)?;
    install::operator(&bed, &mut progress)?;
    let took = install::mesh(&bed, &mut progress)?;
    install::shop(&bed, &mut progress)?;
    bed.figures.add("meshinstall_applied_to_ready", took.as_secs_f64(), "s");

    bed.apply_file("config/samples/canary/destination-rule.yaml")?;
    println!("\nA canary of reviews, 1,000 requests a step:\n");
    println!("  {:<28} {:>8} {:>8} {:>10}", "wanted v1/v2", "v1", "v2", "failed");
    for (file, percent) in STEPS {
        bed.apply_file(&format!("config/samples/canary/{file}.yaml"))?;
        let object = ["virtualservice", "reviews", "-n", "shop"];
        let message = bed.wait_condition(&object, "Programmed", Duration::from_secs(30))?;
        let url = "http://reviews:9080/reviews/1";
        let counted = bed.client("shop", "deploy/client", &[url, "--requests", "1000"])?;
        let share = |version| 100.0 * counted.of(version) as f64 / counted.requests.max(1) as f64;
        println!(
            "  {:<28} {:>6.1} % {:>6.1} % {:>10}   ({message})",
            format!("{:.0} % / {percent:.0} %", 100.0 - percent),
            share("v1"),
            share("v2"),
            counted.failed
        );
        bed.figures.add(format!("canary_share_v2_wanted_{percent:.0}"), share("v2"), "percent");
    }
    let url = "http://reviews:9080/reviews/1";
    let tester = bed.client("shop", "deploy/client", &[url, "--requests", "100", "-H", "x-user=tester"])?;
    println!("  user tester: {} of {} answers from v3\n", tester.of("v3"), tester.requests);
    let front = bed.client("shop", "deploy/client", &["http://front/", "--requests", "100"])?;
    println!("  front page: {} of {} answers without a failure\n", front.requests - front.failed, front.requests);

    println!("What it costs, and how fast it is:\n");
    for measure in [scenarios::canary::change_is_in_force_quickly, scenarios::canary::latency_and_memory] {
        if let Err(error) = measure(&bed) {
            println!("  outside of what is wanted: {error:#}");
        }
    }
    bed.apply_file("config/samples/canary/100.yaml")?;
    println!();
    for arguments in [&["get", "meshinstall"][..], &["-n", "shop", "describe", "virtualservice", "reviews"]] {
        println!("$ kubectl {}\n{}", arguments.join(" "), bed.kubectl(arguments)?);
    }
    bed.figures.write(FIGURES.as_ref())?;
    let kubectl = if matches!(bed.target, Target::Local(_)) { "e2e/kubectl" } else { "kubectl" };
    println!("What to type next:\n");
    println!("  {kubectl} describe meshinstall default");
    println!("  {kubectl} -n shop apply -f config/samples/canary/050.yaml");
    println!("  {kubectl} -n shop exec deploy/client -- /leno-demo client http://front/ --requests 200");
    match &bed.target {
        Target::Local(_) => println!("  make demo-page                # the front page, on http://127.0.0.1:8080"),
        Target::External(_) => println!("  kubectl -n shop port-forward service/front 8080:80"),
    }
    println!("  {kubectl} -n shop logs deploy/front -c leno-proxy-0 --tail 5");
    println!("  make demo-down");
    progress.finished("done");
    Ok(())
}

/// Removes all that the demo made: the local cluster, or on the user's own cluster the shop, the mesh and the operator.
///
/// # Errors
/// When something could not be removed.
pub fn down() -> Result<()> {
    match cluster::target::external(|variable| std::env::var_os(variable)) {
        None => cluster::lifecycle::down(CLUSTER.parse()?)?,
        Some(external) => {
            let release = Release {
                bin_dir: ".".into(),
                version: String::new(),
                previous_version: String::new(),
                engine: Engines::default(),
            };
            let bed = Bed { target: Target::External(external), release, figures: Default::default() };
            bed.kubectl(&["delete", "namespace", "shop", "--ignore-not-found", "--timeout=120s"])?;
            bed.kubectl(&["delete", "meshinstall", "default", "--ignore-not-found", "--timeout=120s"])?;
            let helm = bed
                .command("helm")?
                .args(["uninstall", "leno", "-n", install::SYSTEM, "--ignore-not-found", "--wait"])
                .status()?;
            crate::bed::ensure(helm.success(), || "helm uninstall failed".into())?;
            bed.kubectl(&["delete", "namespace", install::SYSTEM, "--ignore-not-found", "--timeout=120s"])?;
        }
    }
    println!("the demo is gone");
    Ok(())
}
