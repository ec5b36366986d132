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
}

/// What a span says, each by its name; what is said last counts.
pub(super) type Tags<'a> = Vec<(&'a str, Vec<u8>)>;

impl Span<'_> {
    /// Each tag once, as it was said last.
    pub(super) fn tags(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let said_again = |index: usize, name: &str| self.tags.iter().skip(index + 1).any(|(other, _)| *other == name);
        let all = self.tags.iter().enumerate();
        let all = all.filter(move |(index, (name, _))| !said_again(*index, name));
        all.map(|(_, (name, value))| (*name, value.as_slice()))
    }

    /// Whether it failed, as OpenTelemetry sees it: by the status of HTTP, or by that of gRPC where there is one. An answer that
    /// is the client's own fault is no failure of the server's span.
    pub(super) fn failed(&self) -> bool {
        let client = self.kind == Kind::Client;
        let number = |wanted: &str| {
            let value = self.tags().find(|(name, _)| *name == wanted)?.1;
            std::str::from_utf8(value).ok()?.parse::<u64>().ok()
        };
        let by_http = number("http.status_code").is_some_and(|code| code >= if client { 400 } else { 500 });
        let by_grpc = number("grpc.status_code")
            .is_some_and(|status| if client { status != 0 } else { matches!(status, 2 | 4 | 12..=15) });
        by_http || by_grpc
    }
}
