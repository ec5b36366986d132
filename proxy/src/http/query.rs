//! Changes of a path's query by a filter.

use crate::config::HeaderOp;

/// A parameter: its name with nothing encoded, and all of it as it is written.
struct Parameter {
    name: Vec<u8>,
    text: Vec<u8>,
}

impl Parameter {
    /// As it was written.
    fn written(text: &[u8]) -> Self {
        let at = text.iter().position(|byte| *byte == b'=');
        let mut own = text.to_vec();
        if at.is_none() {
            own.push(b'=');
        }
        Self { name: decoded(&text[..at.unwrap_or(text.len())]), text: own }
    }

    /// A new one.
    fn new(name: &str, value: &[u8]) -> Self {
        let mut text = [name.as_bytes(), b"="].concat();
        for byte in value {
            match byte {
                b'*' | b'-' | b'.' | b'_' => text.push(*byte),
                byte if byte.is_ascii_alphanumeric() => text.push(*byte),
                byte => text.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            }
        }
        Self { name: name.into(), text }
    }
}

/// The path with its query changed. The parameters are in the order of their names afterwards, as with Envoy; those that were
/// there stay as they were written.
pub(super) fn changed(path: &[u8], changes: &[(HeaderOp, Vec<u8>)]) -> Vec<u8> {
    let at = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let query = path.get(at + 1..).unwrap_or_default();
    let pieces = query.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty());
    let mut all: Vec<Parameter> = pieces.map(Parameter::written).collect();
    for (change, value) in changes {
        let (HeaderOp::Set(name, _)
        | HeaderOp::Append(name, _)
        | HeaderOp::AddIfAbsent(name, _)
        | HeaderOp::SetIfPresent(name, _)
        | HeaderOp::Remove(name)) = change;
        let there = all.iter().any(|parameter| parameter.name == name.as_bytes());
        if matches!(change, HeaderOp::Set(..) | HeaderOp::SetIfPresent(..) | HeaderOp::Remove(_)) {
            all.retain(|parameter| parameter.name != name.as_bytes());
        }
        let added = match change {
            HeaderOp::Set(..) | HeaderOp::Append(..) => true,
            HeaderOp::AddIfAbsent(..) => !there,
            HeaderOp::SetIfPresent(..) => there,
            HeaderOp::Remove(_) => false,
        };
        if added {
            all.push(Parameter::new(name, value));
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    let mut path = path[..at].to_vec();
    for (index, parameter) in all.iter().enumerate() {
        path.push(if index == 0 { b'?' } else { b'&' });
        path.extend_from_slice(&parameter.text);
    }
    path
}

/// A text without percent-encoding; what is none stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut plain, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HeaderText;

    fn changed(path: &str, change: HeaderOp, value: &str) -> String {
        String::from_utf8(super::changed(path.as_bytes(), &[(change, value.into())])).unwrap()
    }

    fn text() -> HeaderText {
        "".into()
    }

    #[test]
    fn query_when_it_is_changed_then_its_parameters_are_in_order_and_written_as_they_were() {
        let add = |path| changed(path, HeaderOp::Append("m".into(), text()), "1");
        assert_eq!(add("/p"), "/p?m=1");
        assert_eq!(add("/p?"), "/p?m=1");
        assert_eq!(add("/p?z=2&m=0&flag&a=%26b%0d&&"), "/p?a=%26b%0d&flag=&m=0&m=1&z=2");
    }

    #[test]
    fn query_when_a_name_is_there_in_any_spelling_then_that_counts() {
        let path = "/p?%6d=0&n=1";
        assert_eq!(changed(path, HeaderOp::Remove("m".into()), ""), "/p?n=1");
        assert_eq!(changed(path, HeaderOp::Set("m".into(), text()), "2"), "/p?m=2&n=1");
        assert_eq!(changed(path, HeaderOp::AddIfAbsent("m".into(), text()), "2"), path);
        assert_eq!(changed(path, HeaderOp::SetIfPresent("x".into(), text()), "2"), path);
        assert_eq!(changed("/p?m=1", HeaderOp::Remove("m".into()), ""), "/p");
    }

    #[test]
    fn query_when_a_value_could_be_taken_for_more_then_it_is_encoded() {
        let path = changed("/p", HeaderOp::Set("m".into(), text()), "a b&c=d#e\r\n\u{e9}%20");
        assert_eq!(path, "/p?m=a%20b%26c%3Dd%23e%0D%0A%C3%A9%2520");
    }
}
