//! Heads that are taken, and those that are refused.

use super::*;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, headers: 16, chunked_length: false, names: HeaderNames::Plain };

/// What a request's head came to, in a form that can be compared.
fn read(bytes: &[u8]) -> Result<Option<(usize, String)>, HeadError> {
    let mut head = RequestHead::default();
    let count = request(bytes, LIMITS, RequestRules::default(), &mut head)?;
    Ok(count.map(|count| {
        let mut text = format!(
            "{} {} {} {:?} {} {:?}",
            head.method().escape_ascii(),
            head.path().escape_ascii(),
            head.authority().escape_ascii(),
            head.body,
            head.keep_alive,
            head.upgrade().map(|upgrade| upgrade.escape_ascii().to_string()),
        );
        for (name, value, _) in head.headers.iter() {
            text.push_str(&format!("|{}={}", name.escape_ascii(), value.escape_ascii()));
        }
        (count, text)
    }))
}

#[test]
fn request_when_rules_refuse_a_part_of_it_then_it_is_not_taken() {
    let strict = RequestRules { http_10: false, any_method: false, underscores: false, ..RequestRules::default() };
    let read = |text: &str, rules| request(text.as_bytes(), LIMITS, rules, &mut RequestHead::default());
    for (text, error) in [
        ("GET / HTTP/1.0\r\nhost: a b\r\n\r\n", HeadError::Version),
        ("BREW / HTTP/1.1\r\nhost: a\r\n\r\n", HeadError::Malformed("the method is not known")),
        ("get / HTTP/1.1\r\nhost: a\r\n\r\n", HeadError::Malformed("the method is not known")),
        ("GET / HTTP/1.1\r\nhost: a\r\nx_y: 1\r\n\r\n", HeadError::Underscore),
    ] {
        assert_eq!(read(text, strict), Err(error), "{text:?}");
    }
    assert!(matches!(read("BREW / HTTP/1.0\r\nhost: a\r\nx_y: 1\r\n\r\n", RequestRules::default()), Ok(Some(_))));
    assert!(matches!(read("PROPFIND / HTTP/1.1\r\nhost: a\r\n\r\n", strict), Ok(Some(_))));
}

#[test]
fn length_when_beside_chunks_then_it_is_refused_or_dropped_but_never_believed() {
    let lenient = RequestRules { chunked_length: true, ..RequestRules::default() };
    for (lines, taken) in [
        ("content-length: 5\r\ntransfer-encoding: chunked", true),
        ("transfer-encoding: chunked\r\ncontent-length: 5", true),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\ncontent-length: 5", false),
        ("content-length: 5\r\ncontent-length: 5\r\ntransfer-encoding: chunked", false),
        ("transfer-encoding: chunked\r\ncontent-length: x", false),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\ntransfer-encoding: chunked", false),
        ("content-length: 5\r\ntransfer-encoding: gzip", false),
    ] {
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n");
        assert!(read(text.as_bytes()).is_err(), "{lines}");
        let mut head = RequestHead::default();
        let read = request(text.as_bytes(), LIMITS, lenient, &mut head);
        assert_eq!(matches!(read, Ok(Some(_))), taken, "{lines}: {read:?}");
        let limits = HeadLimits { chunked_length: true, ..LIMITS };
        let text = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
        let mut answer = ResponseHead::default();
        assert_eq!(matches!(response(text.as_bytes(), limits, false, &mut answer), Ok(Some(_))), taken, "{lines}");
        if taken {
            assert_eq!((head.body, answer.body), (BodyLength::Unknown, BodyLength::Unknown));
            assert!(head.headers.known(Known::ContentLength).is_none(), "{lines}");
            assert!(answer.headers.known(Known::ContentLength).is_none(), "{lines}");
        }
    }
}

#[test]
fn request_when_the_version_is_none_that_is_served_then_that_is_said() {
    for (line, error) in [
        ("GET /", HeadError::Version),
        ("GET / HTTP/2.0", HeadError::Version),
        ("GET / HTTP/0.9", HeadError::Version),
        ("GET / http/1.1", HeadError::Malformed("the first line")),
        ("GET / HTTP/1.11", HeadError::Malformed("the first line")),
        ("GET /a b HTTP/1.1", HeadError::Malformed("the first line")),
    ] {
        let got = read(format!("{line}\r\nhost: a\r\n\r\n").as_bytes());
        match error {
            HeadError::Version => assert_eq!(got, Err(error), "{line}"),
            _ => assert!(matches!(got, Err(HeadError::Malformed(_))), "{line}: {got:?}"),
        }
    }
}

