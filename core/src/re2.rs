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
    let mut repeats = Repeats::default();
    let mut at = 0;
    while let Some(&char) = chars.get(at) {
        at += 1;
        match char {
            '*' | '+' | '?' => repeats.operator(char == '?')?,
            '{' => {
                let count = repeats.counted(&chars, at)?;
                out.push('{');
                out.push_str(&count);
                at += count.chars().count();
                continue;
            }
            '(' => repeats.open(),
            ')' => repeats.close(),
            _ => repeats.one(),
        }
        match char {
            '\\' => at = escape(&chars, at, false, &mut out)?,
            '[' => at = class(&chars, at, &mut out)?,
            '(' => {
                out.push(char);
                if chars.get(at) == Some(&'?') {
                    check_group(&chars, at + 1)?;
                    out.push('?');
                    at += 1;
                }
            }
            _ => out.push(char),
        }
    }
    Ok(out)
}

/// How often something may be repeated by a count, all counts around it multiplied, as in RE2.
const MAX_REPEATS: u32 = 1000;

/// What RE2 refuses of repetitions and Rust does not: one of another, and counts that are too large.
#[derive(Default)]
struct Repeats {
    /// For each open group, how often what is before it is repeated at most.
    groups: Vec<u32>,
    /// The same for the group that is being read.
    most: u32,
    /// How often the last thing repeats what is in it.
    last: u32,
    /// Whether the last thing was a repetition, and whether it may still be made a lazy one.
    repeated: Option<bool>,
}

impl Repeats {
    /// Something that can be repeated.
    fn one(&mut self) {
        (self.last, self.repeated) = (1, None);
    }

    fn open(&mut self) {
        self.groups.push(self.most);
        self.most = 1;
        self.one();
    }

    fn close(&mut self) {
        self.one();
        self.last = self.most.max(1);
        self.most = self.most.max(self.groups.pop().unwrap_or_default());
    }

    fn operator(&mut self, makes_lazy: bool) -> Result<(), Re2Error> {
        self.repeated = match self.repeated {
            None => Some(true),
            Some(true) if makes_lazy => Some(false),
            Some(_) => return Err(Re2Error::Unsupported("repetition of a repetition".to_owned())),
        };
        Ok(())
    }

    /// A count such as `{2,3}` whose opening bracket stands before `at`: gives what follows, up to the closing one. What is
    /// no count is left to the compiler.
    fn counted(&mut self, chars: &[char], at: usize) -> Result<String, Re2Error> {
        let text: String = chars.iter().skip(at).take_while(|char| **char != '}').collect();
        let (least, most) = text.split_once(',').unwrap_or((&text, ""));
        if least.is_empty() {
            return Err(Re2Error::Unsupported(format!("repetition {{{text}}}")));
        }
        self.operator(false)?;
        // Counts that do not fit into 32 bits are too large as well.
        let count = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
        let count = if most.is_empty() { count(least) } else { count(least).max(count(most)) };
        self.last = self.last.max(1).saturating_mul(count.max(1));
        self.most = self.most.max(self.last);
        if self.last > MAX_REPEATS {
            return Err(Re2Error::Unsupported(format!("repetition of more than {MAX_REPEATS} times")));
        }
        let closed = chars.get(at + text.chars().count()) == Some(&'}');
        Ok(if closed { text + "}" } else { text })
    }
}

/// Refuses flags that RE2 does not have: it knows `i`, `m`, `s` and `U`. Names of groups are words.
fn check_group(chars: &[char], at: usize) -> Result<(), Re2Error> {
    if matches!(chars.get(at), Some('P' | '<')) {
        let begin = chars.iter().skip(at).skip_while(|char| matches!(char, 'P' | '<'));
        let name: String = begin.take_while(|char| **char != '>').collect();
        return match name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
            true => Ok(()),
            false => Err(Re2Error::Unsupported(format!("group with the name {name}"))),
        };
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

/// Classes of Unicode that RE2 knows by these very names, besides its general categories. It knows more scripts; the rarer
/// ones are left out.
const SCRIPTS: [&str; 20] = [
    "Any",
    "Arabic",
    "Armenian",
    "Bengali",
    "Common",
    "Cyrillic",
    "Devanagari",
    "Ethiopic",
    "Georgian",
    "Greek",
    "Han",
    "Hangul",
    "Hebrew",
    "Hiragana",
    "Katakana",
    "Khmer",
    "Latin",
    "Mongolian",
    "Tamil",
    "Thai",
];

/// Refuses a class of Unicode, named from `at` on, that RE2 does not know.
fn check_unicode_class(chars: &[char], at: usize) -> Result<(), Re2Error> {
    let name: String = match chars.get(at) {
        Some('{') => chars.iter().skip(at + 1).take_while(|char| **char != '}').collect(),
        other => other.into_iter().collect(),
    };
    let category = |text: &str| {
        let mut letters = text.chars();
        letters.next().is_some_and(|first| "CLMNPSZ".contains(first))
            && letters.next().is_none_or(|second| second.is_ascii_lowercase())
            && letters.next().is_none()
    };
    match category(&name) || SCRIPTS.contains(&name.as_str()) {
        true => Ok(()),
        false => Err(Re2Error::Unsupported(format!("class of characters {name}"))),
    }
}

/// The last character that can be written as a number: Envoy has RE2 read patterns byte by byte.
const MAX_CHARACTER: u32 = 0xff;

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
            if matches!(char, 'p' | 'P') {
                check_unicode_class(chars, at + 1)?;
            }
            out.push('\\');
            out.push(char);
            // What stands in brackets behind it is a name or a number, and no count.
            let inside =
                chars.iter().skip(at + 1).position(|char| *char == '}').filter(|_| chars.get(at + 1) == Some(&'{'));
            if let (Some(len), 'x' | 'p' | 'P') = (inside, char) {
                let text: String = chars.iter().skip(at + 2).take(len.saturating_sub(1)).collect();
                if char == 'x' && u32::from_str_radix(&text, 16).is_ok_and(|value| value > MAX_CHARACTER) {
                    return Err(Re2Error::Unsupported(format!("escape \\x{{{text}}} in texts of single bytes")));
                }
                out.extend(chars.iter().skip(at + 1).take(len + 1));
                return Ok(at + len + 2);
            }
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
        for pattern in [
            "a**",
            "a+*",
            "a{2}{3}",
            "a{2}*",
            "a??+",
            "a{1001}",
            "(a{40}b){40}",
            "a{,3}",
            "(?P<a.b>x)",
            r"\p{Letter}",
            r"\p{Script=Greek}",
            r"\p{latin}",
            r"\x{100}",
        ] {
            assert!(matches!(compile(pattern), Err(Re2Error::Unsupported(_))), "{pattern}");
        }
        for pattern in [
            "a*?",
            "(a*)*",
            "a{2,3}?",
            "(a{30}b){30}",
            "(?:a{30}|b{30}){30}c{1000}",
            "(?i)a?",
            "(?P<a_b>x+)",
            r"\pL+",
            r"\p{Greek}+",
            r"\x{7e}*",
            r"\x41{2}",
            r"\pN{2}",
            r"[\p{Greek}\PN]",
            r"\**",
            "[*+]*",
            r"\Qa*\E*",
        ] {
            assert!(compile(pattern).is_ok(), "{pattern}: {:?}", compile(pattern).err());
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
