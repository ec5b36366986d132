//! Peers that break the rules or wear us out, clients and endpoints, frame by frame.

use super::*;
use crate::http2::frame::{self, Code, Head};
use crate::http2::mux::{Fault, Limits, Mux, Role};

const LIMITS: Limits = Limits {
    streams: 100,
    stream_window: 65_535,
    most_stream_window: 65_535,
    connection_window: 65_535,
    most_connection_window: 65_535,
    head_bytes: 8192,
    headers: 100,
    connect: true,
    malformed_ends: true,
};

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Head::bytes(payload.len(), kind, flags, stream)[..], payload].concat()
}

/// A header block that needs no table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// A whole request.
fn request(stream: u32) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, stream, &block(&GET))
}

/// A server whose client has greeted it.
fn server() -> Mux {
    let mut mux = Mux::new(Role::Server, LIMITS, (&Http2Options::default()).into());
    let greeting = [PREFACE, &frame(frame::SETTINGS, 0, 0, &[])].concat();
    mux.receive(&greeting.into()).unwrap();
    mux
}

/// A client that has asked its endpoint something.
fn asked() -> Mux {
    let mut mux = Mux::new(Role::Client, LIMITS, (&Http2Options::default()).into());
    let mut head = RequestHead::default();
    head.set_method(b"GET");
    head.set_path(b"/");
    mux.send_request(&head, false).unwrap();
    mux.receive(&frame(frame::SETTINGS, 0, 0, &[]).into()).unwrap();
    mux
}

fn code(outcome: Result<(), Fault>) -> Option<Code> {
    outcome.err().map(|fault| fault.code)
}

#[test]
fn data_when_before_the_head_of_an_answer_then_the_connection_ends() {
    let mut mux = asked();
    let data = frame(frame::DATA, frame::END_STREAM, 1, b"ok");
    assert_eq!(code(mux.receive(&data.into())), Some(Code::PROTOCOL_ERROR));
    let mut mux = asked();
    let answer =
        [frame(frame::HEADERS, frame::END_HEADERS, 1, &[0x88]), frame(frame::DATA, frame::END_STREAM, 1, b"ok")];
    assert_eq!(code(mux.receive(&answer.concat().into())), None);
}

#[test]
fn floods_when_an_endpoint_or_a_client_sends_them_then_the_connection_ends() {
    let toggle =
        [frame(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]), frame(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])];
    for (what, one, few) in [
        ("settings", frame(frame::SETTINGS, 0, 0, &[]), 100),
        ("windows that come and go", toggle.concat(), 100),
        ("pings", frame(frame::PING, 0, 0, b"12345678"), 100),
        ("empty data", frame(frame::DATA, 0, 1, &[]), 1),
        ("padding", frame(frame::DATA, frame::PADDED, 1, &[3, 0, 0, 0]), 1),
        ("updates of windows", frame(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 5),
        ("priorities", frame(frame::PRIORITY, 0, 3, &[0, 0, 0, 0, 1]), 100),
    ] {
        for role in [Role::Client, Role::Server] {
            let begun = || match role {
                Role::Client => {
                    let mut mux = asked();
                    mux.receive(&frame(frame::HEADERS, frame::END_HEADERS, 1, &[0x88]).into()).unwrap();
                    mux
                }
                Role::Server => {
                    let mut mux = server();
                    mux.receive(&frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&GET)).into()).unwrap();
                    mux
                }
            };
            assert_eq!(code(begun().receive(&one.repeat(few).into())), None, "{few} {what} to a {role:?}");
            let many = begun().receive(&one.repeat(5000).into());
            assert_eq!(code(many), Some(Code::ENHANCE_YOUR_CALM), "{what} to a {role:?}");
        }
    }
}

#[test]
fn request_when_its_head_is_one_that_envoy_refuses_then_it_is_refused() {
    let empty = |name: &str| GET.map(|(other, value)| (other, if other == name { "" } else { value })).to_vec();
    let with = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
    for (what, fields) in [
        ("two lengths", with(&[("content-length", "0"), ("content-length", "0")])),
        ("two hosts", with(&[("host", "a"), ("host", "a")])),
        ("no authority in it", empty(":authority")),
        ("no scheme in it", empty(":scheme")),
        ("no path in it", empty(":path")),
        ("te", with(&[("te", "gzip")])),
    ] {
        let head = frame(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, 1, &block(&fields));
        assert_eq!(code(server().receive(&head.into())), Some(Code::PROTOCOL_ERROR), "{what}");
    }
    for more in [("te", "Trailers"), ("host", "b"), ("content-length", "0")] {
        let mut mux = server();
        let head = frame(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, 1, &block(&with(&[more])));
        assert_eq!(code(mux.receive(&head.into())), None, "{more:?}");
        assert!(mux.next_request().unwrap().head.is_ok(), "{more:?}");
    }
}

