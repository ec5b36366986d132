//! How the answers that the proxy gives by itself are changed.

use super::HeaderOp;
use crate::telemetry::{LogFilter, LogFormat};
use std::sync::Arc;

/// The settings of [`super::HttpManager::local_replies`].
#[derive(Debug, Clone, Default)]
pub struct LocalReplies {
    /// The first that matches changes the answer.
    pub mappers: Vec<Mapper>,
    /// How the body is written, where the mapper does not say.
    pub body: Option<BodyFormat>,
}

/// Changes the answers that it matches.
#[derive(Debug, Clone)]
pub struct Mapper {
    /// Which answers.
    pub filter: LogFilter,
    /// The status instead.
    pub status: Option<u16>,
    /// The body instead.
    pub body: Option<Box<str>>,
    /// How the body is written.
    pub format: Option<BodyFormat>,
    /// Changes of the answer's headers.
    pub headers: Vec<HeaderOp>,
}

/// How a body is written.
#[derive(Debug, Clone)]
pub struct BodyFormat {
    /// The `content-type`.
    pub content_type: Arc<str>,
    /// What stands in it.
    pub format: Arc<LogFormat>,
}
