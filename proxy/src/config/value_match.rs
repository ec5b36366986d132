//! Conditions on values of metadata (`envoy.type.matcher.v3.ValueMatcher`, `MetadataMatcher`).

use super::matcher::StringMatch;
use prost_types::{Value, value::Kind};

/// What a value must be. One that is not there is none of these.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// `null`.
    Null,
    /// This.
    Bool(bool),
    /// This number.
    Number(f64),
    /// A number not below the first and below the second.
    Range(f64, f64),
    /// Such a text.
    Text(StringMatch),
    /// Anything, or never.
    Present(bool),
    /// One of these.
    Any(Vec<ValueMatch>),
    /// A list with such an element.
    List(Box<ValueMatch>),
}

impl ValueMatch {
    /// Whether it holds for a value.
    pub fn holds(&self, value: Option<&Value>) -> bool {
        let Some(kind) = value.and_then(|value| value.kind.as_ref()) else { return false };
        match (self, kind) {
            (Self::Any(tests), _) => tests.iter().any(|test| test.holds(value)),
            (Self::Present(wanted), _) => *wanted,
            (Self::Null, Kind::NullValue(_)) => true,
            (Self::Bool(wanted), Kind::BoolValue(have)) => wanted == have,
            (Self::Number(wanted), Kind::NumberValue(have)) => wanted == have,
            (Self::Range(from, to), Kind::NumberValue(have)) => from <= have && have < to,
            (Self::Text(wanted), Kind::StringValue(have)) => wanted.matches(have.as_bytes()),
            (Self::List(test), Kind::ListValue(list)) => list.values.iter().any(|value| test.holds(Some(value))),
            _ => false,
        }
    }
}

/// A condition on a value somewhere in metadata.
#[derive(Debug, Clone)]
pub struct MetadataMatch {
    /// The namespace.
    pub filter: Box<str>,
    /// The way to the value in it, not empty.
    pub path: Vec<Box<str>>,
    /// What the value must be.
    pub test: ValueMatch,
    /// The opposite is wanted.
    pub invert: bool,
}

impl MetadataMatch {
    /// Whether it holds for the value at its path.
    pub fn holds(&self, value: Option<&Value>) -> bool {
        self.test.holds(value) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_xds::envoy::config::core::v3::Metadata;
    use serde_json::json;

    #[test]
    fn value_when_of_another_kind_or_missing_then_nothing_holds() {
        let values = json!({"n": null, "b": true, "d": 1.5, "t": "x", "l": [1, "y"], "s": {}});
        let all: Metadata = leno_xds::json::from_value(&json!({"filter_metadata": {"f": values}})).unwrap();
        let values = &all.filter_metadata["f"];
        let text = |text: &str| ValueMatch::Text(StringMatch::Exact(text.into()));
        let holding = |test: ValueMatch| -> String {
            let holds = |(key, value): (&String, &Value)| test.holds(Some(value)).then(|| key.clone());
            values.fields.iter().filter_map(holds).collect()
        };
        assert_eq!(holding(ValueMatch::Null), "n");
        assert_eq!((holding(ValueMatch::Bool(true)), holding(ValueMatch::Bool(false))), ("b".into(), String::new()));
        assert_eq!((holding(ValueMatch::Number(1.5)), holding(ValueMatch::Range(1.0, 1.5))), ("d".into(), "".into()));
        assert_eq!(holding(ValueMatch::Range(1.5, 2.0)), "d");
        assert_eq!((holding(text("x")), holding(text("y"))), ("t".into(), String::new()));
        assert_eq!(holding(ValueMatch::List(Box::new(text("y")))), "l");
        assert_eq!(holding(ValueMatch::Any(vec![text("x"), ValueMatch::Null])), "nt");
        assert_eq!(
            (holding(ValueMatch::Present(true)), holding(ValueMatch::Present(false))),
            ("bdlnst".into(), "".into())
        );
        for test in [ValueMatch::Null, ValueMatch::Present(true), ValueMatch::Present(false)] {
            assert!(!test.holds(None), "{test:?}");
        }
    }
}
