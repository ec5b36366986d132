//! How often resources were refused since the process began.

/// Longest reason that is told, in bytes.
pub(crate) const MAX_REASON: usize = 1024;

/// Resources refused so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejections {
    /// How many.
    pub count: u64,
    /// The last one, with its reason.
    pub last: String,
}

impl Rejections {
    /// Adds one.
    pub fn add(&mut self, what: &str) {
        self.count += 1;
        self.last = cut(what, MAX_REASON).to_owned();
    }
}

/// At most so many bytes of a text.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_when_they_are_long_are_cut_between_characters() {
        let mut rejections = Rejections::default();
        rejections.add(&"\u{fc}".repeat(MAX_REASON));
        assert_eq!((rejections.count, rejections.last.len()), (1, MAX_REASON));
        assert_eq!(cut("a\u{fc}", 2), "a");
    }
}
