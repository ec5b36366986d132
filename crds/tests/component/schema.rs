//! What the schemas promise: every field that Istio 1.31 serves, no defaults, a description everywhere, and no rule that
//! was forgotten when a type changed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use leno_crds::definition;
use leno_crds::generate::definitions;
use serde_json::Value;

/// Calls `visit` with every schema and its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        walk(inner, &format!("{path}.{name}"), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}

fn schemas(definition: &CustomResourceDefinition) -> Vec<Value> {
    definition
        .spec
        .versions
        .iter()
        .map(|version| serde_json::to_value(&version.schema).unwrap()["openAPIV3Schema"].take())
        .collect()
}

/// The fields of a kind, in the form of `istio-1.31-fields.txt`.
fn fields(definition: &CustomResourceDefinition) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let schema = &schemas(definition)[0];
    for part in ["spec", "status"] {
        let path = format!("{}.{part}", definition.spec.names.kind);
        walk(&schema["properties"][part], &path, &mut |path, schema| {
            let mut form = schema["type"].as_str().unwrap_or("int-or-string").to_owned();
            if schema["nullable"] == true {
                form.push_str(" nullable");
            }
            if let Some(values) = schema["enum"].as_array() {
                let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
                form.push_str(&format!(" {}", values.join("|")));
            }
            fields.insert(path.to_owned(), form);
        });
    }
    fields
}

#[test]
fn schema_when_compared_with_istio_then_has_every_field_with_its_type() {
    let virtual_service = fields(&definition::virtual_service().unwrap());
    let destination_rule = fields(&definition::destination_rule().unwrap());
    let istio = include_str!("../istio-1.31-fields.txt");
    let mut compared = 0;
    for line in istio.lines().filter(|line| !line.starts_with('#')) {
        let (path, form) = line.split_once(' ').unwrap();
        let ours = virtual_service.get(path).or_else(|| destination_rule.get(path));
        let ours = ours.unwrap_or_else(|| panic!("{path} is missing"));
        // We list the values of a few fields that Istio checks elsewhere.
        assert!(ours == form || ours.starts_with(&format!("{form} |")), "{path} is {ours}, in Istio {form}");
        compared += 1;
    }
    assert!(compared > 300, "only {compared} fields were compared");
}

#[test]
fn schema_when_compared_with_istio_then_has_no_field_of_its_own() {
    let istio: BTreeSet<&str> = include_str!("../istio-1.31-fields.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(path, _)| path)
        .collect();
    let fields = fields(&definition::virtual_service().unwrap());
    let extra: Vec<&String> = fields.keys().filter(|path| !istio.contains(path.as_str())).collect();
    assert!(extra.is_empty(), "not in Istio: {extra:?}");
}

#[test]
fn schema_when_made_then_defaults_nothing_and_describes_every_field() {
    for (_, definition) in definitions().unwrap() {
        let name = definition.metadata.name.clone().unwrap();
        if !name.ends_with("istio.io") {
            continue;
        }
        for schema in schemas(&definition) {
            walk(&schema, "", &mut |path, schema| {
                assert!(schema.get("default").is_none(), "{name}: {path} has a default");
                assert!(schema.get("$ref").is_none(), "{name}: {path} is a reference");
                let described = schema["description"].as_str().is_some_and(|text| !text.is_empty());
                let is_field = path.starts_with('.') && !path.ends_with("[]") && !path.ends_with("{}");
                assert!(described || !is_field, "{name}: {path} has no description");
            });
        }
    }
}

#[test]
fn definition_when_made_then_serves_three_equal_versions_and_stores_v1() {
    for definition in [definition::virtual_service().unwrap(), definition::destination_rule().unwrap()] {
        let versions: Vec<(&str, bool, bool)> = definition
            .spec
            .versions
            .iter()
            .map(|version| (version.name.as_str(), version.served, version.storage))
            .collect();
        assert_eq!(versions, [("v1", true, true), ("v1beta1", true, false), ("v1alpha3", true, false)]);
        let schemas = schemas(&definition);
        assert!(schemas.iter().all(|schema| schema == &schemas[0]));
        assert!(definition.spec.versions.iter().all(|version| {
            version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some())
        }));
    }
}

#[test]
fn refused_object_when_listed_then_says_what_the_message_must_contain() {
    let objects = crate::common::objects("refused");
    for (file, _) in &objects {
        let text = std::fs::read_to_string(file).unwrap();
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# refused: "));
        assert!(expected.is_some_and(|text| text.len() > 3), "{file} does not begin with `# refused: MESSAGE`");
    }
    assert!(objects.len() > 50, "only {} refused objects", objects.len());
}
