//! Paths are brought into one form before anything is decided by them, and sent on in that form, so that the endpoint
//! sees what the policy saw. The rules, their order and their results are Envoy's.

use crate::config::EscapedSlashes;

/// Why a path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the request's path has {0}")]
pub struct BadPath(&'static str);

/// Which rules are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// RFC 3986, 6.2.2: unreserved characters unescaped, `.` and `..` resolved (not above the root), backslashes made
    /// slashes, and what no path may hold escaped. Other escapes stay as they came.
    pub normalize: bool,
    /// `//` made one `/`.
    pub merge_slashes: bool,
    /// What is done about `%2F` and `%5C`; the first thing that is done.
    pub escaped_slashes: EscapedSlashes,
}

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is clean as it is.
    Unchanged,
    /// It is this now.
    Changed(Vec<u8>),
    /// The client is to ask for this instead.
    Redirect(Vec<u8>),
    /// It is refused; without its escaped slashes it is this.
    Refused(Vec<u8>),
}

/// Applies the rules to a target; the query stays as it is.
///
/// # Errors
/// When it has a fragment, or an escaped NUL (where paths are normalised).
pub fn clean(target: &[u8], rules: Rules) -> Result<Outcome, BadPath> {
    let mut end = target.len();
    let mut dirty = false;
    let mut before = 0;
    for (at, &byte) in target.iter().enumerate() {
        let class = CLASS[usize::from(byte)];
        if class & STOP != 0 {
            if byte == b'#' {
                return Err(BadPath("a fragment"));
            }
            end = at;
            break;
        }
        dirty |= class & DIRTY != 0 || before == b'/' && (byte == b'.' || byte == b'/');
        before = byte;
    }
    if target[end..].contains(&b'#') {
        return Err(BadPath("a fragment"));
    }
    if !dirty {
        return Ok(Outcome::Unchanged);
    }
    let (path, query) = target.split_at(end);
    let mut redirect = false;
    let mut now = match rules.escaped_slashes {
        EscapedSlashes::Keep => None,
        action => match unescape_slashes(path) {
            None => None,
            Some(mut path) if action == EscapedSlashes::Reject => {
                path.extend_from_slice(query);
                return Ok(Outcome::Refused(path));
            }
            Some(path) => {
                redirect = action == EscapedSlashes::Redirect;
                Some(path)
            }
        },
    };
    if rules.normalize {
        now = Some(resolve(&canonical(now.as_deref().unwrap_or(path))?));
    }
    if rules.merge_slashes {
        now = Some(merge(now.as_deref().unwrap_or(path)));
    }
    let Some(mut path) = now.filter(|now| now != path) else { return Ok(Outcome::Unchanged) };
    path.extend_from_slice(query);
    Ok(if redirect { Outcome::Redirect(path) } else { Outcome::Changed(path) })
}

/// The path is over here.
const STOP: u8 = 1;
/// A rule may want to change it.
const DIRTY: u8 = 2;
/// It stands in a normalised path as an escape.
const ESCAPE: u8 = 4;

const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'?' | b'#' => STOP,
            b'%' | b'\\' => DIRTY,
            0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => DIRTY | ESCAPE,
            _ => 0,
        };
        byte += 1;
    }
    class
};

/// `%2F` and `%5C` as the characters; `None` when there are none.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let slash = |at: usize| match path.get(at..at + 3) {
        Some([b'%', b'2', b'F' | b'f']) => Some(b'/'),
        Some([b'%', b'5', b'C' | b'c']) => Some(b'\\'),
        _ => None,
    };
    let first = (0..path.len()).find(|&at| slash(at).is_some())?;
    let mut out = path[..first].to_vec();
    let mut at = first;
    while at < path.len() {
        match slash(at) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    Some(out)
}

/// Escapes as they should be, and slashes for backslashes.
fn canonical(path: &[u8]) -> Result<Vec<u8>, BadPath> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(path.len() + 8);
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        at += 1;
        match byte {
            b'%' => match (path.get(at).and_then(hex), path.get(at + 1).and_then(hex)) {
                (Some(0), Some(0)) => return Err(BadPath("an escaped NUL")),
                (Some(high), Some(low)) => {
                    let value = high * 16 + low;
                    if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
                        out.push(value);
                    } else {
                        out.extend_from_slice(&path[at - 1..at + 2]);
                    }
                    at += 2;
                }
                // Not an escape: it stays what it is.
                _ => out.push(b'%'),
            },
            // Some servers take a backslash for a slash.
            b'\\' => out.push(b'/'),
            byte if CLASS[usize::from(byte)] & ESCAPE != 0 => {
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            byte => out.push(byte),
        }
    }
    Ok(out)
}

fn hex(byte: &u8) -> Option<u8> {
    (*byte as char).to_digit(16).map(|digit| digit as u8)
}

