//! How entries leave a worker: gathered, and sent by a task of the worker as messages of one long call to the server.
//!
//! Entries are sent when there are as many bytes of them as the configuration says, or when the first has waited for its interval.
//! Memory is bounded: each worker holds at most [`LogServer::buffer`] bytes of entries and one entry for each stream, and as
//! much once more that is on its way. What comes while the server is not reached, or does not read, is dropped when that is full.

use crate::balance::PickContext;
use crate::config::{LogServer, LogStream, Priority};
use crate::http::{self, BodyLength, Piece, RequestHead, ResponseHead, Upstream, upstream::Up};
use crate::pool::{Active, Aim, Chosen, Ticket};
use crate::worker::Worker;
use crate::xds::backoff::Backoff;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What is called.
const PATH: &[u8] = b"/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// Between two looks whether any configuration still wants a stream.
const LOOK: Duration = Duration::from_secs(10);
/// How long a stream may take to end.
const END: Duration = Duration::from_secs(1);
/// Bytes that wait at most where each entry is to be sent at once.
const UNBUFFERED: usize = 64 * 1024;

/// The entries of one stream.
struct Queue {
    stream: Weak<LogStream>,
    entries: Vec<u8>,
    written: u64,
    dropped: u64,
    /// Since when the first of them waits.
    since: Option<Instant>,
    changed: Rc<Notify>,
}

thread_local! {
    /// One for each stream that this worker has told anything; few, so that they are looked through.
    static QUEUES: RefCell<Vec<Queue>> = const { RefCell::new(Vec::new()) };
}

/// Adds an entry.
pub(super) fn add(worker: &Rc<Worker>, stream: &Arc<LogStream>, write: impl FnOnce(&mut Vec<u8>)) {
    let server = &stream.0;
    let begun = QUEUES.with_borrow_mut(|queues| {
        let known = queues.iter().position(|queue| queue.stream.as_ptr() == Arc::as_ptr(stream));
        let at = known.unwrap_or(queues.len());
        if known.is_none() {
            let stream = Arc::downgrade(stream);
            let changed = Rc::default();
            queues.push(Queue { stream, entries: Vec::new(), written: 0, dropped: 0, since: None, changed });
        }
        let queue = &mut queues[at];
        let most = if server.buffer == 0 { UNBUFFERED } else { server.buffer };
        if queue.entries.len() >= most {
            queue.dropped += 1;
            return false;
        }
        write(&mut queue.entries);
        queue.written += 1;
        if queue.since.is_none() || queue.entries.len() >= server.buffer {
            queue.since.get_or_insert_with(Instant::now);
            queue.changed.notify_one();
        }
        known.is_none()
    });
    if begun {
        let (worker, of, server) = (worker.clone(), Arc::downgrade(stream), server.clone());
        tokio::task::spawn_local(async move { Sender { worker, server, of, open: None }.run().await });
    }
}

/// Sends the entries of one stream.
struct Sender {
    worker: Rc<Worker>,
    server: Arc<LogServer>,
    of: Weak<LogStream>,
    open: Option<Open>,
}

impl Sender {
    fn with<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        QUEUES.with_borrow_mut(|queues| queues.iter_mut().find(|queue| queue.stream.ptr_eq(&self.of)).map(change))
    }

    /// Whether a configuration wants it.
    fn is_wanted(&self) -> bool {
        self.of.strong_count() > 0
    }

    /// Sends until nobody wants the stream any more.
    async fn run(mut self) {
        let (first, longest) = self.server.backoff;
        let mut backoff = Backoff::new(first, longest);
        loop {
            let Some(entries) = self.due().await else { break };
            while self.open.is_none() {
                self.open = Open::begin(&self.worker, &self.server).await;
                if self.open.is_some() {
                    break;
                }
                tracing::debug!(cluster = ?self.server.cluster, "a server of access logs is not reached");
                if !self.is_wanted() {
                    self.server.counts.failed.add(count(&entries));
                    self.forget();
                    return;
                }
                tokio::time::sleep(backoff.next()).await;
            }
            let Some(open) = &mut self.open else { continue };
            if open.send(&self.server, &entries).await {
                self.server.counts.flushed.add(count(&entries));
                backoff.reset();
            } else {
                self.server.counts.failed.add(count(&entries));
                tracing::debug!("a server of access logs has ended its stream; what was on its way is lost");
                self.open = None;
                tokio::time::sleep(backoff.next()).await;
            }
        }
        if let Some(open) = self.open.take() {
            open.end().await;
        }
        self.forget();
    }

    fn forget(&self) {
        QUEUES.with_borrow_mut(|queues| queues.retain(|queue| !queue.stream.ptr_eq(&self.of)));
    }

    /// Waits until entries are to be sent, and takes them; `None` when there are none and nobody wants the stream any more.
    async fn due(&mut self) -> Option<Vec<u8>> {
        loop {
            let (wait, changed) = self.with(|queue| {
                let full = queue.entries.len() >= self.server.buffer;
                let wait = match queue.since {
                    Some(_) if full => Duration::ZERO,
                    Some(since) => (since + self.server.interval).saturating_duration_since(Instant::now()),
                    None => LOOK,
                };
                (wait.min(LOOK), queue.changed.clone())
            })?;
            if wait.is_zero() {
                return self.with(|queue| {
                    let written = std::mem::take(&mut queue.written);
                    // Envoy does not count those of TCP.
                    self.server.counts.written.add(if self.server.http { written } else { 0 });
                    self.server.counts.dropped.add(std::mem::take(&mut queue.dropped));
                    queue.since = None;
                    std::mem::take(&mut queue.entries)
                });
            }
            let mut wake = pin!(tokio::time::timeout(wait, changed.notified()));
            let open = &mut self.open;
            let _ = poll_fn(|cx| {
                if open.as_mut().is_some_and(|open| open.poll_end(cx).is_ready()) {
                    *open = None;
                }
                wake.as_mut().poll(cx)
            })
            .await;
            if !self.is_wanted() && self.with(|queue| queue.since.is_none()).unwrap_or(true) {
                return None;
            }
        }
    }
}

