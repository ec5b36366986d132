//! The pages of the admin server, at Envoy's paths. What changes something wants POST.

use super::form::{dressed, listed, shown};
use super::log::Asked;
use super::mask::{self, Wanted};
use super::{View, dump, upstreams};
use crate::config::Direction;
use crate::telemetry::envoy::{Stat, Times, used as is_used};
use crate::xds::bootstrap::NotTaken;
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, StatusCode};
use leno_runtime::http::{Answer, Routes, text};
use regex::Regex;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// Of times it is told below which so many parts of 1 of them lie.
const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];
/// How levels of loggers are changed.
const USAGE: &str = "\nusage: /logging?<name>=<level> (change single level)\n\
                     usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
                     usage: /logging?level=<level> (change all levels)\n\
                     levels: trace debug info warning error critical off \n";
/// Bytes of a regular expression at most, compiled.
const REGEX_LIMIT: usize = 1 << 20;

/// Health checks are to fail, since somebody asked for it.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Whether somebody asked for health checks to fail.
pub fn is_failed() -> bool {
    FAILED.load(Ordering::Relaxed)
}

/// What is asked for after the `?`.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn of(request: &Request<Incoming>) -> Self {
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        };
        Self(pairs.map(pair).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn is_json(&self) -> bool {
        self.get("format") == Some("json")
    }

    fn regex(&self, name: &str, whole: bool) -> Result<Option<Regex>, Refusal> {
        let Some(pattern) = self.get(name).filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
        let pattern = if whole { format!("^(?:{pattern})$") } else { pattern.to_owned() };
        let built = regex::RegexBuilder::new(&pattern).size_limit(REGEX_LIMIT).build();
        built.map(Some).map_err(|error| (StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n")))
    }
}

fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Why there is no such page.
type Refusal = (StatusCode, String);
type Page = fn(&View, &Query) -> Result<Answer, Refusal>;

fn page(routes: Routes, view: &View, path: &str, help: &str, post: bool, page: Page) -> Routes {
    let view = view.clone();
    routes.add(path, help, move |request| {
        let view = view.clone();
        async move {
            let asked = (!view.logs.is_empty()).then(|| Asked {
                method: request.method().clone(),
                path: request.uri().to_string(),
                version: request.version(),
                headers: request.headers().clone(),
            });
            let begun = Instant::now();
            let answer = dressed(answer(&view, &request, post, page));
            if let Some(asked) = asked {
                let sent = answer.body().size_hint().exact().unwrap_or(0);
                view.logs.write(&asked, answer.status(), usize::try_from(sent).unwrap_or(usize::MAX), begun.elapsed());
            }
            answer
        }
    })
}

fn answer(view: &View, request: &Request<Incoming>, post: bool, page: Page) -> Answer {
    let method = request.method();
    // What changes nothing may be asked for either way, as of Envoy.
    let fits = *method == Method::POST || !post && matches!(*method, Method::GET | Method::HEAD);
    if !fits {
        let others = if post { "POST" } else { "GET or POST" };
        let words = format!("Method {method} not allowed, {others} required.");
        return text(StatusCode::METHOD_NOT_ALLOWED, words);
    }
    page(view, &Query::of(request)).unwrap_or_else(|(code, words)| text(code, words))
}

/// Every page.
pub(super) fn routes(view: &View) -> Routes {
    let gets: &[(&str, &str, Page)] = &[
        ("/certs", "the certificates in use", |view, _| Ok(shown(dump::certificates(&view.store, &view.state())))),
        ("/clusters", "clusters, their endpoints and what became of requests (format=json, filter)", clusters),
        ("/config_dump", "resources in force (resource, mask, name_regex, include_eds)", config_dump),
        ("/contention", "not traced here", |_, _| {
            Ok(text(StatusCode::OK, "Mutex contention tracing is not enabled.\n"))
        }),
        ("/hot_restart_version", "there is no such thing", |_, _| Ok(text(StatusCode::OK, "disabled"))),
        ("/init_dump", "what the first configuration waits for", |_, _| Ok(shown(value!({})))),
        ("/listeners", "listeners and their addresses (format=json)", listeners),
        ("/memory", "memory of this process", |_, _| Ok(shown(memory()))),
        ("/ready", "200 while traffic may come", |view, _| Ok(ready(view))),
        ("/runtime", "values of the runtime's layers", runtime),
        ("/server_info", "what runs, since when", |view, _| Ok(shown(server_info(view)))),
        ("/stats", "statistics under Envoy's names (filter, usedonly, format=json or prometheus)", stats),
        ("/stats/prometheus", "metrics for Prometheus (usedonly, filter)", |view, query| {
            Ok(prometheus(view, query.has("usedonly"), query.regex("filter", false)?.as_ref()))
        }),
        ("/status", "the connection to the control plane, and what was refused", |view, _| {
            let connection = view.connection.borrow().clone();
            Ok(shown(dump::status(&view.state(), &connection)))
        }),
        ("/version", "the release that this process is", |_, _| {
            Ok(text(StatusCode::OK, format!("{}\n", leno_runtime::version())))
        }),
    ];
    let posts: &[(&str, &str, Page)] = &[
        ("/heapprofiler", "not built in", |_, _| {
            Err(no("a heap profiler is not built in: it would have to look at every allocation"))
        }),
        ("/drain_listeners", "ends connections in order, and closes sockets (graceful, skip_exit, inboundonly)", drain),
        ("/healthcheck/fail", "health checks fail from now on", |_, _| {
            FAILED.store(true, Ordering::Relaxed);
            Ok(text(StatusCode::OK, "OK\n"))
        }),
        ("/healthcheck/ok", "health checks pass again", |_, _| {
            FAILED.store(false, Ordering::Relaxed);
            Ok(text(StatusCode::OK, "OK\n"))
        }),
        ("/logging", "what is logged, and changes it (level, paths)", logging),
        ("/quitquitquit", "ends this process in order", quit),
        ("/reopen_logs", "opens files of access logs anew", |_, _| {
            crate::telemetry::logsink::reopen();
            Ok(text(StatusCode::OK, "OK\n"))
        }),
        ("/runtime_modify", "changes values of the runtime (key=value)", runtime_modify),
        ("/reset_counters", "lets the counters of /stats begin at zero; those for Prometheus go on", reset_counters),
    ];
    let all = |routes, pages: &[(&str, &str, Page)], post| {
        pages.iter().fold(routes, |routes, (path, help, of)| page(routes, view, path, help, post, *of))
    };
    let changing: Vec<&str> = posts.iter().map(|(path, ..)| *path).chain(["/cpuprofiler"]).collect();
    listed(super::profiles::routes(all(all(Routes::new(), gets, false), posts, true)), &changing)
}

fn no(words: &str) -> Refusal {
    (StatusCode::NOT_IMPLEMENTED, format!("{words}\n"))
}

/// Whether traffic may come, in Envoy's words.
fn ready(view: &View) -> Answer {
    let state = state(view);
    let code = if state == "LIVE" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(code, format!("{state}\n"))
}

fn state(view: &View) -> &'static str {
    match (view.health.is_ready(), is_failed()) {
        (_, true) => "DRAINING",
        (true, false) => "LIVE",
        (false, false) if view.workers.get().is_none() => match view.state().begins() {
            true => "PRE_INITIALIZING",
            false => "INITIALIZING",
        },
        (false, false) => "DRAINING",
    }
}

fn clusters(view: &View, query: &Query) -> Result<Answer, Refusal> {
    let filter = query.regex("filter", false)?;
    Ok(match query.is_json() {
        true => shown(upstreams::json(&view.telemetry, &view.state(), filter.as_ref())),
        false => text(StatusCode::OK, upstreams::text(&view.telemetry, &view.state(), filter.as_ref())),
    })
}

fn listeners(view: &View, query: &Query) -> Result<Answer, Refusal> {
    if !query.is_json() {
        return Ok(text(StatusCode::OK, dump::listeners(&view.state())));
    }
    let address = |at: &std::net::SocketAddr| value!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let statuses: Vec<Value> = view
        .state()
        .listeners()
        .map(|listener| {
            let mut addresses = listener.addresses.iter().map(address);
            let mut status = value!({"name": &*listener.name, "local_address": addresses.next()});
            let further: Vec<Value> = addresses.collect();
            if !further.is_empty() {
                status["additional_local_addresses"] = Value::Array(further);
            }
            status
        })
        .collect();
    Ok(shown(value!({"listener_statuses": statuses})))
}

fn config_dump(view: &View, query: &Query) -> Result<Answer, Refusal> {
    let wanted = Wanted {
        resource: query.get("resource").map(str::to_owned),
        mask: query.get("mask").map(str::to_owned),
        names: query.regex("name_regex", true).map_err(|(code, words)| {
            let pattern = query.get("name_regex").unwrap_or_default();
            let reason = words.trim_start_matches("Invalid re2 regex: ");
            (code, format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {reason}"))
        })?,
        endpoints: query.has("include_eds"),
    };
    let dump = dump::config(&view.state());
    match mask::select(dump, &wanted) {
        Ok(dump) => Ok(shown(dump)),
        Err((missing, words)) => Err((if missing { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST }, words)),
    }
}

/// Prometheus takes a counter that falls for a process that began anew, and loses what was counted before it looked: for it
/// counters go on.
fn reset_counters(view: &View, _: &Query) -> Result<Answer, Refusal> {
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
    numbers.into_iter().map(|(name, value)| Stat::gauge(name, value)).chain(counted).chain(overload).collect()
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
fn prometheus(view: &View, used: bool, filter: Option<&Regex>) -> Answer {
    view.state().refresh_figures();
    text(StatusCode::OK, view.telemetry.render_all(used, server_stats(view), filter))
}

fn stats(view: &View, query: &Query) -> Result<Answer, Refusal> {
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
    if query.get("histogram_buckets").is_some_and(|form| form != "summary") {
        let words = "usage: /stats?histogram_buckets=(summary); buckets are in /stats/prometheus\n\n";
        return Err((StatusCode::BAD_REQUEST, words.to_owned()));
    }
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
            let quantile = |one: &Times, share: f64| value!({"interval": null, "cumulative": one.sum.quantile(share)});
            let computed = |one: &Times| {
                let values: Vec<Value> = QUANTILES.iter().map(|share| quantile(one, *share)).collect();
                value!({"name": one.name, "values": values})
            };
            let supported: Vec<f64> = QUANTILES.iter().map(|share| share * 100.0).collect();
            let computed: Vec<Value> = times.iter().map(computed).collect();
            list.push(value!({"histograms": {"supported_quantiles": supported, "computed_quantiles": computed}}));
        }
        return Ok(shown(value!({"stats": list})));
    }
    let mut lines = String::new();
    for Stat { name, value, .. } in stats {
        writeln!(lines, "{name}: {value}").ok();
    }
    for one in times {
        if one.sum.count() == 0 {
            writeln!(lines, "{}: No recorded values", one.name).ok();
            continue;
        }
        let told = QUANTILES.iter().map(|share| {
            let value = one.sum.quantile(*share).unwrap_or_default();
            format!("P{}(nan,{value:.6})", share * 100.0)
        });
        writeln!(lines, "{}: {}", one.name, told.collect::<Vec<_>>().join(" ")).ok();
    }
    Ok(text(StatusCode::OK, lines))
}

/// In bytes, as far as the kernel knows.
fn memory() -> Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
        let kib = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
        (kib * 1024).to_string()
    };
    value!({"allocated": of("RssAnon"), "heap_size": of("VmData"), "total_physical_bytes": of("VmRSS"), "peak": of("VmHWM")})
}

