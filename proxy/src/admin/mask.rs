//! Parts of a config dump: one section's resources, those whose names match, and of each only some fields.

use regex::Regex;
use serde_json::{Map, Value, json};

/// What of a dump is wanted.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The list of one section, such as `dynamic_listeners`.
    pub(super) resource: Option<String>,
    /// Paths of fields, `cluster.name`, with commas between.
    pub(super) mask: Option<String>,
    /// Of names, as a whole.
    pub(super) names: Option<Regex>,
    /// Endpoints, too.
    pub(super) endpoints: bool,
}

/// Lists of sections, and the messages that are their elements.
const MESSAGES: [(&str, &str); 10] = [
    ("static_clusters", "StaticCluster"),
    ("dynamic_active_clusters", "DynamicCluster"),
    ("static_listeners", "StaticListener"),
    ("dynamic_listeners", "DynamicListener"),
    ("static_route_configs", "StaticRouteConfig"),
    ("dynamic_route_configs", "DynamicRouteConfig"),
    ("static_secrets", "StaticSecret"),
    ("dynamic_active_secrets", "DynamicSecret"),
    ("dynamic_endpoint_configs", "DynamicEndpointConfig"),
    ("ecds_filters", "EcdsFilterConfig"),
];

/// Fields of sections: what a mask for all of them begins with.
const FIELDS: [&str; 6] = [
    "bootstrap",
    "last_updated",
    "version_info",
    "dynamic_warming_clusters",
    "dynamic_warming_secrets",
    "static_endpoint_configs",
];

/// Fields of the elements of lists.
const PARTS: [&str; 14] = [
    "active_state",
    "client_status",
    "cluster",
    "draining_state",
    "ecds_filter",
    "endpoint_config",
    "error_state",
    "last_updated",
    "listener",
    "name",
    "route_config",
    "secret",
    "version_info",
    "warming_state",
];

/// The dump with what is wanted; what is wrong otherwise, with whether it is not there.
pub(super) fn select(mut dump: Value, wanted: &Wanted) -> Result<Value, (bool, String)> {
    let mut sections = match dump["configs"].take() {
        Value::Array(sections) => sections,
        _ => Vec::new(),
    };
    if !wanted.endpoints {
        sections.retain(|section| !section["@type"].as_str().is_some_and(|name| name.ends_with("EndpointsConfigDump")));
    }
    if let Some(names) = &wanted.names {
        for section in sections.iter_mut().filter_map(Value::as_object_mut) {
            for entries in section.values_mut().filter_map(Value::as_array_mut) {
                entries.retain(|entry| name_of(entry).is_some_and(|name| names.is_match(name)));
            }
            section.retain(|_, list| list.as_array().is_none_or(|entries| !entries.is_empty()));
        }
    }
    let masks: Vec<Vec<&str>> =
        wanted.mask.iter().flat_map(|mask| mask.split(',')).map(|path| path.split('.').collect()).collect();
    let Some(resource) = &wanted.resource else {
        if !masks.is_empty() {
            let known = |name: &str| FIELDS.contains(&name) || MESSAGES.iter().any(|(list, _)| *list == name);
            if !masks.iter().all(|path| path.first().is_some_and(|name| known(name))) {
                let mask = wanted.mask.as_deref().unwrap_or_default();
                return Err((false, format!("FieldMask {mask} could not be successfully applied to any configs.")));
            }
            // Sections that have no such field are no part of the answer.
            sections = sections.iter().map(|section| masked(section, &masks)).collect();
            sections.retain(|section| section.as_object().is_some_and(|fields| fields.len() > 1));
        }
        return Ok(json!({"configs": sections}));
    };
    if masks.iter().any(|path| !path.first().is_some_and(|name| PARTS.contains(name))) {
        let mask = wanted.mask.as_deref().unwrap_or_default();
        if MESSAGES.iter().any(|(list, _)| list == resource) {
            return Err((false, format!("FieldMask {mask} could not be successfully used.")));
        }
    }
    if sections.iter().any(|section| section.get(resource).is_some_and(|field| !field.is_array())) {
        let words = format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field");
        return Err((false, words));
    }
    for section in &sections {
        let Some(entries) = section.get(resource).and_then(Value::as_array) else { continue };
        let mut entries: Vec<Value> = match masks.is_empty() {
            true => entries.clone(),
            false => entries.iter().map(|entry| masked(entry, &masks)).collect(),
        };
        if let Some((list, whole)) = MESSAGES.iter().find(|(list, _)| list == resource).zip(section["@type"].as_str()) {
            for fields in entries.iter_mut().filter_map(Value::as_object_mut) {
                fields.insert("@type".to_owned(), json!(format!("{whole}.{}", list.1)));
            }
        }
        return Ok(json!({"configs": entries}));
    }
    // There could be some, and are none.
    if MESSAGES.iter().any(|(list, _)| list == resource) {
        return Ok(json!({}));
    }
    Err((true, format!("{resource} not found in config dump\n")))
}