#[test]
fn request_when_it_takes_headers_away_then_it_lives_with_that_or_is_refused() {
    let with = |connection: &str| {
        read(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nconnection: {connection}\r\n\r\nx").as_bytes())
    };
    for refused in ["x-forwarded-for", "X-Forwarded-Proto, close", "x-forwarded-host", ":path", "a,b,c,d,e,f,g,h,i,j"] {
        assert!(matches!(with(refused), Err(HeadError::Malformed(_))), "{refused}");
    }
    let mut head = RequestHead::default();
    let text = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n";
    assert!(matches!(request(text, LIMITS, RequestRules::default(), &mut head), Ok(Some(_))));
    assert!(!head.has_authority());
}

#[test]
fn response_when_its_status_has_no_body_then_one_that_it_promises_is_an_error() {
    let read = |text: &str| response(text.as_bytes(), LIMITS, false, &mut ResponseHead::default());
    for bad in ["content-length: 2", "transfer-encoding: chunked"] {
        let text = format!("HTTP/1.1 204 No Content\r\n{bad}\r\n\r\n");
        assert!(matches!(read(&text), Err(HeadError::Framing(_))), "{bad}");
    }
    assert!(matches!(read("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"), Ok(Some(_))));
    assert!(matches!(read("HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n"), Ok(Some(_))));
    assert!(matches!(read("\r\nHTTP/1.1 200 OK\r\n\r\n"), Err(HeadError::Malformed(_))));
}

#[test]
fn request_when_read_then_its_parts_are_found() {
    let bytes = b"\r\nPOST /a?b HTTP/1.1\r\nHost: x:1\r\nContent-Length: 12\r\nConnection: Close\r\nA:  b \r\n\r\nBODY";
    let (count, text) = read(bytes).unwrap().unwrap();
    assert_eq!(&bytes[count..], b"BODY");
    assert_eq!(text, "POST /a?b x:1 Exact(12) false None|Content-Length=12|Connection=Close|A=b");
}

#[test]
fn response_when_read_then_its_body_is_known() {
    for (text, to_head, body, keep) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", false, BodyLength::Exact(5), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true, BodyLength::Empty, true),
        ("HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n", false, BodyLength::Unknown, true),
        ("HTTP/1.1 200 OK\r\n\r\n", false, BodyLength::Unknown, false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false, BodyLength::Empty, false),
        ("HTTP/1.1 304 NM\r\ncontent-length: 5\r\n\r\n", false, BodyLength::Empty, true),
        ("HTTP/1.1 101 SP\r\nupgrade: x\r\n\r\n", false, BodyLength::Tunnel, true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n", false, BodyLength::Exact(1), false),
    ] {
        let mut head = ResponseHead::default();
        assert_eq!(response(text.as_bytes(), LIMITS, to_head, &mut head), Ok(Some(text.len())), "{text}");
        assert_eq!((head.body, head.keep_alive), (body, keep), "{text}");
    }
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let known = prop_oneof![
        Just("GET / HTTP/1.1\r\n"),
        Just("POST /x HTTP/1.0\r\n"),
        Just("host: a\r\n"),
        Just("content-length: 3\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("connection: upgrade, x\r\n"),
        Just("upgrade: websocket\r\n"),
        Just("x: y\n"),
        Just(" folded\r\n"),
        Just("expect: 100-continue\r\n"),
        Just("\r\n"),
    ];
    let piece = prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever comes: no panic; a head is the same however it is cut; and two lengths are never both taken.
    #[test]
    fn request_when_cut_anywhere_then_the_same(bytes in pieces()) {
        let whole = read(&bytes);
        let first = (0..=bytes.len()).map(|end| read(&bytes[..end])).find(|read| !matches!(read, Ok(None)));
        match (whole, first) {
            (Ok(Some(whole)), Some(Ok(Some(first)))) => prop_assert_eq!(whole, first),
            (Err(_), Some(Err(_))) | (Ok(None), None) => {}
            (whole, first) => prop_assert!(false, "{:?} against {:?}", whole, first),
        }
    }

    #[test]
    fn response_when_anything_comes_then_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), status in 0..2000u16) {
        let _ = response(&bytes, LIMITS, false, &mut ResponseHead::default());
        let text = [format!("HTTP/1.1 {status} x\r\n").as_bytes(), &bytes].concat();
        let _ = response(&text, LIMITS, true, &mut ResponseHead::default());
    }
}

#[test]
fn head_when_it_is_long_and_comes_in_small_pieces_then_it_is_not_read_from_its_beginning_with_each() {
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let limits = HeadLimits { bytes: 2 << 20, ..LIMITS };
    for piece in [1, 100, 1400] {
        let (mut progress, mut read, mut done) = (Progress::default(), 0, false);
        for end in (piece..head.len()).step_by(piece).chain([head.len()]) {
            let bytes = &head.as_bytes()[..end];
            if progress.is_due(bytes, limits) {
                read += end;
                done = request(bytes, limits, RequestRules::default(), &mut RequestHead::default()).unwrap().is_some();
            }
        }
        assert!(done, "pieces of {piece}");
        assert!(read < 4 * head.len() + Progress::SMALL * Progress::SMALL, "{read} bytes in pieces of {piece}");
    }
    let mut progress = Progress::default();
    assert!(progress.is_due(&head.as_bytes()[..5000], limits));
    assert!(!progress.is_due(&head.as_bytes()[..6000], limits));
    assert!(progress.is_due(&head.as_bytes()[..6100], HeadLimits { bytes: 6100, ..limits }), "as long as it may be");
}

proptest! {
    #[test]
    fn head_when_it_ends_then_it_is_due_wherever_it_was_cut(
        before in 4096_usize..20_000, cuts in proptest::collection::vec(0_usize..20_100, 0..12), bare in any::<bool>(),
    ) {
        let end = if bare { "\n\n" } else { "\r\n\r\n" };
        let head = format!("{}{end}", "x".repeat(before));
        let limits = HeadLimits { bytes: 1 << 20, ..LIMITS };
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut % head.len()).collect();
        ends.sort_unstable();
        let mut progress = Progress::default();
        for end in ends {
            progress.is_due(&head.as_bytes()[..end], limits);
        }
        prop_assert!(progress.is_due(head.as_bytes(), limits));
    }
}
