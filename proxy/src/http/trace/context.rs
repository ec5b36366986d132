//! What a request says about the trace to which it belongs, and what its endpoint is told: W3C Trace Context, level 1.

use std::fmt::Write as _;

/// Where a span belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) sampled: bool,
}

impl Context {
    /// Reads a `traceparent`; `None` when it is malformed.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() == 55)?;
        let mut parts = text.split('-');
        let mut number = |digits: usize| -> Option<u128> {
            let part = parts.next().filter(|part| part.len() == digits)?;
            // A sign is no digit.
            part.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u128::from_str_radix(part, 16).ok())?
        };
        let (_version, trace, span, flags) = (number(2)?, number(32)?, number(16)?, number(2)?);
        (trace != 0 && span != 0 && parts.next().is_none()).then_some(Self {
            trace,
            span: span as u64,
            sampled: flags & 1 == 1,
        })
    }

    /// As a `traceparent`.
    pub(super) fn to_header(self) -> String {
        let mut text = String::with_capacity(55);
        let _ = write!(text, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_when_read_then_it_is_written_the_same() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = Context::parse(text.as_bytes()).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_header(), text);
    }

    #[test]
    fn traceparent_when_malformed_then_it_is_none() {
        for text in [
            "",
            "xx",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "000af7651916cd43dd8448eb211c80319c--b7ad6b7169203331-01",
        ] {
            assert_eq!(Context::parse(text.as_bytes()), None, "{text}");
        }
    }
}
