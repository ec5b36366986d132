//! Forms of values that Envoy takes in its configuration beside those of the JSON mapping: they are brought into that form.

use crate::json::type_name;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use prost_types::value::Kind as StructKind;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// Messages that hold the JSON form of another one, and its type.
pub(crate) const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// Deeper values are left as they are; the deserializer has a bound of its own.
const DEPTH: usize = 100;

/// Brings a message's JSON into its usual form: booleans and numbers as text, names of enumerations in small letters, durations
/// and wrappers as objects, `TypedStruct` instead of what it holds, one value where a list of them belongs.
pub(crate) fn settle(value: &mut Value, message: &MessageDescriptor) {
    settle_message(value, message, 0);
}

fn settle_message(value: &mut Value, message: &MessageDescriptor, depth: usize) {
    if depth > DEPTH {
        return;
    }
    match message.full_name() {
        "google.protobuf.Any" => return settle_any(value, message.parent_pool(), depth),
        "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => return,
        "google.protobuf.Duration" => return settle_duration(value),
        _ => {}
    }
    if is_wrapper(message) {
        if let Value::Object(fields) = value
            && fields.len() == 1
            && let Some(inner) = fields.remove("value")
        {
            *value = inner;
        }
        if let Some(field) = message.get_field_by_name("value") {
            settle_one(value, &field.kind(), depth);
        }
        return;
    }
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
        if let Some(field) = field {
            settle_field(value, &field, depth + 1);
        }
    }
}

fn is_wrapper(message: &MessageDescriptor) -> bool {
    message.full_name().strip_prefix("google.protobuf.").is_some_and(|name| {
        let kind = name.strip_suffix("Value");
        matches!(kind, Some("Bool" | "Int32" | "Int64" | "UInt32" | "UInt64" | "Float" | "Double" | "String" | "Bytes"))
    })
}

fn settle_field(value: &mut Value, field: &FieldDescriptor, depth: usize) {
    let kind = field.kind();
    if field.is_list() && !value.is_array() && !value.is_null() {
        *value = Value::Array(vec![value.take()]);
    }
    match value {
        Value::Object(entries) if field.is_map() => {
            let Some(inner) = kind.as_message().map(MessageDescriptor::map_entry_value_field) else { return };
            entries.values_mut().for_each(|value| settle_one(value, &inner.kind(), depth));
        }
        Value::Array(values) if field.is_list() => {
            values.iter_mut().for_each(|value| settle_one(value, &kind, depth));
        }
        value => settle_one(value, &kind, depth),
    }
}

fn settle_one(value: &mut Value, kind: &Kind, depth: usize) {
    match (kind, &*value) {
        (Kind::Message(message), _) => settle_message(value, message, depth),
        (Kind::Bool, Value::String(text)) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => *value = Value::Bool(true),
            "false" | "no" | "off" | "n" => *value = Value::Bool(false),
            _ => {}
        },
        (Kind::Enum(names), Value::String(text)) if names.get_value_by_name(text).is_none() => {
            let capitals = text.to_ascii_uppercase();
            if names.get_value_by_name(&capitals).is_some() {
                *value = Value::String(capitals);
            } else if let Ok(number) = text.parse::<i32>() {
                *value = Value::Number(number.into());
            }
        }
        // Text that YAML takes for a number, as a version is.
        (Kind::String, Value::Number(number)) => *value = Value::String(number.to_string()),
        _ => {}
    }
}

fn settle_duration(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    let number = |name: &str| match fields.get(name) {
        None => Some(0),
        Some(Value::String(text)) => text.parse::<i64>().ok(),
        Some(value) => value.as_i64(),
    };
    let known = fields.keys().all(|name| matches!(name.as_str(), "seconds" | "nanos"));
    if let (true, Some(seconds), Some(nanos)) = (known, number("seconds"), number("nanos")) {
        let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
        *value = Value::String(format!("{sign}{}.{:09}s", seconds.unsigned_abs(), nanos.unsigned_abs()));
    }
}

