//! One worker's share of the metrics: finds the series of a request by a few integers and adds to it.
//!
//! Two look-ups stand behind one request. The first is keyed by the addresses of the shared label objects (each entry
//! keeps its objects alive, so an address cannot come to mean something else) and answers nearly always. The second is
//! keyed by the rendered label text and makes equal labels share a series although config changes made new objects.
//! Both are bounded: [`MAX_CACHED`] and [`MAX_SERIES`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::histogram::{Counter, Histogram};
use super::labels::{self, ConnectionSecurity, Reporter, RequestProtocol, ServiceLabels, Tail, WorkloadLabels};
use super::logbuffer::LogBuffer;
use super::stats::{HttpStats, ListenerHttpStats, ListenerStats, PublishedCluster};
use super::tally::{Meaning, Tally};
use super::{HeaderLookup, LogEntry, LogFormat, LogSink, ResponseFlags};

/// Most series (label sets) a worker keeps; what would be more is counted in one series a reporter whose labels say
/// `overflow`, and in `leno_proxy_metric_overflow_total`. About 1.5 KiB each, so 3 MiB at most.
pub const MAX_SERIES: usize = 2048;

/// Most entries of the look-up by address; when it is full it is emptied and fills again (old config's objects go).
pub const MAX_CACHED: usize = 8192;

/// A label set of which nothing was counted for so long is no longer told; when it counts again, it begins at zero. Clusters and
/// endpoints go with their configuration; managers and listeners stay, as many as [`MAX_NAMES`].
pub const EXPIRY: Duration = Duration::from_secs(1800);
/// Connection managers, or listeners, that are counted apart; further ones are counted as `overflow`.
pub const MAX_NAMES: usize = 1024;

/// Everything that a finished request tells.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// Which side this proxy is.
    pub reporter: Reporter,
    /// Who called.
    pub source: &'a Arc<WorkloadLabels>,
    /// Who answered (unknown when no endpoint was chosen).
    pub destination: &'a Arc<WorkloadLabels>,
    /// The service that was called.
    pub service: &'a Arc<ServiceLabels>,
    /// HTTP or gRPC.
    pub protocol: RequestProtocol,
    /// Status code; 0 when the downstream left before there was one.
    pub response_code: u16,
    /// For gRPC the status, if one was seen.
    pub grpc_status: Option<u16>,
    /// Why the response is what it is.
    pub flags: ResponseFlags,
    /// Protection of the call, `Unknown` for a source.
    pub security: ConnectionSecurity,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// Head and body received.
    pub request_bytes: u64,
    /// Head and body sent.
    pub response_bytes: u64,
}

/// Everything that names a TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct TcpRecord<'a> {
    /// Which side this proxy is.
    pub reporter: Reporter,
    /// Who connected.
    pub source: &'a Arc<WorkloadLabels>,
    /// To whom.
    pub destination: &'a Arc<WorkloadLabels>,
    /// The service that was called.
    pub service: &'a Arc<ServiceLabels>,
    /// Protection of the connection, `Unknown` for a source.
    pub security: ConnectionSecurity,
}

#[derive(Debug, Default)]
pub(super) struct HttpValues {
    pub(super) requests: Counter,
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

#[derive(Debug, Default)]
pub(super) struct TcpValues {
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    pub(super) sent: Counter,
    pub(super) received: Counter,
}

/// The numbers of one label set, written by one worker.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: String,
    pub(super) values: Values,
}

#[derive(Debug)]
pub(super) enum Values {
    Http(Meaning, Box<HttpValues>),
    Tcp(TcpValues),
}

/// What a worker and the control thread share. The lock is taken when a label set is new and when somebody scrapes.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) series: Mutex<Vec<Arc<Series>>>,
    /// What was counted of label sets that are no longer told.
    pub(super) forgotten: Mutex<Tally>,
    pub(super) overflow: Counter,
    pub(super) dropped_log_lines: Counter,
    pub(super) sent_spans: Counter,
    pub(super) dropped_spans: Counter,
    /// Clusters of the configuration that the worker has taken up last.
    pub(super) clusters: Mutex<Vec<Arc<PublishedCluster>>>,
    pub(super) named: Mutex<Named>,
}

