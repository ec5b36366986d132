//! Traces: whether a request is traced, what its endpoint is told about it, and the spans that tell of it, as Envoy's tracers for
//! OpenTelemetry and Zipkin make them.
//!
//! Nothing of this is done, and nothing is kept, where the manager has no `tracing`.

mod attempt;
mod b3;
mod context;
mod export;
mod otlp;
mod span;
mod zipkin;

use super::{
    call::Call,
    headers::{Headers, Known},
};
use crate::{
    config::{CustomTag, HttpManager, Sampler, Sampling, TagValue, Tracer, Tracing, Zipkin},
    route::Selected,
    telemetry::{HeaderLookup, LogFormat, ResponseFlags, logfilter::leading},
};
use attempt::Attempt;
pub(super) use attempt::{Ended, on_attempt, on_attempt_ended, on_connection, on_copy, on_head};
use context::Context;
use span::{Kind, Span, Tags};
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// The place in a request's id that says why it is traced.
const MARK: usize = 14;
/// Of an id that has such a place.
const UUID_LENGTH: usize = 36;
/// What stands there when the service wants a trace.
const FORCED: u8 = b'a';
/// What stands there when chance wants one.
const CHANCE: u8 = b'9';
/// What stands there when its client wants one.
const CLIENT: u8 = b'b';
/// What stands there when there is none.
const UNTRACED: u8 = b'4';

/// The trace of one request.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
    context: Context,
    parent: Option<u64>,
    /// The parent is another process's.
    remote: bool,
    /// It came in the single header of B3, and goes on in it.
    single: bool,
    state: Vec<u8>,
    name: String,
    /// The tag of the trace that its client wants to know it by.
    client_id: Option<Vec<u8>>,
    /// Names that are told in headers count: there is no format for it.
    decorates: bool,
    /// The route's name for it, that the other end is still to be told.
    decorated: Option<Box<str>>,
    attempt: Option<Attempt>,
    ids: (String, String),
}

impl Trace {
    /// The trace and the span, in hexadecimal.
    pub fn ids(&self) -> (&str, &str) {
        (&self.ids.0, &self.ids.1)
    }

    /// Whether it is told to anybody.
    pub fn sampled(&self) -> bool {
        self.context.sampled
    }
}

/// Decides about a request whose route is known, and begins its span.
pub(super) fn begin<'a>(call: &mut Call<'a>, selected: Option<Selected<'a>>) {
    let manager: &HttpManager = call.manager;
    let Some(tracing) = manager.tracing.as_deref() else { return };
    let route = selected.and_then(|selected| selected.route.tracing.as_deref());
    let sampling = route.map_or(tracing.sampling, |route| route.sampling);
    let reason = decide(call, tracing, sampling);
    call.tally.forced = reason == Some(FORCED);
    let traced = reason.is_some();
    let Some(tracer) = &tracing.tracer else { return };
    let placed = match &tracer.zipkin {
        None => place(call, tracer, traced),
        Some(zipkin) => place_b3(call, zipkin, tracing, traced),
    };
    // What is malformed is passed on as it is, and no span is made.
    let Some(Placed { context, parent, remote, state, single }) = placed else { return };
    let authority = String::from_utf8_lossy(call.request.authority());
    let mut name = match tracing.egress {
        _ if tracer.zipkin.is_some() => authority.into_owned(),
        true => format!("egress {authority}"),
        false => "ingress".to_owned(),
    };
    let operation = route.and_then(|route| route.operation.as_ref()).or(tracing.operation.as_ref());
    let decorates = operation.is_none();
    let mut decorated = None;
    if let Some(format) = operation {
        let made = text(call, format);
        if !made.is_empty() {
            name = made;
        }
    } else {
        decorated = decorate(call, selected, tracing.egress, &mut name);
    }
    let client_id = call.request.headers.get("x-client-trace-id").map(<[u8]>::to_vec);
    call.tally.trace = Some(Box::new(Trace {
        tracer: tracer.clone(),
        ids: (trace_id(tracer, context.trace), format!("{:016x}", context.span)),
        context,
        parent,
        remote,
        state,
        single,
        name,
        client_id,
        decorates,
        decorated,
        attempt: None,
    }));
}

/// The header in which proxies tell each other the names of operations.
const OPERATION: &str = "x-envoy-decorator-operation";

