//! Statistics as the admin server tells them, at Envoy's path and in its forms.

use super::View;
use super::form::shown;
use super::pages::{Query, Refusal, memory, state};
use crate::config::{ClientTls, ServerTls};
use crate::telemetry::envoy::{Stat, Times, used as is_used};
use crate::telemetry::secured::{Owner, expiring as until};
use hyper::StatusCode;
use leno_runtime::http::{Answer, text};
use regex::Regex;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Of times it is told below which so many parts of 1 of them lie.
const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// How times are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Below which so many parts of them lie.
    Quantiles,
    /// What lies below each bound, or with `apart` between it and the one before.
    Buckets { apart: bool },
}

impl Form {
    fn of(query: &Query) -> Result<Self, Refusal> {
        match query.get("histogram_buckets") {
            None | Some("none" | "summary") => Ok(Self::Quantiles),
            Some("cumulative") => Ok(Self::Buckets { apart: false }),
            Some("disjoint") => Ok(Self::Buckets { apart: true }),
            // There are no finer ones than those.
            Some(_) => {
                let words = "usage: /stats?histogram_buckets=(cumulative|disjoint|none|summary)\n\n";
                Err((StatusCode::BAD_REQUEST, words.to_owned()))
            }
        }
    }
}

pub(super) fn stats(view: &View, query: &Query) -> Result<Answer, Refusal> {
    let filter = query.regex("filter", false)?;
    let used = query.has("usedonly");
    match query.get("format") {
        Some("prometheus") => return Ok(prometheus(view, used, filter.as_ref())),
        None | Some("text" | "json") => {}
        Some(_) => return Err((StatusCode::BAD_REQUEST, "usage: /stats?format=(json|prometheus|text)\n\n".to_owned())),
    }
    let kind = query.get("type").unwrap_or("All");
    if !["All", "Counters", "Gauges", "Histograms", "TextReadouts"].contains(&kind) {
        return Err((StatusCode::BAD_REQUEST, "invalid &type= param".to_owned()));
    }
    let form = Form::of(query)?;
    let wanted = |stat: &Stat| {
        filter.as_ref().is_none_or(|filter| filter.is_match(&stat.name))
            && (kind == "All" || kind == if stat.gauge { "Gauges" } else { "Counters" })
    };
    let all = since_reset(view);
    let is_used = used.then(|| is_used(&all));
    let touched = |stat: &Stat| is_used.as_ref().is_none_or(|is_used| is_used(stat));
    let stats = all.into_iter().filter(|stat| wanted(stat) && touched(stat));
    let times: Vec<Times> = view
        .telemetry
        .times()
        .into_iter()
        .filter(|one| filter.as_ref().is_none_or(|filter| filter.is_match(&one.name)))
        .filter(|one| (!used || one.sum.count() > 0) && ["All", "Histograms"].contains(&kind))
        .collect();
    if query.is_json() {
        let mut list: Vec<Value> = stats.map(|stat| value!({"name": stat.name, "value": stat.value})).collect();
        if !times.is_empty() {
            list.push(value!({"histograms": times_as_json(view, &times, form)}));
        }
        return Ok(shown(value!({"stats": list})));
    }
    let mut lines = String::new();
    for Stat { name, value, .. } in stats {
        writeln!(lines, "{name}: {value}").ok();
    }
    for one in &times {
        writeln!(lines, "{}: {}", one.name, line(view, one, form)).ok();
    }
    Ok(text(StatusCode::OK, lines))
}

/// Bounds with what belongs to each.
fn buckets(view: &View, one: &Times, apart: bool) -> Vec<(f64, u64)> {
    let (mut all, _) = view.telemetry.display().buckets(&one.name, &one.sum);
    if apart {
        let mut before = 0;
        for (_, count) in &mut all {
            (*count, before) = (*count - before, *count);
        }
    }
    all
}

/// Of the interval since the last flush nothing is told: nothing is flushed here.
fn times_as_json(view: &View, times: &[Times], form: Form) -> Value {
    let bucket = |(bound, count): (f64, u64)| value!({"upper_bound": bound, "interval": 0, "cumulative": count});
    match form {
        Form::Buckets { apart } => times
            .iter()
            .map(|one| {
                let all: Vec<Value> = buckets(view, one, apart).into_iter().map(bucket).collect();
                value!({"name": one.name, "buckets": all})
            })
            .collect(),
        Form::Quantiles => {
            let quantile = |one: &Times, share: f64| value!({"interval": null, "cumulative": one.sum.quantile(share)});
            let computed = |one: &Times| {
                let values: Vec<Value> = QUANTILES.iter().map(|share| quantile(one, *share)).collect();
                value!({"name": one.name, "values": values})
            };
            let supported: Vec<f64> = QUANTILES.iter().map(|share| share * 100.0).collect();
            let computed: Vec<Value> = times.iter().map(computed).collect();
            value!({"supported_quantiles": supported, "computed_quantiles": computed})
        }
    }
}

fn line(view: &View, one: &Times, form: Form) -> String {
    if one.sum.count() == 0 {
        return "No recorded values".to_owned();
    }
    let told: Vec<String> = match form {
        Form::Buckets { apart } => {
            buckets(view, one, apart).into_iter().map(|(bound, count)| format!("B{bound}(0,{count})")).collect()
        }
        Form::Quantiles => {
            let value = |share: f64| one.sum.quantile(share).unwrap_or_default();
            QUANTILES.iter().map(|share| format!("P{}(nan,{})", share * 100.0, value(*share))).collect()
        }
    };
    told.join(" ")
}

