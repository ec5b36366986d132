//! Lines as Istio writes them, and formats that do not compile.

use super::*;
use crate::telemetry::{CloseType, Endings, LogKind, Moments, NOT_A_STATUS, Observed, ResponseFlags};
use std::time::{Duration, SystemTime};

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
        upstream_cluster: Some(["outbound|9080|v2|reviews.default.svc.cluster.local"; 2]),
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
    assert_eq!(pieces("100%%").unwrap(), [Operator::Literal("100%".into())]);
    assert!(matches!(LogFormat::compile("%DURATION(x)%"), Err(FormatError::Argument(_))), "it takes no argument");
    assert!(matches!(LogFormat::compile("%REQ(a?b?c)%"), Err(FormatError::Argument(_))), "one alternative at most");
    assert!(matches!(LogFormat::compile("%START_TIME(%_E%%En)%"), Err(FormatError::Argument(_))), "a line break");
    assert!(LogFormat::compile("%START_TIME(%s.%3f)% %START_TIME_LOCAL(%Y/%m/%d %H:%M:%S %z)%").is_ok());
}

#[test]
fn istio_format_when_nothing_is_known_then_dashes_stand_in() {
    let entry = LogEntry::new(at(), Duration::ZERO, (), ());
    assert_eq!(
        line(&LogFormat::istio(), &entry),
        "[2023-11-14T22:13:20.123Z] \"- - -\" 0 - - - \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - - - -\n"
    );
}

fn fields(value: serde_json::Value) -> Struct {
    use leno_xds::envoy::config::core::v3::{SubstitutionFormatString, substitution_format_string::Format};
    let value = serde_json::json!({"json_format": value});
    match leno_xds::json::from_value::<SubstitutionFormatString>(&value).unwrap().format {
        Some(Format::JsonFormat(fields)) => fields,
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_format_when_written_then_types_stay_and_members_are_sorted() {
    let format = serde_json::json!({
        "z": "%PROTOCOL%", "code": "%RESPONSE_CODE%", "none": "%REQ(x-none)%", "null": null, "flag": true, "number": 1.5,
        "mixed": "a%REQ(x-none)%b%BYTES_SENT%", "per cent": "%%", "empty": "", "object": {"b": "%DURATION%", "a": "%REQ(x-none)%"},
        "list": ["%PROTOCOL%", 2, null, {"x": "%REQ(x-none)%"}, []], "only": {"x": "%REQ(x-none)%"},
    });
    let entry = LogEntry {
        protocol: Some("HTTP/2"),
        code: 200,
        bytes_sent: 7,
        ..LogEntry::new(at(), Duration::from_millis(3), (), ())
    };
    assert_eq!(
        line(&LogFormat::json(&fields(format.clone()), false).unwrap(), &entry),
        concat!(
            r#"{"code":200,"empty":"","flag":true,"list":["HTTP/2",2,null,{"x":null},[]],"mixed":"a-b7","none":null,"#,
            r#""null":null,"number":1.5,"object":{"a":null,"b":3},"only":{"x":null},"per cent":"%","z":"HTTP/2"}"#,
            "\n"
        )
    );
    assert_eq!(
        line(&LogFormat::json(&fields(format), true).unwrap(), &entry),
        concat!(
            r#"{"code":200,"empty":"","flag":true,"list":["HTTP/2",2,[]],"mixed":"ab7","number":1.5,"object":{"b":3},"#,
            r#""per cent":"%","z":"HTTP/2"}"#,
            "\n"
        )
    );
}

#[test]
fn json_value_when_it_is_no_text_then_the_line_is_json_all_the_same() {
    let format = LogFormat::json(&fields(serde_json::json!({"v": "%REQ(v)%"})), false).unwrap();
    for (value, wanted) in [
        (&b"a\"b\\c\t\x01<\xc3\xa9"[..], "{\"v\":\"a\\\"b\\\\c\\t\\u0001<\u{e9}\"}\n"),
        (b"a\"\xff\xc3", "{\"v\":\"a\\u0022\\u00ff\\u00c3\"}\n"),
    ] {
        let mut request = http::HeaderMap::new();
        request.insert("v", http::HeaderValue::from_static("x"));
        struct One<'v>(&'v [u8]);
        impl HeaderLookup for One<'_> {
            fn header(&self, _: &str) -> Option<&[u8]> {
                Some(self.0)
            }
        }
        let entry = LogEntry::new(at(), Duration::ZERO, One(value), ());
        let written = line(&format, &LogEntry { trailers: None::<()>, ..entry });
        assert_eq!(written, wanted);
        assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok());
    }
}

