//! CEL rules of `VirtualService`: what a schema alone cannot say.
//!
//! Each mirrors a check of Istio 1.31's own validation and is never stricter. They stand at the outer levels only:
//! inside nested lists the API server's cost budget allows a few steps at most, and what does not fit is a finding in
//! the object's status (weights that are all 0, for example).

use crate::schema::Rule;

/// The whole object.
pub(super) const SPEC: &[Rule] = &[
    (
        "(has(self.http) && self.http.size() > 0) || (has(self.tls) && self.tls.size() > 0) || (has(self.tcp) && \
         self.tcp.size() > 0)",
        "at least one of http, tls or tcp must have a rule",
    ),
    (
        "(has(self.hosts) && self.hosts.size() > 0) || !(has(self.gateways) && self.gateways.size() > 0)",
        "without hosts this is a VirtualService for others to delegate to, which must not name gateways",
    ),
    (
        "(has(self.hosts) && self.hosts.size() > 0) || !((has(self.tls) && self.tls.size() > 0) || \
         (has(self.tcp) && self.tcp.size() > 0))",
        "without hosts this is a VirtualService for others to delegate to, which may have http rules only",
    ),
    (
        "!has(self.hosts) || !self.hosts.exists(host, host == '*') || (has(self.gateways) && \
         self.gateways.size() > 0 && !self.gateways.exists(gateway, gateway == 'mesh'))",
        "the host * is for gateways only; name the services, or the gateways",
    ),
];

/// One HTTP rule: what it does, and what excludes each other.
pub(super) const HTTP_ROUTE: &[Rule] = &[
    (
        "(has(self.route) && self.route.size() > 0) || has(self.redirect) || has(self.directResponse) || \
         has(self.delegate)",
        "a rule needs one of route, redirect, directResponse or delegate",
    ),
    ("!(has(self.route) && self.route.size() > 0) || !has(self.redirect)", "route and redirect exclude each other"),
    (
        "!(has(self.route) && self.route.size() > 0) || !has(self.directResponse)",
        "route and directResponse exclude each other",
    ),
    ("!(has(self.route) && self.route.size() > 0) || !has(self.delegate)", "route and delegate exclude each other"),
    ("!has(self.redirect) || !has(self.directResponse)", "redirect and directResponse exclude each other"),
    ("!has(self.redirect) || !has(self.delegate)", "redirect and delegate exclude each other"),
    (
        "!has(self.fault) || has(self.delegate) || !(has(self.redirect) || has(self.directResponse))",
        "fault is for requests that are forwarded; it cannot stand beside redirect or directResponse",
    ),
    (
        "!has(self.rewrite) || has(self.delegate) || !(has(self.redirect) || has(self.directResponse))",
        "rewrite is for requests that are forwarded; it cannot stand beside redirect or directResponse",
    ),
    (
        "!has(self.mirror) || has(self.delegate) || !(has(self.mirrors) && self.mirrors.size() > 0)",
        "mirror and mirrors exclude each other; put all destinations into mirrors",
    ),
];

/// A redirect.
pub(super) const REDIRECT: &[Rule] = &[
    (
        "has(self.port) || has(self.derivePort) || (has(self.uri) && self.uri != '') || (has(self.authority) && \
         self.authority != '') || (has(self.scheme) && self.scheme != '') || (has(self.prefixRewrite) && \
         self.prefixRewrite != '')",
        "a redirect must change something: uri, prefixRewrite, authority, port or scheme",
    ),
    (
        "!has(self.redirectCode) || self.redirectCode == 0 || (self.redirectCode >= 300 && self.redirectCode <= \
         399)",
        "redirectCode must be from 300 to 399",
    ),
];

/// A rewrite.
pub(super) const REWRITE: &[Rule] = &[
    (
        "has(self.uriRegexRewrite) || (has(self.uri) && self.uri != '') || (has(self.authority) && \
         self.authority != '')",
        "a rewrite must change something: uri, uriRegexRewrite or authority",
    ),
    ("!has(self.uriRegexRewrite) || !has(self.uri) || self.uri == ''", "uri and uriRegexRewrite exclude each other"),
];

/// Retries.
pub(super) const RETRY: &[Rule] = &[(
    "(has(self.attempts) && self.attempts > 0) || !(has(self.perTryTimeout) || (has(self.retryOn) && \
         self.retryOn != '') || has(self.retryRemoteLocalities))",
    "attempts is absent or 0, which turns retries off; set attempts, or remove the other retry settings",
)];

/// Injected faults.
pub(super) const FAULT: &[Rule] = &[("has(self.delay) || has(self.abort)", "a fault needs delay or abort")];

/// An injected delay.
pub(super) const FAULT_DELAY: &[Rule] =
    &[("!has(self.exponentialDelay)", "exponentialDelay is not supported, by Istio neither; use fixedDelay")];

/// An injected error.
pub(super) const FAULT_ABORT: &[Rule] =
    &[("!has(self.http2Error)", "http2Error is not supported, by Istio neither; use httpStatus or grpcStatus")];