/// Numbers by name: at most [`MAX_NAMES`] of each kind.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) http: HashMap<Arc<str>, Arc<HttpStats>>,
    pub(super) listeners: HashMap<Arc<str>, Arc<ListenerStats>>,
    /// Of managers, by listener and prefix.
    pub(super) listener_http: HashMap<(Arc<str>, Arc<str>), Arc<ListenerHttpStats>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: usize,
    destination: usize,
    service: usize,
    flags: ResponseFlags,
    code: u16,
    /// `u16::MAX` for none.
    grpc: u16,
    reporter: Reporter,
    protocol: RequestProtocol,
    security: ConnectionSecurity,
}

struct Cached {
    series: Arc<Series>,
    _keep: (Arc<WorkloadLabels>, Arc<WorkloadLabels>, Arc<ServiceLabels>),
}

/// A small multiplicative hash: keys are addresses and codes of our own making, nobody outside chooses them.
#[derive(Default)]
pub(super) struct IntegerHasher(u64);

impl Hasher for IntegerHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}

/// A series with when it last changed.
struct Kept {
    series: Arc<Series>,
    seen: u64,
    since: Instant,
}

impl Series {
    /// A number that changes whenever something is counted.
    fn total(&self) -> u64 {
        match &self.values {
            Values::Http(_, values) => values.requests.get(),
            Values::Tcp(values) => {
                let sums = [&values.opened, &values.closed, &values.sent, &values.received];
                sums.into_iter().map(Counter::get).fold(0, u64::wrapping_add)
            }
        }
    }
}

#[derive(Default)]
struct Index {
    by_address: HashMap<Key, Cached, BuildHasherDefault<IntegerHasher>>,
    by_text: HashMap<String, Kept>,
    /// By reporter, and for HTTP by whether the requests failed: those have the same labels.
    overflow: HashMap<(Reporter, Option<Meaning>), Arc<Series>>,
}

/// A worker's metrics and log buffer. It can be sent to its worker once and stays there (it is not `Sync`).
pub struct Shard {
    published: Arc<Published>,
    index: RefCell<Index>,
    logs: LogBuffer,
}

impl Shard {
    pub(super) fn new(published: Arc<Published>, logs: LogBuffer) -> Self {
        Self { published, index: RefCell::default(), logs }
    }