/// Without `.` and `..`; what leads above the root stays at the root.
fn resolve(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|&b| b == b'/').peekable();
    segments.next(); // Before the first slash is nothing.
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            // Parameters do not make it another segment: some servers take them away before they look.
            b"." | [b'.', b';', ..] => {}
            b".." | [b'.', b'.', b';', ..] => out.truncate(out.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

fn merge(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    // Of nothing but slashes Envoy keeps the first and the last.
    if out.len() > 1 && out.iter().all(|&byte| byte == b'/') {
        out.truncate(2);
        return out;
    }
    out.dedup_by(|next, before| *next == b'/' && *before == b'/');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NORMAL: Rules = Rules { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };

    fn after(path: &str, rules: Rules) -> Result<String, BadPath> {
        Ok(match clean(path.as_bytes(), rules)? {
            Outcome::Unchanged => path.to_owned(),
            Outcome::Changed(bytes) => String::from_utf8(bytes).unwrap(),
            Outcome::Redirect(bytes) => format!("redirect to {}", String::from_utf8(bytes).unwrap()),
            Outcome::Refused(bytes) => format!("refused {}", String::from_utf8(bytes).unwrap()),
        })
    }

    /// What a stock Envoy 1.40 sends on for the same paths.
    #[test]
    fn path_when_normalised_then_as_envoy() {
        for (path, want) in [
            ("/", "/"),
            ("/a/b?x=../..", "/a/b?x=../.."),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../a", "/a"),
            ("/a/../../b", "/b"),
            ("/a/b/../../..", "/"),
            ("/%2e%2e/a", "/a"),
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2fb"),
            ("/a%5cb", "/a%5cb"),
            ("/a%2e%2e/b", "/a../b"),
            ("/a%2e%2fb", "/a.%2fb"),
            ("/a/%2e%2e/b", "/b"),
            ("/a\\b", "/a/b"),
            ("/a\\..\\b", "/b"),
            ("//a//b", "//a//b"),
            ("/a|b\"<", "/a%7Cb%22%3C"),
            ("/^`{}", "/%5E%60%7B%7D"),
            ("/.hidden", "/.hidden"),
            ("/%", "/%"),
            ("/%zz", "/%zz"),
            ("/a%2", "/a%2"),
            ("/a%25b", "/a%25b"),
            ("/a%7e", "/a~"),
            ("/a%c3%bc", "/a%c3%bc"),
        ] {
            assert_eq!(after(path, NORMAL).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn path_when_slashes_merge_then_one_of_each_run_is_left() {
        let rules = Rules { merge_slashes: true, ..NORMAL };
        assert_eq!(after("//a//b//", rules).as_deref(), Ok("/a/b/"));
        assert_eq!(after("/a%41%2f%2F//", rules).as_deref(), Ok("/aA%2f%2F/"));
        assert_eq!(after("////", Rules { normalize: false, ..rules }).as_deref(), Ok("//"));
        let rules = Rules { normalize: false, ..rules };
        assert_eq!(after("//a//../b?x=//", rules).as_deref(), Ok("/a/../b?x=//"), "the rules are each for themselves");
    }

    #[test]
    fn path_when_slashes_are_escaped_then_the_action_decides() {
        let rules = |escaped_slashes, normalize| Rules { normalize, merge_slashes: false, escaped_slashes };
        assert_eq!(after("/a%2fb?c", rules(EscapedSlashes::Reject, false)).as_deref(), Ok("refused /a/b?c"));
        assert_eq!(after("/a?b=%2f", rules(EscapedSlashes::Reject, false)).as_deref(), Ok("/a?b=%2f"));
        assert_eq!(after("/a%2F..%2fb?c", rules(EscapedSlashes::Unescape, true)).as_deref(), Ok("/b?c"));
        assert_eq!(after("/a%2fb", rules(EscapedSlashes::Redirect, false)).as_deref(), Ok("redirect to /a/b"));
        assert_eq!(after("/a%5cb", rules(EscapedSlashes::Redirect, false)).as_deref(), Ok("redirect to /a\\b"));
        assert_eq!(after("/a/../b", rules(EscapedSlashes::Redirect, true)).as_deref(), Ok("/b"));
    }

    #[test]
    fn path_when_it_lies_then_it_is_refused() {
        for path in ["/%00", "/a/%00/b", "/a#frag", "/a?q#frag"] {
            assert!(after(path, NORMAL).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn path_when_normalised_twice_then_nothing_changes(
            path in "/[a-z./%\\\\2eEfF?|]{0,30}",
            merge_slashes in any::<bool>(),
        ) {
            let rules = Rules { merge_slashes, ..NORMAL };
            // What is unescaped may make an escape with what stands before it (`%%361`); that is Envoy's way too.
            if let Ok(once) = after(&path, rules) && !path.contains("%%") && !path.contains("%2%") {
                let plain = once.split('?').next().unwrap_or_default();
                prop_assert!(!plain.contains("/../") && !plain.contains("/./") && !plain.ends_with("/.."), "{once}");
                prop_assert!(plain.starts_with('/'));
            }
        }
    }
}
