//! What a peer may send, well formed and not, in whatever pieces.

use super::*;
use crate::http2::frame::{self, HEAD, Head};
use crate::http2::mux::{Limits, Mux, Role};
use crate::http2::queue::Queue;

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

const LIMITS: Limits = Limits {
    streams: 10,
    stream_window: 70_000,
    most_stream_window: 300_000,
    connection_window: 100_000,
    most_connection_window: 400_000,
    head_bytes: 8192,
    headers: 20,
    connect: true,
    malformed_ends: false,
};

fn mux(role: Role) -> Mux {
    Mux::new(role, LIMITS, (&Http2Options::default()).into())
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&Head::bytes(payload.len(), kind, flags, stream));
    out.extend_from_slice(payload);
}

/// A conversation that begins rightly and then goes on as the dice fall.
fn conversation(dice: &mut Dice, role: Role) -> Vec<u8> {
    // `:method: GET`, `:scheme: http`, `:path: /`, `:authority: a`; `:status: 200`; a header that is indexed.
    let heads: [&[u8]; 5] = [
        &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'],
        &[0x88],
        &[0x40, 0x02, b'x', b'y', 0x01, b'z'],
        &[0x82, 0x86, 0x84, 0xbe, 0x5c, 0x01, b'5'],
        &[0x88, 0x0f, 0x0d, 0x02, b'1', b'0'],
    ];
    let mut bytes = Vec::new();
    if role == Role::Server {
        bytes.extend_from_slice(crate::http2::PREFACE);
    }
    frame(&mut bytes, frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0x40, 0]);
    for _ in 0..dice.roll(40) {
        let stream = dice.roll(16) as u32;
        let flags = [0, 1, 4, 5, 5, 5, 8, 0x2d][dice.roll(8)];
        match dice.roll(12) {
            0..=3 => frame(&mut bytes, frame::HEADERS, flags, stream | 1, heads[dice.roll(heads.len())]),
            4 => frame(&mut bytes, frame::CONTINUATION, flags, stream, heads[dice.roll(heads.len())]),
            5 | 6 => frame(&mut bytes, frame::DATA, flags, stream, &vec![3; dice.roll(20_000)]),
            7 => frame(&mut bytes, frame::RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            8 => frame(&mut bytes, frame::WINDOW_UPDATE, 0, stream, &(dice.roll(1 << 31) as u32).to_be_bytes()),
            9 => frame(&mut bytes, frame::PING, flags & 1, 0, &[dice.roll(256) as u8; 8]),
            10 => frame(&mut bytes, frame::SETTINGS, 0, 0, &[0, dice.roll(8) as u8, 0, dice.roll(3) as u8, 1, 1]),
            _ => frame(&mut bytes, dice.roll(12) as u8, dice.roll(256) as u8, stream, &vec![1; dice.roll(12)]),
        }
    }
    for _ in 0..dice.roll(4) {
        let at = dice.roll(bytes.len());
        bytes[at] = dice.roll(256) as u8;
    }
    bytes
}

/// What becomes of the bytes: what is wrong, the requests that were taken, what is answered.
fn outcome(role: Role, bytes: &[u8], mut piece: impl FnMut() -> usize) -> (Option<u32>, Vec<String>, Vec<u8>) {
    let mut mux = mux(role);
    let mut keys = Vec::new();
    if role == Role::Client {
        for method in [&b"GET"[..], b"HEAD", b"POST"] {
            let mut head = RequestHead::default();
            head.set_method(method);
            head.set_path(b"/");
            head.body = if method == b"POST" { BodyLength::Unknown } else { BodyLength::Empty };
            keys.push(mux.send_request(&head, false).unwrap());
            mux.send_data(keys[keys.len() - 1], [1; 100_000][..].into());
        }
    }
    let mut rest = bytes;
    let mut fault = None;
    while !rest.is_empty() && fault.is_none() {
        let (now, later) = rest.split_at(piece().clamp(1, rest.len()));
        fault = mux.receive(&Bytes::copy_from_slice(now)).err().map(|fault| fault.code.0);
        mux.pump();
        rest = later;
    }
    let mut requests = Vec::new();
    while let Some(incoming) = mux.next_request() {
        requests.push(match &incoming.head {
            Ok(head) => format!("{} {:?}", String::from_utf8_lossy(head.method()), head.headers),
            Err(error) => error.to_string(),
        });
        let mut taken = Queue::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = mux.poll_body(incoming.key, &mut cx, &mut taken);
        mux.send_response(incoming.key, &ResponseHead { status: 200, ..ResponseHead::default() }, false, false);
        mux.send_data(incoming.key, [7; 100_000][..].into());
        mux.send_end(incoming.key, None);
        keys.push(incoming.key);
    }
    for key in keys {
        mux.close(key);
    }
    mux.pump();
    (fault, requests, mux.unwritten())
}

#[test]
fn frames_when_rolled_then_the_way_they_are_cut_makes_no_difference_and_nothing_grows() {
    let mut dice = Dice(7);
    let mut faults = 0;
    for round in 0..20_000 {
        let role = if round % 2 == 0 { Role::Server } else { Role::Client };
        let bytes = conversation(&mut dice, role);
        let (fault, requests, answer) = outcome(role, &bytes, || usize::MAX);
        faults += usize::from(fault.is_some());
        assert!(answer.len() < 512 * 1024, "{} bytes wait", answer.len());
        assert!(answer.len() >= HEAD);
        // A fault in the middle of a read leaves out what came after it, so only conversations without one compare.
        let mut cuts = Dice(round);
        let (again, same, _) = outcome(role, &bytes, || 1 + cuts.roll(50));
        assert_eq!(fault, again, "round {round}");
        assert_eq!(requests, same, "round {round}");
    }
    assert!((1_000..20_000).contains(&faults), "{faults} faults: the dice are loaded");
}

#[test]
fn header_blocks_when_rolled_then_they_are_read_or_refused() {
    let mut dice = Dice(11);
    for _ in 0..200_000 {
        let block: Vec<u8> = (0..dice.roll(60)).map(|_| dice.roll(256) as u8).collect();
        let mut decoder = crate::http2::hpack::Decoder::new();
        let mut bytes = 0;
        for _ in 0..3 {
            let _ = decoder.decode(&block, |name, value| bytes += name.len() + value.len());
        }
        assert!(bytes < 64 * 1024, "{bytes} bytes from {}", block.len());
    }
}
