//! Copies of requests that go to other clusters (mirrors). Each copy is a task of its own; its answer is read and forgotten.
//!
//! The request never waits for a copy: what is sent on is put into a bounded queue beside, and a copy that cannot follow
//! is given up.

use super::{
    body::{HIGH_WATER, Piece, Upstream},
    call::Call,
    choose, client, connecting, edit,
    head::{RequestHead, ResponseHead},
    headers::Headers,
    pipeline, trace,
    upstream::Up,
};
use crate::{
    balance::PickContext,
    config::{Forward, Mirror, Priority},
    pool::{Aim, Chosen, ClusterState, Outcome},
    telemetry::ResponseFlags,
    worker::{Timer, Worker},
};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

/// Bytes of a body that wait for one copy; a copy that is further behind is given up.
const MAX_BEHIND: usize = 1024 * 1024;
/// Copies that are under way in one worker; further ones are not made.
const MAX_COPIES: u32 = 1024;
/// How long a copy may take where its route has no limit.
const LONGEST: Duration = Duration::from_secs(60);

thread_local! {
    static COPIES: Cell<u32> = const { Cell::new(0) };
}

/// What of a request's body a copy has not sent yet.
#[derive(Default)]
struct Queue {
    parts: VecDeque<Bytes>,
    bytes: usize,
    ended: Option<Option<Box<Headers>>>,
    /// The request or the copy is given up.
    dead: bool,
    waker: Option<Waker>,
}

/// The copies of one request, as its body sees them. When it is dropped before the body's end, the copies are given up.
#[derive(Default)]
pub struct Feeds(Vec<Rc<RefCell<Queue>>>);

impl std::fmt::Debug for Feeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feeds({})", self.0.len())
    }
}

impl Feeds {
    /// A part of the request's body.
    pub fn data(&self, data: &[u8]) {
        let data = Bytes::copy_from_slice(data);
        self.each(|queue| {
            if queue.bytes + data.len() > MAX_BEHIND {
                queue.dead = true;
            } else {
                queue.bytes += data.len();
                queue.parts.push_back(data.clone());
            }
        });
    }

    /// The end of the request.
    pub fn end(&self, trailers: Option<&Headers>) {
        self.each(|queue| queue.ended = Some(trailers.map(|trailers| Box::new(trailers.clone()))));
    }

