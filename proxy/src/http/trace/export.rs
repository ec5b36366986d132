//! How spans leave a worker: gathered, and sent by a task of the worker to the cluster of their tracer, over its own pools.
//!
//! A batch is sent when [`BATCH`] spans wait or [`DELAY`] after the first; one at a time for each tracer. What waits is bounded
//! ([`Tracer::max_waiting`]), what is more is dropped and counted.

use super::super::{
    body::{Piece, Upstream},
    connecting,
    head::{BodyLength, RequestHead, ResponseHead},
};
use super::{otlp, span::Span, zipkin};
use crate::{
    balance::PickContext,
    config::{HeaderText, Priority, SpanTransport, Tracer},
    pool::{Aim, Chosen},
    worker::{Timer, Worker},
};
use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

/// Spans of a request to the collector at most, when no more wait than are sent.
const BATCH: usize = 128;
/// A span waits at most this long before it is sent.
const DELAY: Duration = Duration::from_secs(1);
/// Where the collector is told everything.
const PATH: &[u8] = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The spans of one tracer.
struct Queue {
    tracer: Arc<Tracer>,
    spans: Vec<u8>,
    count: usize,
    full: Rc<tokio::sync::Notify>,
}

thread_local! {
    /// One a tracer with spans that wait or are being sent.
    static QUEUES: RefCell<Vec<Queue>> = const { RefCell::new(Vec::new()) };
}

/// Adds a span.
pub(super) fn add(worker: &Rc<Worker>, tracer: &Arc<Tracer>, span: &Span<'_>) {
    let begun = QUEUES.with_borrow_mut(|queues| {
        let at = queues.iter().position(|queue| Arc::ptr_eq(&queue.tracer, tracer));
        let begun = at.is_none();
        if begun {
            queues.push(Queue { tracer: tracer.clone(), spans: Vec::new(), count: 0, full: Rc::default() });
        }
        let Some(queue) = at.map_or(queues.len().checked_sub(1), Some).and_then(|at| queues.get_mut(at)) else {
            return false;
        };
        if queue.count >= tracer.max_waiting {
            worker.shard.spans(0, 1);
        } else {
            match &tracer.zipkin {
                Some(zipkin) => zipkin::span(span, tracer, zipkin, &mut queue.spans),
                None => otlp::span(span, &mut queue.spans),
            }
            queue.count += 1;
            if queue.count >= BATCH {
                queue.full.notify_one();
            }
        }
        begun
    });
    if begun {
        tokio::task::spawn_local(run(worker.clone(), tracer.clone()));
    }
}

/// Sends what waits until nothing does.
async fn run(worker: Rc<Worker>, tracer: Arc<Tracer>) {
    let with = |change: &mut dyn FnMut(&mut Vec<Queue>, usize)| {
        QUEUES.with_borrow_mut(|queues| {
            if let Some(at) = queues.iter().position(|queue| Arc::ptr_eq(&queue.tracer, &tracer)) {
                change(queues, at);
            }
        });
    };
    loop {
        let mut full = None;
        with(&mut |queues, at| full = Some(queues[at].full.clone()));
        let Some(full) = full else { return };
        let _ = tokio::time::timeout(DELAY, full.notified()).await;
        let (mut spans, mut count) = (Vec::new(), 0);
        with(&mut |queues, at| {
            spans = std::mem::take(&mut queues[at].spans);
            count = std::mem::take(&mut queues[at].count);
            if count == 0 {
                queues.swap_remove(at);
            }
        });
        if count == 0 {
            return;
        }
        let message = match &tracer.zipkin {
            Some(zipkin) => zipkin::request(zipkin, &spans),
            None => otlp::request(&tracer, &spans),
        };
        let sent = tokio::time::timeout(tracer.timeout, send(&worker, &tracer, message)).await;
        let sent = matches!(sent, Ok(Some(true)));
        if !sent {
            tracing::debug!(count, service = %tracer.service, "spans could not be sent, and are lost");
        }
        let count = count as u64;
        worker.shard.spans(if sent { count } else { 0 }, if sent { 0 } else { count });
    }
}

