//! Upgrades under load: what a release must survive, on a real Kubernetes, with every kind of workload and client. Each scenario
//! counts the requests that failed and the containers of apps that restarted; none of either is what is wanted, always.
//!
//! The two releases are the tree under two versions; a bad build (`e2e/faulty`) takes the name of one of them for the time of a
//! scenario. Most scenarios go from the newer to the older, where sidecars go first; those of the control plane the other way.

mod bad;
mod broken;
mod builds;
mod fleet;
mod gauge;
mod life;
mod mesh;
mod moves;
mod node;
mod owners;
mod page;

use crate::{
    bed::{Bed, Engines, Release},
    cluster::{self, Target, run::Progress},
    install,
};
use anyhow::{Context, Result};
use builds::Builds;
use fleet::Size;
use gauge::{Counted, Gauge};
use jiff::Timestamp;
use mesh::Seen;
use page::Row;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// How long a change of release of the whole fleet may take, on a slow machine.
const MOVED: Duration = Duration::from_secs(900);

/// How a fleet is moved.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Milliseconds more that the gate lets requests take; a slow build adds 200. A machine that does other work as well is slow by itself.
    slack_ms: u32,
    /// How long the gate looks at a wave.
    window_seconds: u32,
    /// The waves, in percent of all pods.
    percents: &'static [u32],
}

/// One pod first, then a third, then all, each looked at for long enough to see what a bad build does.
const THOROUGH: Pace = Pace { slack_ms: 120, window_seconds: 15, percents: &[1, 30, 100] };
/// One pod first, then all. Other scenarios come before and after it, and how slow a bad build is shows elsewhere.
const SHORT: Pace = Pace { slack_ms: 2000, window_seconds: 10, percents: &[1, 100] };

/// How to run them.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only those whose name contains one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Injected pods, ten at least.
    #[arg(long, default_value_t = 30)]
    pods: u32,
    /// Requests a second of each larger kind of load, from inside and from outside the mesh.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Leave the cluster running afterwards, with the fleet.
    #[arg(long)]
    keep: bool,
    /// Leno is on the cluster already: a run with --keep left it.
    #[arg(long)]
    installed: bool,
    /// The name of the local cluster.
    #[arg(long, default_value = "upgrades")]
    cluster: String,
    /// Put the table into docs/upgrades.md.
    #[arg(long)]
    write_docs: bool,
}

/// What scenarios work with.
struct Run<'a> {
    bed: &'a Bed,
    builds: Builds,
    pace: Pace,
}

impl Run<'_> {
    fn version(&self) -> &str {
        &self.bed.release.version
    }

    fn previous(&self) -> &str {
        &self.bed.release.previous_version
    }

    /// The component that the fleet's sidecars are.
    fn sidecar(&self) -> &'static str {
        match self.bed.release.engine {
            Engines::Envoy => "envoy",
            Engines::Leno | Engines::Mixed => "proxy",
        }
    }
}

/// The release on which a scenario begins.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Current,
    Previous,
}

