//! Canary releases: weights, subsets, routing by header, how fast a change is in force, and what the sidecars cost.

use crate::{
    bed::{Bed, Engines, ensure},
    cluster::{Target, run},
};
use anyhow::{Context, Result, bail};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const URL: &str = "http://reviews:9080/reviews/1";
const REVIEWS: [&str; 4] = ["virtualservice", "reviews", "-n", "shop"];
/// How long after load and changes memory is looked at, at most.
const AT_REST: Duration = Duration::from_secs(20);
const CLIENT: &str = "deploy/client";

fn step(bed: &Bed, file: &str) -> Result<String> {
    bed.apply_file(&format!("config/samples/canary/{file}.yaml"))?;
    bed.wait_condition(&REVIEWS, "Programmed", Duration::from_secs(30))
}

pub(super) fn shares_follow_weights(bed: &Bed) -> Result<()> {
    for (file, percent) in [("000", 0.0), ("010", 10.0), ("050", 50.0), ("100", 100.0)] {
        let message = step(bed, file)?;
        ensure(message.contains("in force on"), || format!("Programmed says {message:?}"))?;
        let counted = bed.client("shop", CLIENT, &[URL, "--requests", "2000", "--concurrency", "8"])?;
        let share = 100.0 * counted.of("v2") as f64 / counted.requests as f64;
        bed.figures.add(format!("share_v2_wanted_{percent:.0}"), share, "percent");
        ensure(counted.failed == 0, || {
            format!("{} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
        })?;
        ensure(counted.requests == 2000, || format!("{} requests were sent, not 2000", counted.requests))?;
        ensure(counted.fits("v2", percent) && counted.fits("v1", 100.0 - percent), || {
            format!("wanted {percent} % of v2, got {:?}", counted.versions)
        })?;
    }
    Ok(())
}

pub(super) fn header_selects_v3(bed: &Bed) -> Result<()> {
    step(bed, "000")?;
    let tester = bed.client("shop", CLIENT, &[URL, "--requests", "200", "-H", "x-user=tester"])?;
    ensure(tester.of("v3") == 200, || format!("the user tester got {:?}", tester.versions))?;
    let other = bed.client("shop", CLIENT, &[URL, "--requests", "200", "-H", "x-user=tester2"])?;
    ensure(other.of("v1") == 200, || format!("another user got {:?}", other.versions))
}

pub(super) fn every_hop_answers(bed: &Bed) -> Result<()> {
    step(bed, "100")?;
    for (what, arguments) in [
        ("the front page", &["http://front/", "--requests", "300"][..]),
        ("ratings over gRPC", &["http://ratings:9090", "--protocol", "grpc", "--requests", "300"][..]),
        ("inventory, which speaks first", &["tcp://inventory:9000", "--protocol", "tcp", "--requests", "100"][..]),
        ("reviews by HTTP/2", &[URL, "--protocol", "http2", "--requests", "300"][..]),
        ("reviews without keep-alive", &[URL, "--no-keep-alive", "--requests", "300"][..]),
    ] {
        let counted = bed.client("shop", CLIENT, arguments)?;
        ensure(counted.failed == 0, || {
            format!("{what}: {} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
        })?;
        ensure(counted.p99_us < 1_000_000, || format!("{what}: p99 is {} us", counted.p99_us))?;
        let words: String =
            what.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect::<Vec<_>>().join("_");
        bed.figures.add(format!("p50_{words}"), counted.p50_us as f64, "us");
    }
    Ok(())
}

pub(crate) fn change_is_in_force_quickly(bed: &Bed) -> Result<()> {
    step(bed, "000")?;
    let watch = bed.watch("shop", CLIENT, &[URL, "--interval", "2", "--seconds", "45"])?;
    watch.until("v1", Duration::from_secs(20))?;
    let mut times = Vec::new();
    for change in 0..20 {
        let (file, version) = if change % 2 == 0 { ("100", "v2") } else { ("000", "v1") };
        let manifest = bed.read(&format!("config/samples/canary/{file}.yaml"))?;
        let before = now_ms()?;
        bed.apply(&manifest)?;
        let applied = now_ms()?;
        let seen = watch.until(version, Duration::from_secs(10))?;
        // kubectl needs a while to start and to finish: the change was accepted somewhere in between.
        times.push(seen.saturating_sub(before.midpoint(applied)));
    }
    times.sort_unstable();
    let (p50, max) = (times[times.len() / 2], times[times.len() - 1]);
    bed.figures.add("virtualservice_in_force_p50", p50 as f64, "ms");
    bed.figures.add("virtualservice_in_force_max", max as f64, "ms");
    ensure(max <= 500, || format!("the slowest of 20 changes took {max} ms, wanted at most 500"))
}

fn now_ms() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64)
}

