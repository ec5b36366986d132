//! Reading the sample objects.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

/// All objects in the YAML files of a folder beside this test, with the file's name.
pub fn objects(folder: &str) -> Vec<(String, Value)> {
    let path = PathBuf::from("tests").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&path)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value =
                Value::deserialize(document).unwrap_or_else(|error| panic!("{} is not YAML: {error}", file.display()));
            objects.push((file.display().to_string(), value));
        }
    }
    assert!(!objects.is_empty(), "no objects in {}", path.display());
    objects
}