/// A scenario: its name, where it begins, and what it does. It gives what is to be said besides the figures.
type Scenario = (&'static str, From, fn(&Run) -> Result<String>);

const ALL: &[Scenario] = &[
    ("downgrade_in_place", From::Current, moves::to_the_previous),
    ("upgrade_in_place", From::Previous, moves::to_the_current),
    ("canary_of_the_control_plane", From::Current, moves::canary),
    ("bad_proxy_crashes", From::Current, |run| bad::proxy(run, "crashes")),
    ("bad_proxy_unready", From::Current, |run| bad::proxy(run, "unready")),
    ("bad_proxy_answers_500", From::Current, |run| bad::proxy(run, "errors")),
    ("bad_proxy_is_slow", From::Current, |run| bad::proxy(run, "slow")),
    ("bad_proxy_rejects_its_configuration", From::Current, |run| bad::proxy(run, "rejects")),
    ("bad_proxy_leaks", From::Current, |run| bad::proxy(run, "leaks")),
    ("bad_control_plane_crashes", From::Previous, |run| bad::control_plane(run, "crashes")),
    ("bad_control_plane_unready", From::Previous, |run| bad::control_plane(run, "unready")),
    ("bad_control_plane_sends_what_is_refused", From::Previous, |run| bad::control_plane(run, "rejects")),
    ("image_missing", From::Current, bad::image_missing),
    ("operator_killed_every_2_s", From::Current, broken::operator_killed),
    ("control_plane_replicas_killed", From::Previous, broken::control_plane_killed),
    ("api_server_away_for_a_minute", From::Current, broken::api_server_away),
    ("node_agent_restarted", From::Previous, broken::kubelet_restarted),
    ("node_restarted", From::Current, node::restarted),
    ("restarted_by_their_owners", From::Previous, owners::restarted),
    ("only_new_pods", From::Previous, owners::only_new_pods),
    ("settings_changed", From::Current, owners::settings_changed),
    ("paused_changed_resumed", From::Current, moves::paused),
    ("aborted", From::Current, moves::aborted),
    ("control_plane_scaled_1_5_2", From::Current, life::scaled),
    ("root_rotated", From::Current, life::root_rotated),
    ("two_meshes_one_upgraded_then_uninstalled", From::Current, life::two_meshes),
    ("at_rest_nothing_is_written", From::Current, life::at_rest),
];

/// Those in which owners replace their pods.
const REPLACES: [&str; 3] = ["restarted_by_their_owners", "only_new_pods", "settings_changed"];

/// How the fleet is moved here.
fn strategy(pace: Pace) -> Value {
    let waves = pace.percents.iter().enumerate().map(|(index, percent)| match index {
        0 => json!({"pods": {"matchLabels": {"app": "echo"}}, "percent": percent}),
        _ => json!({"percent": percent}),
    });
    json!({
        "type": "InPlace",
        "maxUnavailable": "34%",
        "paused": false,
        "waves": waves.collect::<Vec<_>>(),
        "gate": {
            "windowSeconds": pace.window_seconds,
            "minRequests": 20,
            "maxMemoryIncreaseMebibytes": 32,
            "maxLatencyIncreaseMilliseconds": pace.slack_ms,
            "progressDeadlineSeconds": 120,
        },
    })
}

/// Runs the scenarios, prints what each found, and gives whether none failed.
///
/// # Errors
/// When there is no cluster to run them on, or Leno and the fleet cannot be brought there.
pub fn run(release: Release, options: &Options) -> Result<bool> {
    let mut progress = Progress::new("upgrades");
    let bed = Bed::start(&options.cluster, release)?;
    progress.done("the cluster is there");
    if !options.installed {
        install::load_images(&bed, false, &mut progress)?;
        install::operator(&bed, &mut progress)?;
        install::mesh(&bed, &mut progress)?;
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    let size = Size { pods: options.pods, rate: options.rate };
    let rows =
        on_a_fleet(&bed, size, THOROUGH, ALL.iter().filter(|(name, ..)| wanted(name)), options.keep, &mut progress)?;
    if options.write_docs {
        // With what was measured before, in the order of the scenarios.
        let mut all = page::read_latest(Path::new(page::LATEST));
        let place = |row: &Row| ALL.iter().position(|(name, ..)| *name == row.scenario);
        all.retain(|row| place(row).is_some());
        all.sort_by_key(place);
        page::write_page(Path::new(page::PAGE), &all)?;
    }
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.passed).collect();
    for row in &failed {
        println!("\nfailed: {}\n  {}", row.scenario, row.failure);
        row.counted.words.iter().for_each(|words| println!("    {words}"));
    }
    progress.finished(&format!("figures are in {}", page::LATEST));
    println!("\n{} passed, {} failed", rows.len() - failed.len(), failed.len());
    if !options.keep && matches!(bed.target, Target::Local(_)) {
        cluster::lifecycle::down(options.cluster.parse()?)?;
    }
    Ok(failed.is_empty())
}

/// Runs scenarios on a fleet, which is set up for it and taken away.
fn on_a_fleet<'s>(
    bed: &Bed,
    size: Size,
    pace: Pace,
    scenarios: impl Iterator<Item = &'s Scenario>,
    keep: bool,
    progress: &mut Progress,
) -> Result<Vec<Row>> {
    let run = Run { bed, builds: Builds::default(), pace };
    let mut rows: Vec<Row> = Vec::new();
    // The release on which all pods of the fleet are new.
    let mut fresh = None;
    for (name, from, scenario) in scenarios {
        println!("scenario {name} ...");
        let row = one(&run, size, name, *from, *scenario, fresh == Some(*from));
        println!("scenario {name} ... {}: {}", if row.passed { "ok" } else { "FAILED" }, row.line());
        if !row.passed {
            println!("  {}", row.failure);
        }
        fresh = (row.passed && row.reached == 0 && row.counted.replaced_pods == 0).then_some(*from);
        rows.push(row);
        page::write_latest(Path::new(page::LATEST), &rows)?;
    }
    progress.done("the scenarios are over");
    // As it was, whatever happened.
    if !keep {
        fleet::tear_down(bed)?;
    }
    rest(&run, From::Current)?;
    mesh::spec(bed, &json!({"dataPlane": {"updateStrategy": null}, "controlPlane": {"updateStrategy": null}}))?;
    Ok(rows)
}

