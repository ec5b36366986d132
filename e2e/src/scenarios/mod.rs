//! Scenario tests: what users rely on, seen on a real Kubernetes with real clients. They run in this order on one
//! cluster, each leaves the mesh as it found it, and a failed one does not stop the others (but the first, which installs).
//! One that fails is run once more; if it passes then, it counts as passed and is named as unsteady at the end.

pub(crate) mod canary;
mod certificates;
mod engines;
mod external;
mod injection;
mod interrupted;
pub(crate) mod lifecycle;
mod meshinstalls;
mod objects;
mod origination;
mod resilience;
mod security;
mod traffic;

use crate::{
    bed::{Bed, Release},
    cluster::{self, run::Progress},
    figures::FIGURES,
    install, lab,
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
    ("mesh_when_looked_at_then_status_tells_what_runs", lifecycle::what_a_user_sees),
    ("route_actions_when_matched_then_requests_and_answers_change", traffic::actions_of_routes),
    ("pod_when_named_by_ip_service_or_itself_then_answers", traffic::every_name_of_a_pod),
    ("protocols_when_declared_or_detected_then_pass", traffic::every_protocol),
    ("workloads_outside_the_mesh_then_talk_both_ways", traffic::outside_and_inside_talk),
    ("metrics_when_requests_pass_then_both_reporters_count", traffic::metrics_of_both_reporters),
    ("access_log_when_requests_pass_then_has_istios_format", traffic::access_log),
    ("admin_when_asked_from_elsewhere_then_does_not_answer", traffic::admin_on_loopback),
    ("rolling_restart_under_load_then_no_request_fails", traffic::rolling_restart),
    ("mutual_tls_when_both_are_meshed_then_used", security::mutual_tls_by_default),
    ("strict_mode_when_set_then_plain_text_is_refused_and_probes_pass", security::strict_refuses_plain_text),
    ("impostor_when_it_takes_an_endpoint_then_refused", security::impostor_is_refused),
    ("control_plane_when_it_would_write_then_may_not", security::rbac_of_the_control_plane_has_no_write),
    ("operator_when_it_would_change_more_then_may_not", security::operator_is_held_to_what_it_needs),
    ("injection_when_asked_or_declined_then_obeys", injection::who_is_injected),
    ("injected_pod_then_has_the_shape_of_the_contract", injection::shape_of_the_pod),
    ("job_when_injected_then_completes", injection::job_completes),
    ("probe_of_any_kind_when_proxy_is_killed_then_app_does_not_restart", injection::probes_survive_a_killed_proxy),
    ("probe_of_any_kind_when_app_is_unwell_then_fails", injection::failing_probe_still_fails),
    ("sidecar_image_when_patched_then_app_keeps_running", injection::image_patch_keeps_the_app),
    ("engines_when_mixed_then_route_secure_and_count_alike", engines::mixed),
    ("engine_envoy_when_killed_then_is_back_and_app_keeps_running", engines::killed),
    ("engine_envoy_image_when_patched_then_app_keeps_running", engines::image_patch),
    ("schema_when_tables_are_applied_then_accepts_and_refuses", objects::tables_of_the_schema),
    ("traffic_kinds_when_read_in_every_version_then_are_as_written", objects::every_version_is_served),
    ("object_when_wrong_then_its_status_names_the_field", objects::wrong_objects_are_named),
    ("weights_when_impossible_then_refused_or_reported", objects::impossible_weights),
    ("host_when_claimed_twice_then_the_older_wins", objects::two_that_claim_one_host),
    ("field_when_not_in_force_then_status_names_it", objects::fields_not_in_force_are_named),
    ("policies_when_applied_then_in_force", objects::policies_are_in_force),
    ("client_certificate_when_named_then_shown", origination::client_certificates),
    ("object_when_malformed_in_the_store_then_skipped_and_reported", objects::malformed_object_in_the_store),
    ("mesh_install_when_impossible_then_refused", meshinstalls::refused_at_apply),
    ("mesh_install_when_version_is_unknown_then_old_mesh_stays", meshinstalls::unknown_version),
    ("mesh_install_when_second_in_a_namespace_then_told", meshinstalls::second_for_the_same_namespace),
    ("mesh_install_when_image_is_missing_then_told", meshinstalls::image_that_does_not_exist),
    ("data_plane_when_moved_under_load_then_no_request_fails_and_a_bad_build_comes_back", crate::upgrades::short),
    ("mesh_install_when_scaled_then_replicas_follow", lifecycle::scales),
    ("mesh_install_when_autoscaled_then_replicas_are_left_alone", lifecycle::autoscaler_decides),
    (
        "certificates_when_the_users_secret_is_unusable_then_named_and_nothing_changes",
        certificates::unusable_secret_is_named,
    ),
    ("outbound_mode_when_changed_then_applies_live", lifecycle::outbound_mode_applies_live),
    ("drift_when_made_then_repaired", lifecycle::drift_is_repaired),
    ("mesh_in_use_when_deleted_then_refused", lifecycle::deleting_a_mesh_in_use_is_refused),
    ("mesh_when_deleted_then_all_it_made_is_gone_and_nothing_else", lifecycle::delete_removes_all_and_nothing_else),
    ("control_plane_when_restarted_then_no_traffic_moves", resilience::control_plane_restart_moves_no_traffic),
    ("control_plane_replica_when_killed_then_no_request_fails", resilience::one_replica_killed),
    ("control_plane_when_gone_for_a_minute_then_no_request_fails", resilience::control_plane_gone_for_a_minute),
    ("operator_when_killed_at_every_step_of_an_install_then_ready", interrupted::operator_killed_at_every_step),
    ("mesh_when_at_rest_then_nothing_is_written", lifecycle::nothing_is_written_at_rest),
    ("demo_on_a_cluster_of_the_user_then_runs_and_leaves_nothing", external::demo_on_a_users_cluster),
];

