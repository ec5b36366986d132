//! The spans of attempts, where those are to have some: from the choice of an endpoint to the end of its answer.

use super::{
    super::{
        call::Call,
        headers::Headers,
        pipeline::Stop,
        reply::{ATTEMPT_DURATION, PER_TRY_IDLE_TIMEOUT, PER_TRY_TIMEOUT, Reply},
    },
    Context, Trace, b3, common_tags, custom_tags, export, grpc_tags,
    span::{Kind, Span, Tags},
    text, times,
};
use crate::{
    config::{Tracing, pipe::Shown},
    pool::Host,
    telemetry::ResponseFlags,
};
use std::{net::SocketAddr, time::Instant};

/// The span of an attempt.
#[derive(Debug)]
pub(super) struct Attempt {
    id: u64,
    start: Instant,
    host: SocketAddr,
    number: u32,
    protocol: &'static str,
    /// The status of the answer; 0 as long as there is none.
    code: u16,
    /// What its head says of a call of gRPC.
    said: Tags<'static>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Ended {
    /// With its answer.
    Whole,
    /// By this proxy, with flags that say why, if they do.
    Canceled(ResponseFlags),
    /// By the other side or on the way, for this reason.
    Broken(ResponseFlags, &'static str),
}

impl Ended {
    /// By what the client would be told of it.
    pub(in super::super) fn by(reply: &Reply) -> Self {
        match reply.body.split_once("reset reason: ") {
            Some((_, reason)) => Self::Broken(reply.flags, reason),
            None if reply.details == PER_TRY_TIMEOUT.details => Self::Canceled(reply.flags),
            None if reply.details == PER_TRY_IDLE_TIMEOUT.details => Self::Canceled(ResponseFlags::STREAM_IDLE_TIMEOUT),
            None if reply.details == ATTEMPT_DURATION.details => Self::Canceled(reply.flags),
            None => Self::Canceled(ResponseFlags::none()),
        }
    }

