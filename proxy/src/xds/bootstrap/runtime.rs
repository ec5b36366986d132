//! The static layers of Envoy's runtime: values by key, by which fractions in resources may be changed.

use crate::xds::convert::{Converted, Refused, Within as _};
use leno_xds::envoy::config::bootstrap::v3::{LayeredRuntime, RuntimeLayer, runtime_layer::LayerSpecifier};
use prost_types::{Struct, Value, value::Kind};
use std::collections::BTreeMap;

/// Prefixes of keys that Envoy itself looks at: setting one changes what the proxy does, and this one looks at none.
const ENVOYS_OWN: [&str; 6] = ["envoy.", "overload.", "re2.", "upstream.", "health_check.", "outlier_detection."];

/// Keys of Envoy's own that are taken: the first by [`Layers::most_connections`], the others since they are about its engine of
/// regular expressions; those of this proxy have bounds of their own.
const TAKEN: [&str; 3] = [
    "overload.global_downstream_max_connections",
    "re2.max_program_size.error_level",
    "re2.max_program_size.warn_level",
];

/// The values of every layer, the last one on top.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layers(BTreeMap<String, Value>);

impl Layers {
    /// Takes the layers together. A layer for the admin server is taken as the empty one that it is at the start.
    ///
    /// # Errors
    /// When a layer is to be read from a folder or a server, or has a key that Envoy itself looks at.
    pub fn new(value: Option<LayeredRuntime>) -> Converted<Self> {
        let Some(LayeredRuntime { layers }) = value else { return Ok(Self::default()) };
        let mut values = BTreeMap::new();
        for (index, RuntimeLayer { name: _, layer_specifier }) in layers.into_iter().enumerate() {
            let within = format!("layers[{index}]");
            match layer_specifier {
                None | Some(LayerSpecifier::AdminLayer(_)) => {}
                Some(LayerSpecifier::StaticLayer(fields)) => {
                    flatten("", fields, &mut values).within(format_args!("{within}.static_layer"))?;
                }
                Some(LayerSpecifier::DiskLayer(_)) => {
                    return Err(Refused::new("disk_layer", "is not supported by this proxy").within(within));
                }
                Some(LayerSpecifier::RtdsLayer(_)) => {
                    return Err(Refused::new("rtds_layer", "is not supported by this proxy").within(within));
                }
            }
        }
        Ok(Self(values))
    }

    /// The value of a key, if one is set.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Every value as text; a fraction as its numerator.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| match &value.kind {
            Some(Kind::StringValue(text)) => text.clone(),
            Some(Kind::NumberValue(number)) => number.to_string(),
            Some(Kind::BoolValue(set)) => set.to_string(),
            Some(Kind::StructValue(fields)) => {
                match fields.fields.get("numerator").and_then(|value| value.kind.as_ref()) {
                    Some(Kind::NumberValue(number)) => number.to_string(),
                    _ => String::new(),
                }
            }
            _ => String::new(),
        };
        self.0.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// Open connections of clients at most, if that is set.
    pub fn most_connections(&self) -> Option<u64> {
        self.number(TAKEN[0]).filter(|most| *most >= 0.0).map(|most| most as u64)
    }

    /// The number at a key, if there is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)?.kind.as_ref()? {
            Kind::NumberValue(number) => Some(*number),
            Kind::StringValue(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// `a: {b: 1}` is the key `a.b`; a struct that says what a fraction is (`numerator`) is a value.
fn flatten(prefix: &str, fields: Struct, values: &mut BTreeMap<String, Value>) -> Converted<()> {
    for (name, value) in fields.fields {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value.kind {
            Some(Kind::StructValue(inner)) if !inner.fields.contains_key("numerator") => flatten(&key, inner, values)?,
            kind => {
                if !TAKEN.contains(&key.as_str()) && ENVOYS_OWN.iter().any(|own| key.starts_with(own)) {
                    return Err(Refused::new(key, "is not supported by this proxy; leave it out"));
                }
                values.insert(key, Value { kind });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(value: &serde_json::Value) -> Converted<Layers> {
        Layers::new(Some(leno_xds::json::from_value(value).unwrap()))
    }

    #[test]
    fn runtime_when_layers_set_the_same_key_has_the_value_of_the_last() {
        let layers = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"routing": {"canary": 5, "other": {"numerator": 1, "denominator": "HUNDRED"}}}},
            {"name": "b", "static_layer": {"routing.canary": "7"}},
            {"name": "c", "admin_layer": {}},
        ]}));
        let layers = layers.unwrap();
        assert_eq!(layers.number("routing.canary"), Some(7.0));
        assert!(matches!(layers.get("routing.other").unwrap().kind, Some(Kind::StructValue(_))));
        assert_eq!(layers.get("routing"), None);
    }

    #[test]
    fn runtime_when_it_would_change_the_proxy_itself_is_refused_by_its_key() {
        let refused = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"envoy": {"reloadable_features": {"no_extension_lookup_by_name": false}}}},
        ]}));
        let key = "layers[0].static_layer.envoy.reloadable_features.no_extension_lookup_by_name";
        assert_eq!(refused.unwrap_err().field, key);
        let taken = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"overload": {"global_downstream_max_connections": 5}}},
        ]}));
        assert_eq!(taken.unwrap().most_connections(), Some(5));
        let refused = layers(&serde_json::json!({"layers": [{"name": "a", "rtds_layer": {"name": "x"}}]}));
        assert_eq!(refused.unwrap_err().field, "layers[0].rtds_layer");
    }
}
