//! Counts what a client's frames cost: frames that carry nothing, questions that want an answer, priorities, and streams that are
//! reset as fast as they are opened. A client that oversteps is disconnected.

use std::time::{Duration, Instant};

use super::frame::{self, Head};

/// SETTINGS and PING frames that a client may send at once, and how fast it earns new ones: gRPC measures its connections with
/// pings, a few a second.
const QUESTIONS: u32 = 1000;
const QUESTION_EVERY: Duration = Duration::from_millis(5);
/// So many streams may be reset before it matters how many were not; then at most half of all (as Envoy has it).
const RESETS: u64 = 500;

/// How much a client may send that costs more than it says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Frames without payload that follow each other.
    pub(super) empty: u32,
    /// PRIORITY frames for each stream, and as many for the connection.
    pub(super) priorities: u32,
}

/// What a client has cost so far.
pub(super) struct Guard {
    allowance: Allowance,
    empty: u32,
    opened: u64,
    priorities: u64,
    resets: u64,
    questions: u32,
    since: Option<Instant>,
}

impl Guard {
    /// Counts from the connection's first frame on.
    pub(super) fn new(allowance: Allowance) -> Self {
        Self { allowance, empty: 0, opened: 0, priorities: 0, resets: 0, questions: 0, since: None }
    }

    /// Counts a frame.
    ///
    /// # Errors
    /// What there is too much of.
    pub(super) fn see(&mut self, head: Head) -> Result<(), &'static str> {
        let Head { length, kind, flags, .. } = head;
        match kind {
            frame::DATA | frame::HEADERS | frame::CONTINUATION => {
                let ends = if kind == frame::DATA { frame::END_STREAM } else { frame::END_HEADERS };
                self.empty = if length == 0 && flags & ends == 0 { self.empty + 1 } else { 0 };
                self.opened += u64::from(kind == frame::HEADERS);
                if self.empty > self.allowance.empty {
                    return Err("too many frames without payload");
                }
            }
            frame::PRIORITY => {
                self.priorities += 1;
                if self.priorities > u64::from(self.allowance.priorities).saturating_mul(self.opened + 1) {
                    return Err("too many priorities");
                }
            }
            frame::RST_STREAM => {
                self.resets += 1;
                if self.resets >= RESETS && self.resets * 2 > self.opened {
                    return Err("too many reset streams");
                }
            }
            frame::SETTINGS | frame::PING if flags & frame::ACK == 0 => return self.question(),
            _ => {}
        }
        Ok(())
    }

    fn question(&mut self) -> Result<(), &'static str> {
        self.questions += 1;
        if self.questions <= QUESTIONS / 2 {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let earned = u32::try_from((now - since).as_millis() / QUESTION_EVERY.as_millis()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.questions = self.questions.saturating_sub(earned);
            self.since = Some(now);
        }
        if self.questions > QUESTIONS { Err("too many settings and pings") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowance = Allowance { empty: 1, priorities: 100 };

    fn frame(kind: u8, flags: u8, length: usize) -> Head {
        Head { length, kind, flags, stream: 1 }
    }

    /// Whether all frames are taken.
    fn takes(frames: impl IntoIterator<Item = Head>) -> bool {
        let mut guard = Guard::new(ALLOWED);
        frames.into_iter().all(|frame| guard.see(frame).is_ok())
    }

    #[test]
    fn guard_when_frames_are_of_use_then_they_are_taken() {
        assert!(takes([frame(4, 0, 12), frame(1, 4, 20), frame(0, 0, 300), frame(0, 0, 0), frame(0, 1, 0)]));
        assert!(!takes([frame(1, 4, 20), frame(0, 0, 0), frame(0, 0, 0)]));
    }

    #[test]
    fn guard_when_a_client_floods_then_it_is_stopped() {
        for (what, one, few, many) in [
            ("settings", vec![frame(4, 0, 0)], 400, 5000),
            ("pings", vec![frame(6, 0, 8)], 400, 5000),
            ("priorities", vec![frame(2, 0, 5)], 100, 101),
            ("resets", vec![frame(1, 5, 9), frame(3, 0, 4)], 499, 500),
            ("empty continuations", vec![frame(9, 0, 0)], 1, 2),
        ] {
            let flood = |count: usize| takes(std::iter::repeat_n(one.clone(), count).flatten());
            assert!(flood(few), "{few} {what}");
            assert!(!flood(many), "{many} {what}");
        }
        let acknowledgements = std::iter::repeat_n(frame(6, 1, 8), 5000);
        assert!(takes(acknowledgements), "answers are no questions");
        let mixed = (0..5000)
            .flat_map(|n| if n % 3 == 0 { vec![frame(1, 5, 9), frame(3, 0, 4)] } else { vec![frame(1, 5, 9)] });
        assert!(takes(mixed), "a client that gives up on some streams is served");
    }
}
