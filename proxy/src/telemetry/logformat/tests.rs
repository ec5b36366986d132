//! Lines as Istio writes them, and formats that do not compile.

use super::*;

fn line<Q: HeaderLookup, S: HeaderLookup>(format: &LogFormat, entry: &LogEntry<'_, Q, S>) -> String {
    let mut out = Vec::new();
    format.write(entry, &mut out);
    String::from_utf8(out).unwrap()
}

fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

#[test]
fn istio_format_when_a_request_went_upstream_then_the_line_is_istios() {
    let mut request = http::HeaderMap::new();
    request.insert("user-agent", "curl/8".parse().unwrap());
    request.insert("x-request-id", "c0ffee".parse().unwrap());
    let response = http::HeaderMap::new();
    let entry = LogEntry {
        method: Some("GET"),
        path: Some("/reviews/1?full=1"),
        authority: Some("reviews:9080"),
        protocol: Some("HTTP/1.1"),
        code: 200,
        code_details: Some("via_upstream"),
        bytes_sent: 864,
        upstream_service_time: Some(Duration::from_millis(3)),
        upstream_host: Some("10.1.0.7:9080".parse().unwrap()),
        upstream_cluster: Some("outbound|9080|v2|reviews.default.svc.cluster.local"),
        upstream_local: Some("10.1.0.3:40000".parse().unwrap()),
        downstream_local: Some("10.96.1.1:9080".parse().unwrap()),
        downstream_remote: Some("[fd00::3]:50000".parse().unwrap()),
        route_name: Some("default"),
        ..LogEntry::new(at(), Duration::from_micros(4700), &request, &response)
    };
    assert_eq!(
        line(&LogFormat::istio(), &entry),
        "[2023-11-14T22:13:20.123Z] \"GET /reviews/1?full=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 864 4 3 \"-\" \
         \"curl/8\" \"c0ffee\" \"reviews:9080\" \"10.1.0.7:9080\" \
         outbound|9080|v2|reviews.default.svc.cluster.local 10.1.0.3:40000 10.96.1.1:9080 [fd00::3]:50000 - \
         default\n"
    );
}

#[test]
fn log_value_when_it_holds_a_line_break_then_it_is_escaped() {
    let format = LogFormat::compile("%REQ(USER-AGENT)%|%REQ(:PATH):4%|%RESPONSE_CODE_DETAILS%\n").unwrap();
    struct Evil;
    impl HeaderLookup for Evil {
        fn header(&self, name: &str) -> Option<&[u8]> {
            (name == "user-agent").then_some(b"a\r\nb\"\\\xff")
        }
    }
    let entry = LogEntry {
        path: Some("/longer"),
        code_details: Some("bad chunk"),
        ..LogEntry::new(at(), Duration::ZERO, Evil, ())
    };
    assert_eq!(line(&format, &entry), "a\\x0d\\x0ab\\\"\\\\\\xff|/lon|bad_chunk\n");
}

#[test]
fn format_when_an_operator_is_unknown_then_the_error_names_it() {
    assert_eq!(LogFormat::compile("a %NOPE% b"), Err(FormatError::UnknownOperator("NOPE".into())));
    assert_eq!(LogFormat::compile("ab %START"), Err(FormatError::Unclosed(3)));
    assert_eq!(LogFormat::compile("%REQ(A%"), Err(FormatError::Argument("REQ(A".into())));
    assert_eq!(LogFormat::compile("100%%").unwrap(), LogFormat(vec![Operator::Literal("100%".into())]));
}

#[test]
fn istio_format_when_nothing_is_known_then_dashes_stand_in() {
    let entry = LogEntry::new(at(), Duration::ZERO, (), ());
    assert_eq!(
        line(&LogFormat::istio(), &entry),
        "[2023-11-14T22:13:20.123Z] \"- - -\" 0 - - - \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - - - -\n"
    );
}
