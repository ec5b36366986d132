//! What is logged about requests and connections, and where.

use crate::telemetry::{HeaderLookup, LogEntry, LogFilter, LogFormat, LogNeeds, LogSink, Shard};
use std::sync::Arc;

/// One log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// What is logged; `None` is everything.
    pub filter: Option<LogFilter>,
    /// How a line looks.
    pub format: Arc<LogFormat>,
    /// Where lines go.
    pub sink: Arc<LogSink>,
}

impl AccessLog {
    /// Everything in this format, to standard output.
    pub fn stdout(format: LogFormat) -> Self {
        Self { filter: None, format: Arc::new(format), sink: Arc::new(LogSink::Stdout) }
    }

    /// What these logs together need beyond what is known anyway.
    pub fn needs(logs: &[Self]) -> LogNeeds {
        let told = |log: &Self| log.filter.as_ref().is_some_and(LogFilter::needs_told);
        let of = |log: &Self| log.format.needs().with(LogNeeds { told: told(log), ..LogNeeds::default() });
        logs.iter().fold(LogNeeds::default(), |needs, log| needs.with(of(log)))
    }

    /// Writes what each of the logs wants to have of an entry; `random` draws a number.
    pub fn write<Q: HeaderLookup, S: HeaderLookup>(
        logs: &[Self],
        shard: &Shard,
        entry: &LogEntry<'_, Q, S>,
        random: &impl Fn() -> u64,
    ) {
        for log in logs {
            if log.filter.as_ref().is_none_or(|filter| filter.holds(entry, random)) {
                shard.log(&log.sink, &log.format, entry);
            }
        }
    }
}
