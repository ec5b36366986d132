//! `null` where a list or map is expected. The API server drops it before it stores an object; a folder of YAML does not.

use serde::{Deserialize, Deserializer};

/// Reads `null` as an empty list or map, as Istio does.
///
/// # Errors
///
/// Those of the collection's elements.
pub fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
