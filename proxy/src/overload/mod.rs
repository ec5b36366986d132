//! What the process does when memory runs short: it sheds work before the kernel ends it.
//!
//! The control thread looks at monitors again and again, and tells the workers what follows from them ([`Levels`]); a request
//! only looks at a value of its worker. Envoy's overload manager says what is watched and what follows; a sidecar, which has
//! none, watches the limit of its cgroup ([`Overload::usual`]).

mod memory;
mod watch;

pub use memory::{Cgroup, resident};
pub use watch::{Board, watch};

use std::sync::Arc;
use std::time::Duration;

/// How often monitors are looked at where nothing is said: Envoy's interval.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How often the cgroup's limit is looked at where nothing is configured: memory may be used up faster than in a second.
const QUICK: Duration = Duration::from_millis(100);

/// What is watched, and what follows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overload {
    /// How often monitors are looked at.
    pub interval: Duration,
    /// What is watched.
    pub monitors: Vec<Monitor>,
    /// What follows.
    pub actions: Vec<Follow>,
    /// Open connections of clients at most: it is looked at whenever one comes, and what is beyond is closed.
    pub connections: Option<u64>,
}

/// Something whose use is a share of what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// Its name, by which triggers and statistics speak of it.
    pub name: Arc<str>,
    /// What it looks at.
    pub resource: Resource,
}

/// What a monitor looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// This process's own memory, of so many bytes.
    Heap(u64),
    /// The cgroup's memory, of its limit, or of so many bytes where that is less. Without a limit there is no pressure.
    Cgroup(Option<u64>),
}

/// An action, and when it is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Follow {
    /// What is done.
    pub action: Action,
    /// Any of these is enough.
    pub triggers: Vec<Trigger>,
}

/// When an action is taken: not at all below `from`, altogether from `to` on, and in between for a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trigger {
    /// The monitor's index.
    pub monitor: usize,
    /// A share of the resource, between 0 and 1.
    pub from: f64,
    /// A share of the resource; not less than `from`.
    pub to: f64,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Requests are answered 503.
    StopRequests,
    /// New connections wait in the kernel.
    StopConnections,
    /// New connections are taken and closed.
    RejectConnections,
    /// Connections end with the answer to the request that they carry.
    NoKeepAlive,
    /// Memory that nobody uses is given back.
    Shrink,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 5] =
        [Self::StopRequests, Self::StopConnections, Self::RejectConnections, Self::NoKeepAlive, Self::Shrink];

    /// Envoy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopRequests => "envoy.overload_actions.stop_accepting_requests",
            Self::StopConnections => "envoy.overload_actions.stop_accepting_connections",
            Self::RejectConnections => "envoy.overload_actions.reject_incoming_connections",
            Self::NoKeepAlive => "envoy.overload_actions.disable_http_keepalive",
            Self::Shrink => "envoy.overload_actions.shrink_heap",
        }
    }
}

/// How far each action is taken, in thousandths. A worker holds a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levels([u16; 5]);

impl Levels {
    /// Altogether.
    pub const WHOLE: u16 = 1000;

    /// Of that action.
    pub fn of(self, action: Action) -> u16 {
        self.0[action as usize]
    }

    fn raise(&mut self, action: Action, level: u16) {
        let own = &mut self.0[action as usize];
        *own = (*own).max(level);
    }
}

impl Overload {
    /// For a sidecar: the limit of its cgroup. From 80 % on memory is given back that nobody uses, from 85 % on connections
    /// end with their answers, from 90 % on requests are refused, from 95 % on connections.
    pub fn usual() -> Self {
        let at = |action, share| {
            let trigger = Trigger { monitor: 0, from: share, to: share };
            Follow { action, triggers: vec![trigger] }
        };
        Self {
            interval: QUICK,
            monitors: vec![Monitor { name: "cgroup".into(), resource: Resource::Cgroup(None) }],
            actions: vec![
                at(Action::Shrink, 0.80),
                at(Action::NoKeepAlive, 0.85),
                at(Action::StopRequests, 0.90),
                at(Action::RejectConnections, 0.95),
            ],
            connections: None,
        }
    }

    /// What follows from the monitors' pressures, in their order; a monitor that could not look has none.
    pub fn levels(&self, pressures: &[Option<f64>]) -> Levels {
        let mut levels = Levels::default();
        for Follow { action, triggers } in &self.actions {
            for trigger in triggers {
                if let Some(pressure) = pressures.get(trigger.monitor).copied().flatten() {
                    levels.raise(*action, trigger.level(pressure));
                }
            }
        }
        levels
    }
}

impl Trigger {
    fn level(&self, pressure: f64) -> u16 {
        if pressure >= self.to {
            return Levels::WHOLE;
        }
        if pressure < self.from {
            return 0;
        }
        // Between 0 and 1000, since `from <= pressure < to`.
        ((pressure - self.from) / (self.to - self.from) * f64::from(Levels::WHOLE)).round() as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_when_pressure_rises_follow_by_steps_and_by_shares() {
        let scaled = Trigger { monitor: 1, from: 0.5, to: 0.9 };
        let mut overload = Overload::usual();
        overload.actions[2].triggers.push(scaled);
        let requests = |pressures: [Option<f64>; 2]| overload.levels(&pressures).of(Action::StopRequests);
        assert_eq!(requests([Some(0.89), None]), 0);
        assert_eq!(requests([Some(0.90), None]), 1000);
        assert_eq!(requests([None, Some(0.7)]), 500);
        assert_eq!(requests([Some(0.95), Some(0.7)]), 1000, "whichever is more");
        assert_eq!(requests([None, Some(1.5)]), 1000);
        let levels = overload.levels(&[Some(0.86), None]);
        assert_eq!((levels.of(Action::NoKeepAlive), levels.of(Action::RejectConnections)), (1000, 0));
    }
}