    fn each(&self, mut change: impl FnMut(&mut Queue)) {
        for queue in &self.0 {
            let mut queue = queue.borrow_mut();
            if !queue.dead {
                change(&mut queue);
                if let Some(waker) = queue.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Feeds {
    fn drop(&mut self) {
        self.each(|queue| queue.dead |= queue.ended.is_none());
    }
}

/// Begins the copies of a request whose head is as its endpoint will see it.
pub(super) fn begin(call: &mut Call<'_>, forward: &Forward) -> Option<Box<Feeds>> {
    // A tunnel has no end that a copy could wait for.
    if call.request.wants_tunnel() {
        return None;
    }
    let mut feeds = Feeds::default();
    for mirror in &forward.mirrors {
        let falls = mirror.fraction >= 1_000_000 || call.worker.rng.below(1_000_000) < u64::from(mirror.fraction);
        if !falls || COPIES.get() >= MAX_COPIES {
            continue;
        }
        let id = match &mirror.cluster_header {
            None => Some(mirror.cluster),
            Some(name) => choose::named_by(call, name),
        };
        let Some(cluster) = id.and_then(|id| call.root.cluster(id)) else { continue };
        let queue = Rc::new(RefCell::new(Queue::default()));
        feeds.0.push(queue.clone());
        let copy = Copy {
            worker: call.worker.clone(),
            cluster: cluster.clone(),
            destination: call.conn.wanted(),
            head: head(call, mirror, forward.timeout.filter(|limit| !limit.is_zero())),
            http2: call.is_http2(),
            queue,
            handed: Cell::new(false),
            until: Instant::now() + forward.timeout.filter(|limit| !limit.is_zero()).unwrap_or(LONGEST),
        };
        COPIES.set(COPIES.get() + 1);
        tokio::task::spawn_local(async move {
            copy.run().await;
            COPIES.set(COPIES.get().saturating_sub(1));
        });
    }
    (!feeds.0.is_empty()).then(|| Box::new(feeds))
}

fn head(call: &mut Call<'_>, mirror: &Mirror, limit: Option<Duration>) -> RequestHead {
    let original = call.request.clone();
    edit::request(call, &mirror.headers);
    trace::on_copy(call, mirror.sampled);
    let mut head = std::mem::replace(call.request, original);
    // To Envoy a copy is a request of the proxy itself: it comes from inside, and from this machine.
    let headers = &mut head.headers;
    headers.set("x-envoy-internal", b"true");
    headers.append_to("x-forwarded-for", b",", client::own_address().to_string().as_bytes());
    if let Some(limit) = limit.filter(|_| !call.router.suppress_envoy_headers) {
        let mut text = [0; 20];
        headers.set("x-envoy-expected-rq-timeout-ms", pipeline::decimal(limit.as_millis(), &mut text));
    }
    if call.tally.selected.is_some_and(|selected| selected.host.attempt_count_in_request) {
        headers.set("x-envoy-attempt-count", b"1");
    }
    if let Some(host) = &mirror.host {
        head.set_authority(host.as_bytes());
    } else if mirror.suffix {
        let authority = head.authority().to_vec();
        let bare = crate::route::without_port(&authority).len();
        head.set_authority(&[&authority[..bare], b"-shadow", &authority[bare..]].concat());
    }
    head
}

struct Copy {
    worker: Rc<Worker>,
    cluster: Rc<ClusterState>,
    destination: Option<SocketAddr>,
    head: RequestHead,
    http2: bool,
    queue: Rc<RefCell<Queue>>,
    until: Instant,
    /// Everything was handed over to the connection.
    handed: Cell<bool>,
}

impl Copy {
    async fn run(&self) {
        let queue = self.queue.clone();
        let _ = self.send().await;
        let mut queue = queue.borrow_mut();
        queue.dead = true;
        queue.parts = VecDeque::new();
    }

    /// Counts an answer, or the one that a client would have got instead. A copy is a request of the proxy's own.
    fn count(&self, code: u16, flags: ResponseFlags, attempts: u16, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.cluster.stats().count((code, true), flags, attempts, micros, true);
    }

    /// Where it goes.
    fn choose(&self) -> Option<Chosen> {
        let root = self.worker.root();
        let context = PickContext::to(self.destination);
        self.cluster.choose(&|id| root.cluster(id).cloned(), &self.worker.rng, &context, 0, |_| false)
    }

    /// Sends it and reads the answer; what goes wrong ends it.
    async fn send(&self) -> Option<()> {
        let since = Instant::now();
        if self.cluster.admit(Priority::Default).is_err() {
            self.count(503, ResponseFlags::UPSTREAM_OVERFLOW, 0, since);
            return None;
        }
        let Some(Chosen { cluster, host, .. }) = self.choose() else {
            self.count(503, ResponseFlags::NO_HEALTHY_UPSTREAM, 0, since);
            return None;
        };
        let _active = host.enter();
        let http2 = connecting::speaks_http2(self.http2, &cluster, &host);
        let aim = Aim::new(connecting::server_name(&self.head, &cluster, &host));
        let limit = cluster.config().connect_timeout;
        let connecting = connecting::connection(&self.worker, &cluster, &host, http2, Priority::Default, aim);
        let Ok(Ok((mut up, _counted))) = tokio::time::timeout(limit, connecting).await else {
            self.count(503, ResponseFlags::UPSTREAM_CONNECTION_FAILURE, 1, since);
            cluster.note(&host, Outcome::Failed);
            return None;
        };
        cluster.stats().rq_total.add(1);
        up.send_head(&self.head);
        let (mut timer, mut response) = (Timer::default(), ResponseHead::default());
        let mut sent = false;
        let mut answered = false;
        let whole = poll_fn(|cx| {
            if !sent {
                match self.poll_send(cx, &mut up) {
                    Poll::Ready(Some(())) => sent = true,
                    Poll::Ready(None) => return Poll::Ready(false),
                    Poll::Pending => {}
                }
            }
            if !answered {
                match up.poll_head(cx, &mut response) {
                    Poll::Ready(Ok(())) => answered = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return timer.poll(cx, Some(self.until)).map(|()| false),
                }
            }
            loop {
                match up.poll_body(cx) {
                    Poll::Ready(Ok(Piece::Data(data))) => {
                        let count = data.len();
                        up.consume(count);
                    }
                    Poll::Ready(Ok(Piece::End | Piece::Trailers(_))) => return Poll::Ready(sent),
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return timer.poll(cx, Some(self.until)).map(|()| false),
                }
            }
        })
        .await;
        cluster.stats().moved(up.wire());
        let dead = self.queue.borrow().dead;
        if answered {
            self.count(response.status, ResponseFlags::none(), 1, since);
            cluster.note(&host, Outcome::Status(response.status));
        } else if Instant::now() >= self.until {
            self.count(504, ResponseFlags::UPSTREAM_TIMEOUT, 1, since);
            cluster.note(&host, Outcome::Timeout);
        } else if self.handed.get() || !dead {
            self.count(503, ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, 1, since);
            cluster.note(&host, Outcome::Failed);
        }
        if whole {
            connecting::put_back(up, &host, &cluster);
        }
        Some(())
    }

    /// Ready with nothing when the copy is given up.
    fn poll_send(&self, cx: &mut Context<'_>, up: &mut Up) -> Poll<Option<()>> {
        if self.handed.get() {
            return self.poll_flush(cx, up);
        }
        loop {
            if up.queued() >= HIGH_WATER && ready!(up.poll_flush(cx)).is_err() {
                return Poll::Ready(None);
            }
            let mut queue = self.queue.borrow_mut();
            if queue.dead {
                return Poll::Ready(None);
            }
            if let Some(part) = queue.parts.pop_front() {
                queue.bytes -= part.len();
                up.send_data((&part).into());
                continue;
            }
            if let Some(trailers) = queue.ended.take() {
                up.send_end(trailers.as_deref());
                self.handed.set(true);
                drop(queue);
                return self.poll_flush(cx, up);
            }
            queue.waker = Some(cx.waker().clone());
            drop(queue);
            if up.queued() > 0 && ready!(up.poll_flush(cx)).is_err() {
                return Poll::Ready(None);
            }
            return Poll::Pending;
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>, up: &mut Up) -> Poll<Option<()>> {
        up.poll_flush(cx).map(|result| result.ok())
    }
}
