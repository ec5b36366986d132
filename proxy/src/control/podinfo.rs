//! The pod's labels and annotations, as the kubelet writes them into the downward API volume.
//!
//! One `key="value"` a line, the value quoted as Go does. The volume is updated within seconds of a change, which is how
//! a running proxy learns its revision and what the operator asks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Label that names the revision of the mesh that this pod belongs to.
pub const REVISION_LABEL: &str = "mesh.leno.dev/rev";
/// The revision of a pod without the label.
pub const DEFAULT_REVISION: &str = "default";
/// Largest file that is read, in bytes; the API bounds annotations at 256 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The folder with the files `labels` and `annotations`.
#[derive(Debug, Clone)]
pub struct PodInfo(PathBuf);

impl PodInfo {
    /// That folder, normally `/etc/leno/podinfo`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The pod's labels; empty when there is no such file (a proxy outside of Kubernetes).
    pub fn labels(&self) -> BTreeMap<String, String> {
        read(&self.0.join("labels"))
    }

    /// The pod's annotations; empty when there is no such file.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        read(&self.0.join("annotations"))
    }

    /// Tells one state of the annotations' file from another without reading it; `None` when there is no such file.
    pub fn annotations_stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let of = std::fs::metadata(self.0.join("annotations")).ok()?;
        Some(Stamp { file: (of.dev(), of.ino()), changed: (of.ctime(), of.ctime_nsec()), bytes: of.len() })
    }

    /// The revision of the mesh.
    pub fn revision(&self) -> String {
        self.labels().remove(REVISION_LABEL).unwrap_or_else(|| DEFAULT_REVISION.to_owned())
    }
}

/// A state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    changed: (i64, i64),
    bytes: u64,
}

fn read(path: &Path) -> BTreeMap<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open(path)
        && file.take(MAX_BYTES).read_to_string(&mut text).is_err()
    {
        text.clear();
    }
    parse(&text)
}

/// Lines that do not parse are left out.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            // Go's quoting of printable text is JSON's.
            Some((key.to_owned(), serde_json::from_str(value).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_when_quoted_as_the_kubelet_does_are_read() {
        let text = "app=\"reviews\"\nmesh.leno.dev/rev=\"canary\"\nnote=\"two\\nlines with \\\"quotes\\\"\"\nbroken\n";
        let labels = parse(text);
        assert_eq!(labels["mesh.leno.dev/rev"], "canary");
        assert_eq!(labels["note"], "two\nlines with \"quotes\"");
        assert_eq!(labels.len(), 3);
    }

    #[test]
    fn revision_when_there_is_no_file_is_the_default() {
        assert_eq!(PodInfo::new("/nonexistent").revision(), DEFAULT_REVISION);
    }
}
