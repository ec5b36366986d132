//! Changes to headers, and what texts may hold that become a part of requests and answers: names and values of headers, paths,
//! authorities, server names. What no request can carry would make a proxy refuse all routes that stand beside it, so that it
//! is refused here, where the object and the field are known.

use std::net::IpAddr;

use leno_core::Reason;
use leno_core::route::{HeaderChange, HeaderChanges};

use super::report::Report;
use crate::istio::virtual_service as istio;

/// The longest name or value of a header, in bytes, as in Envoy's API.
pub(super) const MAX_HEADER: usize = 16_384;
/// How many headers one place may set and add. Envoy takes 1000, of a rule and its destination together.
const MAX_CHANGES: usize = 500;
/// The longest server name and the longest of its labels, in bytes.
const MAX_SERVER_NAME: (usize, usize) = (253, 63);

/// Headers that are set, added and removed, for requests and answers.
pub(super) fn header_changes(report: &mut Report<'_>, headers: &istio::Headers, field: &str) -> HeaderChanges {
    let istio::Headers { request, response } = headers;
    // Setting the host is a rewrite of the authority, as in Istio.
    let is_host = |header: &str| header.eq_ignore_ascii_case("host") || header == ":authority";
    let mut request = request.clone();
    let mut authority: Option<String> = None;
    if let Some(request) = &mut request {
        request.set.retain(|header, value| {
            if is_host(header) {
                authority = Some(value.clone());
            }
            !is_host(header)
        });
    }
    report.authority(authority.as_deref(), &format!("{field}.request.set"));
    let mut one = |change: &Option<istio::HeaderOperations>, name: &str| {
        let Some(istio::HeaderOperations { set, add, remove }) = change else { return HeaderChange::default() };
        for (kind, header) in set
            .keys()
            .map(|header| ("set", header))
            .chain(add.keys().map(|header| ("add", header)))
            .chain(remove.iter().map(|header| ("remove", header)))
        {
            let field = format!("{field}.{name}.{kind}");
            if header.starts_with(':') || is_host(header) {
                let message = format!("\"{header}\" is no header to change; use rewrite for path and authority");
                report.refuse(Reason::InvalidValue, &field, message);
            } else {
                report.header_name(header, &field);
            }
        }
        for (kind, header, value) in set
            .iter()
            .map(|(header, value)| ("set", header, value))
            .chain(add.iter().map(|(header, value)| ("add", header, value)))
        {
            report.header_value(value, &format!("{field}.{name}.{kind}[{header}]"));
        }
        if set.len() + add.len() > MAX_CHANGES {
            let message = format!("more than {MAX_CHANGES} headers are set and added; leave some out");
            report.refuse(Reason::InvalidValue, &format!("{field}.{name}"), message);
        }
        let lower = |(header, value): (&String, &String)| (header.to_ascii_lowercase(), value.clone());
        let remove = remove.iter().map(|header| header.to_ascii_lowercase()).collect();
        HeaderChange { set: set.iter().map(lower).collect(), add: add.iter().map(lower).collect(), remove }
    };
    let request = one(&request, "request");
    HeaderChanges { authority, request, response: one(response, "response") }
}

