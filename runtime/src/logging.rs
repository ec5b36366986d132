//! Logging: lines for people, or JSON for machines, to standard error.
//!
//! Standard error, because standard output belongs to what a process is for: the proxy's access log, a command's answer.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

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
    /// Logging was already set up in this process.
    #[error("logging is already set up: {0}")]
    Twice(#[from] TryInitError),
}

/// Sets up logging for the process. Noise of libraries below warnings is left out, unless the filter names them.
///
/// # Errors
///
/// [`LogError`], when the filter does not parse or this is the second call.
pub fn init(flags: &LogFlags) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let quiet = "hyper=warn,hyper_util=warn,h2=warn,rustls=warn,tower=warn,hickory_proto=warn,hickory_resolver=warn,kube=warn,hickory_net=error";
    let wanted = format!("{quiet},{}", flags.log_level);
    let filter =
        EnvFilter::try_new(wanted).map_err(|source| LogError::Filter { filter: flags.log_level.clone(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init()?,
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).finish().try_init()?,
    }
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
