//! Regular expressions that mean what RE2 says (<https://github.com/google/re2/wiki/Syntax>), as Istio and Envoy read them.
//!
//! Rust's `regex` has nearly the same syntax and the same linear time, but some of it means something else: `\d` is every
//! digit of Unicode, `[a&&b]` an intersection, `(?x)` ignores white space. So an expression is rewritten before it is
//! compiled, and what RE2 does not know is refused. The whole text has to match.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

/// The longest expression, in bytes, as Istio's schema says.
pub const MAX_LEN: usize = 1024;

/// The most memory that a compiled expression may take, in bytes. RE2's own default is 8 MiB.
const MAX_SIZE: usize = 1 << 20;

/// Why an expression does not compile.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Re2Error {
    /// It is too long.
    #[error("the regular expression is longer than {MAX_LEN} bytes")]
    TooLong,
    /// RE2 has no such thing.
    #[error("RE2 knows no {0}")]
    Unsupported(String),
    /// It does not parse, or would take too much memory.
    #[error("{0}")]
    Syntax(String),
}

/// Compiles an expression that is to match a whole text.
///
/// # Errors
///
/// [`Re2Error`] when RE2 would refuse it, too.
pub fn compile(pattern: &str) -> Result<Regex, Re2Error> {
    build(pattern, true)
}

/// Compiles an expression that is to be searched for in a text, as rewrites do.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_search(pattern: &str) -> Result<Regex, Re2Error> {
    build(pattern, false)
}

fn build(pattern: &str, whole: bool) -> Result<Regex, Re2Error> {
    if pattern.len() > MAX_LEN {
        return Err(Re2Error::TooLong);
    }
    let rewritten = rewrite(pattern)?;
    // Compiled by itself first: `a)(b` must not become valid by what is put around it.
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(MAX_SIZE)
            .build()
            .map_err(|error| Re2Error::Syntax(last_line(&error.to_string())))
    };
    let plain = compile(&rewritten)?;
    if whole { compile(&format!(r"\A(?:{rewritten})\z")) } else { Ok(plain) }
}

/// The errors of `regex` draw the expression over several lines; the last one says what is wrong.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// The same expression as Rust's `regex` writes it.
fn rewrite(pattern: &str) -> Result<String, Re2Error> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut at = 0;
    while let Some(&char) = chars.get(at) {
        at += 1;
        match char {
            '\\' => at = escape(&chars, at, false, &mut out)?,
            '[' => at = class(&chars, at, &mut out)?,
            '(' => {
                if chars.get(at) == Some(&'?') {
                    check_group(&chars, at + 1)?;
                }
                out.push(char);
            }
            _ => out.push(char),
        }
    }
    Ok(out)
}

/// Refuses flags that RE2 does not have: it knows `i`, `m`, `s` and `U`.
fn check_group(chars: &[char], at: usize) -> Result<(), Re2Error> {
    if matches!(chars.get(at), Some('P' | '<')) {
        return Ok(());
    }
    for char in chars.iter().skip(at) {
        match char {
            ':' | ')' => return Ok(()),
            'i' | 'm' | 's' | 'U' | '-' => {}
            other => return Err(Re2Error::Unsupported(format!("group (?{other}"))),
        }
    }
    Ok(())
}

