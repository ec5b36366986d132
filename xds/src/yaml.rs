//! YAML as Envoy reads it: what is written decides what a scalar is, by the rules of the library that Envoy uses (YAML 1.1 for
//! whole numbers and truth values), and not by those of YAML 1.2.
//!
//! It makes a difference wherever a value may be of any type, as in metadata: `version: 1.10` is the text `1.10` and neither a number
//! nor the same as `1.1`, and `canary: yes` is true.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;

/// Levels of lists and maps in each other at most, what aliases stand for included; messages in JSON may not be deeper either.
const DEPTH: usize = 100;
/// Values that are kept for aliases (`*name`), and that these stand for, altogether.
const ALIASED: usize = 1_000_000;
/// What is wrong with more than [`DEPTH`].
const DEEP: &str = "more than 100 lists and maps in each other";

/// Why a text is no YAML, or none that is configuration.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    /// It is none.
    #[error(transparent)]
    Syntax(#[from] ScanError),
    /// It is, but not of a kind that has a JSON form.
    #[error("line {line} column {column}: {what}")]
    Shape {
        /// Line, from 1 on.
        line: usize,
        /// Column, from 1 on.
        column: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// A list or a map that is not complete yet.
enum Open {
    List(Vec<Value>),
    Map { fields: Map<String, Value>, key: Option<Key> },
}

/// The name of a value that comes next.
struct Key {
    name: String,
    /// It has the tag `!ignore`: its value is only there to be referred to.
    ignored: bool,
}

#[derive(Default)]
struct Reader {
    open: Vec<(Open, usize)>,
    /// What may be referred to, how many values that is, and how deep.
    anchors: HashMap<usize, (Value, usize, usize)>,
    aliased: usize,
    document: Option<Value>,
}

/// Reads the first document, as Envoy does, or JSON, which is read by its own rules. A mark of the order of bytes may stand before it.
///
/// # Errors
/// When it is neither, holds a key twice or one that is no scalar, or is too deep.
pub fn read(text: &str) -> Result<Value, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event?;
        if event == Event::DocumentEnd {
            break;
        }
        reader.take(event).map_err(|what| shape(span, what))?;
    }
    Ok(reader.document.unwrap_or_default())
}

fn shape(span: Span, what: &'static str) -> YamlError {
    YamlError::Shape { line: span.start.line(), column: span.start.col() + 1, what }
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::Alias(anchor) => {
                let (value, count, depth) = self.anchors.get(&anchor).ok_or("an alias inside of what it stands for")?;
                if self.open.len() + depth > DEPTH {
                    return Err(DEEP);
                }
                let (value, count) = (value.clone(), *count);
                self.charge(count)?;
                self.add(value, None)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let ignored = tag.as_deref().is_some_and(|tag| tag.suffix == "ignore");
                if let Some((Open::Map { key: key @ None, .. }, _)) = self.open.last_mut() {
                    *key = Some(Key { name: text.clone().into_owned(), ignored });
                    return self.keep(anchor, &scalar(text, style, tag.as_deref()));
                }
                self.add(scalar(text, style, tag.as_deref()), Some(anchor))
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => self.begin(Open::Map { fields: Map::new(), key: None }, anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(values), anchor)) => self.add(Value::Array(values), Some(anchor)),
                Some((Open::Map { fields, .. }, anchor)) => self.add(Value::Object(fields), Some(anchor)),
                None => Err("an end of what did not begin"),
            },
        }
    }

    fn begin(&mut self, open: Open, anchor: usize) -> Result<(), &'static str> {
        if self.open.len() >= DEPTH {
            return Err(DEEP);
        }
        if matches!(self.open.last(), Some((Open::Map { key: None, .. }, _))) {
            return Err("a key that is a list or a map");
        }
        self.open.push((open, anchor));
        Ok(())
    }

    /// Counts values that are there for aliases.
    fn charge(&mut self, count: usize) -> Result<(), &'static str> {
        self.aliased += count;
        if self.aliased > ALIASED { Err("aliases stand for more than a million values") } else { Ok(()) }
    }

    /// Keeps a value that has an anchor, which is none where that is 0.
    fn keep(&mut self, anchor: usize, value: &Value) -> Result<(), &'static str> {
        if anchor == 0 {
            return Ok(());
        }
        let (count, depth) = extent(value);
        self.charge(count)?;
        self.anchors.insert(anchor, (value.clone(), count, depth));
        Ok(())
    }

    /// A value is complete: it goes where it belongs.
    fn add(&mut self, value: Value, anchor: Option<usize>) -> Result<(), &'static str> {
        if let Some(anchor) = anchor {
            self.keep(anchor, &value)?;
        }
        match self.open.last_mut() {
            None => self.document = Some(value),
            Some((Open::List(values), _)) => values.push(value),
            Some((Open::Map { fields, key }, _)) => match key.take() {
                Some(Key { ignored: true, .. }) => {}
                Some(Key { name, .. }) if fields.contains_key(&name) => return Err("a key for the second time"),
                Some(Key { name, .. }) => {
                    fields.insert(name, value);
                }
                // An alias for a key.
                None => {
                    let name = value.as_str().ok_or("a key that is no text")?.to_owned();
                    *key = Some(Key { name, ignored: false });
                }
            },
        }
        Ok(())
    }
}

