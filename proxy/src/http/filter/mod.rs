//! HTTP filters: what a request passes through between its route's choice and its route's action, and its response on the way
//! back.
//!
//! Everything is decided while the request goes through. What a filter wants of the response it leaves in the request's
//! [`State`], and it is done to whatever response comes, in the opposite order.

mod compression;
mod cors;
mod fault;
mod grpc_web;
mod metadata;
mod ratelimit;
mod rbac;

pub(super) use fault::ActiveFault;

use super::{
    body::Downstream, call::Call, edit, forget, head::is_grpc_type, headers::Known, pipeline::Stop, pump::RequestPump,
    query, recode::Recode, reply::Reply, trailing::Trailing,
};
use crate::{
    config::{
        Action, Decompressor, FilterEntry, FilterSetting, FilterSettings, GrpcCalls, GrpcMessages, HeaderMutation,
        HeaderOp, HeaderToMetadata, HttpFilter, MessagesOf,
    },
    route::{self, Selected},
    telemetry::{DynamicMetadata, ResponseFlags, requests::RequestGroup},
};
use std::{borrow::Cow, sync::Arc};

/// What filters (and a route's hash policy) have left for the rest of a request's way. Only made when there is something.
#[derive(Default)]
pub struct State<'a> {
    steps: Vec<Step<'a>>,
    pub(super) reply: Details<'a>,
    /// Counts the request among those under a fault.
    pub(super) fault: Option<ActiveFault<'a>>,
    /// `set-cookie` values for the client.
    pub(super) cookies: Vec<Vec<u8>>,
    /// Bytes of the request's body that a filter waits for before anything is sent on.
    pub(super) buffer: Option<u64>,
    /// What is done to the request's body.
    pub(super) recode_request: Option<Box<Recode>>,
    /// What is done to the response's body.
    pub(super) recode_response: Option<Box<Recode>>,
    /// What is done to the response's trailers.
    pub(super) trailing: Option<Box<Trailing>>,
    /// How fast the answer's body may go.
    pub(super) pace: Option<Box<super::pace::Pace>>,
    /// From which route to which one redirects were followed.
    pub(super) followed: Vec<(Arc<str>, Arc<str>)>,
    /// The `location` of an answer that sends the client elsewhere.
    pub(super) redirect: Option<Vec<u8>>,
    /// The virtual cluster that the request belongs to.
    pub(super) virtual_cluster: Option<&'a RequestGroup>,
    /// Counts the call when it has ended.
    pub(super) grpc_calls: Option<Arc<GrpcCalls>>,
    /// Counts the messages of the answer.
    pub(super) grpc_messages: Option<Box<GrpcMessages>>,
    /// What filters found out about the request.
    pub(super) dynamic: DynamicMetadata,
    /// The same that is told once the answer of a filter comes to others.
    pub(super) late: DynamicMetadata,
}

/// What a filter's own answer has that others have not.
#[derive(Debug, Default, Clone)]
pub struct Details<'a> {
    /// The body, instead of the usual one.
    pub(super) body: Option<Cow<'a, str>>,
    /// The status for gRPC.
    pub(super) grpc: Option<u16>,
    /// What is changed about it before its status is known.
    pub(super) headers: &'a [HeaderOp],
    /// What decided.
    pub(super) details: Option<Cow<'a, str>>,
}

