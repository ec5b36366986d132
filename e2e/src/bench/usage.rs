//! What a process tree uses: CPU time, memory, system calls.

use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// CPU time of every thread, in nanoseconds, by thread id.
pub type Cpu = BTreeMap<u32, u64>;

/// The process and all of its descendants.
pub fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        for task in numbers(format!("/proc/{pid}/task")) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

fn numbers(folder: impl AsRef<Path>) -> Vec<u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The CPU time that the tree has used so far, from the scheduler's own account.
pub fn cpu(root: u32) -> Cpu {
    let mut used = Cpu::new();
    for pid in tree(root) {
        for task in numbers(format!("/proc/{pid}/task")) {
            let line = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")).unwrap_or_default();
            if let Some(time) = line.split_whitespace().next().and_then(|time| time.parse().ok()) {
                used.insert(task, time);
            }
        }
    }
    used
}

/// What was used between two readings, by thread, in nanoseconds.
pub fn spent(before: &Cpu, after: &Cpu) -> Vec<u64> {
    let mut spent: Vec<u64> =
        after.iter().map(|(task, time)| time.saturating_sub(before.get(task).copied().unwrap_or_default())).collect();
    spent.sort_unstable_by(|a, b| b.cmp(a));
    spent
}

/// CPU time by who ran, in ticks of the kernel's clock (a hundredth of a second).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    user: u64,
    kernel: u64,
}

/// Fewer ticks than these tell nothing of shares.
const FEW_TICKS: u64 = 50;

impl Modes {
    /// What was used since then.
    pub fn since(self, before: Self) -> Self {
        Self { user: self.user.saturating_sub(before.user), kernel: self.kernel.saturating_sub(before.kernel) }
    }

    /// The kernel's share; `None` where there is too little to tell.
    pub fn kernel_share(self) -> Option<f64> {
        let all = self.user + self.kernel;
        (all >= FEW_TICKS).then(|| self.kernel as f64 / all as f64)
    }
}

impl std::iter::Sum for Modes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self { user: sum.user + one.user, kernel: sum.kernel + one.kernel })
    }
}

/// The CPU time that the tree has used so far, by who ran.
pub fn modes(root: u32) -> Modes {
    let of = |pid: u32| -> Option<Modes> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program, in brackets, may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(Modes { user: fields.next()?.parse().ok()?, kernel: fields.next()?.parse().ok()? })
    };
    tree(root).into_iter().filter_map(of).sum()
}

/// Resident memory of the tree, in bytes.
pub fn resident(root: u32) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    tree(root).into_iter().filter_map(of).sum::<u64>() * 1024
}

/// System calls of the tree during so long, counted by the kernel; `None` where it cannot be asked (no perf, no right).
pub fn system_calls(root: u32, time: Duration) -> Option<u64> {
    let pids: Vec<String> = tree(root).iter().map(u32::to_string).collect();
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(",")]);
    perf.args(["--", "sleep", &format!("{:.2}", time.as_secs_f64())]);
    let output = perf.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().find(|line| line.contains("sys_enter"))?.split(',').next()?.parse().ok()
}

/// Ties the calling thread to a core; nothing on a machine with one.
pub fn pin(core: usize) -> Result<()> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(());
    }
    let mut set = nix::sched::CpuSet::new();
    set.set(core).context("no such core")?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).context("cannot choose a core")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spent_when_a_thread_is_new_then_all_of_its_time_counts() {
        let before = Cpu::from([(1, 100)]);
        let after = Cpu::from([(1, 150), (2, 70)]);
        assert_eq!(spent(&before, &after), [70, 50]);
    }

    #[test]
    fn modes_when_a_process_works_then_its_share_is_told_and_little_work_tells_nothing() {
        let modes = |user, kernel| Modes { user, kernel };
        assert_eq!(modes(130, 60).since(modes(100, 30)).kernel_share(), Some(0.5));
        assert_eq!(modes(110, 30).since(modes(100, 30)).kernel_share(), None);
        let begin = std::time::Instant::now();
        let before = super::modes(std::process::id());
        while begin.elapsed() < Duration::from_millis(600) {
            std::hint::black_box(begin.elapsed());
        }
        let used = super::modes(std::process::id()).since(before);
        assert!(used.user + used.kernel > 0, "{used:?}");
    }

    #[test]
    fn tree_when_asked_for_this_process_then_it_is_in_it() {
        let own = std::process::id();
        assert!(tree(own).contains(&own));
        assert!(resident(own) > 0);
        assert!(!cpu(own).is_empty());
    }
}
