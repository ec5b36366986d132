//! The JSON form of every message of the API, through its descriptors: what `Any` holds is written out as well.
//!
//! Follows <https://protobuf.dev/programming-guides/json/>, as Envoy's own `/config_dump` does.

use crate::envoy::service::discovery::v3::DiscoveryResponse;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// The descriptors that the types of this crate were generated from.
static DESCRIPTORS: &[u8] = include_bytes!("../envoy.binpb");

/// Why a message has no JSON form, or JSON no message.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The descriptors of this crate do not know the type.
    #[error(
        "the message type {0} is not part of leno-xds; add its Go package to xds/gen/main.go and run `make generate`"
    )]
    UnknownType(String),
    /// The bytes are not such a message.
    #[error("the bytes are not a {type_name}: {source}")]
    Bytes {
        /// Full name of the message type.
        type_name: String,
        /// What the decoder found.
        source: prost::DecodeError,
    },
    /// The text is no YAML.
    #[error("neither YAML nor JSON: {0}")]
    Text(#[from] crate::yaml::YamlError),
    /// The JSON does not fit the message, or the message has an `Any` of an unknown type.
    #[error("{type_name} and its JSON form do not fit: {source}")]
    Json {
        /// Full name of the message type.
        type_name: String,
        /// What serde found.
        source: serde_json::Error,
    },
    /// An `Any` in the JSON holds a type that the descriptors do not know.
    #[error("{path}: `{type_name}` is not supported by this proxy")]
    UnknownInside {
        /// Where.
        path: String,
        /// The type.
        type_name: String,
    },
    /// A value breaks a rule of the API.
    #[error("{type_name}: {source}")]
    Rule {
        /// Full name of the message type.
        type_name: String,
        /// The field and the rule.
        source: crate::rules::Broken,
    },
}

/// The decoded descriptors, some MiB, between their first use and [`release`].
static POOL: Mutex<Option<DescriptorPool>> = Mutex::new(None);

/// All descriptors of this crate; a clone is the same pool.
///
/// # Errors
/// When the embedded descriptors are damaged, which a test of this crate rules out.
pub fn descriptors() -> Result<DescriptorPool, JsonError> {
    let mut held = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = &*held {
        return Ok(pool.clone());
    }
    let pool = DescriptorPool::decode(DESCRIPTORS)
        .map_err(|error| JsonError::UnknownType(format!("(damaged descriptors: {error})")))?;
    Ok(held.insert(pool).clone())
}

/// Gives the memory of the descriptors back; they are decoded again when they are next needed.
pub fn release() {
    crate::rules::release();
    POOL.lock().unwrap_or_else(PoisonError::into_inner).take();
}

pub(crate) fn dynamic(type_name: &str, bytes: &[u8]) -> Result<DynamicMessage, JsonError> {
    let descriptor =
        descriptors()?.get_message_by_name(type_name).ok_or_else(|| JsonError::UnknownType(type_name.to_owned()))?;
    DynamicMessage::decode(descriptor, bytes)
        .map_err(|source| JsonError::Bytes { type_name: type_name.to_owned(), source })
}

fn serialize(type_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    dynamic(type_name, bytes)?
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|source| JsonError::Json { type_name: type_name.to_owned(), source })
}

/// The JSON form of a message, with the field names of the `.proto` files and defaults left out.
///
/// # Errors
/// When an `Any` inside holds a type that this crate does not know.
pub fn to_value<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    serialize(&M::full_name(), &message.encode_to_vec())
}

/// The JSON form of what an `Any` holds, with its `@type`.
///
/// # Errors
/// When its type is unknown to this crate, or the bytes are not of that type.
pub fn any_to_value(any: &prost_types::Any) -> Result<Value, JsonError> {
    let mut value = serialize(type_name(&any.type_url), &any.value)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".to_owned(), Value::String(any.type_url.clone()));
    }
    Ok(value)
}

/// Reads a message from its JSON form; both spellings of field names are accepted, and the forms of values that Envoy takes besides.
///
/// # Errors
/// When a field is unknown or of the wrong type; the message names it.
pub fn from_value<M: Message + Name + Default>(value: &Value) -> Result<M, JsonError> {
    decode(&read::<M>(value)?)
}