/// Prometheus takes a counter that falls for a process that began anew, and loses what was counted before it looked: for it
/// counters go on.
pub(super) fn reset_counters(view: &View, _: &Query) -> Result<Answer, Refusal> {
    let counters = view.telemetry.stats(Vec::new()).into_iter().filter(|stat| !stat.gauge);
    let now = counters.map(|stat| (stat.name, stat.value)).collect();
    *view.reset.lock().unwrap_or_else(PoisonError::into_inner) = now;
    Ok(text(StatusCode::OK, "OK\n"))
}

fn since_reset(view: &View) -> Vec<Stat> {
    view.state().refresh_figures();
    let mut all = view.telemetry.stats(server_stats(view));
    let reset = view.reset.lock().unwrap_or_else(PoisonError::into_inner);
    for stat in all.iter_mut().filter(|stat| !stat.gauge && !reset.is_empty()) {
        let before = reset.get(&stat.name).copied().unwrap_or(0);
        // One that went and came again is counted anew.
        stat.value = stat.value.checked_sub(before).unwrap_or(stat.value);
    }
    all
}

/// What is told of the process and of its management servers.
fn server_stats(view: &View) -> Vec<Stat> {
    let memory = memory();
    let bytes = |name: &str| memory[name].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    let workers = view.workers.get().map(|workers| workers.connections_by_worker());
    let connections = workers.iter().flatten().map(|count| *count as u64).sum();
    let state = match state(view) {
        "LIVE" => 0,
        "DRAINING" => 1,
        "PRE_INITIALIZING" => 2,
        _ => 3,
    };
    let (keys, layers, overrides) = view.state().runtime().numbers();
    let loads = view.state().runtime_loads();
    let numbers = [
        ("runtime.admin_overrides_active", overrides),
        ("runtime.num_keys", keys),
        ("runtime.num_layers", layers),
        ("control_plane.connected_state", u64::from(view.connection.borrow().connected)),
        ("listener_manager.workers_started", u64::from(workers.is_some())),
        ("server.concurrency", workers.as_ref().map_or(0, |workers| workers.len() as u64)),
        ("server.days_until_first_cert_expiring", days_left(view)),
        ("server.live", u64::from(state == 0)),
        ("server.memory_allocated", bytes("allocated")),
        ("server.memory_heap_size", bytes("heap_size")),
        ("server.memory_physical_size", bytes("total_physical_bytes")),
        ("server.state", state),
        ("server.total_connections", connections),
        ("server.uptime", view.begun.elapsed().as_secs()),
    ];
    let overload = view.overload.numbers().into_iter().map(|(name, value)| Stat::gauge(&name, value));
    let counted =
        [("listener_manager.listener_stopped", view.stopped.load(Ordering::Relaxed)), ("runtime.load_success", loads)];
    let counted = counted.into_iter().map(|(name, value)| Stat::counter(name, value));
    let numbers = numbers.into_iter().map(|(name, value)| Stat::gauge(name, value));
    numbers.chain(counted).chain(overload).chain(expiring(view)).collect()
}

/// Until when the certificates and roots of listeners and clusters are good, in seconds since 1970. Of several with one name the
/// first that ends.
fn expiring(view: &View) -> Vec<Stat> {
    let mut ends: BTreeMap<(Owner, Arc<str>, String), SystemTime> = BTreeMap::new();
    let mut note = |owner: Owner, of: &Arc<str>, all: Vec<(&str, SystemTime)>| {
        for (name, end) in all {
            let earliest = ends.entry((owner, of.clone(), name.to_owned())).or_insert(end);
            *earliest = end.min(*earliest);
        }
    };
    let own = view.store.get();
    let of_mesh = own.iter().flat_map(|own| own.ends()).collect::<Vec<_>>();
    for listener in view.state().listeners() {
        for tls in
            listener.chains.all().iter().chain(listener.chains.default_chain()).filter_map(|chain| chain.tls.as_deref())
        {
            let all = match tls {
                ServerTls::Mesh { .. } => of_mesh.clone(),
                ServerTls::Own(context) => context.ends(),
            };
            note(Owner::Listener, &listener.stat_name, all);
        }
    }
    for cluster in view.state().clusters() {
        let sockets = cluster.endpoints.iter().filter_map(|endpoint| endpoint.tls.as_ref());
        for tls in sockets.chain(&cluster.default_tls) {
            let mut tls = Some(tls);
            while let Some(one) = tls.take() {
                match &**one {
                    ClientTls::Mesh(_) => note(Owner::Cluster, &cluster.observability_name, of_mesh.clone()),
                    ClientTls::Own(context) => note(Owner::Cluster, &cluster.observability_name, context.ends()),
                    ClientTls::Proxied(proxied) => tls = proxied.inner.as_ref(),
                }
            }
        }
    }
    let seconds = |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    ends.into_iter().map(|((owner, of, name), end)| until(owner, &of, &name, seconds(end))).collect()
}

/// Until the first certificate is over that is shown to others; where there is none, as many as there can be.
fn days_left(view: &View) -> u64 {
    let now = SystemTime::now();
    let of_mesh = view.store.get().map(|own| own.not_after());
    let all = view.state().certificates().into_iter().map(|pair| pair.facts().not_after).chain(of_mesh);
    let left = all.map(|end| end.duration_since(now).map_or(0, |left| left.as_secs() / 86_400));
    left.min().unwrap_or(u64::from(u32::MAX))
}

/// With a filter only Envoy's statistics whose names have a match.
pub(super) fn prometheus(view: &View, used: bool, filter: Option<&Regex>) -> Answer {
    view.state().refresh_figures();
    text(StatusCode::OK, view.telemetry.render_all(used, server_stats(view), filter))
}
