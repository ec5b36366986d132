//! The pages of the admin server, at Envoy's paths. What changes something wants POST.

use super::form::{dressed, listed, shown};
use super::log::Asked;
use super::mask::{self, Wanted};
use super::statistics::{prometheus, reset_counters, stats};
use super::{View, dump, upstreams};
use crate::config::Direction;
use crate::xds::bootstrap::NotTaken;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, StatusCode};
use leno_runtime::http::{Answer, Routes, text};
use regex::Regex;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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

/// Bytes of a form at most.
const MAX_FORM: usize = 64 * 1024;
const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// What is asked for after the `?`.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn of(request: &Request<Incoming>) -> Self {
        Self::parsed(request.uri().query().unwrap_or_default())
    }

    /// The same of the form that a request with nothing behind a `?` has as its body.
    async fn of_form(request: &mut Request<Incoming>) -> Result<Self, Refusal> {
        let asked = Self::of(request);
        let is_form = request.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == FORM);
        if !asked.0.is_empty() || !is_form {
            return Ok(asked);
        }
        let form = Limited::new(request.body_mut(), MAX_FORM).collect().await;
        let form = form.map_err(|error| (StatusCode::BAD_REQUEST, format!("the form cannot be read: {error}\n")))?;
        Ok(Self::parsed(&String::from_utf8_lossy(&form.to_bytes())))
    }

    fn parsed(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        };
        Self(pairs.map(pair).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn is_json(&self) -> bool {
        self.get("format") == Some("json")
    }

    pub(super) fn regex(&self, name: &str, whole: bool) -> Result<Option<Regex>, Refusal> {
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
pub(super) type Refusal = (StatusCode, String);
type Page = fn(&View, &Query) -> Result<Answer, Refusal>;

fn page(routes: Routes, view: &View, path: &str, help: &str, post: bool, page: Page) -> Routes {
    let view = view.clone();
    routes.add(path, help, move |mut request| {
        let view = view.clone();
        async move {
            let asked = (!view.logs.is_empty()).then(|| Asked {
                method: request.method().clone(),
                path: request.uri().to_string(),
                version: request.version(),
                headers: request.headers().clone(),
            });
            let begun = Instant::now();
            let query = match post && request.method() == Method::POST {
                true => Query::of_form(&mut request).await,
                false => Ok(Query::of(&request)),
            };
            let answer = dressed(answer(&view, request.method(), query, post, page));
            if let Some(asked) = asked {
                let sent = answer.body().size_hint().exact().unwrap_or(0);
                view.logs.write(&asked, answer.status(), usize::try_from(sent).unwrap_or(usize::MAX), begun.elapsed());
            }
            answer
        }
    })
}

fn answer(view: &View, method: &Method, query: Result<Query, Refusal>, post: bool, page: Page) -> Answer {
    // What changes nothing may be asked for either way, as of Envoy.
    let fits = *method == Method::POST || !post && matches!(*method, Method::GET | Method::HEAD);
    if !fits {
        let others = if post { "POST" } else { "GET or POST" };
        let words = format!("Method {method} not allowed, {others} required.");
        return text(StatusCode::METHOD_NOT_ALLOWED, words);
    }
    query.and_then(|query| page(view, &query)).unwrap_or_else(|(code, words)| text(code, words))
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

pub(super) fn state(view: &View) -> &'static str {
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
        resource: query.get("resource").filter(|name| !name.is_empty()).map(str::to_owned),
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

/// In bytes, as far as the kernel knows.
pub(super) fn memory() -> Value {
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
            "drain_time": format!("{}s", view.drain.time.as_secs()),
            "drain_strategy": if view.drain.at_once { "Immediate" } else { "Gradual" },
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
    let (workers, drain, stopped) = (view.workers.clone(), view.drain, view.stopped.clone());
    tokio::spawn(async move {
        let Some(workers) = workers.get() else { return };
        workers.ask_to_close(inbound_only, drain.over()).await;
        if stay {
            return;
        }
        if graceful {
            tokio::time::sleep(drain.time).await;
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
