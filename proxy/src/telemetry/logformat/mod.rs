//! Access log lines: Envoy's command operators, compiled once, written without allocation.
//!
//! Every value that a peer chooses is escaped, so that a request cannot forge a line: control characters, quotes,
//! backslashes and whatever is not ASCII become `\xNN`.

mod addresses;
mod certificate;
mod json;
mod metadata;
mod moments;
mod observed;
mod operator;
mod queries;
#[cfg(test)]
mod tests;
mod times;
mod value;

use super::{HeaderLookup, LogEntry};
use json::JsonFormat;
pub use metadata::Of as MetadataOf;
pub(crate) use metadata::json_of;
use operator::Operator;
use prost_types::Struct;
use value::{Given, give_text};
pub(crate) use value::{request_bytes, response_bytes};

/// Longest value in a line, header or body, in bytes before escaping; what is longer is cut. Nothing of a head is, as long as heads
/// are as long as they may be by default.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Envoy's default text format.
pub const ENVOY: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

/// Istio's default text format.
pub const ISTIO: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% ",
    "%ROUTE_NAME%\n",
);

/// Why a format does not compile.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// An operator that this proxy does not know.
    #[error("access log format: operator %{0}% is not known; see the list of supported operators in the documentation")]
    UnknownOperator(String),
    /// A `%` without its partner.
    #[error("access log format: the operator that begins at byte {0} has no closing %; write %% for a per cent sign")]
    Unclosed(usize),
    /// An operator whose argument cannot be read.
    #[error("access log format: operator %{0}% has a malformed argument; it reads NAME(HEADER?OTHER):LENGTH")]
    Argument(String),
    /// Objects and lists are too deep.
    #[error("access log format: objects and lists are nested deeper than {0}")]
    Depth(usize),
}

/// What lines need that is only found out, or kept, where one asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogNeeds {
    /// What filters find out about a request.
    pub dynamic: bool,
    /// What is [`Observed`](super::Observed) of it.
    pub observed: bool,
}

impl LogNeeds {
    /// What both need together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { dynamic: self.dynamic || other.dynamic, observed: self.observed || other.observed }
    }
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Text; what is not known is `-`, or nothing.
    Text {
        operators: Vec<Operator>,
        omit: bool,
    },
    Json(JsonFormat),
}

impl LogFormat {
    /// Envoy's default text format ([`ENVOY`]).
    pub fn envoy() -> Self {
        Self::compile(ENVOY).unwrap_or_else(|_| Self(Form::Text { operators: Vec::new(), omit: false }))
    }

    /// Istio's default text format ([`ISTIO`]).
    pub fn istio() -> Self {
        Self::compile(ISTIO).unwrap_or_else(|_| Self(Form::Text { operators: Vec::new(), omit: false }))
    }

    /// Compiles a text format of Envoy's.
    ///
    /// # Errors
    /// Names the operator that is not known or not well-formed.
    pub fn compile(text: &str) -> Result<Self, FormatError> {
        Self::text(text, false)
    }

    /// As [`Self::compile`]; with `omit` what is not known is nothing instead of `-`.
    ///
    /// # Errors
    /// Names the operator that is not known or not well-formed.
    pub fn text(text: &str, omit: bool) -> Result<Self, FormatError> {
        Ok(Self(Form::Text { operators: pieces(text)?, omit }))
    }

    /// A value of metadata alone; what is not known is nothing.
    pub fn metadata(of: MetadataOf, filter: Box<str>, path: Vec<Box<str>>) -> Self {
        Self(Form::Text { operators: vec![Operator::Metadata(of, filter, path, MAX_VALUE_BYTES)], omit: true })
    }

    /// Compiles a format of JSON: a line is one object. With `omit` what is not known is left out instead of `null`.
    ///
    /// # Errors
    /// Names the operator that is not known or not well-formed.
    pub fn json(value: &Struct, omit: bool) -> Result<Self, FormatError> {
        Ok(Self(Form::Json(JsonFormat::compile(value, omit)?)))
    }

    /// What a line needs beyond what is known anyway.
    pub fn needs(&self) -> LogNeeds {
        let mut needs = LogNeeds::default();
        self.operators().into_iter().for_each(|operator| operator.add_needs(&mut needs));
        needs
    }

    fn operators(&self) -> Vec<&Operator> {
        match &self.0 {
            Form::Text { operators, .. } => operators.iter().collect(),
            Form::Json(format) => format.operators(),
        }
    }

    /// Whether its operators are there without an extension.
    pub fn is_built_in(&self) -> bool {
        self.operators().into_iter().all(Operator::is_built_in)
    }

    /// Whether lines are JSON.
    pub fn is_json(&self) -> bool {
        matches!(self.0, Form::Json(_))
    }

    /// Appends the value of a header: what is not known is empty, and nothing is escaped. Bytes that no header may have are left
    /// out.
    pub fn write_header<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        let from = out.len();
        self.write_plain(entry, true, out);
        let mut end = from;
        for at in from..out.len() {
            if out[at] == b'\t' || out[at] >= b' ' && out[at] != 0x7f {
                out[end] = out[at];
                end += 1;
            }
        }
        out.truncate(end);
    }

    /// Appends the body of an answer: nothing is escaped but what JSON needs escaped. JSON ends with a line break.
    pub fn write_body<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        let omit = matches!(self.0, Form::Text { omit: true, .. });
        self.write_plain(entry, omit, out);
    }

    fn write_plain<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, omit: bool, out: &mut Vec<u8>) {
        match &self.0 {
            Form::Text { operators, .. } => {
                for operator in operators {
                    if give_text(operator, entry, out) == Given::Nothing && !omit {
                        out.push(b'-');
                    }
                }
            }
            Form::Json(_) => self.write(entry, out),
        }
    }

    /// Appends one line (a text format brings its own line end).
    pub fn write<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        match &self.0 {
            Form::Text { operators, omit } => {
                for operator in operators {
                    let from = out.len();
                    match give_text(operator, entry, out) {
                        Given::Nothing if !omit => out.push(b'-'),
                        Given::Foreign => escape(out, from),
                        Given::Nothing | Given::Own | Given::Number(_) | Given::Json => {}
                    }
                }
            }
            Form::Json(format) => {
                format.write(entry, out);
                out.push(b'\n');
            }
        }
    }
}

/// Splits a text into operators and what stands between them.
fn pieces(text: &str) -> Result<Vec<Operator>, FormatError> {
    let (mut operators, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let unclosed = FormatError::Unclosed(text.len() - after.len() - 1);
        let (written, after) = operator::split(after).ok_or(unclosed)??;
        let operator = operator::operator(&written)?;
        if !literal.is_empty() {
            operators.push(Operator::Literal(std::mem::take(&mut literal).into()));
        }
        operators.push(operator);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        operators.push(Operator::Literal(literal.into()));
    }
    Ok(operators)
}

struct Sink<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Escapes what was appended since `from`, if it needs that.
fn escape(out: &mut Vec<u8>, from: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
    if out[from..].iter().all(plain) {
        return;
    }
    for byte in out.split_off(from) {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x20..=0x7e => out.push(byte),
            _ => out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

/// This machine's name, asked for once.
fn hostname() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default())
}
