//! Logging: lines for people, or JSON for machines, to standard error.
//!
//! Standard error, because standard output belongs to what a process is for: the proxy's access log, a command's answer.

use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use tracing_subscriber::util::TryInitError;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Flags of every process.
#[derive(Args, Clone, Debug)]
pub struct LogFlags {
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module such as `info,leno_proxy=debug`.
    #[arg(long, env = "LENO_LOG", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
    /// How a line of the log looks.
    #[arg(long, env = "LENO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Default for LogFlags {
    fn default() -> Self {
        LogFlags { log_level: "info".to_owned(), log_format: LogFormat::Text }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "--log-level {filter:?} is not a filter: {source}; write a level, or MODULE=LEVEL pairs with commas between"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was not set up here, so that it cannot be changed.
    #[error("logging was not set up by this program")]
    NotSetUp,
    /// Logging was already set up in this process.
    #[error("logging is already set up: {0}")]
    Twice(#[from] TryInitError),
}

/// Libraries whose noise below warnings is left out, unless a filter names them. What rustls warns of, any client can cause as often as
/// it likes.
const QUIET: &str = "hyper=warn,hyper_util=warn,h2=warn,rustls=error,tower=warn,hickory_proto=warn,hickory_resolver=warn,kube=warn,hickory_net=error";

/// What is logged now, and how to change it.
struct Live {
    wanted: String,
    handle: reload::Handle<EnvFilter, Registry>,
}

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

fn filter(wanted: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(format!("{QUIET},{wanted}"))
        .map_err(|source| LogError::Filter { filter: wanted.to_owned(), source })
}

/// Sets up logging for the process. Noise of libraries below warnings is left out, unless the filter names them.
///
/// # Errors
///
/// [`LogError`], when the filter does not parse or this is the second call.
pub fn init(flags: &LogFlags) -> Result<(), LogError> {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let (filter, handle) = reload::Layer::new(filter(&flags.log_level)?);
    let base = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => base.with(lines.with_ansi(false)).try_init()?,
        LogFormat::Json => base.with(lines.json().flatten_event(true).with_current_span(true)).try_init()?,
    }
    let live = Live { wanted: flags.log_level.clone(), handle };
    *LIVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
    Ok(())
}

/// What is logged now, as `--log-level` has it; `None` before [`init`].
pub fn level() -> Option<String> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|live| live.wanted.clone())
}

/// Changes what is logged from now on.
///
/// # Errors
///
/// [`LogError`], when the filter does not parse, or logging was not set up by [`init`].
pub fn set_level(wanted: &str) -> Result<(), LogError> {
    let filter = filter(wanted)?;
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let live = live.as_mut().ok_or(LogError::NotSetUp)?;
    live.handle.reload(filter).map_err(|_| LogError::NotSetUp)?;
    wanted.clone_into(&mut live.wanted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_when_the_filter_is_wrong_then_names_the_flag() {
        let error = init(&LogFlags { log_level: "leno=loud".to_owned(), log_format: LogFormat::Text }).unwrap_err();
        assert!(error.to_string().contains("--log-level"), "{error}");
    }
}
