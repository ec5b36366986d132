//! Envoy's log stream: takes entries in and hands them to whoever counts.

use crate::telemetry::Reporter;
use leno_xds::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use leno_xds::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use leno_xds::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct Log {
    entries: mpsc::Sender<(Reporter, LogEntries)>,
}

impl Log {
    /// Hands on what comes; while the other end does not keep up, Envoy waits (and drops entries when its buffer is full).
    pub fn new(entries: mpsc::Sender<(Reporter, LogEntries)>) -> Self {
        Self { entries }
    }
}

#[tonic::async_trait]
impl AccessLogService for Log {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        let mut reporter = None;
        while let Some(message) = messages.message().await? {
            let StreamAccessLogsMessage { identifier, log_entries } = message;
            // The first message of a stream says which log it is.
            if let Some(identifier) = identifier {
                reporter = match identifier.log_name.as_str() {
                    "inbound" => Some(Reporter::Destination),
                    "outbound" => Some(Reporter::Source),
                    other => return Err(Status::invalid_argument(format!("nobody reads the log {other:?}"))),
                };
            }
            if let (Some(reporter), Some(entries)) = (reporter, log_entries)
                && self.entries.send((reporter, entries)).await.is_err()
            {
                return Err(Status::unavailable("the agent is leaving"));
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
