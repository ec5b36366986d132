//! Counts what a peer's frames cost: frames that carry nothing, questions that want an answer, priorities, windows that are
//! widened for nothing, and streams that are reset before they were answered. A peer that oversteps is disconnected, be it a
//! client or an endpoint.

use std::time::{Duration, Instant};

use super::frame::{self, Head};
use crate::config::Http2Options;

/// SETTINGS and PING frames that a peer may send at once, and how fast it earns new ones: gRPC measures its connections with
/// a ping for each turn of data, which near by are thousands a second.
const QUESTIONS: u32 = 1000;
const QUESTION_EVERY: Duration = Duration::from_micros(100);
/// Of so many streams it matters how many were reset early; half of them, or later half of all, are too many (as Envoy has it).
const STREAMS: u64 = 500;
/// WINDOW_UPDATE frames that a connection may begin with.
const FIRST_UPDATES: u64 = 5;

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Frames that carry nothing.
    Empty,
    /// PRIORITY frames.
    Priorities,
    /// WINDOW_UPDATE frames.
    Updates,
    /// SETTINGS and PING frames.
    Questions,
    /// Answers that are not read.
    Answers,
    /// Streams that are reset early.
    Resets,
}

impl Flood {
    /// As the peer is told.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "too many frames without payload",
            Self::Priorities => "too many priorities",
            Self::Updates => "too many updates of windows",
            Self::Questions => "too many settings and pings",
            Self::Answers => "too many answers that are not read",
            Self::Resets => "too many reset streams",
        }
    }
}

/// How much a peer may send that costs more than it says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Frames without payload that follow each other.
    pub(super) empty: u32,
    /// PRIORITY frames for each stream, and as many for the connection.
    pub(super) priorities: u32,
    /// WINDOW_UPDATE frames for each DATA frame that we sent.
    pub(super) updates: u32,
    /// Answers to its questions that wait to be read by it.
    pub(super) waiting: u32,
}

impl From<&Http2Options> for Allowance {
    fn from(options: &Http2Options) -> Self {
        Self {
            empty: options.max_empty_frames,
            priorities: options.max_priority_frames,
            updates: options.max_window_updates,
            waiting: options.max_control_frames,
        }
    }
}

/// What a peer has cost so far.
pub(super) struct Guard {
    allowance: Allowance,
    empty: u32,
    opened: u64,
    sent: u64,
    priorities: u64,
    updates: u64,
    resets: u64,
    questions: u32,
    since: Option<Instant>,
    waiting: u32,
}

impl Guard {
    /// Counts from the connection's first frame on.
    pub(super) fn new(allowance: Allowance) -> Self {
        Self {
            allowance,
            empty: 0,
            opened: 0,
            sent: 0,
            priorities: 0,
            updates: 0,
            resets: 0,
            questions: 0,
            since: None,
            waiting: 0,
        }
    }

    /// A stream was opened, by whichever side.
    pub(super) fn opens(&mut self) {
        self.opened += 1;
    }

    /// We sent a frame of DATA.
    pub(super) fn sends(&mut self) {
        self.sent += 1;
    }

    /// Everything that waited was written.
    pub(super) fn written(&mut self) {
        self.waiting = 0;
    }

    /// Counts a frame that we have to send because of one that came.
    ///
    /// # Errors
    /// When more of them wait than may: the peer asks and does not listen.
    pub(super) fn owes(&mut self) -> Result<(), Flood> {
        self.waiting += 1;
        if self.waiting > self.allowance.waiting { Err(Flood::Answers) } else { Ok(()) }
    }

    /// Counts a stream that its client reset early: soon, and before it was answered.
    ///
    /// # Errors
    /// When there are too many of them.
    pub(super) fn reset(&mut self) -> Result<(), Flood> {
        self.resets += 1;
        if self.resets * 2 >= self.opened.max(STREAMS) { Err(Flood::Resets) } else { Ok(()) }
    }