/// What a filter does to the response.
enum Step<'a> {
    Cors(cors::Answer<'a>),
    Headers(&'a [HeaderOp]),
    Trailers(&'a [HeaderOp]),
    /// Sets these.
    Set(Vec<(&'static str, Vec<u8>)>),
    /// Adds these to what is there.
    Add(Vec<(&'static str, Vec<u8>)>),
    Compress(compression::Asked<'a>),
    Decompress(&'a Decompressor),
    /// Whether it must be text.
    GrpcWeb(bool),
    /// Counts its messages.
    GrpcStats,
    /// Looks at its head.
    Metadata(&'a HeaderToMetadata),
}

/// Leads the request through the filters.
pub(super) async fn on_request<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Option<Selected<'a>>,
    body: &mut RequestPump,
) -> Result<(), Stop> {
    let mut stopped = Ok(());
    for entry in call.filters {
        let setting = setting(call, selected, entry);
        if is_off(entry, setting) {
            continue;
        }
        // A filter that answers by itself ends the way; those behind it still see the answer.
        let passed = match stopped {
            Ok(()) => {
                let passed = pass(call, down, body, selected, entry, setting).await;
                // Those behind a filter that wants the whole body see the request when it is there; what compresses it, before.
                match (&entry.filter, passed) {
                    (HttpFilter::Buffer(_), Ok(())) if !recodes_requests(call) => {
                        super::whole::wait(call, down, body).await
                    }
                    (_, passed) => passed,
                }
            }
            Err(_) => {
                unasked(call, entry, setting);
                Ok(())
            }
        };
        at_response(call, selected, entry, setting);
        if stopped.is_ok() {
            stopped = passed;
        }
    }
    stopped
}

/// Lets filters see the answer to a request that is refused before it comes to any of them. What its route says of which filters
/// there are only counts where the route was known `before`.
pub(super) fn on_refused<'a>(call: &mut Call<'a>, selected: Option<Selected<'a>>, before: bool) {
    for entry in call.filters {
        let setting = setting(call, selected, entry);
        let off = match setting.filter(|_| before) {
            Some(setting) => matches!(setting, FilterSetting::Off),
            None => entry.disabled,
        };
        if off {
            continue;
        }
        unasked(call, entry, setting);
        at_response(call, selected, entry, setting);
    }
}

/// What a filter does to any answer, whether the request came to it or not.
fn at_response<'a>(
    call: &mut Call<'a>,
    selected: Option<Selected<'a>>,
    entry: &'a FilterEntry,
    setting: Option<&'a FilterSetting>,
) {
    match &entry.filter {
        HttpFilter::HeaderMutation(own) => mutate_response(call, selected, entry, own),
        HttpFilter::HeaderToMetadata(own) => {
            let used = headers_to_metadata(own, setting);
            if !used.response.is_empty() {
                call.tally.filters().steps.push(Step::Metadata(used));
            }
        }
        _ => {}
    }
}

fn headers_to_metadata<'a>(own: &'a HeaderToMetadata, setting: Option<&'a FilterSetting>) -> &'a HeaderToMetadata {
    match setting {
        Some(FilterSetting::HeaderToMetadata(of_route)) => of_route,
        _ => own,
    }
}

/// What a compressor does to the answer to a request that never came to it.
fn unasked<'a>(call: &mut Call<'a>, entry: &'a FilterEntry, setting: Option<&FilterSetting>) {
    if let HttpFilter::Compressor(own) = &entry.filter {
        let setting = match setting {
            Some(FilterSetting::Compressor(of_route)) => Some(of_route),
            _ => None,
        };
        call.tally.filters().steps.extend(compression::unasked(own, setting).map(Step::Compress));
    }
    if let HttpFilter::HealthCheck(_) = &entry.filter {
        tell_failure(call);
    }
}

/// Where health checks are to fail, each answer says so to those who check: they need not wait for their next one.
fn tell_failure(call: &mut Call<'_>) {
    if crate::admin::is_failed() {
        let told = ("x-envoy-immediate-health-check-fail", b"true".to_vec());
        call.tally.filters().steps.push(Step::Set(vec![told]));
    }
}

/// How Envoy names what the health check filter answers by itself.
pub(super) const HEALTH_CHECK: &str = "health_check_ok";

/// Whether the request is one that a filter answers as a health check.
pub(super) fn is_health_check(call: &Call<'_>) -> bool {
    call.filters.iter().any(|entry| match &entry.filter {
        HttpFilter::HealthCheck(check) if !entry.disabled => {
            check.headers.iter().all(|header| route::header_matches(header, call.request))
        }
        _ => false,
    })
}

/// Whether a filter of the chain changes the bodies of requests.
fn recodes_requests(call: &Call<'_>) -> bool {
    call.filters.iter().any(|entry| match &entry.filter {
        HttpFilter::Compressor(compressor) => compressor.requests.is_some(),
        HttpFilter::Decompressor(_) => true,
        _ => false,
    })
}

async fn pass<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    body: &mut RequestPump,
    selected: Option<Selected<'a>>,
    entry: &'a FilterEntry,
    setting: Option<&'a FilterSetting>,
) -> Result<(), Stop> {
    match (&entry.filter, setting) {
        (HttpFilter::Fault(own), setting) => {
            let used = match setting {
                Some(FilterSetting::Fault(of_route)) => of_route,
                _ => own,
            };
            fault::pass(call, (down, body), (own, entry), used, selected).await
        }
        // Routes that answer by themselves have no say in this, as in Envoy.
        (HttpFilter::Cors, _) => {
            match selected.is_none_or(|selected| matches!(selected.route.action, Action::Forward(_))) {
                true => cors::pass(call, settings(call, selected), entry),
                false => Ok(()),
            }
        }
        (HttpFilter::Rbac(own), setting) => match setting {
            Some(FilterSetting::Rbac(None)) => Ok(()),
            Some(FilterSetting::Rbac(Some(of_route))) => rbac::pass(call, of_route, own, &entry.stats),
            _ => rbac::pass(call, own, own, &entry.stats),
        },
        (HttpFilter::LocalRateLimit(own), setting) => {
            let used = match setting {
                Some(FilterSetting::LocalRateLimit(of_route)) => of_route,
                _ => own,
            };
            ratelimit::pass(call, used, selected)
        }
        (HttpFilter::HeaderMutation(own), _) => {
            for mutation in mutations(call, selected, entry, own) {
                edit::request_in_order(call, &mutation.request);
                // CONNECT and `OPTIONS *` have no path.
                if !mutation.query.is_empty() && call.request.path().starts_with(b"/") {
                    let path = query::changed(call.request.path(), &edit::valued(call, &mutation.query, false));
                    call.request.set_path(&path);
                }
                if !mutation.request_trailers.is_empty() {
                    body.change_trailers(edit::valued(call, &mutation.request_trailers, false));
                }
            }
            Ok(())
        }
        (HttpFilter::Buffer(own), setting) => {
            let limit = match setting {
                Some(FilterSetting::Buffer(of_route)) => *of_route,
                _ => *own,
            };
            let state = call.tally.filters();
            state.buffer = Some(state.buffer.map_or(limit, |other| other.min(limit)));
            Ok(())
        }
        (HttpFilter::HealthCheck(check), _) => {
            if check.headers.iter().all(|header| route::header_matches(header, call.request)) {
                // The answer is to the whole request.
                forget::to_the_end(call, down, body).await;
                let (code, flags) = match call.worker.is_draining() || crate::admin::is_failed() {
                    true => (503, ResponseFlags::none()),
                    false => (200, ResponseFlags::none()),
                };
                let cluster = ("x-envoy-upstream-healthchecked-cluster", check.cluster.as_bytes().to_vec());
                call.tally.filters().steps.push(Step::Set(vec![cluster]));
                tell_failure(call);
                return Err(Reply { code, body: "", flags, details: HEALTH_CHECK, close: false }.into());
            }
            tell_failure(call);
            Ok(())
        }
        (HttpFilter::Compressor(own), setting) => {
            let setting = match setting {
                Some(FilterSetting::Compressor(of_route)) => Some(of_route),
                _ => None,
            };
            if let Some(asked) = compression::on_request(call, own, setting) {
                call.tally.filters().steps.push(Step::Compress(asked));
            }
            Ok(())
        }
        (HttpFilter::Decompressor(own), _) => {
            if compression::open_request(call, own) {
                call.tally.filters().steps.push(Step::Decompress(own));
            }
            Ok(())
        }
        (HttpFilter::GrpcStats(stats), _) => {
            if call.request.is_grpc()
                && let Some(cluster) = &call.tally.cluster
                && let Some(calls) = stats.calls(&cluster.config().observability_name, call.request.path_only())
            {
                body.count_messages(GrpcMessages::new(calls.clone(), MessagesOf::Request));
                let state = call.tally.filters();
                state.grpc_calls = Some(calls);
                state.steps.push(Step::GrpcStats);
            }
            Ok(())
        }
        (HttpFilter::GrpcWeb, _) => {
            if let Some(text) = grpc_web::on_request(call) {
                call.tally.filters().steps.push(Step::GrpcWeb(text));
            }
            Ok(())
        }
        (HttpFilter::HeaderToMetadata(own), setting) => {
            metadata::of_request(call, headers_to_metadata(own, setting));
            Ok(())
        }
        (HttpFilter::SetMetadata(own), setting) => {
            metadata::fixed(call, own);
            if let Some(FilterSetting::SetMetadata(of_route)) = setting {
                metadata::fixed(call, of_route);
            }
            Ok(())
        }
        (HttpFilter::Missing, _) => {
            let flags = ResponseFlags::NO_FILTER_CONFIG;
            Err(Reply { code: 500, body: "", flags, details: "", close: false }.into())
        }
    }
}

/// Whether a filter does not work for requests of which this is said.
fn is_off(entry: &FilterEntry, setting: Option<&FilterSetting>) -> bool {
    matches!(setting, Some(FilterSetting::Off)) || entry.disabled && setting.is_none()
}

/// What is said about filters for this request, the most specific first.
fn settings<'a>(call: &Call<'a>, selected: Option<Selected<'a>>) -> impl Iterator<Item = &'a FilterSettings> + use<'a> {
    let table = &call.manager.routes.filters;
    let levels = match selected {
        Some(selected) => [
            selected.target.map(|target| &target.filters),
            Some(&selected.route.filters),
            Some(&selected.host.filters),
            Some(table),
        ],
        None => [None; 4],
    };
    levels.into_iter().flatten()
}

/// The most specific that is said about a filter. One that is only switched on there works as a less specific level says.
fn setting<'a>(call: &Call<'a>, selected: Option<Selected<'a>>, entry: &FilterEntry) -> Option<&'a FilterSetting> {
    let mut all = settings(call, selected).filter_map(|settings| settings.get(&entry.name));
    match all.next() {
        Some(FilterSetting::Enabled) => {
            let more = all.find(|setting| !matches!(setting, FilterSetting::Enabled | FilterSetting::Off));
            more.or(Some(&FilterSetting::Enabled))
        }
        first => first,
    }
}

/// Every level's header changes in the order in which they are made.
fn mutations<'a>(
    call: &Call<'a>,
    selected: Option<Selected<'a>>,
    entry: &'a FilterEntry,
    own: &'a HeaderMutation,
) -> Vec<&'a HeaderMutation> {
    let mut all: Vec<&HeaderMutation> = settings(call, selected)
        .filter_map(|settings| match settings.get(&entry.name) {
            Some(FilterSetting::HeaderMutation(mutation)) => Some(mutation.as_ref()),
            _ => None,
        })
        .collect();
    if own.most_specific_wins {
        all.reverse();
    }
    all.insert(0, own);
    all
}

fn mutate_response<'a>(
    call: &mut Call<'a>,
    selected: Option<Selected<'a>>,
    entry: &'a FilterEntry,
    own: &'a HeaderMutation,
) {
    // Taken from the end.
    for mutation in mutations(call, selected, entry, own).into_iter().rev() {
        if !mutation.response.is_empty() {
            call.tally.filters().steps.push(Step::Headers(&mutation.response));
        }
        if !mutation.response_trailers.is_empty() {
            call.tally.filters().steps.push(Step::Trailers(&mutation.response_trailers));
        }
    }
}

