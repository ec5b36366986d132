//! A layer of the runtime in a folder: a file is a value, and the folders that lead to it are the parts of its key.

use crate::xds::convert::{Converted, Refused};
use leno_xds::envoy::config::bootstrap::v3::runtime_layer::DiskLayer;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Values that a folder has at most; one with more is not read.
const MAX_VALUES: usize = 4096;
/// Bytes of a value at most; more are not read.
const MAX_VALUE: u64 = 4096;
/// Folders within folders at most.
const MAX_DEPTH: usize = 16;

/// What tells one state of the folder from another: what the link is, and what it leads to.
type Stamp = Option<[(u64, i64, i64); 2]>;

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    values: PathBuf,
    read: Stamp,
}

impl Folder {
    /// `cluster` is this proxy's own.
    ///
    /// # Errors
    /// When it is not said which folder it is.
    pub fn new(value: DiskLayer, cluster: &str) -> Converted<Self> {
        let DiskLayer { symlink_root, append_service_cluster, subdirectory } = value;
        if symlink_root.is_empty() {
            return Err(Refused::new("symlink_root", "is missing"));
        }
        let root = PathBuf::from(symlink_root);
        let mut values = root.join(subdirectory);
        if append_service_cluster {
            values.push(cluster);
        }
        let read = stamp(&root);
        Ok(Self { root, values, read })
    }

    /// Whether the link leads elsewhere than when that was last asked, or what it leads to has changed.
    pub fn has_changed(&mut self) -> bool {
        let now = stamp(&self.root);
        std::mem::replace(&mut self.read, now) != now
    }

    /// Every value by its key. One that is not there has none.
    ///
    /// # Errors
    /// When something cannot be read, or is too much.
    pub fn read(&self) -> Result<BTreeMap<String, String>, String> {
        let mut values = BTreeMap::new();
        if self.values.is_dir() {
            walk(&self.values, "", 0, &mut values)?;
        }
        Ok(values)
    }
}

fn stamp(root: &Path) -> Stamp {
    let of = |data: std::fs::Metadata| (data.ino(), data.mtime(), data.mtime_nsec());
    Some([of(root.symlink_metadata().ok()?), of(root.metadata().ok()?)])
}

fn walk(folder: &Path, prefix: &str, depth: usize, values: &mut BTreeMap<String, String>) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    if depth > MAX_DEPTH {
        return Err(format!("{}: folders are nested more than {MAX_DEPTH} times", folder.display()));
    }
    for entry in std::fs::read_dir(folder).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        if path.is_dir() {
            walk(&path, &key, depth + 1, values)?;
            continue;
        }
        if values.len() >= MAX_VALUES {
            return Err(format!("there are more than {MAX_VALUES} values"));
        }
        let mut text = String::new();
        let file = std::fs::File::open(&path);
        let read = file.and_then(|file| file.take(MAX_VALUE).read_to_string(&mut text));
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        // Lines that begin with `#` are for people.
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        values.insert(key, lines.join("\n").trim_end().to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_when_its_link_is_moved_then_its_values_are_those_of_the_other_one() {
        let place = tempfile::tempdir().unwrap();
        let write = |version: &str, value: &str| {
            let folder = place.path().join(version).join("envoy/fault/http");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("abort"), value).unwrap();
            let link = place.path().join("next");
            std::os::unix::fs::symlink(place.path().join(version), &link).unwrap();
            std::fs::rename(link, place.path().join("current")).unwrap();
        };
        let layer = DiskLayer {
            symlink_root: place.path().join("current").display().to_string(),
            subdirectory: "envoy".into(),
            ..DiskLayer::default()
        };
        let mut folder = Folder::new(layer, "").unwrap();
        assert!(folder.read().unwrap().is_empty());
        write("v1", "# for people\n100\n");
        assert!(folder.has_changed());
        assert_eq!(folder.read().unwrap(), BTreeMap::from([("fault.http.abort".to_owned(), "100".to_owned())]));
        assert!(!folder.has_changed());
        write("v2", "7");
        assert!(folder.has_changed());
        assert_eq!(folder.read().unwrap()["fault.http.abort"], "7");
    }
}
