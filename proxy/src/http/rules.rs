//! What of a request's head is refused whatever else it says.

/// What of a request's head is refused before anything of it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestRules {
    /// HTTP/1.0 is taken.
    pub http_10: bool,
    /// Methods that nobody has registered are taken.
    pub any_method: bool,
    /// Names of headers may have underscores.
    pub underscores: bool,
    /// A target that is a whole URL names host and path; else it is taken for a path, to which hardly a route leads.
    pub urls: bool,
    /// Such a URL may be of https.
    pub secure_urls: bool,
    /// A length beside chunks is dropped; else such a request is refused.
    pub chunked_length: bool,
}

impl Default for RequestRules {
    /// All of it is taken, but for what can be read in two ways.
    fn default() -> Self {
        Self {
            http_10: true,
            any_method: true,
            underscores: true,
            urls: true,
            secure_urls: true,
            chunked_length: false,
        }
    }
}

/// The methods that are taken where not any is: those that Envoy's parser knows.
pub(super) const METHODS: [&str; 35] = [
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "OPTIONS",
    "DELETE",
    "PATCH",
    "CONNECT",
    "TRACE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];
