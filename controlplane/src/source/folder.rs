//! Objects from a folder of YAML, for tests and for a laptop without a cluster.
//!
//! All files that end in `.yaml`, `.yml` or `.json` are read, in the order of their names, each with any number of documents
//! or a `List`. They are looked at every second and read again when one changed. A file that does not parse at all, or holds something
//! that is no object of Kubernetes, keeps what it held before; an object that is malformed keeps its last good form, and is reported.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_core::{MeshSettings, ObjectKey, ObjectRef};
use leno_crds::meshinstall::MeshInstall;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::credentials::{self, Secrets};
use super::{Lane, Source, mesh_settings};
use crate::stores::Stores;

/// How often the folder is looked at.
pub const POLL: Duration = Duration::from_secs(1);
/// Most bytes of one file; a larger one is skipped with a message.
pub const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Most unknown fields that are named of one object.
const MAX_UNKNOWN: usize = 16;
/// Groups of which every kind that has no effect here is named: whoever writes one expects something of it.
const NAMED_GROUPS: [&str; 6] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "gateway.networking.k8s.io",
    "discovery.k8s.io",
    "mesh.leno.dev",
];

/// The folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read: {source}")]
pub struct FolderError {
    path: PathBuf,
    source: std::io::Error,
}

/// Path, time and size of each file: what tells that something changed.
type Signature = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// The source.
pub struct Folder {
    dir: PathBuf,
    signature: Signature,
    files: BTreeMap<PathBuf, Vec<Value>>,
    /// The last form of each object that could be read.
    good: BTreeMap<ObjectRef, Value>,
    stores: Stores,
    fresh: bool,
}

impl Folder {
    /// Reads the folder once.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn open(dir: &Path) -> Result<Self, FolderError> {
        let mut folder = Folder {
            dir: dir.to_owned(),
            signature: Signature::new(),
            files: BTreeMap::new(),
            good: BTreeMap::new(),
            stores: Stores::default(),
            fresh: true,
        };
        folder.read_again()?;
        Ok(folder)
    }

    /// Reads what changed; says whether anything did.
    fn read_again(&mut self) -> Result<bool, FolderError> {
        let signature = self.look()?;
        if signature == self.signature {
            return Ok(false);
        }
        self.files.retain(|path, _| signature.contains_key(path));
        for (path, state) in &signature {
            if self.signature.get(path) == Some(state) {
                continue;
            }
            match parse(path, state.1) {
                Ok(documents) => {
                    self.files.insert(path.clone(), documents);
                }
                Err(reason) => tracing::warn!(file = %path.display(), reason, "keeping what the file held before"),
            }
        }
        self.signature = signature;
        self.stores = assemble(self.files.values().flatten(), &mut self.good);
        Ok(true)
    }

    fn look(&self) -> Result<Signature, FolderError> {
        let error = |source| FolderError { path: self.dir.clone(), source };
        let mut signature = Signature::new();
        for entry in std::fs::read_dir(&self.dir).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let wanted = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            // A file that goes away meanwhile is not there.
            if let (true, Ok(metadata)) = (wanted, std::fs::metadata(&path)) {
                signature.insert(path, (metadata.modified().ok(), metadata.len()));
            }
        }
        Ok(signature)
    }
}

impl Source for Folder {
    async fn changed(&mut self) -> Option<Lane> {
        if std::mem::take(&mut self.fresh) {
            return Some(Lane::All);
        }
        loop {
            tokio::time::sleep(POLL).await;
            match self.read_again() {
                Ok(true) => return Some(Lane::All),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "keeping what was read before"),
            }
        }
    }

    fn stores(&mut self) -> &Stores {
        &self.stores
    }
}

fn parse(path: &Path, size: u64) -> Result<Vec<Value>, String> {
    if size > MAX_FILE {
        return Err(format!("it has {size} bytes; at most {MAX_FILE} are read"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let value = Value::deserialize(document).map_err(|error| error.to_string())?;
        match value {
            Value::Null => {}
            Value::Object(mut list)
                if list.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) =>
            {
                match list.remove("items") {
                    Some(Value::Array(items)) => documents.extend(items),
                    _ => return Err("a List without items".to_owned()),
                }
            }
            value => documents.push(value),
        }
    }
    for (index, document) in documents.iter().enumerate() {
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            if document.pointer(field).is_none_or(|value| value.as_str().is_none_or(str::is_empty)) {
                let field = field[1..].replace('/', ".");
                return Err(format!("object {} of it has no `{field}`; write one, or remove the object", index + 1));
            }
        }
    }
    Ok(documents)
}