impl Report<'_> {
    /// The name of a header.
    pub(super) fn header_name(&mut self, name: &str, field: &str) {
        self.token(name, "header", field);
    }

    /// The name of something that has a token of RFC 9110 for one.
    pub(super) fn token(&mut self, name: &str, what: &str, field: &str) {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || name.len() > MAX_HEADER || !name.bytes().all(token) {
            let message = format!("\"{}\" is not the name of a {what}", name.escape_debug());
            self.refuse(Reason::InvalidValue, field, message);
        }
    }

    /// The value of a header, or a part of one.
    pub(super) fn header_value(&mut self, value: &str, field: &str) {
        let message = if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            "the value must not hold a line break or another control character; take it out".to_owned()
        // Proxies are sent two percent signs for each.
        } else if value.len() + value.matches('%').count() > MAX_HEADER {
            format!("the value has more than {MAX_HEADER} characters; shorten it")
        } else {
            return;
        };
        self.refuse(Reason::InvalidValue, field, message);
    }

    /// A path, or a part of one, that requests are sent with or clients are sent to.
    pub(super) fn path(&mut self, path: &str, field: &str) {
        self.written_in_requests(
            path,
            field,
            "a path must not hold spaces, line breaks or other control characters; write %20 for a space",
        );
    }

    /// A host with or without a port, if one is given.
    pub(super) fn authority(&mut self, authority: Option<&str>, field: &str) {
        let message = "a host must not hold spaces, line breaks or other control characters; take them out";
        self.written_in_requests(authority.unwrap_or_default(), field, message);
    }

    fn written_in_requests(&mut self, text: &str, field: &str, message: &str) {
        if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            self.refuse(Reason::InvalidValue, field, message);
        } else if text.len() > MAX_HEADER {
            self.refuse(Reason::InvalidValue, field, format!("it has more than {MAX_HEADER} characters; shorten it"));
        }
    }

    /// A server name to ask for in TLS: a host name without wildcard, or an address.
    pub(super) fn server_name(&mut self, name: &str, field: &str) {
        let (longest, longest_label) = MAX_SERVER_NAME;
        let label = |label: &str| {
            (1..=longest_label).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let is_host = name.len() <= longest && name.split('.').all(label) && !name.rsplit('.').take(1).all(is_number);
        if !is_host && name.parse::<IpAddr>().is_err() {
            let message = format!(
                "\"{}\" is no server name: write a host name in full, at most {longest} letters, digits, dots and \
                 dashes, without *",
                name.escape_debug()
            );
            self.refuse(Reason::InvalidValue, field, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn refused(check: impl FnOnce(&mut Report<'_>)) -> bool {
        let mut report = Report::new("VirtualService", &ObjectMeta::default(), "cluster.local");
        check(&mut report);
        report.finish(()).value.is_none()
    }

    #[test]
    fn text_when_no_header_can_hold_it_then_refused() {
        for value in ["a\nb", "a\rb", "\0", "\u{7f}", &"x".repeat(16_385), &"%".repeat(8_193)] {
            assert!(refused(|report| report.header_value(value, "f")), "{value:?}");
        }
        for value in ["", "a\tb", "50% off", "\u{e4}"] {
            assert!(!refused(|report| report.header_value(value, "f")), "{value:?}");
        }
        for name in ["", "a b", "a:b", "a\n", "\u{e4}"] {
            assert!(refused(|report| report.header_name(name, "f")), "{name:?}");
        }
        assert!(!refused(|report| report.header_name("X-User_1", "f")));
    }

    #[test]
    fn path_and_authority_when_no_request_can_carry_them_then_refused() {
        for text in ["/a b", "/a\nb", "\r\n", "/\u{0}"] {
            assert!(refused(|report| report.path(text, "f")), "{text:?}");
            assert!(refused(|report| report.authority(Some(text), "f")), "{text:?}");
        }
        assert!(!refused(|report| report.path(r"/a/\1?b=%20", "f")));
        assert!(!refused(|report| report.authority(Some("a.example:8443"), "f")));
    }

    #[test]
    fn server_name_when_no_client_can_ask_for_it_then_refused() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = format!("{}example", "a.".repeat(128));
        for name in ["", "a b", "*.a.b", "-a.b", "a..b", "a\n", "1.2.3", &long, &longer] {
            assert!(refused(|report| report.server_name(name, "f")), "{name:?}");
        }
        for name in ["a.b", "reviews", "outbound_.80_._.a.b", "10.0.0.1", "::1"] {
            assert!(!refused(|report| report.server_name(name, "f")), "{name:?}");
        }
    }
}
