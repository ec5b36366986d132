//! Dynamic metadata: what filters find out about a request, for whoever decides by it or tells of it later.

use crate::config;
use prost_types::{ListValue, Struct, Value, value::Kind};
use std::collections::BTreeMap;

/// Named values of one request, a set of them by namespace. There is as much as the configuration takes from heads, which are
/// bounded themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicMetadata(BTreeMap<Box<str>, Struct>);

impl DynamicMetadata {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sets by namespace.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Struct)> {
        self.0.iter().map(|(namespace, fields)| (&**namespace, fields))
    }

    /// The values of a namespace.
    pub fn fields(&self, namespace: &str) -> Option<&Struct> {
        self.0.get(namespace)
    }

    /// Sets a value.
    pub fn set(&mut self, namespace: &str, key: String, kind: Kind) {
        self.of(namespace).fields.insert(key, Value { kind: Some(kind) });
    }

    /// Sets all of these values; others of their namespaces stay.
    pub fn merge(&mut self, found: Self) {
        for (namespace, fields) in found.0 {
            self.0.entry(namespace).or_default().fields.extend(fields.fields);
        }
    }

    /// Sets these values of a namespace, but sets within sets are merged, and lists are added to those that are there.
    pub fn update(&mut self, namespace: &str, fields: &Struct) {
        update(self.of(namespace), fields);
    }

    /// The value at a path; all of a namespace where the path is empty.
    pub fn value(&self, namespace: &str, path: &[Box<str>]) -> Option<Value> {
        match path {
            [] => self.fields(namespace).map(|fields| Value { kind: Some(Kind::StructValue(fields.clone())) }),
            path => self.at(namespace, path).cloned(),
        }
    }

    /// The value at a path that is not empty.
    pub fn at(&self, namespace: &str, path: &[Box<str>]) -> Option<&Value> {
        config::value_at(self.fields(namespace)?, path)
    }

    fn of(&mut self, namespace: &str) -> &mut Struct {
        self.0.entry(namespace.into()).or_default()
    }
}

fn update(have: &mut Struct, more: &Struct) {
    for (key, value) in &more.fields {
        match have.fields.get_mut(key) {
            None => {
                have.fields.insert(key.clone(), value.clone());
            }
            Some(old) => match (&mut old.kind, &value.kind) {
                (Some(Kind::StructValue(have)), Some(Kind::StructValue(more))) => update(have, more),
                (Some(Kind::ListValue(ListValue { values })), Some(Kind::ListValue(more))) => {
                    values.extend(more.values.iter().cloned());
                }
                (old, new) => old.clone_from(new),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_xds::envoy::config::core::v3::Metadata;
    use serde_json::json;

    fn fields(value: serde_json::Value) -> Struct {
        let all: Metadata = leno_xds::json::from_value(&json!({"filter_metadata": {"f": value}})).unwrap();
        all.filter_metadata["f"].clone()
    }

    fn path(keys: &[&str]) -> Vec<Box<str>> {
        keys.iter().map(|key| (*key).into()).collect()
    }

    #[test]
    fn values_when_set_again_then_the_last_counts_and_others_stay() {
        let found = |value| DynamicMetadata(BTreeMap::from([("a".into(), fields(value))]));
        let mut dynamic = DynamicMetadata::default();
        dynamic.merge(found(json!({"b": {"c": 1}, "d": "x"})));
        dynamic.merge(found(json!({"b": {"e": 2}})));
        dynamic.set("a", "f".to_owned(), Kind::BoolValue(true));
        assert_eq!(dynamic.fields("a"), Some(&fields(json!({"b": {"e": 2}, "d": "x", "f": true}))));
        assert_eq!(dynamic.at("a", &path(&["b", "e"])).unwrap().kind, Some(Kind::NumberValue(2.0)));
        assert_eq!(dynamic.at("a", &path(&["d", "e"])), None, "a text has no members");
        assert_eq!(dynamic.value("b", &[]), None);
    }

    #[test]
    fn values_when_updated_then_sets_and_lists_grow_and_all_else_is_replaced() {
        let mut dynamic = DynamicMetadata::default();
        dynamic.update("a", &fields(json!({"b": {"c": 1}, "l": [1], "t": "x", "n": 1})));
        dynamic.update("a", &fields(json!({"b": {"e": 2}, "l": ["y"], "t": 3, "n": [1]})));
        let wanted = fields(json!({"b": {"c": 1, "e": 2}, "l": [1, "y"], "t": 3, "n": [1]}));
        assert_eq!(dynamic.value("a", &[]), Some(Value { kind: Some(Kind::StructValue(wanted)) }));
    }
}
