//! Copies bytes both ways until both ends have said their last.

use super::Ends;
use super::splice::{Moving, Pipe};
use crate::{
    http::buffer::Buffer,
    listen::{LAST_WORDS, Stream},
    telemetry::{CloseType, ResponseFlags, TcpRecorder},
};
use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::io::AsyncWrite;

/// Bytes after which the counters of a running connection are brought up to date.
const REPORT: u64 = 1 << 20;
/// Time after which they are.
const REPORT_TIME: Duration = Duration::from_secs(5);

/// Rounds of one direction before everything else gets its turn.
const ROUNDS: u32 = 16;
/// Bytes that a direction has moved before the kernel moves the rest by itself: short exchanges need no pipe.
const SPLICE_FROM: u64 = 64 * 1024;

/// What was moved, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) flags: ResponseFlags,
    /// The endpoint was the first to end it.
    pub(super) remote: bool,
    /// How the client's connection ended.
    pub(super) down: CloseType,
    /// How the endpoint's did.
    pub(super) up: CloseType,
}

/// One direction.
#[derive(Default)]
struct Half {
    buffer: Buffer,
    ended: bool,
    shut: bool,
    count: u64,
    pipe: Option<Pipe>,
    /// Both sides are plain, and the kernel can move bytes between them.
    splices: bool,
}

/// Which side broke, and whether it was reset.
enum Broken {
    Source(bool),
    Sink(bool),
}

fn is_reset(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionReset
}

fn source(error: std::io::Error) -> Broken {
    Broken::Source(is_reset(&error))
}

fn sink(error: std::io::Error) -> Broken {
    Broken::Sink(is_reset(&error))
}

impl Half {
    fn new(buffer: Buffer, splices: bool) -> Self {
        Self { buffer, splices, ..Self::default() }
    }

