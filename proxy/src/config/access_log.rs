//! What is logged about requests and connections, and where.

use super::{ClusterId, CustomTag};
use crate::logs;
use crate::telemetry::counters::Number;
use crate::telemetry::{HeaderLookup, LogEntry, LogFilter, LogFormat, LogNeeds, LogSink};
use crate::worker::Worker;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// One log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// What is logged; `None` is everything.
    pub filter: Option<LogFilter>,
    /// As what, and where.
    pub target: LogTarget,
}

/// As what something is logged, and where.
#[derive(Debug, Clone)]
pub enum LogTarget {
    /// As lines.
    Lines {
        /// How a line looks.
        format: Arc<LogFormat>,
        /// Where lines go.
        sink: Arc<LogSink>,
    },
    /// As messages of Envoy's access log service.
    Entries(Arc<EntryLog>),
}

/// What messages of Envoy's access log service hold, and where they go.
#[derive(Debug)]
pub struct EntryLog {
    /// Where they go.
    pub stream: Arc<LogStream>,
    /// Further values by name.
    pub tags: Vec<CustomTag>,
    /// Headers of requests that are told.
    pub request_headers: Vec<Box<str>>,
    /// Headers of responses that are told.
    pub response_headers: Vec<Box<str>>,
    /// Trailers of responses that are told.
    pub response_trailers: Vec<Box<str>>,
}

/// A stream of messages to a server of Envoy's access log service: one a worker. It ends when no configuration wants it any more.
/// Equal ones are the same object.
#[derive(Debug)]
pub struct LogStream(pub Arc<LogServer>);

/// What is counted of entries.
#[derive(Debug)]
pub struct LogCounts {
    /// Those of HTTP that were taken.
    pub written: Arc<Number>,
    /// Those that were lost, since too many waited.
    pub dropped: Arc<Number>,
    /// Those that were sent.
    pub flushed: Arc<Number>,
    /// Those that could not be sent.
    pub failed: Arc<Number>,
}

/// A server of Envoy's access log service, and how it is told.
#[derive(Debug)]
pub struct LogServer {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The authority by which it is called.
    pub authority: Box<str>,
    /// Further headers of the call.
    pub metadata: Vec<(Box<str>, Box<str>)>,
    /// Who tells, and under which name: the `Identifier` of each stream's first message, encoded.
    pub identifier: Vec<u8>,
    /// Whether entries are those of HTTP, otherwise of TCP.
    pub http: bool,
    /// How long an entry waits at most for others; default 1 s.
    pub interval: Duration,
    /// Bytes of entries that are sent at once, and that wait at most in each worker: what comes when so many wait is dropped and
    /// counted. Default 16 KiB. With 0 each entry is sent at once.
    pub buffer: usize,
    /// Between attempts to reach the server: the first wait, and the longest.
    pub backoff: (Duration, Duration),
    /// How long an attempt may take; default 10 s.
    pub timeout: Duration,
    /// What is counted of all streams together.
    pub counts: LogCounts,
}

impl LogServer {
    /// Whether both tell the same to the same server in the same way. What is counted is the same for all.
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { cluster, authority, metadata, identifier, http, interval, buffer, backoff, timeout, counts: _ } =
            self;
        *cluster == other.cluster
            && (authority, metadata, identifier) == (&other.authority, &other.metadata, &other.identifier)
            && *http == other.http
            && (*interval, *buffer, *backoff, *timeout) == (other.interval, other.buffer, other.backoff, other.timeout)
    }
}

impl AccessLog {
    /// Everything in this format, to standard output.
    pub fn stdout(format: LogFormat) -> Self {
        Self { filter: None, target: LogTarget::Lines { format: Arc::new(format), sink: Arc::new(LogSink::Stdout) } }
    }

    /// What these logs together need beyond what is known anyway.
    pub fn needs(logs: &[Self]) -> LogNeeds {
        let of = |log: &Self| {
            let dynamic = log.filter.as_ref().is_some_and(LogFilter::needs_dynamic);
            let needs = match &log.target {
                LogTarget::Lines { format, .. } => format.needs(),
                LogTarget::Entries(_) => LogNeeds { dynamic: true, observed: true },
            };
            needs.with(LogNeeds { dynamic, ..LogNeeds::default() })
        };
        logs.iter().fold(LogNeeds::default(), |needs, log| needs.with(of(log)))
    }

    /// Writes what each of the logs wants to have of an entry.
    pub fn write<Q: HeaderLookup, S: HeaderLookup>(logs: &[Self], worker: &Rc<Worker>, entry: &LogEntry<'_, Q, S>) {
        for log in logs {
            if log.filter.as_ref().is_none_or(|filter| filter.holds(entry, &|| worker.rng.next())) {
                match &log.target {
                    LogTarget::Lines { format, sink } => worker.shard.log(sink, format, entry),
                    LogTarget::Entries(wanted) => logs::add(worker, wanted, entry),
                }
            }
        }
    }
}