/// Rewrites what follows a backslash; gives the position behind it.
fn escape(chars: &[char], at: usize, in_class: bool, out: &mut String) -> Result<usize, Re2Error> {
    let Some(&char) = chars.get(at) else {
        return Err(Re2Error::Syntax("a backslash stands at the end".into()));
    };
    let class = |inside: &str, negated: bool| match (in_class, negated) {
        (true, false) => inside.to_owned(),
        (_, true) => format!("[^{inside}]"),
        (false, false) => format!("[{inside}]"),
    };
    match char {
        'd' | 'D' => out.push_str(&class("0-9", char == 'D')),
        'w' | 'W' => out.push_str(&class("0-9A-Za-z_", char == 'W')),
        's' | 'S' => out.push_str(&class(r"\t\n\x0C\r ", char == 'S')),
        'b' | 'B' if !in_class => {
            let _ = write!(out, r"(?-u:\{char})");
        }
        'Q' if !in_class => {
            let mut at = at + 1;
            while let Some(&literal) = chars.get(at) {
                if literal == '\\' && chars.get(at + 1) == Some(&'E') {
                    return Ok(at + 2);
                }
                out.push_str(&regex::escape(&literal.to_string()));
                at += 1;
            }
            return Ok(at);
        }
        '0'..='7' => {
            let digits: String =
                chars.iter().skip(at).take(3).take_while(|digit| ('0'..='7').contains(*digit)).collect();
            if char != '0' && digits.len() == 1 {
                return Err(Re2Error::Unsupported(format!("back-reference \\{char}")));
            }
            let value = u32::from_str_radix(&digits, 8).unwrap_or_default();
            let _ = write!(out, "\\x{{{value:x}}}");
            return Ok(at + digits.len());
        }
        'a' | 'f' | 't' | 'n' | 'r' | 'v' | 'x' | 'p' | 'P' => {
            out.push('\\');
            out.push(char);
        }
        'A' | 'z' if !in_class => {
            out.push('\\');
            out.push(char);
        }
        _ if char.is_ascii_alphanumeric() => return Err(Re2Error::Unsupported(format!("escape \\{char}"))),
        _ => out.push_str(&regex::escape(&char.to_string())),
    }
    Ok(at + 1)
}

/// Rewrites a character class from behind its opening bracket; gives the position behind the closing one.
fn class(chars: &[char], mut at: usize, out: &mut String) -> Result<usize, Re2Error> {
    out.push('[');
    if chars.get(at) == Some(&'^') {
        out.push('^');
        at += 1;
    }
    let mut first = true;
    while let Some(&char) = chars.get(at) {
        at += 1;
        match char {
            ']' if !first => {
                out.push(']');
                return Ok(at);
            }
            '\\' => at = escape(chars, at, true, out)?,
            '[' if chars.get(at) == Some(&':') => {
                out.push('[');
                // A named class such as `[:alpha:]`, up to its own closing bracket.
                while let Some(&char) = chars.get(at) {
                    out.push(char);
                    at += 1;
                    if char == ']' {
                        break;
                    }
                }
            }
            '[' | ']' | '&' | '~' => {
                out.push('\\');
                out.push(char);
            }
            '-' if chars.get(at) == Some(&'-') => {
                out.push_str(r"-\-");
                at += 1;
            }
            _ => out.push(char),
        }
        first = false;
    }
    Err(Re2Error::Syntax("a character class is not closed".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}")).is_match(text.as_bytes())
    }

    #[test]
    fn regex_when_compiled_then_matches_the_whole_text_only() {
        assert!(matches("/a.*", "/abc"));
        assert!(!matches("b", "abc"));
        assert!(matches("a|bc", "bc"));
        assert!(!matches("a|bc", "abc"));
    }

    #[test]
    fn regex_when_perl_classes_then_ascii() {
        assert!(matches(r"\d+", "12"));
        assert!(!matches(r"\d", "\u{0663}"));
        assert!(!matches(r"[\w]", "\u{e4}"));
        assert!(matches(r"[^\d]", "\u{0663}"));
        assert!(matches(r"[\D]", "x"));
    }

    #[test]
    fn regex_when_only_rust_gives_a_meaning_then_read_as_re2() {
        assert!(matches("[a&&b]+", "a&b"));
        assert!(matches("[a[b]", "["));
        assert!(matches("[]a]", "]"));
        assert!(matches("[+--]", ","));
        assert!(matches(r"\Qa.b\E+", "a.b"));
        assert!(matches(r"\x41\101", "AA"));
        assert!(matches("[[:alpha:]]+", "ab"));
    }

    #[test]
    fn regex_when_re2_does_not_know_it_then_refused() {
        for pattern in ["(", "a)(b", "[a", r"\", r"(?x)a b", r"(?=a)", r"(a)\1", r"\C", r"\u0041", "*", "a{1001}{1001}"]
        {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert_eq!(compile(&"a".repeat(MAX_LEN + 1)).unwrap_err(), Re2Error::TooLong);
    }

    proptest! {
        #[test]
        fn regex_when_any_text_then_never_panics(pattern in "\\PC{0,40}") {
            let _ = compile(&pattern);
        }
    }
}