fn read<M: Message + Name + Default>(value: &Value) -> Result<DynamicMessage, JsonError> {
    let type_name = M::full_name();
    let descriptor = descriptors()?.get_message_by_name(&type_name).ok_or(JsonError::UnknownType(type_name))?;
    deserialize(descriptor, value.clone())
}

fn decode<M: Message + Name + Default>(message: &DynamicMessage) -> Result<M, JsonError> {
    M::decode(message.encode_to_vec().as_slice())
        .map_err(|source| JsonError::Bytes { type_name: M::full_name(), source })
}

fn deserialize(descriptor: MessageDescriptor, mut value: Value) -> Result<DynamicMessage, JsonError> {
    crate::forms::settle(&mut value, &descriptor);
    let type_name = descriptor.full_name().to_owned();
    if let Some((path, type_name)) = unknown_inside(&value, descriptor.parent_pool(), String::new(), 0) {
        return Err(JsonError::UnknownInside { path, type_name });
    }
    DynamicMessage::deserialize(descriptor, value).map_err(|source| JsonError::Json { type_name, source })
}

/// The first `Any` of a type that is not known, and where it is.
fn unknown_inside(value: &Value, pool: &DescriptorPool, path: String, depth: usize) -> Option<(String, String)> {
    const DEPTH: usize = 100;
    match value {
        Value::Object(fields) if depth < DEPTH => {
            if let Some(url) = fields.get("@type").and_then(Value::as_str)
                && pool.get_message_by_name(type_name(url)).is_none()
            {
                return Some((path, url.to_owned()));
            }
            fields.iter().find_map(|(name, value)| {
                let inside = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                unknown_inside(value, pool, inside, depth + 1)
            })
        }
        Value::Array(values) if depth < DEPTH => values
            .iter()
            .enumerate()
            .find_map(|(index, value)| unknown_inside(value, pool, format!("{path}[{index}]"), depth + 1)),
        _ => None,
    }
}

/// A `TypedStruct` on the wire, the same in both of its packages.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TypedStruct {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<prost_types::Struct>,
}

/// The type of what an `Any` holds, also where that is written as a `TypedStruct`.
pub fn type_inside(any: &prost_types::Any) -> String {
    let held = crate::forms::TYPED_STRUCTS.contains(&type_name(&any.type_url));
    let held = held.then(|| TypedStruct::decode(any.value.as_slice()).ok()).flatten();
    held.map_or_else(|| any.type_url.clone(), |held| held.type_url)
}

/// What an `Any` holds that is written as a `TypedStruct` (a type's name beside its JSON form); `None` for any other, and where
/// the named type is unknown to this crate.
///
/// # Errors
/// When the JSON is no form of the named type.
pub fn typed_struct(any: &prost_types::Any) -> Result<Option<prost_types::Any>, JsonError> {
    let outer = type_name(&any.type_url);
    if !crate::forms::TYPED_STRUCTS.contains(&outer) {
        return Ok(None);
    }
    let TypedStruct { type_url, value } = TypedStruct::decode(any.value.as_slice())
        .map_err(|source| JsonError::Bytes { type_name: outer.to_owned(), source })?;
    let inner = type_name(&type_url);
    let Some(descriptor) = descriptors()?.get_message_by_name(inner) else { return Ok(None) };
    let fields = value.unwrap_or_default().fields;
    let message = deserialize(descriptor, crate::forms::object(fields, 0))?;
    Ok(Some(prost_types::Any { type_url, value: message.encode_to_vec() }))
}

/// Reads a message from text: its JSON form, or the same as YAML, of which JSON is a part.
///
/// # Errors
/// When the text is neither, as [`from_value`], or when a value breaks one of the rules that the API's files state.
pub fn from_text<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    checked(&crate::yaml::read(text)?)
}

fn checked<M: Message + Name + Default>(value: &Value) -> Result<M, JsonError> {
    let message = read::<M>(value)?;
    crate::rules::check(&message).map_err(|source| JsonError::Rule { type_name: M::full_name(), source })?;
    decode(&message)
}

