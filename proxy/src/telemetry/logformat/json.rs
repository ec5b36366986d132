//! Lines of JSON, as Envoy's formatter makes them: members sorted by name; an operator alone keeps its type, and is `null` where
//! nothing is known; a text with more around is a text.

use super::operator::Operator;
use super::value::{Given, give, give_text};
use super::{FormatError, pieces};
use crate::telemetry::{HeaderLookup, LogEntry};
use prost_types::{ListValue, Struct, Value, value::Kind};

/// Objects and lists inside of each other at most.
const MAX_DEPTH: usize = 16;

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JsonFormat {
    object: Vec<(Box<str>, Node)>,
    /// What is not known is left out, and so are objects that have nothing then.
    omit: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// As it stands here, already JSON.
    Literal(Box<str>),
    /// `null` as it was written, which is left out with what is not known.
    Null,
    /// An operator alone.
    Value(Operator),
    /// Several operators and what stands between.
    Text(Vec<Operator>),
    /// Members, with their names as JSON and a colon.
    Object(Vec<(Box<str>, Node)>),
    List(Vec<Node>),
}

impl JsonFormat {
    /// Compiles it.
    ///
    /// # Errors
    /// Names the operator that is not known or not well-formed.
    pub(super) fn compile(value: &Struct, omit: bool) -> Result<Self, FormatError> {
        Ok(Self { object: object(value, MAX_DEPTH)?, omit })
    }

    /// All operators in it.
    pub(super) fn operators(&self) -> Vec<&Operator> {
        let mut all = Vec::new();
        self.object.iter().for_each(|(_, node)| node.collect(&mut all));
        all
    }

    /// Appends the object.
    pub(super) fn write<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        let from = out.len();
        members(&self.object, self.omit, entry, out);
        if out.len() == from {
            out.extend_from_slice(b"{}");
        }
    }
}

impl Node {
    fn collect<'n>(&'n self, all: &mut Vec<&'n Operator>) {
        match self {
            Self::Literal(_) | Self::Null => {}
            Self::Value(operator) => all.push(operator),
            Self::Text(operators) => all.extend(operators),
            Self::Object(object) => object.iter().for_each(|(_, node)| node.collect(all)),
            Self::List(nodes) => nodes.iter().for_each(|node| node.collect(all)),
        }
    }
}

fn object(value: &Struct, depth: usize) -> Result<Vec<(Box<str>, Node)>, FormatError> {
    let depth = depth.checked_sub(1).ok_or(FormatError::Depth(MAX_DEPTH))?;
    let member = |(name, value): (&String, &Value)| {
        let name = format!("{}:", serde_json::Value::from(name.as_str()));
        Ok((name.into(), node(value, depth)?))
    };
    value.fields.iter().map(member).collect()
}

fn node(value: &Value, depth: usize) -> Result<Node, FormatError> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Node::Null,
        Some(Kind::BoolValue(value)) => Node::Literal(value.to_string().into()),
        Some(Kind::NumberValue(value)) => Node::Literal(shortest(*value).into()),
        Some(Kind::StructValue(value)) => Node::Object(object(value, depth)?),
        Some(Kind::ListValue(ListValue { values })) => {
            let depth = depth.checked_sub(1).ok_or(FormatError::Depth(MAX_DEPTH))?;
            Node::List(values.iter().map(|value| node(value, depth)).collect::<Result<_, _>>()?)
        }
        Some(Kind::StringValue(text)) => {
            let mut operators = pieces(text)?;
            match operators.as_slice() {
                [] => Node::Literal("\"\"".into()),
                [Operator::Literal(text)] => Node::Literal(serde_json::Value::from(&**text).to_string().into()),
                [_] => operators.pop().map_or(Node::Null, Node::Value),
                _ => Node::Text(operators),
            }
        }
    })
}