#[test]
fn operators_when_everything_is_known_then_each_says_its_own() {
    let mut request = http::HeaderMap::new();
    request.insert("x-envoy-original-path", "/before?x=1".parse().unwrap());
    request.insert("x-request-id", "id-1".parse().unwrap());
    let response = http::HeaderMap::new();
    let entry = LogEntry {
        kind: LogKind::DownstreamEnd,
        method: Some("GET"),
        path: Some("/now?a=b%20c&d"),
        authority: Some("h:80"),
        protocol: Some("HTTP/1.1"),
        upstream_protocol: Some("HTTP/2"),
        flags: ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::RETRY_LIMIT,
        code: 503,
        code_details: Some("a b"),
        grpc: true,
        grpc_status: Some(14),
        attempts: 2,
        upstream_host: Some("10.1.2.3:80".parse().unwrap()),
        upstream_host_name: Some("db.example:80"),
        upstream_connected: true,
        downstream_remote: Some("[2001:db8:1:2::5]:7".parse().unwrap()),
        moments: Moments {
            received: Some(Duration::from_millis(1)),
            answered: Some(Duration::from_millis(4)),
            ended: true,
            ..Moments::default()
        },
        ..LogEntry::new(at(), Duration::from_millis(9), &request, &response)
    };
    for (format, wanted) in [
        ("%START_TIME(%s.%3f)%", "1700000000.123"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %a %b %j)%", "2023/11/14T22:13:20+0000 Tue Nov 318"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure"),
        ("%RESPONSE_CODE_DETAILS%|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "a_b|a b"),
        ("%PATH%|%PATH(NQ)%|%PATH(WQ:PATH):4%|%PATH(NQ:PATH)%", "/before?x=1|/before|/now|/now"),
        ("%QUERY_PARAM(a)%|%QUERY_PARAM(d)%|%QUERY_PARAM(e)%|%QUERY_PARAMS%", "b c||-|a=b%20c&d"),
        ("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", "Unavailable UNAVAILABLE 14"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%", "10.1.0.0/16"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(64)%", "2001:db8:1:2::/64"),
        ("%UPSTREAM_HOST_NAME%|%UPSTREAM_HOST_NAME_WITHOUT_PORT%", "db.example:80|db.example"),
        ("%UPSTREAM_PROTOCOL% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "HTTP/2 2"),
        ("%REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "1 4 5"),
        ("%COMMON_DURATION(DS_RX_END:US_RX_BEG:us)%|%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:ms)%", "3000|-"),
        ("%REQUESTED_SERVER_NAME%|%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%", "-|h:80"),
        ("%STREAM_ID% %ACCESS_LOG_TYPE%", "id-1 DownstreamEnd"),
        (r#"%COALESCE({"operators": ["REQUESTED_SERVER_NAME", {"command": "REQ", "param": ":authority"}]}):1%"#, "h"),
    ] {
        assert_eq!(line(&LogFormat::compile(format).unwrap(), &entry), wanted, "{format}");
    }
}

#[test]
fn observed_when_nothing_was_kept_then_bytes_are_zero_and_the_rest_is_unknown() {
    let format = LogFormat::compile(concat!(
        "%UPSTREAM_WIRE_BYTES_SENT% %DOWNSTREAM_HEADER_BYTES_RECEIVED% %UPSTREAM_HOSTS_ATTEMPTED% %UPSTREAM_TLS_CIPHER% ",
        "%UPSTREAM_CONNECTION_POOL_READY_DURATION% %CLUSTER_METADATA(a:b)% %FILTER_STATE(a)%",
    ));
    let mut entry = LogEntry::new(at(), Duration::ZERO, (), ());
    assert_eq!(line(format.as_ref().unwrap(), &entry), "0 0 - - - - -");
    let mut kept = Observed { ready: Some(Duration::from_millis(7)), ..Observed::default() };
    kept.up.sent = 5;
    kept.attempted = vec![("10.0.0.1:1".parse().unwrap(), None), ("10.0.0.2:1".parse().unwrap(), Some("b:1".into()))];
    entry.observed = Some(&kept);
    assert_eq!(line(&format.unwrap(), &entry), "5 0 10.0.0.1:1,10.0.0.2:1 - 7 - -");
    let names = LogFormat::compile("%UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT%").unwrap();
    assert_eq!(line(&names, &entry), "10.0.0.1,b");
    for malformed in ["%METADATA(NOBODY:a)%", "%METADATA%", "%DYNAMIC_METADATA%", "%DOWNSTREAM_WIRE_BYTES_SENT(x)%"] {
        assert!(LogFormat::compile(malformed).is_err(), "{malformed}");
    }
}

#[test]
fn header_value_when_there_are_no_flags_then_it_is_a_dash_and_what_is_unknown_is_nothing() {
    let entry = LogEntry::new(at(), Duration::ZERO, (), ());
    let mut out = Vec::new();
    LogFormat::compile("%RESPONSE_FLAGS%|%REQ(a)%|%PROTOCOL%|%RESPONSE_CODE%").unwrap().write_header(&entry, &mut out);
    assert_eq!(out, b"-|||0");
}

#[test]
fn times_when_written_in_absls_ways_then_they_are_as_envoy_writes_them() {
    let start = at() + Duration::from_nanos(456_789);
    let entry = LogEntry::new(start, Duration::ZERO, (), ());
    // 2023-11-14T22:13:20.123456Z; each as Envoy 1.40 writes it.
    for (format, wanted) in [
        ("%E*S|%E*f|%E0S|%E0f|%E1S|%E3f|%E20f", "20.123456|123456|20||20.1|123|123456000000000000"),
        ("%f|%9f|%6f|%1f|%s%3f", "123456000|123456000|123456|1|1700000000123"),
        ("%E4Y|%Ez|%E*z|%ET|%:z|%::z|%:::z", "2023|+00:00|+00:00:00|T|+00:00|+00:00:00|+00"),
        ("%Q|%0f|%E|%EQ|%E1025f|%+|%J|%", "%Q|%0f|%E|%EQ|%E1025f|%+|%J|%"),
        ("%%|%%Y|%%s|%%%Y|%%%s|x%%%%f", "%|%Y|%1700000000|%2023|%1700000000|x%%123456000"),
        ("%-d|%5Y|%05d|%^a|%Exx|%_5S", "14|02023|00014|TUE|11/14/23x|   20"),
        (
            "%a %b %e %j %p %I %U %W %u %w %C %y %D %R %P %k",
            "Tue Nov 14 318 PM 10 46 46 2 2 20 23 11/14/23 22:13 pm 22",
        ),
        ("a%", "a%"),
    ] {
        let format = LogFormat::compile(&format!("%START_TIME({format})%"));
        assert_eq!(line(&format.unwrap(), &entry), wanted);
    }
    for broken in ["%n", "%En", "%-n", "%_3On"] {
        assert!(LogFormat::compile(&format!("%START_TIME(a{broken})%")).is_err(), "{broken}");
    }
}

#[test]
fn masks_when_an_address_has_fewer_bits_then_all_are_taken_and_no_number_asks_for_none() {
    let entry = LogEntry {
        downstream_remote: Some("10.1.2.3:80".parse().unwrap()),
        ..LogEntry::new(at(), Duration::ZERO, (), ())
    };
    for (mask, wanted) in [
        ("33", "10.1.2.3/32"),
        ("129", "10.1.2.3/32"),
        ("300", "10.1.2.3/32"),
        ("0", "0.0.0.0/0"),
        (" 16 ", "10.1.0.0/16"),
        ("+16", "10.1.0.0/16"),
        ("16:48", "10.1.2.3"),
        ("x", "10.1.2.3"),
        ("4294967295", "10.1.2.3"),
        ("-1", ""),
    ] {
        let format = LogFormat::compile(&format!("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT({mask})%"));
        assert_eq!(line(&format.unwrap(), &entry), wanted, "{mask}");
    }
}

#[test]
fn query_when_decoded_then_only_what_may_stand_in_one_is() {
    let entry = LogEntry {
        path: Some("/?a=b%20c&%61=%2B%26%7e%22%e2%82&b=%&c=%2&d=%zz&e+f"),
        ..LogEntry::new(at(), Duration::ZERO, (), ())
    };
    let written = |format| line(&LogFormat::compile(format).unwrap(), &entry);
    assert_eq!(written("%QUERY_PARAMS(DECODED)%"), "a=b%20c&a=+&~%22%e2%82&b=&c=2&d=zz&e+f");
    assert_eq!(written("%QUERY_PARAMS(DECODED):3%"), "a=b");
}

#[test]
fn moments_when_a_connection_is_older_then_what_was_before_counts_too() {
    let mut kept = Observed { answering: Some(Duration::from_millis(9)), ..Observed::default() };
    kept.connecting.begun = Some(-5_000_000);
    kept.connecting.connected = Some(-3_000_000);
    kept.connections = vec![7, 9];
    let entry = LogEntry {
        accepted: Some(-8_000_000),
        secured: Some(-2_500_000),
        observed: Some(&kept),
        moments: Moments { answered: Some(Duration::from_millis(4)), ..Moments::default() },
        endings: Endings { up: Some(CloseType::RemoteReset), down: CloseType::LocalReset, ..Endings::default() },
        grpc: true,
        grpc_status: Some(NOT_A_STATUS),
        ..LogEntry::new(at(), Duration::from_millis(20), (), ())
    };
    for (format, wanted) in [
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END)%|%COMMON_DURATION(DS_CX_BEG:US_CX_BEG:us)%", "2|3000"),
        ("%COMMON_DURATION(DS_CX_BEG:DS_RX_BEG)%|%COMMON_DURATION(DS_RX_BEG:DS_CX_BEG)%", "8|-"),
        ("%COMMON_DURATION(US_RX_BEG:DS_TX_BEG)%|%COMMON_DURATION(DS_RX_BEG:whatever)%", "5|-"),
        ("%COMMON_DURATION(US_CX_END:US_HS_END)%|%COMMON_DURATION(DS_TX_BEG:DS_TX_END)%", "-|-"),
        ("%DOWNSTREAM_HANDSHAKE_DURATION%", "-2"),
        ("%UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_IDS_ATTEMPTED%", "0 7,9"),
        ("%UPSTREAM_DETECTED_CLOSE_TYPE% %DOWNSTREAM_DETECTED_CLOSE_TYPE%", "RemoteReset LocalReset"),
        ("%UPSTREAM_LOCAL_CLOSE_REASON%|%DOWNSTREAM_LOCAL_CLOSE_REASON%", "-|-"),
        ("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", "-1 -1 -1"),
    ] {
        assert_eq!(line(&LogFormat::compile(format).unwrap(), &entry), wanted, "{format}");
    }
    let typed =
        serde_json::json!({"a": "%GRPC_STATUS%", "b": "%GRPC_STATUS_NUMBER%", "c": "%DOWNSTREAM_HANDSHAKE_DURATION%"});
    let typed = LogFormat::json(&fields(typed), false).unwrap();
    assert_eq!(line(&typed, &entry), "{\"a\":\"-1\",\"b\":-1,\"c\":-2}\n");
}

#[test]
fn metadata_when_a_text_has_a_limit_then_json_is_cut_and_else_it_is_whole() {
    use crate::config::Metadata;
    let sent = serde_json::json!({"filter_metadata": {"a": {"k": "text", "n": 3}}});
    let kept = Metadata::of(Some(&leno_xds::json::from_value(&sent).unwrap()));
    let mut entry = LogEntry::new(at(), Duration::ZERO, (), ());
    entry.metadata.listener = kept.as_ref();
    let format = LogFormat::compile(
        "%METADATA(LISTENER:a):4%|%METADATA(LISTENER:a:k):2%|%METADATA(LISTENER_FILTER_CHAIN:a)%|%METADATA(LISTENER)%",
    );
    assert_eq!(line(&format.unwrap(), &entry), "{\"k\"|te|-|-");
    let typed = serde_json::json!({"a": "%METADATA(LISTENER:a):4%", "b": "x%METADATA(LISTENER:a):4%"});
    let typed = LogFormat::json(&fields(typed), false).unwrap();
    assert_eq!(line(&typed, &entry), "{\"a\":{\"k\":\"text\",\"n\":3},\"b\":\"x{\\\"k\\\"\"}\n");
}

#[test]
fn filter_state_when_its_form_is_unknown_then_it_is_refused() {
    for taken in ["a", "a:PLAIN", "a:TYPED", "a:FIELD:b"] {
        assert!(LogFormat::compile(&format!("%FILTER_STATE({taken})%")).is_ok(), "{taken}");
    }
    for refused in ["", "a:b", "a:FIELD", "a:PLAIN:c"] {
        assert!(LogFormat::compile(&format!("%FILTER_STATE({refused})%")).is_err(), "{refused}");
    }
    assert!(!LogFormat::compile("%REQ_WITHOUT_QUERY(:path)%").unwrap().is_built_in());
}