fn server_info(view: &View) -> Value {
    let seconds = view.begun.elapsed().as_secs();
    value!({
        "version": leno_runtime::version(),
        "state": state(view),
        "uptime_current_epoch": format!("{seconds}s"),
        "uptime_all_epochs": format!("{seconds}s"),
        "hot_restart_version": "disabled",
        "hot_restart_initializing": false,
        "node": view.node,
        "command_line_options": {
            "concurrency": view.workers.get().map_or(0, |workers| workers.connections_by_worker().len()),
            "mode": "Serve", "log_level": leno_runtime::logging::level().unwrap_or_default(),
            "drain_time": format!("{}s", view.ways.limit.as_secs()),
            "drain_strategy": if view.ways.at_once { "Immediate" } else { "Gradual" },
            "disable_hot_restart": true, "restart_epoch": 0,
        },
    })
}

fn runtime(view: &View, _: &Query) -> Result<Answer, Refusal> {
    let state = view.state();
    let layers = state.runtime();
    let entry = |(key, values): (String, Vec<String>)| {
        let last = values.iter().rev().find(|value| !value.is_empty()).cloned().unwrap_or_default();
        (key, value!({"final_value": last, "layer_values": values}))
    };
    let entries: serde_json::Map<String, Value> = layers.texts().into_iter().map(entry).collect();
    Ok(shown(value!({"layers": layers.names(), "entries": entries})))
}