/// A new fleet on the wanted release. A kubelet waits ever longer before it runs a container with an image that it ran in the same
/// pod not long ago, and a scenario must not pay for those before it.
fn anew(run: &Run, from: From, size: Size) -> Result<()> {
    fleet::tear_down(run.bed)?;
    rest(run, from)?;
    fleet::set_up(run.bed, size)
}

/// One scenario with its figures, on a new fleet unless the present one `is_fresh`.
fn one(run: &Run, size: Size, name: &str, from: From, scenario: fn(&Run) -> Result<String>, is_fresh: bool) -> Row {
    let mut row = Row {
        scenario: name.to_owned(),
        passed: false,
        failure: String::new(),
        pods: size.pods.max(10),
        final_version: String::new(),
        result: String::new(),
        reached: 0,
        note: String::new(),
        counted: Counted::default(),
    };
    let measured = (|| {
        let set_up = if is_fresh { rest(run, from) } else { anew(run, from, size) };
        set_up.context("before it began")?;
        let before = Seen::now(run.bed)?.0["status"]["lastUpgrade"].clone();
        let gauge = Gauge::begin(run.bed)?;
        let result = scenario(run);
        row.counted = gauge.end(run.bed)?;
        let seen = Seen::now(run.bed)?;
        row.final_version = seen.version();
        let last = &seen.0["status"]["lastUpgrade"];
        if *last != before {
            row.result = last["result"].as_str().unwrap_or_default().to_owned();
            row.reached = last["reached"].as_i64().unwrap_or(0);
        }
        row.note = result?;
        let counted = &row.counted;
        crate::bed::ensure(counted.failed_requests == 0 && counted.app_restarts == 0, || {
            format!("{} requests failed, {} app restarts", counted.failed_requests, counted.app_restarts)
        })?;
        crate::bed::ensure((counted.replaced_pods > 0) == REPLACES.contains(&name), || {
            format!("{} pods were replaced", counted.replaced_pods)
        })?;
        crate::bed::ensure(counted.requests > 100, || format!("only {} requests were sent", counted.requests))
    })();
    match measured {
        Ok(()) => row.passed = true,
        Err(error) => row.failure = format!("{error:#}"),
    }
    row
}

/// Everything on the wanted release, with good builds and the strategy of the scenarios.
fn rest(run: &Run, from: From) -> Result<()> {
    run.builds.restore(run.bed)?;
    let version = if from == From::Current { run.version() } else { run.previous() };
    let in_place = json!({"type": "InPlace", "canaryPercent": null, "promote": null, "gracePeriodSeconds": 1});
    let data_plane = json!({"updateStrategy": strategy(run.pace), "resources": null});
    let control_plane = json!({"updateStrategy": in_place});
    mesh::spec(run.bed, &json!({"version": version, "dataPlane": data_plane, "controlPlane": control_plane}))?;
    // What came back in the scenario before may be tried again, now that it is not wanted any more.
    let retry = format!("mesh.leno.dev/retry={}", Timestamp::now().as_millisecond());
    run.bed.kubectl(&["annotate", "meshinstall", "default", &retry, "--overwrite"])?;
    mesh::rests_on(run.bed, version, MOVED)
}

/// The short form for `make scenarios`: few pods, there and back, and one bad build.
pub(crate) fn short(bed: &Bed) -> Result<()> {
    let size = Size { pods: 10, rate: 10.0 };
    // What a bad agent can do to the Envoy beside it is to keep it from its configuration.
    let bad = if bed.release.engine == Engines::Envoy { "bad_proxy_unready" } else { "bad_proxy_answers_500" };
    let wanted = ["downgrade_in_place", "upgrade_in_place", bad];
    let scenarios = ALL.iter().filter(|(name, ..)| wanted.contains(name));
    let rows = on_a_fleet(bed, size, SHORT, scenarios, false, &mut Progress::new("upgrades"))?;
    for row in &rows {
        bed.figures.add(format!("{}_seconds", row.scenario), row.counted.seconds, "s");
        bed.figures.add(format!("{}_failed", row.scenario), row.counted.failed_requests as f64, "requests");
    }
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed)
        .map(|row| format!("{}: {} {:?}", row.scenario, row.failure, row.counted.words))
        .collect();
    crate::bed::ensure(failed.is_empty(), || failed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn scenarios_when_listed_then_no_name_is_there_twice() {
        let names: BTreeSet<_> = ALL.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn strategy_when_read_by_the_operator_then_is_one() {
        for (pace, waves) in [(THOROUGH, 3), (SHORT, 2)] {
            let strategy: leno_crds::meshinstall::UpdateStrategy = serde_json::from_value(strategy(pace)).unwrap();
            let read = (strategy.waves.len(), strategy.max_unavailable(30), strategy.gate().window_seconds());
            assert_eq!(read, (waves, 11, i64::from(pace.window_seconds)));
        }
    }
}
