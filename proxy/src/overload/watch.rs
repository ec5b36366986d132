//! Looks at the monitors again and again, and tells the workers what follows.

use super::{Action, Cgroup, Levels, Overload, Resource, resident};
use crate::worker::Workers;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Between two times that memory is given back, while that is to be done.
const SHRINK: Duration = Duration::from_millis(100);

/// What was seen last, for statistics.
#[derive(Debug, Default)]
pub struct Board(Mutex<Vec<(String, u64)>>);

impl Board {
    /// Names under Envoy's `overload.`, and numbers.
    pub fn numbers(&self) -> Vec<(String, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, overload: &Overload, pressures: &[Option<f64>], levels: Levels) {
        let pressures = overload.monitors.iter().zip(pressures).map(|(monitor, pressure)| {
            let percent = pressure.map_or(0, |pressure| (pressure * 100.0) as u64);
            (format!("overload.{}.pressure", monitor.name), percent)
        });
        let actions = overload.actions.iter().flat_map(|follow| {
            let (name, level) = (follow.action.name(), levels.of(follow.action));
            [
                (format!("overload.{name}.active"), u64::from(level == Levels::WHOLE)),
                (format!("overload.{name}.scale_percent"), u64::from(level / 10)),
            ]
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pressures.chain(actions).collect();
    }
}

/// Runs until it is dropped. Where nothing can be watched it ends at once.
pub async fn watch(overload: Overload, workers: Arc<OnceLock<Workers>>, board: Arc<Board>) {
    let cgroup = Cgroup::of_this_process();
    let only_cgroup = overload.monitors.iter().all(|monitor| monitor.resource == Resource::Cgroup(None));
    if overload.actions.is_empty() || only_cgroup && cgroup.is_none() {
        return;
    }
    let mut ticks = tokio::time::interval(overload.interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut shrunk) = (Levels::default(), None::<Instant>);
    loop {
        ticks.tick().await;
        let pressures: Vec<_> =
            overload.monitors.iter().map(|monitor| pressure(monitor.resource, cgroup.as_ref())).collect();
        let levels = overload.levels(&pressures);
        board.write(&overload, &pressures, levels);
        if levels.of(Action::Shrink) > 0 && shrunk.is_none_or(|at| at.elapsed() >= SHRINK) {
            shrunk = Some(Instant::now());
            leno_runtime::memory::give_back();
        }
        if levels != told
            && let Some(workers) = workers.get()
        {
            log(told, levels);
            workers.shed(levels).await;
            told = levels;
        }
    }
}

fn log(before: Levels, now: Levels) {
    for action in Action::ALL {
        let (was, is) = (before.of(action) > 0, now.of(action) > 0);
        if !was && is {
            tracing::warn!(action = action.name(), "memory runs short");
        } else if was && !is {
            tracing::info!(action = action.name(), "there is memory again");
        }
    }
}

/// The share that is used; more than 1 where more is used than there is.
fn pressure(resource: Resource, cgroup: Option<&Cgroup>) -> Option<f64> {
    let (used, most) = match resource {
        Resource::Heap(most) => (resident()?, most),
        Resource::Cgroup(most) => {
            let limit = cgroup.and_then(Cgroup::limit);
            let used = match cgroup {
                Some(cgroup) => cgroup.used()?,
                None => resident()?,
            };
            (used, limit.into_iter().chain(most).min()?)
        }
    };
    Some(used as f64 / most.max(1) as f64)
}