/// Appends members with braces; nothing where there are none and `omit` is wanted.
fn members<Q: HeaderLookup, S: HeaderLookup>(
    object: &[(Box<str>, Node)],
    omit: bool,
    entry: &LogEntry<'_, Q, S>,
    out: &mut Vec<u8>,
) {
    let from = out.len();
    out.push(b'{');
    for (name, node) in object {
        let before = out.len();
        if before > from + 1 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        if !write(node, omit, entry, out) {
            out.truncate(before);
        }
    }
    if omit && out.len() == from + 1 {
        out.truncate(from);
        return;
    }
    out.push(b'}');
}

/// Appends a value; false where it is left out.
fn write<Q: HeaderLookup, S: HeaderLookup>(
    node: &Node,
    omit: bool,
    entry: &LogEntry<'_, Q, S>,
    out: &mut Vec<u8>,
) -> bool {
    match node {
        Node::Literal(json) => out.extend_from_slice(json.as_bytes()),
        Node::Null if omit => return false,
        Node::Null => out.extend_from_slice(b"null"),
        Node::Value(operator) => {
            let from = out.len();
            out.push(b'"');
            match give(operator, entry, out) {
                Given::Nothing => {
                    out.truncate(from);
                    if omit {
                        return false;
                    }
                    out.extend_from_slice(b"null");
                }
                Given::Number(value) => {
                    out.truncate(from);
                    let mut text = [0; 20];
                    out.extend_from_slice(crate::http::decimal(u128::from(value), &mut text));
                }
                Given::Json => _ = out.remove(from),
                Given::Own | Given::Foreign => {
                    escape(out, from + 1);
                    out.push(b'"');
                }
            }
        }
        Node::Text(operators) => {
            let from = out.len();
            out.push(b'"');
            for operator in operators {
                if give_text(operator, entry, out) == Given::Nothing && !omit {
                    out.push(b'-');
                }
            }
            escape(out, from + 1);
            out.push(b'"');
        }
        Node::Object(object) => {
            let from = out.len();
            members(object, omit, entry, out);
            return out.len() > from;
        }
        Node::List(nodes) => {
            let from = out.len();
            out.push(b'[');
            for node in nodes {
                let before = out.len();
                if before > from + 1 {
                    out.push(b',');
                }
                if !write(node, omit, entry, out) {
                    out.truncate(before);
                }
            }
            out.push(b']');
        }
    }
    true
}

/// Escapes what was appended since `from`: UTF-8 as JSON wants it; what is none byte by byte.
fn escape(out: &mut Vec<u8>, from: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
    if out[from..].iter().all(plain) {
        return;
    }
    let raw = out.split_off(from);
    let utf8 = std::str::from_utf8(&raw).is_ok();
    for byte in raw {
        let short = match byte {
            b'"' => Some(b'"'),
            b'\\' => Some(b'\\'),
            b'\n' => Some(b'n'),
            b'\r' => Some(b'r'),
            b'\t' => Some(b't'),
            0x08 => Some(b'b'),
            0x0c => Some(b'f'),
            _ => None,
        };
        match short {
            Some(short) if utf8 => out.extend_from_slice(&[b'\\', short]),
            None if byte >= 0x20 && (utf8 || byte <= 0x7e) => out.push(byte),
            _ => out.extend_from_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]),
        }
    }
}

/// The shorter of the fixed and the scientific form; the fixed one where both are as long.
pub(super) fn shortest(value: f64) -> String {
    let scientific = format!("{value:e}");
    let scientific = match scientific.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => scientific,
    };
    // JSON has neither.
    if !value.is_finite() {
        return "null".to_owned();
    }
    let fixed = if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value}") };
    if scientific.len() < fixed.len() { scientific } else { fixed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_when_the_other_form_is_shorter_then_it_is_written_so() {
        let cases = [
            (1e15, "1e+15"),
            (12_345_678_901_234_567_890.0, "12345678901234567168"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (0.0001, "1e-04"),
            (123_456_789_012.5, "123456789012.5"),
            (-5.0, "-5"),
            (1_000_000.0, "1e+06"),
            (0.0, "0"),
            (f64::INFINITY, "null"),
            (f64::NAN, "null"),
        ];
        for (value, text) in cases {
            assert_eq!(shortest(value), text);
        }
    }
}