/// How many values a value consists of, and how many of them are in each other.
fn extent(value: &Value) -> (usize, usize) {
    let both = |(count, depth): (usize, usize), value| {
        let (more, deeper) = extent(value);
        (count + more, depth.max(deeper))
    };
    let (count, depth) = match value {
        Value::Array(values) => values.iter().fold((0, 0), both),
        Value::Object(fields) => fields.values().fold((0, 0), both),
        _ => return (1, 0),
    };
    (count + 1, depth + 1)
}

/// What a scalar is: a text where it stands in quotes or as a block, or has the tag `!`; else what it looks like, whatever its tag.
fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let as_text = match tag {
        None => style != ScalarStyle::Plain,
        Some(tag) => format!("{}{}", tag.handle, tag.suffix) == "!",
    };
    if as_text {
        return Value::String(text.into_owned());
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => whole(&text).or_else(|| truth(&text).map(Value::Bool)).unwrap_or_else(|| Value::String(text.into_owned())),
    }
}

/// `true`, `yes`, `on`, `y` and their opposites: in small letters, in capitals, or with a first capital.
fn truth(text: &str) -> Option<bool> {
    let mut rest = text.chars().skip(1);
    let lower = text.chars().all(|c| c.is_ascii_lowercase());
    let upper = text.chars().all(|c| c.is_ascii_uppercase());
    let first = text.starts_with(|c: char| c.is_ascii_uppercase()) && rest.all(|c| c.is_ascii_lowercase());
    match text.to_ascii_lowercase().as_str() {
        _ if !lower && !upper && !first => None,
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, with a leading zero octal, with `0x` hexadecimal. Of more than 32 bits it is a text of decimal digits, which
/// is as good for a field of 64 bits.
fn whole(text: &str) -> Option<Value> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // A second sign is none.
    let digits = Some(digits).filter(|digits| digits.starts_with(|c: char| c.is_ascii_hexdigit()))?;
    let value = sign * i64::from_str_radix(digits, radix).ok()?;
    Some(i32::try_from(value).map_or_else(|_| Value::String(value.to_string()), Value::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalar_when_written_as_envoy_users_do_then_is_what_envoy_takes_it_for() {
        let text = "whole: [1, 0, -5, +5, 0123, 0x1F, 007, -0x10]\n\
                    texts: [0o17, 0b11, 1_000, 1.5, 1.0, 1.10, 1e3, .5, 5., .inf, .nan, 08, 0x, 1.2.3, 2024-01-01, '12:30', nUll, tRUE, +-5, -]\n\
                    large: [20240131120000, 0x1FFFFFFFF, 9223372036854775807, 18446744073709551616]\n\
                    yes: [true, True, TRUE, y, Y, yes, Yes, YES, on, On, ON]\n\
                    no: [false, n, N, no, No, off, OFF]\n\
                    none: [~, null, Null, NULL, ]\n\
                    quoted: ['1', \"yes\", 'null', !!str 5, !!int '5']\n\
                    empty:\n\
                    block: |\n  5\n";
        let text = text.replace("+-5, -]", "+-5]");
        let wanted = json!({
            "whole": [1, 0, -5, 5, 83, 31, 7, -16],
            "texts": ["0o17", "0b11", "1_000", "1.5", "1.0", "1.10", "1e3", ".5", "5.", ".inf", ".nan", "08", "0x", "1.2.3",
                "2024-01-01", "12:30", "nUll", "tRUE", "+-5"],
            "large": ["20240131120000", "8589934591", "9223372036854775807", "18446744073709551616"],
            "yes": [true, true, true, true, true, true, true, true, true, true, true],
            "no": [false, false, false, false, false, false, false],
            "none": [null, null, null, null],
            "quoted": ["1", "yes", "null", 5, 5],
            "empty": null,
            "block": "5\n",
        });
        assert_eq!(read(&text).unwrap(), wanted);
    }

    #[test]
    fn document_when_of_json_then_keeps_its_numbers() {
        assert_eq!(read(" {\"a\": 1.5, \"b\": [18446744073709551615]}").unwrap(), json!({"a": 1.5, "b": [u64::MAX]}));
        assert_eq!(read("").unwrap(), Value::Null);
        assert_eq!(read("\u{feff}a: 1\n---\nb: 2\n").unwrap(), json!({"a": 1}));
        assert_eq!(read("{a: 1, b: [c, {d: e}]} # flow").unwrap(), json!({"a": 1, "b": ["c", {"d": "e"}]}));
    }

    #[test]
    fn alias_when_used_then_stands_for_its_value_and_is_bounded() {
        let text = "!ignore shared: &it {a: [1, 2]}\nfirst: *it\nsecond: [*it, &x 5, *x]\n";
        let wanted = json!({"first": {"a": [1, 2]}, "second": [{"a": [1, 2]}, 5, 5]});
        assert_eq!(read(text).unwrap(), wanted);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{list}]\n");
        }
        assert!(read(&bomb).unwrap_err().to_string().contains("million"));
        let mut deep = String::from("a0: &a0 [x]\n");
        for level in 1..200 {
            deep += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(read(&deep).unwrap_err().to_string().contains("more than 100"));
    }

    #[test]
    fn text_when_it_is_no_configuration_then_the_error_says_where() {
        for (text, wanted) in [
            ("a: 1\na: 2\n", "line 2 column 4: a key for the second time"),
            ("? [a]\n: b\n", "a key that is a list or a map"),
            ("a: *nothing\n", "line 1"),
            ("a: [1\n", "line"),
            (&"[".repeat(200), "more than 100"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:.20}: {error}");
        }
    }
}
