//! What a request's endpoint is chosen by where the cluster's balancing hashes.

use super::action::RegexRewrite;
use std::time::Duration;

/// One part of a hash.
#[derive(Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// When there is a hash after this one, those that follow are not looked at.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug)]
pub enum HashSource {
    /// Every value of a header, sorted.
    Header {
        /// Its lower-case name; `:path`, `:authority`, `:method` and `:scheme` mean those of the request.
        name: Box<str>,
        /// What becomes of each value before it is hashed.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// A client without it is given one that lives so long (zero: as long as its session); `None`: it is not.
        ttl: Option<Duration>,
        /// Its path, none when empty.
        path: Box<str>,
        /// Further attributes as they are written behind it, each with `; ` before it.
        attributes: Box<str>,
    },
    /// The client's IP address.
    SourceIp,
    /// The first parameter of this name in the query.
    Query(Box<str>),
}