/// How many entries there are.
fn count(mut entries: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(rest) = entries.get(1..) {
        let mut rest = rest;
        let Ok(length) = prost::decode_length_delimiter(&mut rest) else { break };
        entries = rest.get(length..).unwrap_or_default();
        count += 1;
    }
    count
}

/// A call that lasts.
struct Open {
    up: Up,
    response: ResponseHead,
    answered: bool,
    /// Whether the server knows who tells.
    introduced: bool,
    _active: Active,
    _counted: Ticket,
}

impl Open {
    /// Calls the server.
    async fn begin(worker: &Rc<Worker>, server: &LogServer) -> Option<Self> {
        let root = worker.root();
        let cluster = root.cluster(server.cluster)?;
        cluster.admit(Priority::Default).ok()?;
        let find = |id| root.cluster(id).cloned();
        let Chosen { cluster, host, .. } = cluster.choose(&find, &worker.rng, &PickContext::to(None), 0, |_| false)?;
        let cluster = &cluster;
        let head = head(server);
        let http2 = http::speaks_http2(true, cluster, &host);
        let aim = Aim::new(http::server_name(&head, cluster, &host));
        let connecting = http::connection(worker, cluster, &host, http2, Priority::Default, aim);
        let (mut up, counted) = tokio::time::timeout(server.timeout, connecting).await.ok()?.ok()?;
        up.send_head(&head);
        Some(Self {
            up,
            response: ResponseHead::default(),
            answered: false,
            introduced: false,
            _active: host.enter(),
            _counted: counted,
        })
    }

    /// Sends entries; whether the stream is still there afterwards.
    async fn send(&mut self, server: &LogServer, entries: &[u8]) -> bool {
        let message = self.message(server, entries);
        self.introduced = true;
        self.up.send_data((&message).into());
        poll_fn(|cx| match self.poll_end(cx) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending => self.up.poll_flush(cx).map(|sent| sent.is_ok()),
        })
        .await
    }

    /// The message behind its frame's head. Its fields are written here, since the entries are already.
    fn message(&self, server: &LogServer, entries: &[u8]) -> Vec<u8> {
        let (identifier, list) = (1 << 3 | 2, if server.http { 2 << 3 | 2 } else { 3 << 3 | 2 });
        let mut out = Vec::with_capacity(entries.len() + server.identifier.len() + 32);
        out.extend_from_slice(&[0; 5]);
        let mut field = |tag: u8, value: &[u8]| {
            out.push(tag);
            // There is always room in a vector.
            let _ = prost::encode_length_delimiter(value.len(), &mut out);
            out.extend_from_slice(value);
        };
        if !self.introduced {
            field(identifier, &server.identifier);
        }
        field(list, entries);
        let length = u32::try_from(out.len() - 5).unwrap_or(u32::MAX);
        out[1..5].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Ready when the server has ended it; what it says is passed over.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.answered {
            match self.up.poll_head(cx, &mut self.response) {
                Poll::Ready(Ok(())) if self.response.status == 200 => self.answered = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        loop {
            match self.up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    self.up.consume(count);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Ends it in order, if the server lets us.
    async fn end(mut self) {
        self.up.send_end(None);
        let ended = poll_fn(|cx| {
            if let Poll::Ready(Err(_)) = self.up.poll_flush(cx) {
                return Poll::Ready(());
            }
            self.poll_end(cx)
        });
        let _ = tokio::time::timeout(END, ended).await;
    }
}

fn head(server: &LogServer) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(b"POST");
    head.set_path(PATH);
    head.set_authority(server.authority.as_bytes());
    head.body = BodyLength::Unknown;
    head.headers.push(b"te", b"trailers");
    head.headers.push(b"content-type", b"application/grpc");
    for (name, value) in &server.metadata {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}
