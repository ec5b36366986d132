//! Kernel settings that belong to the machine and not to a namespace: kubelet changes some. What they were is written
//! down when the first cluster starts and put back when the last one stops.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, Layout, run};

/// What kubelet sets to values of its own (its `setupKernelTunables`).
const CHANGED_BY_KUBELET: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

fn record(layout: &Layout) -> PathBuf {
    layout.clusters().join("kernel-settings.json")
}

/// The settings under `root` (`/proc/sys`) that a start may change.
fn read(root: &Path) -> BTreeMap<String, String> {
    let value = |name: &str| Some((name.to_owned(), std::fs::read_to_string(root.join(name)).ok()?.trim().to_owned()));
    CHANGED_BY_KUBELET.iter().filter_map(|name| value(name)).collect()
}

/// Writes down the settings as they are, unless that was done for a cluster that still has state.
///
/// # Errors
/// Where the record cannot be written.
pub fn remember(layout: &Layout) -> Result<(), Error> {
    let path = record(layout);
    if path.exists() {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&read(Path::new("/proc/sys")))
        .map_err(|error| Error::Corrupt { path: path.clone(), problem: error.to_string() })?;
    // Whole or not at all: a half-written record would be the only one.
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).map_err(Error::io("write", &partial))?;
    std::fs::rename(&partial, &path).map_err(Error::io("rename", &partial))
}

/// Puts the settings back as they were before the first cluster.
///
/// # Errors
/// Where the record or a setting cannot be read or written.
pub fn restore(layout: &Layout) -> Result<(), Error> {
    restore_from(&record(layout), Path::new("/proc/sys"))
}

fn restore_from(path: &Path, root: &Path) -> Result<(), Error> {
    let Ok(text) = std::fs::read(path) else { return Ok(()) };
    let before: BTreeMap<String, String> = serde_json::from_slice(&text)
        .map_err(|error| Error::Corrupt { path: path.to_path_buf(), problem: error.to_string() })?;
    let now = read(root);
    for name in CHANGED_BY_KUBELET {
        if let Some(value) = before.get(name).filter(|value| now.get(name) != Some(value)) {
            std::fs::write(root.join(name), value).map_err(Error::io("write", root.join(name)))?;
        }
    }
    std::fs::remove_file(path).map_err(Error::io("remove", path))
}

/// Sees that the kernel filters bridged packets, which services between pods of one bridge need.
///
/// # Errors
/// [`Error::Missing`] where the module is not there and cannot be loaded.
pub fn require_bridge_filter() -> Result<(), Error> {
    let present = || Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if present() || (run::output(Command::new("modprobe").arg("br_netfilter")).is_ok() && present()) {
        return Ok(());
    }
    Err(Error::Missing {
        what: "the kernel module br_netfilter".to_owned(),
        remedy: "modprobe br_netfilter (on a kernel that has it)".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_when_a_setting_changed_then_it_is_put_back_and_only_known_ones_are_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (root, record) = (folder.path().join("sys"), folder.path().join("record"));
        for folder in ["kernel/keys", "vm"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("kernel/panic"), "10\n").unwrap();
        std::fs::write(root.join("vm/overcommit_memory"), "1\n").unwrap();
        std::fs::write(&record, r#"{"kernel/panic": "0", "vm/overcommit_memory": "1", "../escape": "x"}"#).unwrap();
        restore_from(&record, &root).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("kernel/panic")).unwrap(), "0");
        assert_eq!(std::fs::read_to_string(root.join("vm/overcommit_memory")).unwrap(), "1\n");
        assert!(!record.exists() && !folder.path().join("escape").exists());
        restore_from(&record, &root).unwrap();
    }
}