    /// Counts a frame; `padding` is what of a frame of DATA is none.
    ///
    /// # Errors
    /// What there is too much of.
    pub(super) fn see(&mut self, head: Head, padding: usize) -> Result<(), Flood> {
        let Head { length, kind, flags, .. } = head;
        match kind {
            frame::DATA | frame::HEADERS | frame::CONTINUATION => {
                let ends = if kind == frame::DATA { frame::END_STREAM } else { frame::END_HEADERS };
                self.empty = if length <= padding && flags & ends == 0 { self.empty + 1 } else { 0 };
                if self.empty > self.allowance.empty {
                    return Err(Flood::Empty);
                }
            }
            frame::PRIORITY => {
                self.priorities += 1;
                if self.priorities > u64::from(self.allowance.priorities).saturating_mul(self.opened + 1) {
                    return Err(Flood::Priorities);
                }
            }
            frame::WINDOW_UPDATE => {
                self.updates += 1;
                let earned = u64::from(self.allowance.updates).saturating_mul(self.sent).saturating_add(self.opened);
                if self.updates > earned.saturating_mul(2).saturating_add(FIRST_UPDATES) {
                    return Err(Flood::Updates);
                }
            }
            frame::SETTINGS | frame::PING if flags & frame::ACK == 0 => return self.question(),
            _ => {}
        }
        Ok(())
    }

    fn question(&mut self) -> Result<(), Flood> {
        self.questions += 1;
        if self.questions <= QUESTIONS / 2 {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let earned = u32::try_from((now - since).as_micros() / QUESTION_EVERY.as_micros()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.questions = self.questions.saturating_sub(earned);
            self.since = Some(now);
        }
        if self.questions > QUESTIONS { Err(Flood::Questions) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowance = Allowance { empty: 1, priorities: 100, updates: 10, waiting: 1000 };

    fn frame(kind: u8, flags: u8, length: usize) -> Head {
        Head { length, kind, flags, stream: 1 }
    }

    /// Whether all frames are taken, each HEADERS of which opens a stream and each RST_STREAM ends one early.
    fn takes(frames: impl IntoIterator<Item = Head>) -> bool {
        let mut guard = Guard::new(ALLOWED);
        frames.into_iter().all(|frame| {
            if frame.kind == frame::HEADERS {
                guard.opens();
            }
            guard.see(frame, 0).is_ok() && (frame.kind != frame::RST_STREAM || guard.reset().is_ok())
        })
    }

    #[test]
    fn guard_when_frames_are_of_use_then_they_are_taken() {
        assert!(takes([frame(1, 4, 20), frame(4, 0, 12), frame(0, 0, 300), frame(0, 0, 0), frame(0, 1, 0)]));
        assert!(!takes([frame(1, 4, 20), frame(0, 0, 0), frame(0, 0, 0)]));
    }

    #[test]
    fn guard_when_data_is_padding_only_then_it_counts_as_empty() {
        let mut guard = Guard::new(ALLOWED);
        assert!(guard.see(frame(0, 8, 7), 6).is_ok(), "a byte is a byte");
        assert!(guard.see(frame(0, 8, 6), 6).is_ok());
        assert!(guard.see(frame(0, 8, 6), 6).is_err());
    }

    #[test]
    fn guard_when_a_peer_floods_then_it_is_stopped() {
        for (what, one, few, many) in [
            ("settings", vec![frame(4, 0, 0)], 400, 50_000),
            ("pings", vec![frame(6, 0, 8)], 400, 50_000),
            ("priorities", vec![frame(2, 0, 5)], 100, 101),
            ("resets", vec![frame(1, 5, 9), frame(3, 0, 4)], 249, 250),
            ("empty continuations", vec![frame(9, 0, 0)], 1, 2),
            ("updates of windows", vec![frame(8, 0, 4)], 5, 6),
        ] {
            let flood = |count: usize| takes(std::iter::repeat_n(one.clone(), count).flatten());
            assert!(flood(few), "{few} {what}");
            assert!(!flood(many), "{many} {what}");
        }
        let acknowledgements = std::iter::repeat_n(frame(6, 1, 8), 50_000);
        assert!(takes(acknowledgements), "answers are no questions");
        let mixed =
            (0..500).flat_map(|n| if n % 3 == 0 { vec![frame(1, 5, 9), frame(3, 0, 4)] } else { vec![frame(1, 5, 9)] });
        assert!(takes(mixed), "a client that gives up on some streams is served");
    }

    #[test]
    fn guard_when_data_was_sent_then_windows_may_be_widened_for_it() {
        let mut guard = Guard::new(ALLOWED);
        guard.opens();
        guard.sends();
        let taken = (0..100).take_while(|_| guard.see(frame(8, 0, 4), 0).is_ok()).count();
        assert_eq!(taken, 5 + 2 * (1 + 10));
    }

    #[test]
    fn guard_when_answers_are_not_read_then_only_so_many_wait() {
        let mut guard = Guard::new(Allowance { waiting: 3, ..ALLOWED });
        for _ in 0..10 {
            assert_eq!((0..5).take_while(|_| guard.owes().is_ok()).count(), 3);
            guard.written();
        }
    }
}