#[test]
fn length_when_in_trailers_or_twice_in_an_answer_then_it_is_refused() {
    let mut mux = server();
    let head = frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&GET));
    let ends = frame::END_STREAM | frame::END_HEADERS;
    let trailers = frame(frame::HEADERS, ends, 1, &block(&[("content-length", "0")]));
    assert_eq!(code(mux.receive(&[head, trailers].concat().into())), Some(Code::PROTOCOL_ERROR));
    let mut mux = asked();
    let lengths = [(":status", "200"), ("content-length", "2"), ("content-length", "2")];
    mux.receive(&frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&lengths)).into()).unwrap();
    let reset = frame(frame::RST_STREAM, 0, 1, &Code::PROTOCOL_ERROR.0.to_be_bytes());
    assert!(mux.unwritten().ends_with(&reset), "its stream ends, the others go on");
}

#[test]
fn streams_when_reset_at_once_then_they_are_taken_up_until_they_are_too_many() {
    let burst = |count: u32| -> Bytes {
        let ids = (0..count).map(|number| 2 * number + 1);
        let pairs = ids.map(|id| [request(id), frame(frame::RST_STREAM, 0, id, &[0, 0, 0, 8])].concat());
        pairs.flatten().collect::<Vec<u8>>().into()
    };
    let mut mux = server();
    assert_eq!(code(mux.receive(&burst(150))), None);
    for _ in 0..150 {
        let incoming = mux.next_request().unwrap();
        assert!(incoming.head.is_ok() && mux.was_reset(incoming.key));
        mux.close(incoming.key);
    }
    assert_eq!(code(server().receive(&burst(250))), Some(Code::ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn streams_when_reset_soon_after_they_were_taken_up_then_that_is_counted_where_their_handler_says_so() {
    let (mut near, mut far) = tokio::io::duplex(1024);
    let mut mux = server();
    for _ in 0..249 {
        mux.count_reset();
    }
    let read =
        |mux: &mut Mux, far: &mut DuplexStream| mux.poll_read(far, &mut Context::from_waker(std::task::Waker::noop()));
    assert!(read(&mut mux, &mut far).is_pending());
    mux.count_reset();
    assert!(matches!(read(&mut mux, &mut far), Poll::Ready(Err(_))));
    assert!(mux.poll_write(&mut near, &mut Context::from_waker(std::task::Waker::noop())).is_ready());
}

#[test]
fn data_when_after_the_end_of_a_stream_then_the_connection_ends() {
    let late = [request(1), frame(frame::DATA, 0, 1, b"more")].concat();
    assert_eq!(code(server().receive(&late.into())), Some(Code::STREAM_CLOSED));
}

#[test]
fn data_when_an_endpoint_sends_it_after_the_end_of_an_answer_then_others_go_on() {
    let mut mux = asked();
    let answer = [
        frame(frame::HEADERS, frame::END_HEADERS, 1, &[0x88]),
        frame(frame::DATA, frame::END_STREAM, 1, b"ok"),
        frame(frame::DATA, 0, 1, b"more"),
    ];
    assert_eq!(code(mux.receive(&answer.concat().into())), None);
    assert!(!mux.is_over());
}

#[test]
fn head_when_far_beyond_the_limits_then_the_connection_ends_and_a_little_beyond_then_it_is_answered() {
    let many = |count: usize| {
        let fields = [block(&GET), [0, 1, b'a', 0].repeat(count)].concat();
        let mut server = server();
        let outcome = code(server.receive(&frame(frame::HEADERS, 5, 1, &fields).into()));
        (outcome, server.next_request().map(|incoming| incoming.head.is_err()))
    };
    assert_eq!(many(LIMITS.headers + 1), (None, Some(true)));
    assert_eq!(many(8 * LIMITS.headers), (Some(Code::ENHANCE_YOUR_CALM), None));
}

#[test]
fn settings_when_more_at_a_time_than_there_are_then_the_connection_ends() {
    let settings = |count: usize| {
        let payload = [0, 4, 0, 0, 0xff, 0xff].repeat(count);
        code(server().receive(&frame(frame::SETTINGS, 0, 0, &payload).into()))
    };
    assert_eq!((settings(32), settings(33)), (None, Some(Code::ENHANCE_YOUR_CALM)));
}
