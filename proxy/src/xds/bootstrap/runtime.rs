//! Envoy's runtime: values by key in layers, the last one on top, by which what resources say by default may be changed.
//!
//! Values are looked up when resources are converted, and not again by requests: when a value changes, routes and listeners are
//! converted anew (see [`crate::xds::State::runtime_changed`]).

use super::folder::Folder;
use crate::config::{Share, ZoneChanges};
use crate::xds::convert::{Converted, Refused, Within as _};
use leno_xds::envoy::config::bootstrap::v3::{
    LayeredRuntime, RuntimeLayer, runtime_layer::LayerSpecifier, runtime_layer::RtdsLayer,
};
use leno_xds::envoy::config::core::v3::ConfigSource;
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost_types::{Struct, Value, value::Kind};
use std::collections::{BTreeMap, BTreeSet};

/// Prefixes of keys that Envoy itself looks at: setting one changes what the proxy does, and this one looks at few of them.
const ENVOYS_OWN: [&str; 6] =
    ["envoy.resource_limits.", "overload.", "re2.", "upstream.", "health_check.", "outlier_detection."];

/// Keys of Envoy's own that are taken: the first by [`Layers::most_connections`], those about zones by [`Layers::zones`], the others
/// since they are about its engine of regular expressions; those of this proxy have bounds of their own.
const TAKEN: [&str; 6] = [
    "overload.global_downstream_max_connections",
    "upstream.zone_routing.enabled",
    "upstream.zone_routing.force_local_zone.min_size",
    "upstream.zone_routing.min_cluster_size",
    "re2.max_program_size.error_level",
    "re2.max_program_size.warn_level",
];

/// Prefixes of the switches that Envoy's own code is changed by for the time of some releases: bootstraps of every control plane set
/// some. This proxy has no such code, so they switch nothing.
const SWITCHES: [&str; 3] = ["envoy.reloadable_features.", "envoy.restart_features.", "envoy.deprecated_features"];

/// The one of them that is known here: values of rate limits' descriptors are written from the request and are not taken as they
/// stand. Envoy's default is that they stand.
pub const WRITTEN_VALUES: &str = "envoy.reloadable_features.enable_formatter_for_ratelimit_action_descriptor_value";

/// Before and after the name of a listener whose open connections are limited.
const LISTENER_LIMIT: (&str, &str) = ("envoy.resource_limits.listener.", ".connection_limit");

/// Keys that the layer of the admin server has at most; further ones are refused.
const MAX_OVERRIDES: usize = 1024;

/// The layers.
#[derive(Debug, Clone, Default)]
pub struct Layers(Vec<Layer>);

#[derive(Debug, Clone)]
struct Layer {
    name: String,
    values: BTreeMap<String, Value>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Written,
    Admin,
    Disk(Folder),
    /// Comes from a server, by this name.
    Served(String, Box<ConfigSource>),
}

/// Why values of the admin server are not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// There is no layer for them.
    NoLayer,
    /// This key is not supported.
    Key(String),
    /// There are [`MAX_OVERRIDES`] already.
    TooMany,
}

