//! Changes of headers.

use crate::telemetry::LogFormat;
use std::sync::Arc;

/// Changes of headers, in order.
#[derive(Debug, Default)]
pub struct HeaderOps {
    /// On the request.
    pub request: Vec<HeaderOp>,
    /// On the response.
    pub response: Vec<HeaderOp>,
}

impl HeaderOps {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// The value that a change gives to a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderText {
    /// Always this.
    Literal(Box<str>),
    /// Made for each request from Envoy's command operators; what is not known is empty.
    Format {
        /// The compiled operators.
        format: Arc<LogFormat>,
        /// The change is made although the value is empty.
        keep_empty: bool,
    },
}

impl From<&str> for HeaderText {
    fn from(text: &str) -> Self {
        Self::Literal(text.into())
    }
}

/// One change of a header. Names are lower case; names and literal values were checked to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Replaces all values, or adds the header.
    Set(Box<str>, HeaderText),
    /// Adds a value beside those there.
    Append(Box<str>, HeaderText),
    /// Adds the header if it is not there.
    AddIfAbsent(Box<str>, HeaderText),
    /// Replaces all values if it is there.
    SetIfPresent(Box<str>, HeaderText),
    /// Removes it.
    Remove(Box<str>),
}