fn settle_any(value: &mut Value, pool: &DescriptorPool, depth: usize) {
    if value.as_object().is_some_and(Map::is_empty) {
        // What holds nothing is as good as not there; the deserializer wants a type.
        *value = Value::Null;
        return;
    }
    replace_typed_struct(value, pool);
    let Some(name) = value.get("@type").and_then(Value::as_str).map(|url| type_name(url).to_owned()) else { return };
    let Some(message) = pool.get_message_by_name(&name) else { return };
    if name.starts_with("google.protobuf.") {
        // Of such the form is a member `value` beside the type; that of an empty message need not be written.
        if let (Value::Object(fields), "google.protobuf.Empty") = (&mut *value, name.as_str()) {
            fields.entry("value").or_insert_with(|| Value::Object(Map::new()));
        }
        return;
    }
    settle_message(value, &message, depth + 1);
    if let Value::Object(fields) = value {
        fields.insert("@type".to_owned(), Value::String(format!("type.googleapis.com/{name}")));
    }
}

/// Puts what a `TypedStruct` holds in its place, if its type is known: whoever reads an unknown one decides about it.
fn replace_typed_struct(value: &mut Value, pool: &DescriptorPool) {
    let Value::Object(fields) = value else { return };
    let url = fields.get("@type").and_then(Value::as_str);
    if !url.is_some_and(|url| TYPED_STRUCTS.contains(&type_name(url))) {
        return;
    }
    let inner = fields.get("type_url").or_else(|| fields.get("typeUrl")).cloned();
    let known = |url: &Value| url.as_str().is_some_and(|url| pool.get_message_by_name(type_name(url)).is_some());
    if inner.as_ref().is_some_and(|url| !known(url)) {
        return;
    }
    let held = fields.remove("value").unwrap_or_else(|| Value::Object(Map::new()));
    if let (Some(inner), Value::Object(mut held)) = (inner, held) {
        held.insert("@type".to_owned(), inner);
        *value = Value::Object(held);
    }
}

/// The JSON of a `Struct`.
pub(crate) fn object(fields: BTreeMap<String, prost_types::Value>, depth: usize) -> Value {
    Value::Object(fields.into_iter().map(|(name, held)| (name, json(held, depth))).collect())
}

fn json(held: prost_types::Value, depth: usize) -> Value {
    match held.kind {
        None | Some(StructKind::NullValue(_)) => Value::Null,
        _ if depth > DEPTH => Value::Null,
        Some(StructKind::BoolValue(value)) => Value::Bool(value),
        Some(StructKind::StringValue(text)) => Value::String(text),
        Some(StructKind::NumberValue(number)) => {
            // Whole numbers are written as such: fields of whole numbers take no others.
            let whole = number.fract() == 0.0 && number.abs() < 9e15;
            let written = if whole { Some((number as i64).into()) } else { Number::from_f64(number) };
            written.map_or(Value::Null, Value::Number)
        }
        Some(StructKind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(|held| json(held, depth + 1)).collect())
        }
        Some(StructKind::StructValue(inner)) => object(inner.fields, depth + 1),
    }
}

#[cfg(test)]
mod tests {
    use crate::envoy::config::{
        bootstrap::v3::Bootstrap, cluster::v3::Cluster, core::v3::TypedExtensionConfig, listener::v3::Listener,
    };
    use crate::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
    use crate::json::{from_text, from_value, typed_struct};
    use serde_json::json;

    #[test]
    fn values_when_written_in_other_forms_then_are_the_same() {
        let usual = json!({
            "name": "1.5", "type": "STRICT_DNS", "lb_policy": "LEAST_REQUEST", "connect_timeout": "1.500s",
            "respect_dns_ttl": true, "per_connection_buffer_limit_bytes": 96,
        });
        let other = json!({
            "name": 1.5, "type": "strict_dns", "lb_policy": "1", "connect_timeout": {"seconds": 1, "nanos": 500_000_000},
            "respect_dns_ttl": "yes", "per_connection_buffer_limit_bytes": {"value": 96},
        });
        assert_eq!(from_value::<Cluster>(&usual).unwrap(), from_value::<Cluster>(&other).unwrap());
        let refused = |value| from_value::<Cluster>(&value).unwrap_err().to_string();
        assert!(refused(json!({"respect_dns_ttl": "perhaps"})).contains("boolean"));
        assert!(refused(json!({"type": "bogus"})).contains("bogus"));
    }