/// Names the operation as the route does, or as the proxy before us has told; what the other end is still to be told.
fn decorate<'a>(
    call: &mut Call<'a>,
    selected: Option<Selected<'a>>,
    egress: bool,
    name: &mut String,
) -> Option<Box<str>> {
    let mut decorated = None;
    if let Some(decorator) = selected.and_then(|selected| selected.route.decorator.as_deref()) {
        decorator.operation.as_ref().clone_into(name);
        decorated = decorator.propagate.then(|| decorator.operation.clone());
    }
    if egress {
        if let Some(operation) = &decorated {
            call.request.headers.set(OPERATION, operation.as_bytes());
        }
    } else if let Some(told) = call.request.headers.get(OPERATION) {
        if !told.is_empty() {
            *name = String::from_utf8_lossy(told).into_owned();
            decorated = None;
        }
        call.request.headers.remove(OPERATION);
    }
    decorated
}

/// Where the span of a request belongs.
struct Placed {
    context: Context,
    parent: Option<u64>,
    remote: bool,
    state: Vec<u8>,
    /// It came in the single header of B3.
    single: bool,
}

/// By the headers of W3C; `None` when they are malformed.
fn place(call: &Call<'_>, tracer: &Tracer, traced: bool) -> Option<Placed> {
    let headers = &call.request.headers;
    let parent = match headers.get("traceparent") {
        None => None,
        Some(value) => Some(Context::parse(value)?),
    };
    let rng = &call.worker.rng;
    let trace = parent.map_or_else(|| (u128::from(rng.next()) << 64) | u128::from(rng.next()), |parent| parent.trace);
    // Neither a parent nor a sampler overrules what the manager has decided.
    let sampled = traced && sample(&tracer.sampler, trace, parent);
    Some(Placed {
        context: Context { trace, span: rng.next(), sampled },
        parent: parent.map(|parent| parent.span),
        remote: parent.is_some(),
        state: parent.and_then(|_| headers.joined("tracestate")).unwrap_or_default().into_owned(),
        single: false,
    })
}

/// By the headers of Zipkin; `None` when they are malformed. A server may share its client's span.
fn place_b3(call: &Call<'_>, zipkin: &Zipkin, tracing: &Tracing, traced: bool) -> Option<Placed> {
    let told = b3::read(&call.request.headers, zipkin.w3c).ok()?;
    let rng = &call.worker.rng;
    let (id, sampled) = (rng.next(), told.sampled.unwrap_or(traced));
    let (context, parent) = match told.parent {
        None => {
            let stamped = |random: u64| if zipkin.stamped { seconds() << 32 | random & 0xffff_ffff } else { random };
            let trace = match zipkin.wide {
                true => u128::from(stamped(rng.next())) << 64 | u128::from(id),
                false => u128::from(stamped(id)),
            };
            (Context { trace, span: id, sampled }, None)
        }
        Some(b3::Parent { trace, span, parent }) if zipkin.shared && own_kind(tracing) == Kind::Server => {
            (Context { trace, span, sampled }, parent)
        }
        Some(b3::Parent { trace, span, parent: _ }) => (Context { trace, span: id, sampled }, Some(span)),
    };
    Some(Placed { context, parent, remote: told.parent.is_some(), state: Vec::new(), single: told.single })
}

/// Since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whose side the request's own span shows.
fn own_kind(tracing: &Tracing) -> Kind {
    let zipkin = tracing.tracer.as_ref().and_then(|tracer| tracer.zipkin.as_ref());
    let hop = tracing.spawn_upstream || zipkin.is_some_and(|zipkin| zipkin.split);
    if tracing.egress && !hop { Kind::Client } else { Kind::Server }
}

/// A trace's id in hexadecimal.
fn trace_id(tracer: &Tracer, trace: u128) -> String {
    if tracer.zipkin.is_some() { b3::trace_id(trace) } else { format!("{trace:032x}") }
}

