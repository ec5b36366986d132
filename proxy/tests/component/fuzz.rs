//! Every parser that the network reaches gets mutated inputs: from a fixed seed, so that each run is the same.
//!
//! `LENO_FUZZ_ROUNDS` says how many inputs each gets (20,000), `LENO_FUZZ_SEED` begins elsewhere.

use leno_proxy::config::{EscapedSlashes, HeaderNames};
use leno_proxy::http::chunked::{Chunked, Step};
use leno_proxy::http::path::{self, Outcome, Rules};
use leno_proxy::http::{BodyLength, Headers, RequestHead, ResponseHead};
use leno_proxy::http::{
    parse::{self, HeadLimits},
    rules::RequestRules,
};
use leno_proxy::tls::client_hello::{self, Inspect};

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, headers: 64, chunked_length: false, names: HeaderNames::Plain };

/// Random numbers that are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Runs `check` on inputs that are made of the seeds by cutting, joining, repeating and flipping; on a `share` of as many as usual.
pub fn fuzz(name: &str, share: u64, seeds: &[&[u8]], words: &[&[u8]], check: impl Fn(&[u8])) {
    let setting =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let mut dice = Dice(setting("LENO_FUZZ_SEED", 0x1e40).max(1));
    for round in 0..setting("LENO_FUZZ_ROUNDS", 20_000) / share {
        let mut input = seeds[dice.below(seeds.len())].to_vec();
        for _ in 0..dice.below(5) {
            let at = dice.below(input.len() + 1);
            match dice.below(7) {
                0 if at < input.len() => input[at] ^= 1 << dice.below(8),
                1 if at < input.len() => input[at] = dice.next() as u8,
                2 => input.truncate(at),
                3 => {
                    let other = seeds[dice.below(seeds.len())];
                    input.truncate(at);
                    input.extend_from_slice(&other[dice.below(other.len() + 1)..]);
                }
                4 => {
                    let end = (at + dice.below(12)).min(input.len());
                    let part = input[at..end].to_vec();
                    for _ in 0..dice.below(4) {
                        input.splice(at..at, part.iter().copied());
                    }
                }
                5 => _ = input.splice(at..at, words[dice.below(words.len())].iter().copied()),
                _ => {
                    let end = (at + dice.below(8)).min(input.len());
                    input.drain(at..end);
                }
            }
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&input)));
        if outcome.is_err() {
            panic!("{name}, round {round}: {}", input.escape_ascii());
        }
    }
}

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"-1",
    b"+5",
    b"0x5",
    b"\x0b",
    b"\xff",
    b"%00",
    b"%2f",
    b"..",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Host: a\r\n",
    b"Connection: close, host\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"\r\n\r\n",
    b"18446744073709551616",
];

const HEADS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a/b?c=d HTTP/1.1\r\nHost: a:80\r\nContent-Length: 12\r\nX-A: b\r\n\r\nhello world!",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"\r\nHEAD /x HTTP/1.1\r\nhost: [::1]:9\r\nTE: trailers\r\n\r\n",
];

#[test]
fn request_heads_when_mutated_then_what_is_taken_is_clear() {
    fuzz("request", 1, HEADS, WORDS, |input| {
        let mut head = RequestHead::default();
        let Ok(Some(used)) = parse::request(input, LIMITS, RequestRules::default(), &mut head) else { return };
        assert!(used <= input.len() && used <= LIMITS.bytes + 2);
        let clean = |bytes: &[u8]| !bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | b'\0'));
        assert!(clean(head.method()) && clean(head.path()) && clean(head.authority()));
        assert!(!head.path().contains(&b' ') && !head.method().contains(&b' '));
        assert!(head.headers.iter().all(|(name, value, _)| !name.is_empty() && clean(name) && clean(value)));
        // Nothing less than the whole head is a head, and what follows it makes no difference.
        let mut again = RequestHead::default();
        assert!(
            !matches!(parse::request(&input[..used - 1], LIMITS, RequestRules::default(), &mut again), Ok(Some(_))),
            "cut short it is one too"
        );
        again.clear();
        assert_eq!(parse::request(&input[..used], LIMITS, RequestRules::default(), &mut again), Ok(Some(used)));
        assert_eq!((again.path(), again.body), (head.path(), head.body));
        // What has no path is answered here.
        if !head.path().starts_with(b"/") && head.path() != b"*" {
            return;
        }
        // As it is sent on, it is understood as it was.
        let mut sent = [head.method(), b" ", head.path(), b" HTTP/1.1\r\nhost: ", head.authority(), b"\r\n"].concat();
        match head.body {
            BodyLength::Empty => {}
            BodyLength::Exact(count) => sent.extend(format!("content-length: {count}\r\n").into_bytes()),
            BodyLength::Unknown | BodyLength::Tunnel => sent.extend(b"transfer-encoding: chunked\r\n"),
        }
        sent.extend(b"\r\n");
        let mut next = RequestHead::default();
        assert_eq!(
            parse::request(&sent, LIMITS, RequestRules::default(), &mut next),
            Ok(Some(sent.len())),
            "{}",
            sent.escape_ascii()
        );
        assert_eq!((next.method(), next.path()), (head.method(), head.path()));
        assert_eq!((next.authority(), next.body), (head.authority(), head.body));
    });
}