    #[test]
    fn message_in_any_when_written_as_typed_struct_then_is_what_it_holds() {
        let usual = r#"{name: a, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
            stat_prefix: x, cluster: c, max_connect_attempts: 3}}"#;
        let other = r#"{name: a, typed_config: {"@type": example.com/xds.type.v3.TypedStruct,
            type_url: type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
            value: {stat_prefix: x, cluster: c, max_connect_attempts: {value: 3}}}}"#;
        let usual = from_text::<TypedExtensionConfig>(usual).unwrap();
        assert_eq!(from_text::<TypedExtensionConfig>(other).unwrap(), usual);

        let text = |text: &str| prost_types::Value::from(text.to_owned());
        let fields = [("stat_prefix", text("x")), ("cluster", text("c")), ("max_connect_attempts", 3.0.into())];
        let fields = fields.map(|(name, value)| (name.to_owned(), value)).into();
        let held = super::super::json::TypedStruct {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".to_owned(),
            value: Some(prost_types::Struct { fields }),
        };
        let any = prost_types::Any {
            type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".to_owned(),
            value: prost::Message::encode_to_vec(&held),
        };
        assert_eq!(typed_struct(&any).unwrap(), usual.typed_config);
        assert_eq!(typed_struct(&crate::any(&TcpProxy::default())).unwrap(), None);
    }

    #[test]
    fn messages_of_protobuf_itself_when_packed_then_are_read() {
        let packed = |text: &str| {
            let text = format!("{{name: a, typed_config: {{'@type': type.googleapis.com/google.protobuf.{text}}}}}");
            from_text::<TypedExtensionConfig>(&text).unwrap().typed_config.unwrap()
        };
        assert_eq!(packed("StringValue, value: chain").value, prost::Message::encode_to_vec(&"chain".to_owned()));
        assert!(packed("Empty").value.is_empty());
        let empty = from_text::<crate::envoy::config::route::v3::FilterConfig>("{config: {}}").unwrap();
        assert_eq!(empty.config, None, "what holds nothing is not there");
    }

    #[test]
    fn resources_when_one_is_none_then_the_others_are_read() {
        let text = r#"{version_info: v1, resources: [
            {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: good},
            {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: misspelt, conect_timeout: 1s},
            {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: unknown, filters: [
                {name: x, typed_config: {"@type": type.googleapis.com/example.Unheard}}]},
            {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: wrong, lb_policy: 77}]}"#;
        let (response, refused) = crate::json::response(text).unwrap();
        assert_eq!((response.version_info.as_str(), response.resources.len()), ("v1", 1));
        let told: Vec<String> = refused.iter().map(|(name, error)| format!("{name}: {error}")).collect();
        assert!(told[0].starts_with("misspelt: ") && told[0].contains("conect_timeout"), "{told:?}");
        assert!(told[1].contains("filters[0].typed_config: `type.googleapis.com/example.Unheard`"), "{told:?}");
        assert!(told[2].starts_with("wrong: ") && told[2].contains("lb_policy"), "{told:?}");
        assert!(crate::json::response("resources: [").is_err());
        assert!(crate::json::response("resources: {name: a}").is_err(), "what is no list is not an empty one");
    }

    #[test]
    fn values_inside_lists_maps_and_packed_messages_when_in_other_forms_then_are_taken() {
        let listener = r#"{filter_chains: [{filters: [{name: hcm, typed_config: {
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
            codec_type: auto, stat_prefix: x, route_config: {}, stream_idle_timeout: {seconds: "2"}}}]}]}"#;
        let listener: Listener = from_text(listener).unwrap();
        let dumped = crate::json::to_value(&listener).unwrap();
        assert_eq!(dumped["filter_chains"][0]["filters"][0]["typed_config"]["stream_idle_timeout"], "2s");
        let labels = r#"{node: {id: a, metadata: {plain: "yes", number: 1}}}"#;
        let bootstrap: Bootstrap = from_text(labels).unwrap();
        let dumped = crate::json::to_value(&bootstrap).unwrap();
        assert_eq!(dumped["node"]["metadata"]["plain"], "yes", "what has no type stays as it is");
    }
}