/// The name of an entry: its own, or the one of the resource in it.
fn name_of(entry: &Value) -> Option<&str> {
    let own = |value: &'_ Value| value.get("name").or(value.get("cluster_name")).and_then(Value::as_str).is_some();
    if own(entry) {
        return entry.get("name").or(entry.get("cluster_name")).and_then(Value::as_str);
    }
    let inner = entry.as_object()?.values().find(|value| own(value))?;
    inner.get("name").or(inner.get("cluster_name")).and_then(Value::as_str)
}

/// Of a message only these fields, and what tells its type.
fn masked(value: &Value, masks: &[Vec<&str>]) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let mut kept = Map::new();
    for (name, field) in fields {
        let inside: Vec<Vec<&str>> =
            masks.iter().filter(|path| path.first() == Some(&name.as_str())).map(|path| path[1..].to_vec()).collect();
        if name == "@type" || inside.iter().any(Vec::is_empty) {
            kept.insert(name.clone(), field.clone());
        } else if !inside.is_empty() {
            kept.insert(name.clone(), masked(field, &inside));
        }
    }
    Value::Object(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({"configs": [
            {"@type": "x/ClustersConfigDump", "dynamic_active_clusters": [
                {"version_info": "1", "cluster": {"@type": "c", "name": "a", "type": "EDS"}},
                {"version_info": "1", "cluster": {"@type": "c", "name": "b", "type": "EDS"}},
            ]},
            {"@type": "x/EndpointsConfigDump", "dynamic_endpoint_configs": []},
        ]})
    }

    #[test]
    fn dump_when_a_part_is_wanted_then_it_is_that_part() {
        let wanted = Wanted {
            resource: Some("dynamic_active_clusters".into()),
            mask: Some("cluster.name".into()),
            names: Some(Regex::new("^(?:b)$").unwrap()),
            endpoints: false,
        };
        let part = select(dump(), &wanted).unwrap();
        assert_eq!(
            part,
            json!({"configs": [{"@type": "x/ClustersConfigDump.DynamicCluster", "cluster": {"@type": "c", "name": "b"}}]})
        );
        let whole = select(dump(), &Wanted::default()).unwrap();
        assert_eq!(whole["configs"].as_array().map(Vec::len), Some(1), "endpoints only where they are asked for");
        let words = |resource: Option<&str>, mask: Option<&str>| {
            let wanted = Wanted { resource: resource.map(Into::into), mask: mask.map(Into::into), ..Wanted::default() };
            let dump = json!({"configs": [
                {"@type": "x/BootstrapConfigDump", "bootstrap": {"node": {"id": "n", "cluster": "c"}}},
                {"@type": "x/ClustersConfigDump", "static_clusters": [{"cluster": {"name": "a"}}]},
            ]});
            select(dump, &wanted)
        };
        let node = words(None, Some("bootstrap.node.id")).unwrap();
        assert_eq!(node, json!({"configs": [{"@type": "x/BootstrapConfigDump", "bootstrap": {"node": {"id": "n"}}}]}));
        let (missing, text) = words(Some("bootstrap"), None).unwrap_err();
        assert!(!missing && text.starts_with("bootstrap is not a repeated field."), "{text}");
        assert!(words(None, Some("nonsense")).unwrap_err().1.contains("applied to any configs"));
        assert!(words(Some("static_clusters"), Some("nonsense")).unwrap_err().1.contains("successfully used"));
        let missing = Wanted { resource: Some("foo".into()), ..Wanted::default() };
        assert_eq!(select(dump(), &missing).unwrap_err(), (true, "foo not found in config dump\n".into()));
    }
}