#[test]
fn response_heads_when_mutated_then_what_is_taken_is_clear() {
    let seeds: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ];
    fuzz("response", 1, seeds, WORDS, |input| {
        for to_head in [false, true] {
            let mut head = ResponseHead::default();
            let Ok(Some(used)) = parse::response(input, LIMITS, to_head, &mut head) else { continue };
            assert!(used <= input.len() && (100..=999).contains(&head.status));
            let clean = |bytes: &[u8]| !bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | b'\0'));
            assert!(head.headers.iter().all(|(name, value, _)| clean(name) && clean(value)));
            assert!(!(to_head && matches!(head.body, BodyLength::Exact(_) | BodyLength::Unknown)));
        }
    });
}

#[test]
fn chunks_when_mutated_then_the_way_they_are_cut_makes_no_difference() {
    let seeds: &[&[u8]] = &[
        b"5\r\nhello\r\n0\r\n\r\n",
        b"A;ext=1\r\n0123456789\r\n1\r\nx\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"0\r\n\r\n",
        b"00000005\r\nhello\r\n0\r\nTrailer: a\r\nContent-Length: 3\r\n\r\n",
    ];
    let decode = |input: &[u8], step: usize| {
        let (mut state, mut trailers, mut data, mut at, mut end) =
            (Chunked::Size, Headers::default(), Vec::new(), 0, step.min(input.len()));
        loop {
            match state.step(&input[at..end], &mut trailers) {
                Err(_) => return Err(()),
                Ok(Step::Skip(count)) => at += count,
                Ok(Step::Data(count)) => {
                    data.extend_from_slice(&input[at..at + count]);
                    state.consumed(count);
                    at += count;
                }
                Ok(Step::End(count, _)) => return Ok(Some((data, at + count, trailers.len()))),
                Ok(Step::More) if end == input.len() => return Ok(None),
                Ok(Step::More) => end = (end + step).min(input.len()),
            }
        }
    };
    fuzz("chunks", 1, seeds, WORDS, |input| {
        let whole = decode(input, usize::MAX >> 1);
        for step in [1, 3, 7] {
            assert_eq!(decode(input, step), whole, "in steps of {step}");
        }
    });
}

#[test]
fn paths_when_mutated_then_what_is_taken_has_one_form() {
    let seeds: &[&[u8]] =
        &[b"/", b"/a/../b", b"/%2e%2e/a", b"/a%2Fb%5c..", b"//a//b/", b"/a\\..\\b?x=/../y", b"/a/./b/.?q"];
    let words: &[&[u8]] =
        &[b"%", b"%2e", b"%2E", b"%2f", b"%5C", b"%00", b"/", b"\\", b".", b"..", b"?", b"#", b"%25", b"%2", b"\xff"];
    fuzz("path", 1, seeds, words, |input| {
        if !input.starts_with(b"/") {
            return;
        }
        for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Unescape, EscapedSlashes::Redirect] {
            for merge_slashes in [false, true] {
                let rules = Rules { normalize: true, merge_slashes, escaped_slashes };
                let Ok(outcome) = path::clean(input, rules) else { continue };
                let clean = match &outcome {
                    Outcome::Unchanged => input,
                    Outcome::Changed(path) | Outcome::Redirect(path) => path,
                    // Only where escaped slashes are refused.
                    Outcome::Refused(_) => panic!("refused"),
                };
                let path = clean.split(|&b| b == b'?').next().unwrap();
                assert!(path.starts_with(b"/"));
                assert!(!path.split(|&b| b == b'/').any(|segment| segment == b"." || segment == b".."));
                assert!(!path.contains(&b'\\') && path.is_ascii());
                // Of nothing but slashes the first and the last stay, as with Envoy.
                assert!(!merge_slashes || path == b"//" || !path.windows(2).any(|pair| pair == b"//"));
            }
        }
    });
}

/// A ClientHello with a server name and two protocols.
fn hello() -> Vec<u8> {
    let with_length = |bytes: &[u8], size: usize| {
        let mut out = (bytes.len() as u32).to_be_bytes()[4 - size..].to_vec();
        out.extend_from_slice(bytes);
        out
    };
    let name = with_length(&[&[0][..], &with_length(b"shop.example", 2)].concat(), 2);
    let alpn = with_length(&[with_length(b"h2", 1), with_length(b"http/1.1", 1)].concat(), 2);
    let extensions =
        [&[0, 0][..], &with_length(&name, 2), &[0, 16], &with_length(&alpn, 2), &[0, 43, 0, 3, 2, 3, 4]].concat();
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend(with_length(&[7; 32], 1));
    body.extend(with_length(&[0x13, 1, 0x13, 2], 2));
    body.extend(with_length(&[0], 1));
    body.extend(with_length(&extensions, 2));
    let handshake = [&[1][..], &with_length(&body, 3)].concat();
    [&[22, 3, 1][..], &with_length(&handshake, 2)].concat()
}

#[test]
fn client_hellos_when_mutated_then_a_verdict_stays() {
    let hello = hello();
    assert!(
        matches!(client_hello::inspect(&hello), Inspect::Hello(hello) if hello.server_name.as_deref() == Some("shop.example"))
    );
    let words: &[&[u8]] = &[b"\0", b"\xff\xff", b"\x16\x03\x01", b"\0\0\0\x05", b"h2", b"\0\x10"];
    fuzz("client hello", 1, &[&hello], words, |input| {
        let mut verdict = None;
        for end in 0..=input.len() {
            let now = client_hello::inspect(&input[..end]);
            match (&verdict, now) {
                (None, Inspect::NeedMore) => {}
                (None, now) => verdict = Some(format!("{now:?}")),
                (Some(before), now) => assert_eq!(*before, format!("{now:?}"), "after {end} bytes"),
            }
        }
    });
}
