//! Labels: the metadata by which requests choose among endpoints.

use crate::config::{LabelValue, Labels};
use prost_types::{Struct, Value, value::Kind};

/// The metadata whose fields are labels.
pub const LABELS: &str = "envoy.lb";

/// Fields as labels.
pub fn labels(fields: &Struct) -> Labels {
    Labels::new(fields.fields.iter().map(|(name, value)| (name.as_str().into(), label(value))))
}

fn label(value: &Value) -> LabelValue {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => LabelValue::Null,
        Some(Kind::BoolValue(value)) => LabelValue::Bool(*value),
        // Both zeros are the same number.
        Some(Kind::NumberValue(value)) => LabelValue::Number((value + 0.0).to_bits()),
        Some(Kind::StringValue(text)) => LabelValue::Text(text.as_str().into()),
        Some(Kind::ListValue(list)) => LabelValue::List(list.values.iter().map(label).collect()),
        Some(Kind::StructValue(fields)) => {
            LabelValue::Object(fields.fields.iter().map(|(name, value)| (name.as_str().into(), label(value))).collect())
        }
    }
}