/// Puts all objects together; of one that cannot be read its last good form, which `good` keeps.
fn assemble<'a>(documents: impl Iterator<Item = &'a Value>, good: &mut BTreeMap<ObjectRef, Value>) -> Stores {
    let mut stores = Stores { mesh: MeshSettings::default(), ..Stores::default() };
    let mut before = std::mem::take(good);
    let mut secrets = Secrets::new();
    for document in documents {
        let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let group = text("/apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
        let object = ObjectRef::new(group, text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        let object = in_default_namespace(object);
        match take(&mut stores, &mut secrets, document, &object) {
            Ok(()) => {
                good.insert(object, document.clone());
            }
            Err(reason) => {
                let kept = before.remove(&object).filter(|_| !good.contains_key(&object));
                let kept = kept.filter(|kept| take(&mut stores, &mut secrets, kept, &object).is_ok());
                match &kept {
                    Some(_) => tracing::warn!(%object, reason, "an object does not parse; its last good form stays"),
                    None => tracing::warn!(%object, reason, "an object does not parse and is skipped"),
                }
                stores.malformed.insert(object.clone(), reason);
                good.extend(kept.map(|kept| (object, kept)));
            }
        }
    }
    let wanted = stores.destination_rules.values().flat_map(|rule| credentials::named(rule));
    stores.credentials = credentials::of_all(&secrets, wanted);
    stores
}

fn take(stores: &mut Stores, secrets: &mut Secrets, document: &Value, object: &ObjectRef) -> Result<(), String> {
    match (object.group.as_str(), object.kind.as_str()) {
        ("", "Service") => put(&mut stores.services, document, object.clone()),
        ("discovery.k8s.io", "EndpointSlice") => put(&mut stores.endpoint_slices, document, object.clone()),
        ("", "Pod") => put(&mut stores.pods, document, object.clone()),
        ("", "Namespace") => put_global(&mut stores.namespaces, document, object),
        ("", "Secret") => {
            secrets.insert(object.key(), credentials::credential(&read(document)?));
            Ok(())
        }
        ("", "Node") => put_global(&mut stores.nodes, document, object),
        ("networking.istio.io", "VirtualService") => put_whole(&mut stores.virtual_services, document, object.clone()),
        ("networking.istio.io", "DestinationRule") => {
            put_whole(&mut stores.destination_rules, document, object.clone())
        }
        ("mesh.leno.dev", "MeshInstall") => {
            read::<MeshInstall>(document).map(|install| stores.mesh = mesh_settings(&install.spec))
        }
        (group, _) if NAMED_GROUPS.contains(&group) => {
            tracing::warn!(%object, group, "nothing here uses objects of this kind; it has no effect");
            Ok(())
        }
        _ => {
            tracing::debug!(%object, "a kind that is not used here");
            Ok(())
        }
    }
}

fn in_default_namespace(mut object: ObjectRef) -> ObjectRef {
    if object.namespace.is_empty() && !matches!(object.kind.as_str(), "Namespace" | "Node" | "MeshInstall") {
        object.namespace = "default".to_owned();
    }
    object
}

fn read<K: DeserializeOwned>(document: &Value) -> Result<K, String> {
    // It says in which field.
    serde_path_to_error::deserialize(document).map_err(|error| error.to_string())
}

fn put<K: kube::Resource<DynamicType = ()> + DeserializeOwned>(
    store: &mut BTreeMap<ObjectKey, Arc<K>>,
    document: &Value,
    object: ObjectRef,
) -> Result<(), String> {
    let mut read: K = read(document)?;
    read.meta_mut().namespace = Some(object.namespace.clone());
    store.insert(object.key(), Arc::new(read));
    Ok(())
}

/// As [`put`], for kinds that come back as they were written: what does not is not known, and said.
fn put_whole<K: kube::Resource<DynamicType = ()> + DeserializeOwned + Serialize>(
    store: &mut BTreeMap<ObjectKey, Arc<K>>,
    document: &Value,
    object: ObjectRef,
) -> Result<(), String> {
    let known = serde_json::to_value(read::<K>(document)?).map_err(|error| error.to_string())?;
    if let (Some(given), Some(known)) = (document.get("spec"), known.get("spec")) {
        let mut fields = Vec::new();
        unknown(given, known, "spec", &mut fields);
        for field in fields {
            tracing::warn!(%object, field, "this field is not known and has no effect; correct its name or place");
        }
    }
    put(store, document, object)
}

/// The fields that are given and not known; at most [`MAX_UNKNOWN`]. Empty lists and objects may be left out.
fn unknown(given: &Value, known: &Value, path: &str, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                let path = format!("{path}.{name}");
                let empty = match value {
                    Value::Null => true,
                    Value::Array(values) => values.is_empty(),
                    Value::Object(fields) => fields.is_empty(),
                    _ => false,
                };
                match known.get(name) {
                    Some(known) => unknown(value, known, &path, found),
                    None if empty || found.len() >= MAX_UNKNOWN => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                unknown(given, known, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

fn put_global<K: DeserializeOwned>(
    store: &mut BTreeMap<ObjectKey, Arc<K>>,
    document: &Value,
    object: &ObjectRef,
) -> Result<(), String> {
    store.insert(ObjectKey::new("", &object.name), Arc::new(read(document)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use leno_crds::istio::virtual_service::VirtualService;

    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn folder_when_a_file_has_several_documents_then_all_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let second = SERVICE.replace("name: a", "name: b, namespace: shop");
        std::fs::write(dir.path().join("all.yaml"), format!("{SERVICE}---\n{second}---\n")).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        let names: Vec<_> = folder.stores().services.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["default/a", "shop/b"]);
    }

    #[test]
    fn folder_when_an_object_is_malformed_then_it_is_named_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: 7}\n";
        std::fs::write(dir.path().join("all.yaml"), format!("{bad}---\n{SERVICE}")).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.stores().services.len(), 1);
        assert_eq!(folder.stores().malformed.keys().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["bad"]);
    }

    #[test]
    fn object_when_it_becomes_malformed_then_its_last_good_form_stays_and_the_field_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.yaml");
        std::fs::write(&path, SERVICE).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        for bad in ["[{port: 80}, {port: [81]}]", "[{port: 80}, {port: [811]}]"] {
            std::fs::write(&path, SERVICE.replace("[{port: 80}]", bad)).unwrap();
            assert!(folder.read_again().unwrap());
            assert_eq!(folder.stores().services.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default/a"]);
            let reasons: Vec<_> = folder.stores().malformed.values().collect();
            assert!(reasons.len() == 1 && reasons[0].starts_with("spec.ports[1].port: "), "{reasons:?}");
        }
        std::fs::write(&path, SERVICE.replace("80", "8080")).unwrap();
        assert!(folder.read_again().unwrap());
        assert!(folder.stores().malformed.is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(folder.read_again().unwrap());
        assert!(folder.stores().services.is_empty());
    }

    #[test]
    fn file_when_it_holds_what_is_no_object_then_what_it_held_stays() {
        for bad in ["- 1\n", "kind: Service\nmetadata: {name: a}\n", "apiVersion: v1\nmetadata: {name: a}\n", "text\n"]
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("all.yaml");
            std::fs::write(&path, SERVICE).unwrap();
            let mut folder = Folder::open(dir.path()).unwrap();
            std::fs::write(&path, bad).unwrap();
            assert!(folder.read_again().unwrap());
            assert_eq!(folder.stores().services.len(), 1, "{bad}");
            assert!(parse(&path, 1).unwrap_err().contains("object 1 of it has no `"), "{bad}");
        }
    }

    #[test]
    fn field_when_not_known_then_named() {
        let document = serde_json::json!({"spec": {
            "hosts": ["a"], "gateways": [], "http": [{
                "retires": {"attempts": 1},
                "match": [{"headers": {"x-a": {}}}],
                "route": [{"destination": {"host": "a", "sub": "v1"}}],
            }],
        }});
        let known = serde_json::to_value(
            read::<VirtualService>(&serde_json::json!({
                "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a"},
                "spec": document["spec"],
            }))
            .unwrap(),
        )
        .unwrap();
        let mut found = Vec::new();
        unknown(&document["spec"], &known["spec"], "spec", &mut found);
        found.sort();
        assert_eq!(found, ["spec.http[0].retires", "spec.http[0].route[0].destination.sub"]);
    }

    #[test]
    fn folder_when_a_file_stops_parsing_then_what_it_held_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, SERVICE).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        std::fs::write(&path, "kind: [\nthis is no YAML").unwrap();
        assert!(folder.read_again().unwrap());
        assert_eq!(folder.stores().services.len(), 1);
        std::fs::remove_file(&path).unwrap();
        assert!(folder.read_again().unwrap());
        assert!(folder.stores().services.is_empty());
    }

    #[tokio::test]
    async fn folder_when_a_file_is_added_then_it_tells() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.changed().await, Some(Lane::All));
        std::fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
        assert_eq!(folder.changed().await, Some(Lane::All));
        assert_eq!(folder.stores().services.len(), 1);
    }
}
