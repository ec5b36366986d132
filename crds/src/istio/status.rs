//! The status of the Istio kinds: standard conditions, as `kubectl describe` shows them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What became of an object. Leno's operator writes it; reading is lenient, since Istio and others may have written
/// another form, and a status must never be the reason that a spec is not read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IstioStatus {
    /// `Accepted` (the object is valid), `ResolvedRefs` (what it names exists) and `Programmed` (on how many proxies it
    /// is in force).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "readable_conditions")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Findings of analyzers, as Istio writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "readable")]
    pub validation_messages: Vec<ValidationMessage>,
    /// The generation of the object that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "int_or_string")]
    #[schemars(schema_with = "crate::schema::int_or_string")]
    pub observed_generation: Option<i64>,
}

/// A finding of an analyzer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationMessage {
    /// What kind of finding it is.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ValidationMessageKind>,
    /// How grave it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<ValidationLevel>,
    /// Where to read more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
}

/// The kind of a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationMessageKind {
    /// Its name, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its code, for example `IST0101`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ValidationLevel {
    /// Not known.
    Unknown,
    /// The object does not work.
    Error,
    /// The object works, perhaps not as wanted.
    Warning,
    /// Good to know.
    Info,
}

/// Reads a list, leaving out entries that are not of the wanted form.
fn readable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let entries = match Value::deserialize(deserializer)? {
        Value::Array(entries) => entries,
        _ => Vec::new(),
    };
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// Reads conditions, leaving out those that are not metav1 Conditions.
fn readable_conditions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    let conditions: Vec<Condition> = readable(deserializer)?;
    Ok(conditions.into_iter().filter(|condition| !condition.type_.is_empty()).collect())
}

/// Reads an integer that may be written as a string, as JSON from protocol buffers does with 64-bit integers.
fn int_or_string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}