/// Why a request is traced, if it is; its id is marked with the reason.
fn decide(call: &mut Call<'_>, tracing: &Tracing, sampling: Sampling) -> Option<u8> {
    let checks = super::filter::is_health_check(call);
    if !tracing.marks.by_id {
        return (!checks).then_some(CHANCE);
    }
    let headers = &call.request.headers;
    let id = headers.known(Known::RequestId).map(<[u8]>::to_vec)?;
    let number = u64::from(leading(&id)?) % 10_000;
    let wanted = |name: &str| headers.get(name).is_some();
    let before = id.get(MARK).filter(|_| tracing.marks.pack && id.len() == UUID_LENGTH).copied();
    let mut mark = before.filter(|mark| is_reason(*mark));
    if mark.is_none() {
        mark = if wanted("x-client-trace-id") && sampling.client.takes(call.worker.rng.next()) {
            Some(CLIENT)
        } else if wanted("x-envoy-force-trace") {
            Some(FORCED)
        } else {
            sampling.random.takes(number).then_some(CHANCE)
        };
    }
    mark = mark.filter(|_| sampling.overall.takes(number));
    let written = mark.unwrap_or(UNTRACED);
    if let Some(counted) = &call.conn.counted {
        let reason = match written {
            _ if checks => 4,
            CLIENT => 0,
            FORCED => 1,
            CHANCE => 2,
            _ => 3,
        };
        counted.http().tracing[reason].add(1);
    }
    let changes = before.is_some_and(|before| before != written && (mark.is_some() || is_reason(before)));
    if changes {
        let mut id = id;
        id[MARK] = written;
        call.request.headers.set("x-request-id", &id);
    }
    mark.filter(|_| !checks)
}

fn is_reason(mark: u8) -> bool {
    matches!(mark, FORCED | CHANCE | CLIENT)
}

/// Takes the reason out of the id of a request from outside, whose client must not make us trace.
pub(super) fn disbelieve(headers: &mut Headers) {
    let Some(id) = headers.known(Known::RequestId) else { return };
    if id.len() == UUID_LENGTH && is_reason(id[MARK]) {
        let mut id = id.to_vec();
        id[MARK] = UNTRACED;
        headers.set("x-request-id", &id);
    }
}

fn sample(sampler: &Sampler, trace: u128, parent: Option<Context>) -> bool {
    match sampler {
        Sampler::Manager => parent.is_none_or(|parent| parent.sampled),
        Sampler::Always => true,
        Sampler::Parent(other) => parent.map_or_else(|| sample(other, trace, None), |parent| parent.sampled),
        Sampler::Ratio(share) => {
            // Of the low half, as others that sample by the id do.
            let bound = (u128::from(u64::MAX) + 1) * u128::from(share.numerator) / u128::from(share.denominator.max(1));
            (trace & u128::from(u64::MAX)) < bound
        }
    }
}