    /// Counts a finished request.
    pub fn record_request(&self, record: &RequestRecord<'_>) {
        // What is beyond gRPC's codes is UNKNOWN, as clients read it; otherwise a peer could make series at will.
        let grpc_status = record.grpc_status.map(|status| if status <= 16 { status } else { 2 });
        let key = Key {
            source: Arc::as_ptr(record.source) as usize,
            destination: Arc::as_ptr(record.destination) as usize,
            service: Arc::as_ptr(record.service) as usize,
            flags: record.flags,
            code: record.response_code,
            grpc: grpc_status.unwrap_or(u16::MAX),
            reporter: record.reporter,
            protocol: record.protocol,
            security: record.security,
        };
        let tail = Tail {
            protocol: record.protocol,
            http: Some((record.response_code, grpc_status)),
            flags: record.flags,
            security: record.security,
        };
        let add = |series: &Series| {
            if let Values::Http(_, values) = &series.values {
                values.requests.add(1);
                values.duration.record_thousandths(u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX));
                values.request_bytes.record(record.request_bytes);
                values.response_bytes.record(record.response_bytes);
            }
        };
        self.with_series(key, record.source, record.destination, record.service, &tail, add);
    }

    /// Counts an opened TCP connection and returns what counts the rest of its life.
    pub fn tcp_connection(self: &Rc<Self>, record: &TcpRecord<'_>) -> TcpRecorder {
        let recorder = TcpRecorder {
            shard: self.clone(),
            reporter: record.reporter,
            source: record.source.clone(),
            destination: record.destination.clone(),
            service: record.service.clone(),
            security: record.security,
            flags: ResponseFlags::none(),
        };
        recorder.add(ResponseFlags::none(), |values| values.opened.add(1));
        recorder
    }

    /// Formats an access log line into the worker's buffer. When the writer does not keep up, the line is dropped and
    /// counted (`leno_proxy_access_log_dropped_lines_total`).
    pub fn log<Q: HeaderLookup, S: HeaderLookup>(
        &self,
        sink: &Arc<LogSink>,
        format: &LogFormat,
        entry: &LogEntry<'_, Q, S>,
    ) {
        let dropped = self.logs.line(sink, |out| format.write(entry, out));
        if dropped > 0 {
            self.published.dropped_log_lines.add(dropped);
        }
    }

    /// Counts spans that were sent, and that were lost.
    pub fn spans(&self, sent: u64, dropped: u64) {
        self.published.sent_spans.add(sent);
        self.published.dropped_spans.add(dropped);
    }

    /// Takes the clusters of a configuration for those that are told.
    pub fn publish_clusters(&self, clusters: Vec<Arc<PublishedCluster>>) {
        *self.published.clusters.lock().unwrap_or_else(PoisonError::into_inner) = clusters;
    }

    /// The numbers of the connection managers with this prefix.
    pub fn http_stats(&self, prefix: &Arc<str>) -> Arc<HttpStats> {
        let mut named = self.published.named.lock().unwrap_or_else(PoisonError::into_inner);
        named_entry(&mut named.http, prefix)
    }

    /// The numbers of the connection managers with this prefix for clients of the listener of this name.
    pub fn listener_http_stats(&self, listener: &Arc<str>, prefix: &Arc<str>) -> Arc<ListenerHttpStats> {
        let mut named = self.published.named.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (listener.clone(), prefix.clone());
        let full = named.listener_http.len() >= MAX_NAMES && !named.listener_http.contains_key(&key);
        let key = if full { (OVER.into(), OVER.into()) } else { key };
        named.listener_http.entry(key).or_default().clone()
    }

    /// The numbers of the listener of this name.
    pub fn listener_stats(&self, name: &Arc<str>) -> Arc<ListenerStats> {
        let mut named = self.published.named.lock().unwrap_or_else(PoisonError::into_inner);
        named_entry(&mut named.listeners, name)
    }

    /// Forgets label sets of which nothing was counted for [`EXPIRY`], so that those who are gone are not told for ever.
    pub fn expire(&self, now: Instant) {
        let mut index = self.index.borrow_mut();
        let mut gone = Vec::new();
        index.by_text.retain(|_, kept| {
            let total = kept.series.total();
            if total != kept.seen {
                (kept.seen, kept.since) = (total, now);
            }
            let stays = now.saturating_duration_since(kept.since) < EXPIRY;
            if !stays {
                gone.push(kept.series.clone());
            }
            stays
        });
        if gone.is_empty() {
            return;
        }
        index.by_address.clear();
        let kept: Vec<Arc<Series>> = index.by_text.values().map(|kept| kept.series.clone()).collect();
        let overflow = index.overflow.values().cloned();
        let all: Vec<Arc<Series>> = kept.into_iter().chain(overflow).collect();
        *self.published.series.lock().unwrap_or_else(PoisonError::into_inner) = all;
        let mut forgotten = self.published.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        for series in gone {
            if let Values::Http(meaning, values) = &series.values {
                forgotten.add(*meaning, values);
            }
        }
    }

    /// Passes gathered log lines on, at latest [`super::logbuffer::FLUSH_DELAY`] after the first; runs as one task of
    /// the worker until the worker ends.
    pub async fn flush_logs(self: Rc<Self>) {
        loop {
            self.logs.wait().await;
            self.flush_logs_now();
        }
    }

    /// Passes gathered log lines on at once (when draining).
    pub fn flush_logs_now(&self) {
        let dropped = self.logs.flush();
        if dropped > 0 {
            self.published.dropped_log_lines.add(dropped);
        }
    }

    fn with_series(
        &self,
        key: Key,
        source: &Arc<WorkloadLabels>,
        destination: &Arc<WorkloadLabels>,
        service: &Arc<ServiceLabels>,
        tail: &Tail,
        add: impl FnOnce(&Series),
    ) {
        let mut index = self.index.borrow_mut();
        if let Some(cached) = index.by_address.get(&key) {
            add(&cached.series);
            return;
        }
        let text = labels::label_text(key.reporter, source, destination, service, tail);
        let meaning = tail.http.map(|(status, grpc)| Meaning::new(key.reporter, status, grpc, tail.flags));
        let series = match index.by_text.get(&text) {
            Some(kept) => kept.series.clone(),
            None if index.by_text.len() < MAX_SERIES => {
                let series = self.publish(text.clone(), meaning);
                index.by_text.insert(text, Kept { series: series.clone(), seen: 0, since: Instant::now() });
                series
            }
            None => {
                self.published.overflow.add(1);
                let http = tail.http.is_some();
                let series = index.overflow.entry((key.reporter, meaning)).or_insert_with(|| {
                    let over = WorkloadLabels::new(OVER, OVER, OVER, OVER, OVER, OVER);
                    let service = ServiceLabels::new(OVER, OVER, OVER);
                    let tail = Tail { http: http.then_some((0, None)), flags: ResponseFlags::none(), ..*tail };
                    self.publish(labels::label_text(key.reporter, &over, &over, &service, &tail), meaning)
                });
                // Not cached: each such request must count in the overflow counter too.
                add(series);
                return;
            }
        };
        add(&series);
        if index.by_address.len() >= MAX_CACHED {
            index.by_address.clear();
        }
        let keep = (source.clone(), destination.clone(), service.clone());
        index.by_address.insert(key, Cached { series, _keep: keep });
    }

    fn publish(&self, labels: String, http: Option<Meaning>) -> Arc<Series> {
        let values = match http {
            Some(meaning) => Values::Http(meaning, Box::default()),
            None => Values::Tcp(TcpValues::default()),
        };
        let series = Arc::new(Series { labels, values });
        self.published.series.lock().unwrap_or_else(PoisonError::into_inner).push(series.clone());
        series
    }
}