fn head(tracer: &Tracer, length: u64) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(b"POST");
    head.body = BodyLength::Exact(length);
    match &tracer.transport {
        SpanTransport::Grpc { authority, metadata } => {
            head.set_path(PATH);
            head.set_authority(authority.as_bytes());
            head.headers.push(b"te", b"trailers");
            head.headers.push(b"content-type", b"application/grpc");
            for (name, value) in metadata {
                head.headers.push(name.as_bytes(), value.as_bytes());
            }
        }
        SpanTransport::Http { authority, path, headers } => {
            head.set_path(path.as_bytes());
            head.set_authority(authority.as_bytes());
            let json = tracer.zipkin.as_ref().is_some_and(|zipkin| !zipkin.protobuf);
            head.headers.push(b"content-type", if json { b"application/json" } else { b"application/x-protobuf" });
            if tracer.zipkin.is_none() {
                head.headers.push(b"user-agent", b"OTel-OTLP-Exporter-Leno");
            }
            for op in headers {
                use crate::config::HeaderOp as Op;
                if let Op::Set(_, text) | Op::Append(_, text) | Op::AddIfAbsent(_, text) | Op::SetIfPresent(_, text) =
                    op
                    && let HeaderText::Literal(value) = text
                {
                    head.headers.change(op, value.as_bytes());
                }
            }
        }
    }
    head
}

/// Whether the collector took it.
async fn send(worker: &Rc<Worker>, tracer: &Tracer, message: Vec<u8>) -> Option<bool> {
    let grpc = matches!(tracer.transport, SpanTransport::Grpc { .. });
    let root = worker.root();
    let cluster = root.cluster(tracer.cluster)?;
    let mut body = Vec::with_capacity(message.len() + 5);
    if grpc {
        body.push(0);
        body.extend_from_slice(&u32::try_from(message.len()).ok()?.to_be_bytes());
    }
    body.extend_from_slice(&message);
    let head = head(tracer, body.len() as u64);
    cluster.admit(Priority::Default).ok()?;
    let find = |id| root.cluster(id).cloned();
    let Chosen { cluster, host, .. } = cluster.choose(&find, &worker.rng, &PickContext::to(None), 0, |_| false)?;
    let cluster = &cluster;
    let _active = host.enter();
    let http2 = connecting::speaks_http2(grpc, cluster, &host);
    let aim = Aim::new(connecting::server_name(&head, cluster, &host));
    let until = Instant::now() + tracer.timeout;
    let connecting = connecting::connection(worker, cluster, &host, http2, Priority::Default, aim);
    let (mut up, _counted) = tokio::time::timeout_at(until.into(), connecting).await.ok()?.ok()?;
    up.send_head(&head);
    up.send_data((&body).into());
    up.send_end(None);
    let (mut timer, mut response) = (Timer::default(), ResponseHead::default());
    let (mut sent, mut answered, mut status) = (false, false, None);
    let whole = poll_fn(|cx| {
        if !sent {
            match up.poll_flush(cx) {
                Poll::Ready(Ok(())) => sent = true,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => {}
            }
        }
        if !answered {
            match up.poll_head(cx, &mut response) {
                Poll::Ready(Ok(())) => answered = true,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return timer.poll(cx, Some(until)).map(|()| false),
            }
        }
        loop {
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    up.consume(count);
                }
                Poll::Ready(Ok(Piece::End)) => return Poll::Ready(sent),
                Poll::Ready(Ok(Piece::Trailers(trailers))) => {
                    status = trailers.get("grpc-status").map(|value| value == b"0");
                    return Poll::Ready(sent);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return timer.poll(cx, Some(until)).map(|()| false),
            }
        }
    })
    .await;
    if whole {
        connecting::put_back(up, &host, cluster);
    }
    let status = status.or(response.headers.get("grpc-status").map(|value| value == b"0"));
    Some(whole && (200..300).contains(&response.status) && (!grpc || status == Some(true)))
}