fn text(call: &Call<'_>, format: &LogFormat) -> String {
    let mut out = Vec::new();
    format.write_header(&call.entry(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// What the response tells about the operation's name.
pub(super) fn on_response(call: &mut Call<'_>) {
    let (Some(tracing), Some(trace)) = (call.manager.tracing.as_deref(), call.tally.trace.as_deref_mut()) else {
        return;
    };
    let headers: &mut Headers = &mut call.response.headers;
    if !trace.decorates {
        return;
    }
    if tracing.egress {
        if let Some(told) = headers.get(OPERATION) {
            if !told.is_empty() {
                trace.name = String::from_utf8_lossy(told).into_owned();
            }
            headers.remove(OPERATION);
        }
    } else if let Some(operation) = &trace.decorated {
        headers.set(OPERATION, operation.as_bytes());
    }
}

/// Hands the spans of a request that has ended over, if it is sampled.
pub(super) fn end(call: &Call<'_>) {
    let (Some(tracing), Some(trace)) = (call.manager.tracing.as_deref(), call.tally.trace.as_deref()) else { return };
    if !trace.context.sampled {
        return;
    }
    let tally = &call.tally;
    let request = &call.request;
    let dash = |value: Option<&[u8]>| value.unwrap_or(b"-").to_vec();
    let mut tags: Tags<'_> = Vec::with_capacity(24);
    tags.push(("node_id", trace.tracer.node.as_bytes().to_vec()));
    tags.push(("zone", trace.tracer.zone.as_bytes().to_vec()));
    if let Some(id) = request.headers.known(Known::RequestId) {
        tags.push(("guid:x-request-id", id.to_vec()));
    }
    let path = request.headers.get("x-envoy-original-path").unwrap_or(request.path());
    let scheme: &[u8] = if request.secure { b"https://" } else { b"http://" };
    tags.push(("http.url", [scheme, request.authority(), &path[..path.len().min(tracing.max_path)]].concat()));
    tags.push(("http.method", request.method().to_vec()));
    tags.push(("downstream_cluster", dash(request.headers.get("x-envoy-downstream-service-cluster"))));
    tags.push(("user_agent", dash(request.headers.get("user-agent"))));
    tags.push(("http.protocol", request.version.as_str().into()));
    tags.push(("peer.address", call.conn.direct().ip().to_string().into_bytes()));
    if let Some(id) = &trace.client_id {
        tags.push(("guid:x-client-trace-id", id.clone()));
    }
    if request.is_grpc() {
        tags.push(("grpc.path", request.path().to_vec()));
        tags.push(("grpc.authority", request.authority().to_vec()));
        tags.push(("grpc.content_type", dash(request.headers.known(Known::ContentType))));
        if let Some(timeout) = request.headers.get("grpc-timeout") {
            tags.push(("grpc.timeout", timeout.to_vec()));
        }
    }
    tags.push(("request_size", tally.request_bytes.to_string().into_bytes()));
    tags.push(("response_size", tally.response_bytes.to_string().into_bytes()));
    common_tags(call, (tally.code, tally.flags), &mut tags);
    custom_tags(call, tracing, &mut tags);
    grpc_tags(&call.response.headers, &mut tags);
    if let Some(trailers) = &tally.trailers {
        grpc_tags(trailers, &mut tags);
    }
    let (start, end) = times(call, tally.start);
    let span = Span {
        trace: trace.context.trace,
        id: trace.context.span,
        parent: trace.parent,
        remote: trace.remote,
        state: &trace.state,
        name: &trace.name,
        kind: own_kind(tracing),
        start,
        end,
        tags: &tags,
    };
    export::add(call.worker, &trace.tracer, &span);
}

/// What both spans say.
fn common_tags(call: &Call<'_>, (code, flags): (u16, ResponseFlags), tags: &mut Tags<'_>) {
    tags.push(("component", b"proxy".to_vec()));
    if let Some(cluster) = &call.tally.cluster {
        tags.push(("upstream_cluster", cluster.config().name.as_bytes().to_vec()));
        tags.push(("upstream_cluster.name", cluster.config().observability_name.as_bytes().to_vec()));
    }
    tags.push(("http.status_code", code.to_string().into_bytes()));
    tags.push(("response_flags", flags.to_string().into_bytes()));
    if code == 0 || code >= 500 {
        tags.push(("error", b"true".to_vec()));
    }
}

/// What headers or trailers of an answer say of the call.
fn grpc_tags(headers: &Headers, tags: &mut Tags<'_>) {
    let Some(status) = headers.known(Known::GrpcStatus) else { return };
    tags.push(("grpc.status_code", status.to_vec()));
    if let Some(message) = headers.get("grpc-message") {
        tags.push(("grpc.message", message.to_vec()));
    }
    // Those that are the server's fault.
    if matches!(super::call::grpc_status(Some(status)), Some(2 | 4 | 8 | 12 | 13 | 14 | 15)) {
        tags.push(("error", b"true".to_vec()));
    }
}

/// Those that the route and the manager want, the route's first.
fn custom_tags<'t>(call: &'t Call<'_>, tracing: &'t Tracing, tags: &mut Tags<'t>) {
    let route = call.tally.route.and_then(|route| route.tracing.as_deref());
    let own = route.map_or(&[][..], |route| &route.tags);
    let inherited = tracing.tags.iter().filter(|tag| own.iter().all(|other| other.name != tag.name));
    for tag in own.iter().chain(inherited) {
        if let Some(value) = tag_value(call, tag) {
            tags.push((&tag.name, value.into_owned()));
        }
    }
}

fn tag_value<'t>(call: &'t Call<'_>, tag: &'t CustomTag) -> Option<Cow<'t, [u8]>> {
    let value: Cow<'_, [u8]> = match &tag.value {
        TagValue::Literal(text) => Cow::Borrowed(text.as_bytes()),
        TagValue::Header(name, default) => {
            let value = match &**name {
                ":authority" | "host" => Some(call.request.authority()),
                ":path" => Some(call.request.path()),
                ":method" => Some(call.request.method()),
                name => call.request.headers.get(name),
            };
            Cow::Borrowed(value.unwrap_or(default.as_bytes()))
        }
        TagValue::Format(format, default) => match text(call, format) {
            text if text.is_empty() => Cow::Borrowed(default.as_bytes()),
            text => Cow::Owned(text.into_bytes()),
        },
    };
    (!value.is_empty()).then_some(value)
}

/// Start and end in nanoseconds since 1970.
fn times(call: &Call<'_>, begun: Instant) -> (u64, u64) {
    let wall = call.tally.wall.unwrap_or_else(SystemTime::now);
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = |at: Instant| u64::try_from((since + (at - call.tally.start)).as_nanos()).unwrap_or(u64::MAX);
    (nanos(begun), nanos(Instant::now()))
}
