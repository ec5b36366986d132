//! The share of one replica: a pure decision, second by second.

use std::time::Duration;

use tokio::time::Instant;

use super::Crowd;

/// Most streams that are ended in one look.
const MOST: usize = 20;
/// How long a replica may hold a little more than its share before it ends one stream.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The streams that each of several replicas should hold at most.
pub fn fair(streams: usize, crowd: Crowd) -> usize {
    crowd.proxies.max(streams).div_ceil(crowd.replicas.max(1))
}

/// Decides how many streams to end. It begins when there are more than an eighth above the share (one at least), and then
/// goes on down to the share, an eighth of the surplus at a time. What is a little above the share for [`PATIENCE`] goes one
/// by one, so that figures which differ for a moment between replicas move nobody.
#[derive(Clone, Debug, Default)]
pub struct Share {
    shedding: bool,
    above_since: Option<Instant>,
}

impl Share {
    /// How many streams to end now, of `streams` that are open.
    pub fn surplus(&mut self, streams: usize, crowd: Crowd, now: Instant) -> usize {
        let fair = fair(streams, crowd);
        if crowd.replicas < 2 || streams <= fair {
            *self = Share::default();
            return 0;
        }
        let above = streams - fair;
        let since = *self.above_since.get_or_insert(now);
        self.shedding |= above > (fair / 8).max(1);
        if self.shedding {
            return above.div_ceil(8).min(MOST);
        }
        if now.saturating_duration_since(since) < PATIENCE {
            return 0;
        }
        self.above_since = Some(now);
        1
    }
}
