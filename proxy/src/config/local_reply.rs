//! How the answers that the proxy gives by itself are changed.

use super::{HeaderMatch, HeaderOp};
use crate::telemetry::{LogFormat, ResponseFlags};
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
    pub filter: ReplyFilter,
    /// The status instead.
    pub status: Option<u16>,
    /// The body instead.
    pub body: Option<Box<str>>,
    /// How the body is written.
    pub format: Option<BodyFormat>,
    /// Changes of the answer's headers.
    pub headers: Vec<HeaderOp>,
}

/// Which answers a mapper changes.
#[derive(Debug, Clone)]
pub enum ReplyFilter {
    /// By status.
    Status(Comparison, u16),
    /// Those with one of these flags; with any where it is empty.
    Flags(ResponseFlags),
    /// By a header of the request.
    Header(HeaderMatch),
    /// Those for which each holds.
    All(Vec<ReplyFilter>),
    /// Those for which one holds.
    Any(Vec<ReplyFilter>),
}

/// How a status is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Greater or equal.
    AtLeast,
    /// Less or equal.
    AtMost,
    /// Not equal.
    Unequal,
}

/// How a body is written.
#[derive(Debug, Clone)]
pub struct BodyFormat {
    /// The `content-type`.
    pub content_type: Arc<str>,
    /// The parts, one after the other.
    pub parts: Vec<BodyPart>,
}

/// A part of a body.
#[derive(Debug, Clone)]
pub enum BodyPart {
    /// As it stands here.
    Literal(Box<str>),
    /// The body as it was.
    Body {
        /// With what JSON needs escaped.
        json: bool,
    },
    /// What a log could tell.
    Format(Box<LogFormat>),
}