    /// By what ended the whole request.
    pub(in super::super) fn of(stop: &Stop) -> Self {
        match stop {
            Stop::Reply(reply) => Self::by(reply),
            Stop::Abort(flags, details) => match details.strip_prefix("upstream_reset_after_response_started{") {
                Some("protocol_error}") => Self::Broken(*flags, "protocol error"),
                Some("remote_reset}") => Self::Broken(*flags, "remote reset"),
                Some(_) => Self::Broken(*flags, "connection termination"),
                None => Self::Canceled(ResponseFlags::none()),
            },
            Stop::Gone => Self::Canceled(ResponseFlags::none()),
        }
    }
}

/// Tells the endpoint of an attempt where it belongs. `number` counts from 1.
pub(in super::super) fn on_attempt(call: &mut Call<'_>, host: &Host, number: u32) {
    let (Some(tracing), Some(trace)) = (call.manager.tracing.as_deref(), call.tally.trace.as_deref_mut()) else {
        return;
    };
    let (mut told, mut parent) = (trace.context, trace.parent);
    if tracing.spawn_upstream || call.router.start_child_span {
        let id = call.worker.rng.next();
        parent = Some(std::mem::replace(&mut told.span, id));
        trace.attempt = Some(Attempt {
            id,
            start: Instant::now(),
            host: host.address(),
            number,
            protocol: "-",
            code: 0,
            said: Vec::new(),
        });
    }
    if !tracing.keep_context {
        trace.tell(&mut call.request.headers, told, parent);
    }
}

/// Tells the endpoint of a copy that it belongs to the request's own span: copies have none.
pub(in super::super) fn on_copy(call: &mut Call<'_>, sampled: Option<bool>) {
    let (Some(tracing), Some(trace)) = (call.manager.tracing.as_deref(), call.tally.trace.as_deref()) else { return };
    if !tracing.keep_context {
        let told = Context { sampled: sampled.unwrap_or(trace.context.sampled), ..trace.context };
        trace.tell(&mut call.request.headers, told, trace.parent);
    }
}

impl Trace {
    /// Writes the headers by which an endpoint knows where it belongs.
    fn tell(&self, headers: &mut Headers, told: Context, parent: Option<u64>) {
        let zipkin = self.tracer.zipkin.as_ref();
        if zipkin.is_some() {
            b3::write(headers, told, parent, self.single);
        }
        if zipkin.is_none_or(|zipkin| zipkin.w3c) {
            headers.set("traceparent", told.to_header().as_bytes());
        }
        if zipkin.is_none() {
            headers.set("tracestate", &self.state);
        }
    }
}

/// An attempt has got a connection.
pub(in super::super) fn on_connection(call: &mut Call<'_>, protocol: &'static str) {
    if let Some(attempt) = call.tally.trace.as_deref_mut().and_then(|trace| trace.attempt.as_mut()) {
        attempt.protocol = protocol;
    }
}

/// The head of an attempt's answer has come.
pub(in super::super) fn on_head(call: &mut Call<'_>) {
    let Some(attempt) = call.tally.trace.as_deref_mut().and_then(|trace| trace.attempt.as_mut()) else { return };
    attempt.code = call.response.status;
    grpc_tags(&call.response.headers, &mut attempt.said);
}

/// Hands the span of an attempt that has ended over, if there is one and it is sampled; with the trailers of its answer.
pub(in super::super) fn on_attempt_ended(call: &mut Call<'_>, ended: Ended, trailers: Option<&Headers>) {
    let Some(attempt) = call.tally.trace.as_deref_mut().and_then(|trace| trace.attempt.take()) else { return };
    if let Some(tracing) = call.manager.tracing.as_deref() {
        hand_over(call, tracing, attempt, ended, trailers);
    }
}

fn hand_over(call: &Call<'_>, tracing: &Tracing, attempt: Attempt, ended: Ended, trailers: Option<&Headers>) {
    let Some(trace) = call.tally.trace.as_deref().filter(|trace| trace.context.sampled) else { return };
    let route = call.tally.route.and_then(|route| route.tracing.as_deref());
    let operation = route.and_then(|route| route.upstream_operation.as_ref()).or(tracing.upstream_operation.as_ref());
    let cluster = call.tally.cluster.as_ref().map_or("", |cluster| &cluster.config().observability_name);
    let name = operation.map(|format| text(call, format)).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| format!("router {cluster} egress"));
    let mut tags: Tags<'_> = Vec::with_capacity(16);
    if attempt.number > 1 {
        tags.push(("retry.count", (attempt.number - 1).to_string().into_bytes()));
    }
    tags.extend(attempt.said);
    if let Some(trailers) = trailers {
        grpc_tags(trailers, &mut tags);
    }
    let flags = match ended {
        Ended::Whole => ResponseFlags::none(),
        Ended::Canceled(flags) => {
            tags.push(("canceled", b"true".to_vec()));
            flags
        }
        Ended::Broken(flags, reason) => {
            tags.push(("error", b"true".to_vec()));
            tags.push(("error.reason", reason.as_bytes().to_vec()));
            flags
        }
    };
    let address = Shown(attempt.host).to_string().into_bytes();
    tags.push(("http.protocol", attempt.protocol.into()));
    tags.push(("upstream_address", address.clone()));
    tags.push(("peer.address", address));
    common_tags(call, (attempt.code, flags), &mut tags);
    custom_tags(call, tracing, &mut tags);
    let (start, end) = times(call, attempt.start);
    let span = Span {
        trace: trace.context.trace,
        id: attempt.id,
        parent: Some(trace.context.span),
        remote: false,
        state: &trace.state,
        name: &name,
        kind: Kind::Client,
        start,
        end,
        tags: &tags,
    };
    export::add(call.worker, &trace.tracer, &span);
}
