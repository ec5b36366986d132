//! Paths are brought into one form before anything is decided by them, and sent on in that form, so that the endpoint
//! sees what the policy saw.

/// Why a path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the request's path has {0}")]
pub struct BadPath(&'static str);

/// Normalises the path (without query) of `target` as RFC 3986 6.2.2 and Envoy do: unreserved characters unescaped,
/// `.` and `..` resolved; `//` made one `/` on request; `%2F` kept as it is. `Ok(None)` says that nothing had to be changed.
///
/// # Errors
/// When an escape is malformed, or it is an escaped NUL, or `..` leads above the root.
pub fn normalise(target: &[u8], merge_slashes: bool) -> Result<Option<Vec<u8>>, BadPath> {
    let end = target.iter().position(|&b| b == b'?' || b == b'#').unwrap_or(target.len());
    let path = &target[..end];
    let dirty = path.iter().any(|&b| b == b'%' || b == b'\\')
        || path.windows(2).any(|pair| pair == b"/." || merge_slashes && pair == b"//");
    let fragment = target[end..].iter().position(|&b| b == b'#');
    if !dirty && fragment.is_none() {
        return Ok(None);
    }
    let mut unescaped = Vec::with_capacity(path.len());
    let mut rest = path.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
                    return Err(BadPath("a malformed escape"));
                };
                let (Some(h), Some(l)) = (hex(high), hex(low)) else {
                    return Err(BadPath("a malformed escape"));
                };
                match h * 16 + l {
                    0 => return Err(BadPath("an escaped NUL")),
                    value if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') => {
                        unescaped.push(value);
                    }
                    _ => unescaped.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
            }
            // Some servers take a backslash for a slash; Envoy makes it one.
            b'\\' => unescaped.push(b'/'),
            other => unescaped.push(other),
        }
    }
    let mut out: Vec<u8> = Vec::with_capacity(target.len());
    let mut segments = unescaped.split(|&b| b == b'/').peekable();
    segments.next(); // Before the first slash is nothing.
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                let Some(cut) = out.iter().rposition(|&b| b == b'/') else {
                    return Err(BadPath("`..` that leads above the root"));
                };
                out.truncate(cut);
                if last {
                    out.push(b'/');
                }
            }
            b"" if merge_slashes && !last => {}
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    let query_end = fragment.map_or(target.len(), |at| end + at);
    out.extend_from_slice(&target[end..query_end]);
    Ok(Some(out))
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(path: &str, merge: bool) -> Result<String, BadPath> {
        let changed = normalise(path.as_bytes(), merge)?;
        Ok(changed.map_or_else(|| path.to_owned(), |bytes| String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn path_when_normalised_then_as_envoy() {
        for (path, want) in [
            ("/", "/"),
            ("/a/b?x=../..", "/a/b?x=../.."),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2e%2e/b", "/a../b"),
            ("/a/%2e%2e/b", "/b"),
            ("/a\\..\\b", "/b"),
            ("//a//b", "//a//b"),
            ("/a#frag", "/a"),
            ("/a?q#frag", "/a?q"),
            ("/.hidden", "/.hidden"),
        ] {
            assert_eq!(normal(path, false).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(normal("//a//b//", true).as_deref(), Ok("/a/b/"));
    }

    #[test]
    fn path_when_it_lies_then_it_is_refused() {
        for path in ["/..", "/a/../../b", "/%", "/%4", "/%zz", "/%00", "/%2e%2e/x"] {
            assert!(normal(path, false).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn path_when_normalised_twice_then_nothing_changes(path in "/[a-z./%\\\\2eEfF?#]{0,30}", merge in any::<bool>()) {
            if let Ok(once) = normal(&path, merge) {
                prop_assert_eq!(normal(&once, merge), Ok(once));
            }
        }
    }
}