/// How to run them.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only those whose name contains one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the cluster running afterwards.
    #[arg(long)]
    keep: bool,
    /// Leno, the shop and the lab are on the cluster already: a run with --keep left them.
    #[arg(long)]
    installed: bool,
    /// The name of the local cluster.
    #[arg(long, default_value = CLUSTER)]
    cluster: String,
}

/// Runs the scenarios, prints `N passed, N failed`, and gives whether none failed.
///
/// # Errors
/// When there is no cluster to run them on.
pub fn run(release: Release, options: &Options) -> Result<bool> {
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    let mut progress = Progress::new("scenarios");
    let bed = Bed::start(&options.cluster, release)?;
    progress.done("the cluster is there");
    let (mut passed, mut failed, mut unsteady) = (0, Vec::new(), Vec::new());
    match if options.installed { Ok(()) } else { installed(&bed, &mut progress) } {
        Ok(()) => passed += usize::from(!options.installed),
        Err(error) => failed.push(("install_on_a_fresh_cluster_then_ready", error)),
    }
    if failed.is_empty() {
        for (name, scenario) in ALL.iter().filter(|(name, _)| wanted(name)) {
            println!("scenario {name} ...");
            let start = Instant::now();
            let mut result = scenario(&bed);
            if let Err(error) = result {
                // Machines are shared and noisy: once more, and whoever reads the end is told of it.
                println!("scenario {name} ... failed, once more: {error:#}");
                unsteady.push((name, error));
                result = scenario(&bed);
            }
            let took = start.elapsed().as_secs_f64();
            match result {
                Ok(()) => {
                    println!("scenario {name} ... ok ({took:.1} s)");
                    passed += 1;
                }
                Err(error) => {
                    println!("scenario {name} ... FAILED ({took:.1} s): {error:#}");
                    unsteady.pop();
                    failed.push((name, error));
                }
            }
        }
    }
    bed.figures.add("unsteady_scenarios", unsteady.len() as f64, "scenarios");
    bed.figures.write(FIGURES.as_ref())?;
    for (name, error) in &unsteady {
        println!("\nunsteady, passed when it was run again: {name}\n  {error:#}");
    }
    for (name, error) in &failed {
        println!("\nfailed: {name}\n  {error:#}");
    }
    progress.finished(&format!("figures are in {FIGURES}"));
    println!("\n{passed} passed, {} failed", failed.len());
    if !options.keep && matches!(bed.target, cluster::Target::Local(_)) {
        cluster::lifecycle::down(options.cluster.parse()?)?;
    }
    Ok(failed.is_empty())
}

/// The first scenario: everything is installed, with its time.
fn installed(bed: &Bed, progress: &mut Progress) -> Result<()> {
    install::load_images(bed, true, progress)?;
    install::operator(bed, progress)?;
    let took = install::mesh(bed, progress)?;
    bed.figures.add("meshinstall_applied_to_ready", took.as_secs_f64(), "s");
    install::shop(bed, progress)?;
    bed.apply_file("config/samples/canary/destination-rule.yaml")?;
    bed.apply_file("config/samples/canary/000.yaml")?;
    lab::set_up(bed)?;
    progress.done("the lab is set up");
    Ok(())
}