impl Layers {
    /// Takes the layers as they are written; the one for the admin server and those of servers are empty at the start, and those on
    /// a disk have what is there now.
    ///
    /// # Errors
    /// When a layer has a key that Envoy itself looks at and this proxy does not, or does not say where it comes from.
    pub fn new(value: Option<LayeredRuntime>, cluster: &str) -> Converted<Self> {
        let Some(LayeredRuntime { layers }) = value else { return Ok(Self::default()) };
        let mut all: Vec<Layer> = Vec::with_capacity(layers.len());
        let mut names = BTreeSet::new();
        for (index, RuntimeLayer { name, layer_specifier }) in layers.into_iter().enumerate() {
            let within = format!("layers[{index}]");
            if !names.insert(name.clone()) {
                return Err(Refused::new("name", format!("`{name}` is there twice")).within(within));
            }
            let mut values = BTreeMap::new();
            let source = match layer_specifier {
                None => return Err(Refused::new("layer_specifier", "is missing").within(within)),
                Some(LayerSpecifier::AdminLayer(_))
                    if all.iter().any(|layer| matches!(layer.source, Source::Admin)) =>
                {
                    return Err(Refused::new("admin_layer", "is a second one; there may be one").within(within));
                }
                Some(LayerSpecifier::AdminLayer(_)) => Source::Admin,
                Some(LayerSpecifier::StaticLayer(fields)) => {
                    flatten("", fields, &mut values).within(format_args!("{within}.static_layer"))?;
                    Source::Written
                }
                Some(LayerSpecifier::DiskLayer(value)) => {
                    let folder = Folder::new(value, cluster).within(format_args!("{within}.disk_layer"))?;
                    values = on_disk(&folder).map_err(|reason| Refused::new("disk_layer", reason).within(&within))?;
                    Source::Disk(folder)
                }
                Some(LayerSpecifier::RtdsLayer(RtdsLayer { name, rtds_config })) => {
                    let missing = |field| Refused::new(field, "is missing").within(format_args!("{within}.rtds_layer"));
                    if name.is_empty() {
                        return Err(missing("name"));
                    }
                    Source::Served(name, Box::new(rtds_config.ok_or_else(|| missing("rtds_config"))?))
                }
            };
            all.push(Layer { name, values, source });
        }
        Ok(Self(all))
    }

