//! A span that has ended, whatever the form in which it is sent.

/// Whose side a span shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Client,
}

/// A span that has ended.
pub(super) struct Span<'a> {
    pub(super) trace: u128,
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    /// The parent is another process's.
    pub(super) remote: bool,
    pub(super) state: &'a [u8],
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) tags: &'a [(&'a str, Vec<u8>)],
    pub(super) failed: bool,
}
