//! An object that is read into the Rust types and written back is the same object: nothing lost, nothing added. Tools
//! such as Flagger compare specs deeply and would otherwise see changes that nobody made.

use std::sync::LazyLock;

use crate::common::objects;
use leno_crds::definition;
use leno_crds::istio::destination_rule::{DestinationRule, DestinationRuleSpec};
use leno_crds::istio::virtual_service::{VirtualService, VirtualServiceSpec};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

fn written_back<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value.clone())?)
}

/// Empty lists and maps and `null` mean the same as absent fields.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| (name.clone(), without_empty(value)))
                .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

fn round_trip(object: &Value) -> Result<Value, serde_json::Error> {
    match object["kind"].as_str() {
        Some("VirtualService") => written_back::<VirtualService>(object),
        Some("DestinationRule") => written_back::<DestinationRule>(object),
        other => panic!("no type for the kind {other:?}"),
    }
}

#[test]
fn sample_when_read_and_written_then_is_unchanged() {
    for (file, object) in objects("samples") {
        let mut expected = object.clone();
        // The types are those of v1, whatever version was asked for; only v1 differs in this line.
        expected["apiVersion"] = json!("networking.istio.io/v1");
        assert_eq!(round_trip(&object).unwrap(), expected, "{file}: {}", object["metadata"]["name"]);
    }
}

#[test]
fn odd_object_when_read_and_written_then_loses_only_what_is_empty() {
    for (file, object) in objects("accepted") {
        // `labels: {}` is the one empty map there; it is dropped as an empty list is.
        let expected = without_empty(&object).to_string().replace("\"labels\":{},", "");
        assert_eq!(round_trip(&object).unwrap().to_string(), expected, "{file}: {}", object["metadata"]["name"]);
    }
}

#[test]
fn status_when_written_by_others_then_does_not_hide_the_spec() {
    let object = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "name": "reviews" },
        "spec": { "hosts": ["reviews"] },
        "status": {
            "observedGeneration": "7",
            "conditions": [
                { "type": "Reconciled", "status": "True", "lastProbeTime": "2026-11-22T20:00:00Z" },
                { "type": "Accepted", "status": "True", "reason": "Valid", "message": "",
                  "lastTransitionTime": "2026-11-22T20:00:00Z" },
                "not a condition",
            ],
            "validationMessages": [{ "level": "ERROR", "type": { "code": "IST0101" } }, { "level": "LOUD" }],
            "ofSomeoneElse": {},
        },
    });
    let read: VirtualService = serde_json::from_value(object).unwrap();
    assert_eq!(read.spec.hosts, ["reviews"]);
    let status = read.status.unwrap();
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(status.conditions.iter().map(|condition| condition.type_.as_str()).collect::<Vec<_>>(), ["Accepted"]);
    assert_eq!(status.validation_messages.len(), 1);
}

#[test]
fn malformed_object_when_read_then_names_the_mistake() {
    let object = json!({ "hosts": ["reviews"], "http": [{ "route": [{ "destination": { "host": 5 } }] }] });
    let error = serde_json::from_value::<VirtualServiceSpec>(object).unwrap_err().to_string();
    assert!(error.contains("invalid type: integer `5`, expected a string"), "{error}");
}

/// A source of choices that is determined by a seed (SplitMix64), so that proptest can replay a failure.
struct Choices(u64);

impl Choices {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// An object that has the types that the schema asks for, with fields chosen at random.
fn instance(schema: &Value, choices: &mut Choices) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[choices.next(values.len() as u64) as usize].clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let mut object = Map::new();
            if let Some(values) = schema.get("additionalProperties") {
                for name in 0..=choices.next(2) {
                    object.insert(format!("key-{name}"), instance(values, choices));
                }
            }
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                if choices.next(2) == 0 || required.contains(&json!(name)) {
                    object.insert(name.clone(), instance(schema, choices));
                }
            }
            Value::Object(object)
        }
        Some("array") => (0..=choices.next(2)).map(|_| instance(&schema["items"], choices)).collect(),
        Some("string") => json!(["", "5s", "a.b", "{{ \"}}"][choices.next(4) as usize]),
        Some("boolean") => json!(choices.next(2) == 0),
        Some("integer") => {
            let least = schema["minimum"].as_f64().unwrap_or(-5.0) as i64;
            let most = schema["maximum"].as_f64().unwrap_or(1e6) as i64;
            json!(least + choices.next((most - least + 1) as u64) as i64)
        }
        // Whole numbers too, which must not come back as `7.0`.
        Some("number") => match choices.next(2) {
            0 => json!(choices.next(101)),
            _ => json!(choices.next(100) as f64 + 0.5),
        },
        other => panic!("no instance of type {other:?}: {schema}"),
    }
}

fn spec_schema(
    definition: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
) -> Value {
    let mut definition = serde_json::to_value(definition).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].take()
}

static VIRTUAL_SERVICE: LazyLock<Value> = LazyLock::new(|| spec_schema(definition::virtual_service().unwrap()));
static DESTINATION_RULE: LazyLock<Value> = LazyLock::new(|| spec_schema(definition::destination_rule().unwrap()));

proptest! {
    #[test]
    fn virtual_service_when_any_fields_are_set_then_round_trips(seed: u64) {
        let spec = instance(&VIRTUAL_SERVICE, &mut Choices(seed));
        prop_assert_eq!(written_back::<VirtualServiceSpec>(&spec).unwrap(), spec);
    }

    #[test]
    fn destination_rule_when_any_fields_are_set_then_round_trips(seed: u64) {
        let spec = instance(&DESTINATION_RULE, &mut Choices(seed));
        prop_assert_eq!(written_back::<DestinationRuleSpec>(&spec).unwrap(), spec);
    }
}