    /// The value of a key, if one is set.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().rev().find_map(|layer| layer.values.get(key))
    }

    /// The names of the layers.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|layer| layer.name.as_str()).collect()
    }

    /// Keys, layers, and whether the admin server has set some of them, as numbers.
    pub fn numbers(&self) -> (u64, u64, u64) {
        let set = self.0.iter().any(|layer| matches!(layer.source, Source::Admin) && !layer.values.is_empty());
        (self.texts().len() as u64, self.0.len() as u64, u64::from(set))
    }

    /// Every key with its text in each layer; where a layer has none it is empty.
    pub fn texts(&self) -> BTreeMap<String, Vec<String>> {
        let keys: BTreeSet<&String> = self.0.iter().flat_map(|layer| layer.values.keys()).collect();
        let of =
            |key: &String| self.0.iter().map(|layer| layer.values.get(key).map(text).unwrap_or_default()).collect();
        keys.into_iter().map(|key| (key.clone(), of(key))).collect()
    }

    /// Open connections of clients at most, if that is set.
    pub fn most_connections(&self) -> Option<u64> {
        self.number(TAKEN[0]).filter(|most| *most >= 0.0).map(|most| most as u64)
    }

    /// What is set of zones for all clusters.
    pub fn zones(&self) -> ZoneChanges {
        let whole = |key| self.whole(&format!("upstream.zone_routing.{key}"));
        ZoneChanges {
            enabled: whole("enabled"),
            min_size: whole("min_cluster_size"),
            // With 0 it says nothing, as in Envoy.
            force: whole("force_local_zone.min_size").filter(|least| *least > 0),
        }
    }

    /// Open connections of a listener at most, if that is set.
    pub fn most_of_listener(&self, listener: &str) -> Option<u32> {
        let (before, after) = LISTENER_LIMIT;
        let most = self.number(&format!("{before}{listener}{after}")).filter(|most| *most >= 0.0)?;
        Some(most.min(f64::from(u32::MAX)) as u32)
    }

    /// The number at a key, if there is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)?.kind.as_ref()? {
            Kind::NumberValue(number) => Some(*number),
            Kind::StringValue(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// The whole number at a key.
    pub fn whole(&self, key: &str) -> Option<u64> {
        self.number(key).filter(|number| *number >= 0.0).map(|number| number as u64)
    }

    /// The switch at a key, or what it is by default.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        match self.get(key).and_then(|value| value.kind.as_ref()) {
            Some(Kind::BoolValue(set)) => *set,
            Some(Kind::StringValue(text)) if text.trim().eq_ignore_ascii_case("true") => true,
            Some(Kind::StringValue(text)) if text.trim().eq_ignore_ascii_case("false") => false,
            _ => default,
        }
    }

    /// The share at a key, or what it is by default. A number alone is per cent, whatever the default counts by.
    pub fn share(&self, key: &str, default: Share) -> Share {
        let Some(kind) = self.get(key).and_then(|value| value.kind.as_ref()) else { return default };
        let written = match kind {
            Kind::StructValue(fields) => fraction(fields),
            Kind::StringValue(text) if text.contains("numerator") => {
                let parsed = leno_xds::json::from_text::<FractionalPercent>(text).ok();
                parsed.and_then(|FractionalPercent { numerator, denominator }| {
                    let name = DenominatorType::try_from(denominator).ok()?;
                    Some(Share { numerator, denominator: parts(name) })
                })
            }
            _ => None,
        };
        let percent = || Some(Share { numerator: self.whole(key)?.min(100) as u32, denominator: 100 });
        written.or_else(percent).unwrap_or(default)
    }

    /// Sets values of the admin server's layer; an empty one removes what was set. All are taken, or none.
    ///
    /// # Errors
    /// When there is no such layer, or a key is not supported.
    pub fn set(&mut self, changes: impl IntoIterator<Item = (String, String)>) -> Result<(), NotTaken> {
        let layer = self.0.iter_mut().find(|layer| matches!(layer.source, Source::Admin)).ok_or(NotTaken::NoLayer)?;
        let mut values = layer.values.clone();
        for (key, text) in changes {
            if !is_taken(&key) {
                return Err(NotTaken::Key(key));
            }
            if text.is_empty() {
                values.remove(&key);
            } else {
                values.insert(key, written(&text));
            }
        }
        if values.len() > MAX_OVERRIDES {
            return Err(NotTaken::TooMany);
        }
        layer.values = values;
        Ok(())
    }

    /// The names by which layers come from servers.
    pub fn served(&self) -> impl Iterator<Item = &str> {
        self.sources().map(|(name, _)| name)
    }

    /// The same, with where from.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &ConfigSource)> {
        self.0.iter().filter_map(|layer| match &layer.source {
            Source::Served(name, config) => Some((name.as_str(), &**config)),
            _ => None,
        })
    }

    /// Takes the values of the layers that come by this name; true when that changes them.
    ///
    /// # Errors
    /// When a key is not supported: all of them stay as they were.
    pub fn serve(&mut self, name: &str, fields: Struct) -> Converted<bool> {
        let mut values = BTreeMap::new();
        flatten("", fields, &mut values)?;
        Ok(self.replace(name, &values))
    }

    /// The layers that come by this name are gone; true when that changes values.
    pub fn clear(&mut self, name: &str) -> bool {
        self.replace(name, &BTreeMap::new())
    }

    fn replace(&mut self, name: &str, values: &BTreeMap<String, Value>) -> bool {
        let mut changed = false;
        for layer in &mut self.0 {
            if matches!(&layer.source, Source::Served(own, _) if own == name) && layer.values != *values {
                layer.values.clone_from(values);
                changed = true;
            }
        }
        changed
    }

    /// Whether some layer comes from a disk.
    pub fn is_on_disk(&self) -> bool {
        self.0.iter().any(|layer| matches!(layer.source, Source::Disk(_)))
    }

    /// Reads the layers on a disk again whose folders have changed. What cannot be used leaves a layer as it was, and is logged.
    /// True when values have changed.
    pub fn read_again(&mut self) -> bool {
        let mut changed = false;
        for layer in &mut self.0 {
            let Source::Disk(folder) = &mut layer.source else { continue };
            if !folder.has_changed() {
                continue;
            }
            match on_disk(folder) {
                Ok(values) => {
                    changed |= values != layer.values;
                    layer.values = values;
                }
                Err(reason) => tracing::warn!(layer = %layer.name, reason, "cannot use a layer of the runtime"),
            }
        }
        changed
    }
}

