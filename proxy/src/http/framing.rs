//! What the headers of an HTTP/1 message say about the end of its body, and about that of its connection.

use super::{head::Version, headers::Known, parse::HeadError};

/// What the headers say about where the body ends.
#[derive(Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// Takes a header in. A length beside chunks is `passed_over` where that is allowed: it never decides.
    pub(super) fn see(&mut self, known: Known, value: &[u8], passed_over: bool) -> Result<(), HeadError> {
        let both = self.chunked || self.length.is_some() && known == Known::TransferEncoding;
        if self.length.is_some() && known == Known::ContentLength {
            return Err(HeadError::Length);
        }
        if both && (!passed_over || self.chunked && known == Known::TransferEncoding) {
            return Err(HeadError::Framing("two headers that frame the body"));
        }
        if known == Known::TransferEncoding {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Coding);
            }
            self.chunked = true;
            return Ok(());
        }
        // Digits only: no sign, no list, no blank; 18 of them, so that sums fit too.
        if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
            return Err(HeadError::Length);
        }
        self.length = Some(value.iter().fold(0, |sum, &b| sum * 10 + u64::from(b - b'0')));
        Ok(())
    }
}

/// What the `connection` header says.
#[derive(Default)]
pub(super) struct Connection {
    close: bool,
    keep: bool,
    pub(super) upgrade: bool,
    /// How many things it lists.
    pub(super) tokens: usize,
    /// It lists a pseudo header, or who the client is.
    pub(super) forbidden: bool,
    /// It lists the host.
    pub(super) host: bool,
}

impl Connection {
    pub(super) fn see(&mut self, value: &[u8]) {
        for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep |= token.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            self.tokens += usize::from(!token.is_empty());
            match Known::of(token) {
                Known::ForwardedFor | Known::ForwardedProto | Known::ForwardedHost => self.forbidden = true,
                Known::Host => self.host = true,
                Known::Other => self.forbidden |= token.first() == Some(&b':'),
                _ => {}
            }
        }
    }

    /// What old clients of proxies say instead: that they want to end the connection is believed, nothing else.
    pub(super) fn see_proxy(&mut self, value: &[u8]) {
        self.close |= value.split(|&b| b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"));
    }

    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep)
    }
}
