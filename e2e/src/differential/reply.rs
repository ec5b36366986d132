//! What a recording back end shall answer: written in a case, carried to it in a request header.

use serde::{Deserialize, Serialize};

/// The request header that carries the replies, one an attempt; the last holds for all further attempts.
pub const REPLY: &str = "x-reply";
/// The request header that tells requests apart; back ends count attempts by it, and access logs name it.
pub const ID: &str = "x-test-id";

/// One answer of a back end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reply {
    /// The status; 200 where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Headers, `name: value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// The body; where neither this nor `size` is said, the back end tells its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// A body of so many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// HTTP/1: chunked, and not with a length.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chunked: bool,
    /// HTTP/1: neither length nor chunks; the body ends with the connection.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub until_close: bool,
    /// Trailers, `name: value`; HTTP/1 sends them only where it is chunked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<String>,
    /// Milliseconds before the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<u64>,
    /// Milliseconds between head and body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_delay: Option<u64>,
    /// Milliseconds between the interim statuses and the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interim_delay: Option<u64>,
    /// Interim statuses before the head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interim: Vec<u16>,
    /// Does not answer well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail: Option<Fail>,
    /// HTTP/1: closes the connection afterwards without having said so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub close: bool,
    /// HTTP/1: these very bytes instead of anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
    /// Answers without having read the body.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
}

/// Ways not to answer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fail {
    /// Ends the connection (HTTP/2: the stream) with a reset before anything was answered.
    Reset,
    /// Closes the connection before anything was answered.
    Close,
    /// HTTP/2: refuses the stream.
    Refuse,
    /// HTTP/2: resets the stream for a breach of the protocol.
    Breach,
    /// Ends after the head and half of the body.
    Half,
    /// Never answers (for at most ten seconds).
    Hang,
}

impl Reply {
    /// The reply for the attempt of this number (from 0).
    pub fn of(replies: &str, attempt: usize) -> Reply {
        let mut all: Vec<Reply> = serde_json::from_str(replies).unwrap_or_default();
        match all.len() {
            0 => Reply::default(),
            count => all.swap_remove(attempt.min(count - 1)),
        }
    }

    /// The body, where `name` is that of the back end.
    pub fn content(&self, name: &str) -> Vec<u8> {
        match (&self.body, self.size) {
            (Some(body), _) => body.clone().into_bytes(),
            (None, Some(size)) => vec![b'x'; size],
            (None, None) => format!("hello from {name}\n").into_bytes(),
        }
    }
}

/// Splits `name: value`.
pub fn header(line: &str) -> (&str, &str) {
    line.split_once(':').map_or((line, ""), |(name, value)| (name, value.strip_prefix(' ').unwrap_or(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_when_there_are_more_attempts_than_replies_then_the_last_is_repeated() {
        let text = r#"[{"status":503},{"status":201}]"#;
        assert_eq!(Reply::of(text, 0).status, Some(503));
        assert_eq!(Reply::of(text, 7).status, Some(201));
        assert_eq!(Reply::of("", 0).status, None);
    }

    #[test]
    fn header_when_the_value_has_colons_then_only_the_first_divides() {
        assert_eq!(header("a: b:c"), ("a", "b:c"));
    }
}
