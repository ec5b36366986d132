//! Numbers that keep their form when an object is written back.

use serde::{Serialize, Serializer};

/// Writes a whole floating-point number as an integer, so that `value: 100` does not come back as `100.0`: tools that
/// compare specs would otherwise see a change that nobody made.
///
/// # Errors
///
/// Those of the serializer.
pub fn whole_as_integer<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    // Integers up to 2^53 are exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match *value {
        Some(number) if number.fract() == 0.0 && number.abs() <= EXACT => (number as i64).serialize(serializer),
        other => other.serialize(serializer),
    }
}