/// Sets values of the runtime; an empty one removes what was set here before.
fn runtime_modify(view: &View, query: &Query) -> Result<Answer, Refusal> {
    if query.0.is_empty() {
        let usage = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       use an empty value to remove a \
                     previously added override\n";
        return Err((StatusCode::BAD_REQUEST, usage.to_owned()));
    }
    let Some(changes) = &view.changes else { return Err(no("this proxy's values are not changed here")) };
    let mut state = view.state();
    state.runtime_mut().set(query.0.clone()).map_err(|error| match error {
        NotTaken::NoLayer => (StatusCode::SERVICE_UNAVAILABLE, "No admin layer specified".to_owned()),
        NotTaken::Key(key) => (StatusCode::BAD_REQUEST, format!("{key} is not supported by this proxy\n")),
        NotTaken::TooMany => (StatusCode::BAD_REQUEST, "too many values; remove some first\n".to_owned()),
    })?;
    state.runtime_changed(Instant::now());
    drop(state);
    changes.tell();
    Ok(text(StatusCode::OK, "OK\n"))
}

/// Envoy's names of levels; `paths=module:level` changes one module.
fn logging(_: &View, query: &Query) -> Result<Answer, Refusal> {
    let level = |name: &str| {
        let name = match name {
            "warning" => "warn",
            "critical" => "error",
            name => name,
        };
        let known = ["trace", "debug", "info", "warn", "error", "off"].contains(&name);
        known.then(|| name.to_owned()).ok_or_else(|| {
            (StatusCode::BAD_REQUEST, format!("error: unknown logger level\n{USAGE}{}", active_loggers()))
        })
    };
    let wanted = if let Some(all) = query.get("level") {
        Some(level(all)?)
    } else if let Some(paths) = query.get("paths") {
        let mut filter = leno_runtime::logging::level().unwrap_or_else(|| "info".to_owned());
        for path in paths.split(',') {
            let (name, wanted) = path
                .rsplit_once(':')
                .ok_or_else(|| (StatusCode::BAD_REQUEST, "error: empty logger name or level\n".to_owned()))?;
            write!(filter, ",{name}={}", level(wanted)?).ok();
        }
        Some(filter)
    } else if query.0.is_empty() {
        None
    } else if let ([(name, wanted)], false) = (&query.0.iter().collect::<Vec<_>>()[..], query.has("group")) {
        let now = leno_runtime::logging::level().unwrap_or_else(|| "info".to_owned());
        Some(format!("{now},{name}={}", level(wanted)?))
    } else {
        return Err((StatusCode::BAD_REQUEST, USAGE.to_owned()));
    };
    if let Some(wanted) = wanted {
        let refused = |error: leno_runtime::logging::LogError| (StatusCode::BAD_REQUEST, format!("error: {error}\n"));
        leno_runtime::logging::set_level(&wanted).map_err(refused)?;
    }
    Ok(text(StatusCode::OK, active_loggers()))
}