const OVER: &str = "overflow";

fn named_entry<T: Default>(all: &mut HashMap<Arc<str>, Arc<T>>, name: &Arc<str>) -> Arc<T> {
    if let Some(known) = all.get(name) {
        return known.clone();
    }
    let name = if all.len() < MAX_NAMES { name.clone() } else { OVER.into() };
    all.entry(name).or_default().clone()
}

/// Counts one TCP connection; dropping it counts the connection as closed.
pub struct TcpRecorder {
    shard: Rc<Shard>,
    reporter: Reporter,
    source: Arc<WorkloadLabels>,
    destination: Arc<WorkloadLabels>,
    service: Arc<ServiceLabels>,
    security: ConnectionSecurity,
    flags: ResponseFlags,
}

impl TcpRecorder {
    /// Adds bytes that came from the downstream. Call it now and then (every few seconds and at the end), not a read.
    pub fn received(&self, bytes: u64) {
        self.add(ResponseFlags::none(), |values| values.received.add(bytes));
    }

    /// Adds bytes that went to the downstream.
    pub fn sent(&self, bytes: u64) {
        self.add(ResponseFlags::none(), |values| values.sent.add(bytes));
    }

    /// Why the connection ended; stands in the labels of the closed counter.
    pub fn set_flags(&mut self, flags: ResponseFlags) {
        self.flags |= flags;
    }

    fn add(&self, flags: ResponseFlags, add: impl FnOnce(&TcpValues)) {
        let key = Key {
            source: Arc::as_ptr(&self.source) as usize,
            destination: Arc::as_ptr(&self.destination) as usize,
            service: Arc::as_ptr(&self.service) as usize,
            flags,
            code: 0,
            grpc: u16::MAX,
            reporter: self.reporter,
            protocol: RequestProtocol::Tcp,
            security: self.security,
        };
        let tail = Tail { protocol: RequestProtocol::Tcp, http: None, flags, security: self.security };
        self.shard.with_series(key, &self.source, &self.destination, &self.service, &tail, |series| {
            if let Values::Tcp(values) = &series.values {
                add(values);
            }
        });
    }
}

impl Drop for TcpRecorder {
    fn drop(&mut self) {
        self.add(self.flags, |values| values.closed.add(1));
    }
}
