//! Metadata of resources, of which lines and headers may speak.

use leno_xds::envoy::config::core::v3::Metadata as Sent;
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The metadata of a route, a cluster or an endpoint as its server wrote it. It is kept encoded, in a fifth of the memory, since
/// there may be many and few ask: reading a value decodes all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Arc<[u8]>);

impl Metadata {
    /// What is kept of a resource's metadata; `None` where there is nothing.
    pub fn of(sent: Option<&Sent>) -> Option<Self> {
        let filter_metadata = sent.map(|sent| &sent.filter_metadata).filter(|fields| !fields.is_empty())?.clone();
        let kept = Sent { filter_metadata, ..Sent::default() };
        Some(Self(kept.encode_to_vec().into()))
    }

    /// All of it: the fields of each filter.
    pub fn all(&self) -> BTreeMap<String, Value> {
        let all = Sent::decode(&*self.0).unwrap_or_default().filter_metadata;
        all.into_iter().map(|(name, fields)| (name, Value { kind: Some(Kind::StructValue(fields)) })).collect()
    }

    /// The value at a path in the fields of a filter; all of the fields where the path is empty.
    pub fn value(&self, filter: &str, path: &[Box<str>]) -> Option<Value> {
        let fields = Sent::decode(&*self.0).ok()?.filter_metadata.remove(filter)?;
        match path {
            [] => Some(Value { kind: Some(Kind::StructValue(fields)) }),
            path => value_at(&fields, path).cloned(),
        }
    }
}

/// The value at a path that is not empty.
pub fn value_at<'f>(mut fields: &'f Struct, path: &[Box<str>]) -> Option<&'f Value> {
    let (last, before) = path.split_last()?;
    for key in before {
        match fields.fields.get(&**key)?.kind.as_ref()? {
            Kind::StructValue(inner) => fields = inner,
            _ => return None,
        }
    }
    fields.fields.get(&**last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata_when_asked_by_path_then_gives_what_the_server_wrote() {
        let sent: Sent =
            leno_xds::json::from_value(&json!({"filter_metadata": {"a": {"b": {"c": 5}, "d": "x"}}})).unwrap();
        let metadata = Metadata::of(Some(&sent)).unwrap();
        let at = |filter: &str, path: &[&str]| {
            let path: Vec<Box<str>> = path.iter().map(|key| (*key).into()).collect();
            metadata.value(filter, &path).and_then(|value| value.kind)
        };
        assert_eq!(at("a", &["b", "c"]), Some(Kind::NumberValue(5.0)));
        assert_eq!(at("a", &["d"]), Some(Kind::StringValue("x".into())));
        assert!(matches!(at("a", &[]), Some(Kind::StructValue(fields)) if fields.fields.len() == 2));
        assert_eq!(at("a", &["d", "e"]), None, "a text has no members");
        assert_eq!((at("b", &["d"]), at("a", &["z"])), (None, None));
        assert_eq!(Metadata::of(None), None);
    }
}