/// Every logger with its level: all of them, and those that have one of their own.
fn active_loggers() -> String {
    let now = leno_runtime::logging::level().unwrap_or_default();
    // The last word about one counts.
    let levels: BTreeMap<&str, &str> =
        now.split(',').map(|part| part.split_once('=').unwrap_or(("all", part))).collect();
    let lines = levels.into_iter().map(|(name, level)| format!("  {name}: {level}\n"));
    format!("active loggers:\n{}", lines.collect::<String>())
}

/// Connections of HTTP are asked to end from now on, more and more of them; sockets close at once, after the time for it, or never.
fn drain(view: &View, query: &Query) -> Result<Answer, Refusal> {
    let inbound_only = query.has("inboundonly");
    let (graceful, stay) = (query.has("graceful"), query.has("skip_exit"));
    let listeners: Vec<_> = {
        let state = view.state();
        state.listeners().filter(|one| !inbound_only || one.direction == Direction::Inbound).cloned().collect()
    };
    let (workers, ways, stopped) = (view.workers.clone(), view.ways, view.stopped.clone());
    tokio::spawn(async move {
        let Some(workers) = workers.get() else { return };
        workers.ask_to_close(inbound_only, ways.over()).await;
        if stay {
            return;
        }
        if graceful {
            tokio::time::sleep(ways.limit).await;
        }
        if inbound_only {
            let addresses = listeners.iter().filter(|one| one.bind).flat_map(|one| one.addresses.iter().copied());
            workers.close(addresses.collect()).await;
        } else {
            workers.stop_accepting().await;
        }
        stopped.fetch_add(listeners.len() as u64, Ordering::Relaxed);
    });
    Ok(text(StatusCode::OK, "OK\n"))
}

fn quit(view: &View, _: &Query) -> Result<Answer, Refusal> {
    match &view.quit {
        Some(quit) => {
            quit.cancel();
            Ok(text(StatusCode::OK, "OK\n"))
        }
        None => Err(no("this process is ended by its pod")),
    }
}
