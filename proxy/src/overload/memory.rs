//! How much memory is used, and how much there is.

use std::path::{Path, PathBuf};

/// The memory of this process that no other shares, in bytes; `None` where the kernel does not tell.
pub fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map(|number| number.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(resident.saturating_sub(shared) * u64::try_from(page).ok()?)
}

/// The cgroup that limits this process, of version 1 or 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// The name in `stat` of what the kernel gives up before it ends a process: file pages that are not in use.
    spare: &'static str,
}

impl Cgroup {
    /// The one of this process; `None` where none has a limit.
    pub fn of_this_process() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::find(Path::new("/sys/fs/cgroup"), &own)
    }

    /// The nearest with a limit, from the process's own on upwards. `own` is `/proc/self/cgroup`.
    fn find(root: &Path, own: &str) -> Option<Self> {
        // `0::/path` for version 2, `9:memory:/path` for version 1.
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let (base, first) = match controllers {
                "" => (root.to_owned(), false),
                names if names.split(',').any(|name| name == "memory") => (root.join("memory"), true),
                _ => continue,
            };
            let relative = Path::new(path.trim_start_matches('/'));
            for folder in relative.ancestors() {
                let found = if first { Self::first(&base.join(folder)) } else { Self::second(&base.join(folder)) };
                if found.limit().is_some() {
                    return Some(found);
                }
            }
        }
        None
    }

    fn first(folder: &Path) -> Self {
        Self {
            limit: folder.join("memory.limit_in_bytes"),
            usage: folder.join("memory.usage_in_bytes"),
            stat: folder.join("memory.stat"),
            spare: "total_inactive_file",
        }
    }

    fn second(folder: &Path) -> Self {
        Self {
            limit: folder.join("memory.max"),
            usage: folder.join("memory.current"),
            stat: folder.join("memory.stat"),
            spare: "inactive_file",
        }
    }

    /// In bytes; `None` where there is none.
    pub fn limit(&self) -> Option<u64> {
        // `max`, or a number near the largest there is, is none.
        number(&self.limit).filter(|limit| *limit > 0 && *limit < 1 << 60)
    }

    /// In bytes, without what the kernel would give up first.
    pub fn used(&self) -> Option<u64> {
        let used = number(&self.usage)?;
        let stat = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let spare = stat.lines().find_map(|line| line.strip_prefix(self.spare)?.trim().parse::<u64>().ok());
        Some(used.saturating_sub(spare.unwrap_or(0)))
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn cgroup_of_version_2_when_it_has_no_limit_is_that_around_it() {
        let root = tempfile::tempdir().unwrap();
        let stat = "anon 5\ninactive_file 300\nactive_file 7\n";
        write(
            &root.path().join("pod"),
            &[("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", stat)],
        );
        write(&root.path().join("pod/container"), &[("memory.max", "max\n"), ("memory.current", "1\n")]);
        let found = Cgroup::find(root.path(), "0::/pod/container\n").unwrap();
        assert_eq!((found.limit(), found.used()), (Some(1000), Some(600)));
        assert_eq!(Cgroup::find(root.path(), "0::/other\n"), None);
    }

    #[test]
    fn cgroup_of_version_1_when_a_container_sees_only_its_own_is_found_at_the_root() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory.limit_in_bytes", "4096"),
            ("memory.usage_in_bytes", "2048"),
            ("memory.stat", "total_inactive_file 48"),
        ];
        write(&root.path().join("memory"), &files);
        let own = "3:cpu,cpuacct:/x\n9:memory:/kubepods/x\n1:name=systemd:/x\n";
        let found = Cgroup::find(root.path(), own).unwrap();
        assert_eq!((found.limit(), found.used()), (Some(4096), Some(2000)));
        write(&root.path().join("memory"), &[("memory.limit_in_bytes", "9223372036854771712")]);
        assert_eq!(Cgroup::find(root.path(), own), None);
    }

    #[test]
    fn resident_when_memory_is_used_counts_it() {
        let before = resident().unwrap();
        // More than other tests of this process give back meanwhile; unseen, the compiler would leave it out.
        let used = std::hint::black_box(vec![1u8; 512 << 20]);
        let after = resident().unwrap();
        assert!(after >= before + (128 << 20), "{before} {after} {}", used.len());
        drop(std::hint::black_box(used));
    }
}