    /// Moves what can be moved; ready when this direction is over.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            ready!(self.poll_write(cx, to))?;
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(sink)?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            if self.poll_read(cx, from)?.is_pending() {
                // What TLS still holds back goes out before we wait.
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(sink)?;
                return Poll::Pending;
            }
        }
        // After all that became ready meanwhile, sockets among it: a waker alone would come before those are looked at.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
        Poll::Pending
    }

    /// Ready when nothing is left to write.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<Result<(), Broken>> {
        while !self.buffer.is_empty() {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, self.buffer.bytes())).map_err(sink)?;
            if count == 0 {
                return Poll::Ready(Err(Broken::Sink(false)));
            }
            self.buffer.consume(count);
            self.count += count as u64;
        }
        if let (Some(pipe), Stream::Plain(tcp)) = (&mut self.pipe, &*to) {
            while !pipe.is_empty() {
                self.count += ready!(pipe.poll_drain(cx, tcp)).map_err(sink)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when something came, or the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Result<Poll<()>, Broken> {
        if self.splices && self.count >= SPLICE_FROM {
            if self.pipe.is_none() {
                self.pipe = Pipe::take();
            }
            if let (Some(pipe), Stream::Plain(tcp)) = (&mut self.pipe, &*from) {
                match pipe.poll_fill(cx, tcp, usize::MAX) {
                    Poll::Ready(Ok(Moving::Bytes(_))) => return Ok(Poll::Ready(())),
                    Poll::Ready(Ok(Moving::End)) => {
                        self.ended = true;
                        return Ok(Poll::Ready(()));
                    }
                    // Nothing to do: the pipe may serve others meanwhile.
                    Poll::Pending => {
                        self.pipe = None;
                        return Ok(Poll::Pending);
                    }
                    Poll::Ready(Ok(Moving::Impossible)) => {
                        self.splices = false;
                        self.pipe = None;
                    }
                    Poll::Ready(Err(error)) => return Err(source(error)),
                }
            }
        }
        match self.buffer.poll_read(from, cx) {
            Poll::Ready(Ok(0)) => self.ended = true,
            Poll::Ready(Ok(_)) => {}
            // TLS without a farewell: what was cut off, if anything, is for those to tell who speak on it.
            Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => self.ended = true,
            Poll::Ready(Err(error)) => return Err(source(error)),
            Poll::Pending => return Ok(Poll::Pending),
        }
        Ok(Poll::Ready(()))
    }
}

/// Passes on what has come of a direction whose source is gone, as far as the other side takes it in time, and tells that of a reset.
async fn cut_off(half: &mut Half, to: &mut Stream) {
    let rest = poll_fn(|cx| {
        ready!(half.poll_write(cx, to))?;
        Pin::new(&mut *to).poll_flush(cx).map_err(sink)
    });
    let until = Instant::now() + LAST_WORDS;
    let _ = tokio::time::timeout_at(until.into(), rest).await;
    to.reset_at_end(until).await;
}

/// Whether no side broke: what does must not look like an end in order on the other.
pub(super) fn ends_in_order(flags: ResponseFlags) -> bool {
    flags.without(ResponseFlags::STREAM_IDLE_TIMEOUT).without(ResponseFlags::DURATION_TIMEOUT).is_empty()
}

/// Copies until both directions are over, one broke, or one of `ends` has come. A direction that ends is ended on the other side too, while
/// the opposite one goes on.
pub(super) async fn both(
    down: &mut Stream,
    up: &mut Stream,
    first: Buffer,
    mut ends: Ends<'_>,
    recorder: &TcpRecorder,
) -> Moved {
    let plain = matches!((&*down, &*up), (Stream::Plain(_), Stream::Plain(_)));
    let mut there = Half::new(first, plain);
    let mut back = Half::new(Buffer::default(), plain);
    let (mut reported_there, mut reported_back) = (0, 0);
    let mut last = Instant::now();
    let mut last_report = last;
    let (mut seen, mut first_end) = (0, None);
    let (mut down_close, mut up_close) = (CloseType::Normal, CloseType::Normal);
    let flags = poll_fn(|cx| {
        let a = there.poll(cx, down, up);
        let b = back.poll(cx, up, down);
        if first_end.is_none() && (a.is_ready() || b.is_ready()) {
            first_end = Some(b.is_ready());
        }
        let total = there.count + back.count;
        let now = Instant::now();
        if total != seen {
            seen = total;
            last = now;
        }
        let unreported = total - reported_there - reported_back;
        if unreported >= REPORT || unreported > 0 && now - last_report >= REPORT_TIME {
            recorder.received(there.count - reported_there);
            recorder.sent(back.count - reported_back);
            (reported_there, reported_back, last_report) = (there.count, back.count, now);
        }
        let over = |flags| Poll::Ready(flags);
        match (a, b) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return over(ResponseFlags::none()),
            (Poll::Ready(Err(Broken::Source(reset))), _) | (_, Poll::Ready(Err(Broken::Sink(reset)))) => {
                if reset {
                    down_close = CloseType::RemoteReset;
                }
                return over(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
            (Poll::Ready(Err(Broken::Sink(reset))), _) | (_, Poll::Ready(Err(Broken::Source(reset)))) => {
                if reset {
                    // Envoy passes that on.
                    (up_close, down_close) = (CloseType::RemoteReset, CloseType::LocalReset);
                    return over(ResponseFlags::UPSTREAM_REMOTE_RESET);
                }
                return over(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
            }
            _ => {}
        }
        ends.poll(cx, last, (there.count, back.count))
    })
    .await;
    // Who was cut off on one side is not to take that for an end in order on the other.
    if down_close == CloseType::RemoteReset {
        cut_off(&mut there, up).await;
    } else if up_close == CloseType::RemoteReset {
        cut_off(&mut back, down).await;
    }
    recorder.received(there.count - reported_there);
    recorder.sent(back.count - reported_back);
    if ends_in_order(flags) {
        down.say_goodbye().await;
        up.say_goodbye().await;
    }
    Moved {
        received: there.count,
        sent: back.count,
        flags,
        remote: first_end == Some(true),
        down: down_close,
        up: up_close,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    /// Two ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn stream(tcp: TcpStream) -> Stream {
        tcp.set_nonblocking(true).unwrap();
        Stream::Plain(tokio::net::TcpStream::from_std(tcp).unwrap())
    }

    /// Passes on so many bytes that come in pieces of one size.
    fn pass(total: usize, piece: usize, splices: bool) {
        let (mut source, down) = pair();
        let (up, mut sink) = pair();
        let writer = thread::spawn(move || {
            let data = vec![7u8; piece];
            for _ in 0..total / piece {
                source.write_all(&data).unwrap();
            }
        });
        let reader = thread::spawn(move || {
            let mut data = vec![0u8; 1 << 20];
            let mut count = 0;
            loop {
                match sink.read(&mut data).unwrap() {
                    0 => break count,
                    more => count += more,
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut from, mut to) = (stream(down), stream(up));
            let mut half = Half::new(Buffer::default(), splices);
            let done = poll_fn(|cx| half.poll(cx, &mut from, &mut to)).await;
            assert!(done.is_ok());
        });
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), total / piece * piece);
    }

    #[test]
    fn half_when_the_sink_is_slow_then_everything_arrives_whichever_way_it_goes() {
        for splices in [false, true] {
            pass(8 << 20, 100_000, splices);
        }
    }
}