/// A value as a file or a query has it.
fn written(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn on_disk(folder: &Folder) -> Result<BTreeMap<String, Value>, String> {
    let values = folder.read()?;
    match values.keys().find(|key| !is_taken(key)) {
        Some(key) => Err(format!("the key {key} is not supported by this proxy; remove its file")),
        None => Ok(values.into_iter().map(|(key, text)| (key, written(&text))).collect()),
    }
}

fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::BoolValue(set)) => set.to_string(),
        Some(Kind::StructValue(fields)) => match fraction(fields) {
            Some(Share { numerator, denominator: 100 }) => numerator.to_string(),
            Some(Share { numerator, denominator }) => format!("{numerator}/{denominator}"),
            None => String::new(),
        },
        _ => String::new(),
    }
}

fn parts(name: DenominatorType) -> u32 {
    match name {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    }
}

/// `{numerator: 1, denominator: HUNDRED}`.
fn fraction(fields: &Struct) -> Option<Share> {
    let numerator = match fields.fields.get("numerator")?.kind.as_ref()? {
        Kind::NumberValue(number) if *number >= 0.0 => *number as u32,
        _ => return None,
    };
    let denominator = match fields.fields.get("denominator").and_then(|value| value.kind.as_ref()) {
        None => DenominatorType::Hundred,
        Some(Kind::StringValue(name)) => DenominatorType::from_str_name(name)?,
        Some(Kind::NumberValue(number)) => DenominatorType::try_from(*number as i32).ok()?,
        Some(_) => return None,
    };
    Some(Share { numerator, denominator: parts(denominator) })
}

/// Whether a key may be set: those that Envoy itself looks at must be known here too, or have nothing here to switch.
fn is_taken(key: &str) -> bool {
    let (before, after) = LISTENER_LIMIT;
    if key != WRITTEN_VALUES && SWITCHES.iter().any(|prefix| key.starts_with(prefix)) {
        tracing::info!(key, "a switch of Envoy's own code in the runtime: this proxy has none of it");
        return true;
    }
    TAKEN.contains(&key)
        || key == WRITTEN_VALUES
        || key.starts_with(before) && key.ends_with(after)
        || !ENVOYS_OWN.iter().any(|own| key.starts_with(own))
}