/// Reads a response of resources from text, each resource by itself: those that are none are told by name, with what is wrong.
///
/// # Errors
/// When the text is neither YAML nor JSON, or something else than a resource is wrong with it.
pub fn response(text: &str) -> Result<(DiscoveryResponse, Vec<(String, JsonError)>), JsonError> {
    let mut value = crate::yaml::read(text)?;
    let list = value.get_mut("resources").and_then(Value::as_array_mut).map(std::mem::take);
    let Some(resources) = list else { return Ok((checked(&value)?, Vec::new())) };
    let mut response: DiscoveryResponse = checked(&value)?;
    let mut refused = Vec::new();
    for (index, resource) in resources.into_iter().enumerate() {
        let name = ["name", "cluster_name", "clusterName"].iter().find_map(|field| resource.get(*field)?.as_str());
        let name = name.map_or_else(|| format!("resources[{index}]"), str::to_owned);
        match checked::<DiscoveryResponse>(&serde_json::json!({ "resources": [resource] })) {
            Ok(one) => response.resources.extend(one.resources),
            Err(error) => refused.push((name, error)),
        }
    }
    Ok((response, refused))
}

/// Paths of the fields in an `Any`, and in the `Any`s inside it, that the descriptors do not know: set by a server that
/// speaks a newer API. At most 16 are named.
///
/// # Errors
/// When a type is unknown to this crate, or bytes are not of their type.
pub fn unknown_fields(any: &prost_types::Any) -> Result<Vec<String>, JsonError> {
    let mut found = Vec::new();
    walk(&dynamic(type_name(&any.type_url), &any.value)?, "", &mut found)?;
    found.truncate(16);
    Ok(found)
}

/// The name of a message type in its URL: whoever serves the types, they are the same.
pub(crate) fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

fn walk(message: &DynamicMessage, path: &str, found: &mut Vec<String>) -> Result<(), JsonError> {
    found.extend(message.unknown_fields().map(|field| format!("{path}#{}", field.number())));
    if message.descriptor().full_name() == "google.protobuf.Any" {
        if let Ok(any) = message.transcode_to::<prost_types::Any>() {
            walk(&dynamic(type_name(&any.type_url), &any.value)?, path, found)?;
        }
        return Ok(());
    }
    for (field, value) in message.fields() {
        walk_value(value, &format!("{path}{}.", field.name()), found)?;
    }
    Ok(())
}

fn walk_value(value: &prost_reflect::Value, path: &str, found: &mut Vec<String>) -> Result<(), JsonError> {
    match value {
        prost_reflect::Value::Message(message) => walk(message, path, found),
        prost_reflect::Value::List(list) => list.iter().try_for_each(|value| walk_value(value, path, found)),
        prost_reflect::Value::Map(map) => map.values().try_for_each(|value| walk_value(value, path, found)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::{
        core::v3::{Address, SocketAddress, address, socket_address},
        listener::v3::{Filter, FilterChain, Listener, filter},
    };
    use crate::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;

    fn listener() -> Listener {
        let tcp = TcpProxy { stat_prefix: "x".into(), ..Default::default() };
        Listener {
            name: "a".into(),
            address: Some(Address {
                address: Some(address::Address::SocketAddress(SocketAddress {
                    address: "127.0.0.1".into(),
                    port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
                    ..Default::default()
                })),
            }),
            filter_chains: vec![FilterChain {
                filters: vec![Filter {
                    name: "tcp".into(),
                    config_type: Some(filter::ConfigType::TypedConfig(crate::any(&tcp))),
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn listener_to_json_and_back_is_the_same() {
        let value = to_value(&listener()).unwrap();
        assert_eq!(value["filter_chains"][0]["filters"][0]["typed_config"]["stat_prefix"], "x");
        assert_eq!(from_value::<Listener>(&value).unwrap(), listener());
    }

    #[test]
    fn unknown_field_inside_a_nested_any_is_found() {
        let mut listener = listener();
        if let Some(filter::ConfigType::TypedConfig(any)) = &mut listener.filter_chains[0].filters[0].config_type {
            any.value.extend([0xc0, 0x3e, 0x01]); // field 1000, varint 1
        }
        assert_eq!(unknown_fields(&crate::any(&listener)).unwrap(), ["filter_chains.filters.typed_config.#1000"]);
        assert!(unknown_fields(&crate::any(&super::tests::listener())).unwrap().is_empty());
    }

    #[test]
    fn misspelt_field_in_json_is_refused_by_name() {
        let error = from_value::<Listener>(&serde_json::json!({"nmae": "a"})).unwrap_err();
        assert!(error.to_string().contains("nmae"), "{error}");
    }
}