pub(crate) fn latency_and_memory(bed: &Bed) -> Result<()> {
    step(bed, "000")?;
    let plain = bed
        .read("config/samples/shop.yaml")?
        .replace("namespace: shop", "namespace: plain")
        .replace("metadata: {name: shop, labels: {istio-injection: enabled}}", "metadata: {name: plain}");
    bed.apply(&plain)?;
    bed.wait_rollout("plain", "deployment/reviews-v1", Duration::from_secs(60))?;
    bed.wait_rollout("plain", "deployment/client", Duration::from_secs(60))?;
    bed.kubectl(&["-n", "plain", "scale", "deployment/reviews-v2", "deployment/reviews-v3", "--replicas=0"])?;
    bed.wait("only v1 to be left", Duration::from_secs(60), || {
        let pods = bed.get(&["pods", "-n", "plain", "-l", "app=reviews"])?;
        Ok((pods["items"].as_array().is_some_and(|pods| pods.len() == 1)).then_some(()))
    })?;
    let arguments = [URL, "--requests", "4000", "--concurrency", "1"];
    let without = bed.client("plain", CLIENT, &arguments)?;
    let with = bed.client("shop", CLIENT, &arguments)?;
    for (name, counted) in [("without", &without), ("with", &with)] {
        ensure(counted.failed == 0, || format!("{name} sidecars {} failed: {:?}", counted.failed, counted.errors))?;
        bed.figures.add(format!("latency_p50_{name}_sidecars"), counted.p50_us as f64, "us");
        bed.figures.add(format!("latency_p99_{name}_sidecars"), counted.p99_us as f64, "us");
    }
    bed.figures.add("latency_p50_added", with.p50_us as f64 - without.p50_us as f64, "us");
    bed.figures.add("latency_p99_added", with.p99_us as f64 - without.p99_us as f64, "us");
    bed.kubectl(&["delete", "namespace", "plain", "--wait=false"])?;

    if !matches!(bed.target, Target::Local(_)) {
        println!("  memory is not measured: the nodes of this cluster are other machines");
        return Ok(());
    }
    // Beside Envoy our binary is an agent, whose memory is not what is promised.
    let proxy = if bed.release.engine == Engines::Leno { 15.0 } else { f64::MAX };
    let all = [("leno-operator", f64::MAX), ("leno-control-plane", 60.0), ("leno-proxy", proxy)];
    for (process, _) in all {
        bed.figures.add(format!("memory_{}_under_load", process.replace('-', "_")), resident_mib(process)?, "MiB");
    }
    // At rest: what load and configuration needed goes back to the system within seconds.
    for (process, limit) in all {
        let mut most = resident_mib(process)?;
        let rest = bed.wait(&format!("{process} to hold less than {limit} MiB at rest"), AT_REST, || {
            most = resident_mib(process)?;
            if most < limit { Ok(Some(())) } else { bail!("it holds {most:.1} MiB") }
        });
        bed.figures.add(format!("memory_{}_at_rest", process.replace('-', "_")), most, "MiB");
        rest?;
    }
    Ok(())
}

/// The most memory that a process of this name holds on this machine, resident, in MiB.
fn resident_mib(process: &str) -> Result<f64> {
    let out = run::output(std::process::Command::new("ps").args(["-eo", "rss=,args="]))?;
    out.lines()
        .filter_map(|line| line.trim().split_once(' '))
        .filter(|(_, args)| args.trim().starts_with(&format!("/{process} ")))
        .filter_map(|(rss, _)| rss.parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .max_by(f64::total_cmp)
        .with_context(|| format!("no {process} runs on this machine"))
}