/// `a: {b: 1}` is the key `a.b`; a struct that says what a fraction is (`numerator`) is a value.
fn flatten(prefix: &str, fields: Struct, values: &mut BTreeMap<String, Value>) -> Converted<()> {
    for (name, value) in fields.fields {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value.kind {
            Some(Kind::StructValue(inner)) if !inner.fields.contains_key("numerator") => flatten(&key, inner, values)?,
            _ if !is_taken(&key) => {
                return Err(Refused::new(key, "is not supported by this proxy; leave it out"));
            }
            kind => drop(values.insert(key, Value { kind })),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(value: &serde_json::Value) -> Converted<Layers> {
        Layers::new(Some(leno_xds::json::from_value(value).unwrap()), "c")
    }

    #[test]
    fn runtime_when_layers_set_the_same_key_has_the_value_of_the_last() {
        let layers = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"routing": {"canary": 5, "other": {"numerator": 1, "denominator": "MILLION"}}}},
            {"name": "b", "static_layer": {"routing.canary": "7", "on": false, "off": "true"}},
            {"name": "c", "admin_layer": {}},
        ]}));
        let layers = layers.unwrap();
        assert_eq!(layers.number("routing.canary"), Some(7.0));
        assert_eq!(layers.texts()["routing.canary"], ["5", "7", ""]);
        let default = Share { numerator: 3, denominator: 100 };
        assert_eq!(layers.share("routing.other", default), Share { numerator: 1, denominator: 1_000_000 });
        assert_eq!(layers.share("routing.canary", default), Share { numerator: 7, denominator: 100 });
        assert_eq!(layers.share("nothing", default), default);
        assert!(!layers.flag("on", true) && layers.flag("off", false) && layers.flag("nothing", true));
        assert_eq!(layers.get("routing"), None);
    }

    #[test]
    fn admin_layer_when_it_is_written_to_then_it_is_on_top_until_the_value_is_emptied() {
        let mut layers = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"x": 1}}, {"name": "b", "admin_layer": {}},
        ]}))
        .unwrap();
        let set = |layers: &mut Layers, key: &str, value: &str| layers.set([(key.to_owned(), value.to_owned())]);
        set(&mut layers, "x", "numerator: 5\ndenominator: TEN_THOUSAND").unwrap();
        assert_eq!(layers.share("x", Share::default()), Share { numerator: 5, denominator: 10_000 });
        set(&mut layers, "x", "").unwrap();
        assert_eq!(layers.number("x"), Some(1.0));
        assert_eq!(set(&mut layers, "upstream.use_retry", "0"), Err(NotTaken::Key("upstream.use_retry".into())));
        assert_eq!(set(&mut Layers::default(), "x", "1"), Err(NotTaken::NoLayer));
    }

    #[test]
    fn runtime_when_it_would_change_the_proxy_itself_is_refused_by_its_key() {
        let refused = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {"upstream": {"use_retry": 0}}},
        ]}));
        assert_eq!(refused.unwrap_err().field, "layers[0].static_layer.upstream.use_retry");
        let taken = layers(&serde_json::json!({"layers": [
            {"name": "a", "static_layer": {
                "overload": {"global_downstream_max_connections": 5},
                "upstream.zone_routing.enabled": 0,
                "upstream": {"zone_routing": {"min_cluster_size": "3", "force_local_zone": {"min_size": 0}}},
                "envoy.reloadable_features.no_extension_lookup_by_name": false,
                "envoy.features.enable_all_deprecated_features": true,
                "envoy.made.up": 1,
                "envoy": {"resource_limits": {"listener": {"edge": {"connection_limit": 7}}}},
            }},
        ]}))
        .unwrap();
        assert_eq!(taken.most_connections(), Some(5));
        let zones = ZoneChanges { enabled: Some(0), min_size: Some(3), force: None };
        assert_eq!(taken.zones(), zones);
        assert_eq!((taken.most_of_listener("edge"), taken.most_of_listener("other")), (Some(7), None));
        let refused = layers(&serde_json::json!({"layers": [{"name": "a", "rtds_layer": {"name": "x"}}]}));
        assert_eq!(refused.unwrap_err().field, "layers[0].rtds_layer.rtds_config");
    }

    #[test]
    fn layer_when_it_comes_from_a_server_then_its_values_stand_where_it_does() {
        let mut all = layers(&serde_json::json!({"layers": [
            {"name": "below", "static_layer": {"a": 1, "b": 1}},
            {"name": "served", "rtds_layer": {"name": "x", "rtds_config": {"ads": {}}}},
            {"name": "above", "static_layer": {"b": 3}},
        ]}))
        .unwrap();
        assert_eq!(all.served().collect::<Vec<_>>(), ["x"]);
        let fields = |value: serde_json::Value| {
            let layer = serde_json::json!({"name": "x", "layer": value});
            leno_xds::json::from_value::<leno_xds::envoy::service::runtime::v3::Runtime>(&layer).unwrap().layer.unwrap()
        };
        assert!(all.serve("x", fields(serde_json::json!({"a": 2, "b": 2}))).unwrap());
        assert!(!all.serve("x", fields(serde_json::json!({"a": 2, "b": 2}))).unwrap(), "nothing has changed");
        assert_eq!(["a", "b"].map(|key| all.whole(key)), [Some(2), Some(3)]);
        let refused = all.serve("x", fields(serde_json::json!({"health_check": {"min_interval": 5}}))).unwrap_err();
        assert_eq!((refused.field.as_str(), all.whole("a")), ("health_check.min_interval", Some(2)));
        assert!(!all.clear("y") && all.clear("x"));
        assert_eq!(all.whole("a"), Some(1));
    }
}