/// Forgets what was to be done to a response that the client does not see, since its redirect is followed here.
pub(super) fn again(call: &mut Call<'_>) {
    if let Some(state) = &mut call.tally.filters {
        state.steps.clear();
        state.cookies.clear();
    }
}

/// Does to the response what the filters left to do.
pub(super) fn on_response(call: &mut Call<'_>) {
    let Some(state) = &mut call.tally.filters else { return };
    let (steps, cookies) = (std::mem::take(&mut state.steps), std::mem::take(&mut state.cookies));
    if let Some(location) = state.redirect.take() {
        call.response.headers.set("location", &location);
    }
    for cookie in cookies {
        call.response.headers.push(b"set-cookie", &cookie);
    }
    for step in steps.into_iter().rev() {
        match step {
            Step::Cors(answer) => answer.write(&mut call.response.headers),
            Step::Headers(ops) => edit::response_in_order(call, ops),
            Step::Trailers(ops) => {
                let changes = edit::valued(call, ops, true);
                call.tally.filters().trailing.get_or_insert_default().add(changes);
            }
            Step::Set(headers) => {
                for (name, value) in headers {
                    call.response.headers.set(name, &value);
                }
            }
            Step::Add(headers) => {
                for (name, value) in headers {
                    call.response.headers.push(name.as_bytes(), &value);
                }
            }
            Step::Compress(asked) => compression::on_response(call, &asked),
            Step::Decompress(decompressor) => compression::open_response(call, decompressor),
            Step::GrpcWeb(text) => grpc_web::on_response(call, text),
            Step::GrpcStats => count_messages(call),
            Step::Metadata(filter) => metadata::of_response(call, filter),
        }
    }
}

/// Counts the messages of an answer, if it has some.
fn count_messages(call: &mut Call<'_>) {
    let head = &call.response;
    if head.status == 200 && head.headers.known(Known::ContentType).is_some_and(is_grpc_type) {
        let state = call.tally.filters();
        let messages = |calls: &Arc<GrpcCalls>| Box::new(GrpcMessages::new(calls.clone(), MessagesOf::Answer));
        state.grpc_messages = state.grpc_calls.as_ref().map(messages);
    }
}

/// The answer of a filter that refuses.
fn refusal(code: u16, body: &'static str, details: &'static str) -> Reply {
    Reply { code, body, flags: ResponseFlags::none(), details, close: false }
}

/// Chance, by millionths.
fn falls(call: &Call<'_>, millionths: u32) -> bool {
    millionths >= 1_000_000 || call.worker.rng.below(1_000_000) < u64::from(millionths)
}

/// The request is larger than a filter may wait for.
pub(super) const TOO_LARGE: Reply = Reply {
    code: 413,
    body: "Payload Too Large",
    flags: ResponseFlags::none(),
    details: "request_payload_too_large",
    close: false,
};
