//! Regular expressions in RE2's syntax (<https://github.com/google/re2/wiki/Syntax>), as Istio and Envoy read them, brought into that of
//! Rust's `regex`: the two look alike and differ in what `\d` and `\b` are, in classes (`&&` and `[` inside them), in what may be
//! escaped, and where a brace is only a brace. What RE2 refuses is refused.
//!
//! Control plane and proxies read expressions by the same code: what one takes, the other does.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

/// The longest expression that the control plane takes, in bytes, as Istio's schema says.
pub const MAX_LEN: usize = 1024;

/// The most memory that a compiled expression of the control plane's may take, in bytes: less than what proxies allow.
const MAX_SIZE: usize = 1 << 20;

/// The most that a repetition may count to, all counts around it multiplied, as in RE2.
const MOST_REPETITIONS: u32 = 1000;

/// The last character that can be written as a number everywhere: Envoy has RE2 read patterns byte by byte.
const LAST_CHARACTER: u32 = 0xff;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Re2Error(String);

/// The expression as the regex crate takes it, to be compiled with Unicode.
///
/// # Errors
/// What RE2 would not take either.
pub fn translate(pattern: &str) -> Result<String, Re2Error> {
    Translation::of(pattern, false).map_err(Re2Error)
}

/// Compiles an expression that proxies of all kinds are to take, stock Envoy among them; it is searched for in a text.
///
/// # Errors
/// When one of them would refuse it, or it is longer than [`MAX_LEN`].
pub fn compile(pattern: &str) -> Result<Regex, Re2Error> {
    if pattern.len() > MAX_LEN {
        return Err(Re2Error(format!("it is longer than {MAX_LEN} bytes")));
    }
    let translated = Translation::of(pattern, true).map_err(Re2Error)?;
    let last_line = |text: &str| text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let built = RegexBuilder::new(&translated).size_limit(MAX_SIZE).build();
    built.map_err(|error| Re2Error(last_line(&error.to_string())))
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

struct Translation<'p> {
    rest: &'p str,
    out: String,
    /// Only what every build of RE2 reads alike.
    portable: bool,
    /// For each open group, how often what is before it is repeated at most.
    groups: Vec<u32>,
    /// The same for the group that is being read.
    most: u32,
    /// How often the last thing repeats what is in it.
    last: u32,
}

/// Something that stands for one character, or for many.
enum Item {
    One(char),
    Many(&'static str),
}

impl<'p> Translation<'p> {
    fn of(pattern: &'p str, portable: bool) -> Result<String, String> {
        let out = String::with_capacity(pattern.len() + 16);
        let mut translation = Self { rest: pattern, out, portable, groups: Vec::new(), most: 0, last: 0 };
        translation.all()?;
        Ok(translation.out)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// All up to a mark, which is taken as well.
    fn until(&mut self, mark: &str) -> Option<&'p str> {
        let (before, after) = self.rest.split_once(mark)?;
        self.rest = after;
        Some(before)
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii_alphanumeric() || !c.is_ascii() {
            self.out.push(c);
        } else {
            let _ = write!(self.out, "\\x{{{:X}}}", u32::from(c));
        }
    }

    fn all(&mut self) -> Result<(), String> {
        // The operator before, which no other one may follow.
        let mut repeated = false;
        while let Some(c) = self.next() {
            let repeats = match c {
                '*' | '+' | '?' => Some(c.to_string()),
                '{' => self.count()?,
                _ => None,
            };
            if let Some(operator) = repeats {
                if repeated {
                    return Err(format!("a repetition follows another one: `{operator}`"));
                }
                self.out.push_str(&operator);
                if self.take("?") {
                    self.out.push('?');
                }
                repeated = true;
                continue;
            }
            repeated = false;
            self.last = 1;
            match c {
                '(' => self.group()?,
                ')' => {
                    let outside = self.groups.pop().ok_or("a `)` has no `(`")?;
                    self.last = self.most.max(1);
                    self.most = self.most.max(outside);
                    self.out.push(')');
                }
                '[' => self.class()?,
                '\\' => self.escaped()?,
                '.' | '^' | '$' | '|' => self.out.push(c),
                c => self.literal(c),
            }
        }
        if self.groups.is_empty() { Ok(()) } else { Err("a `(` has no `)`".to_owned()) }
    }

    /// The rest of a counted repetition; `None` where the brace is a character like others.
    fn count(&mut self) -> Result<Option<String>, String> {
        let Some((inside, rest)) = self.rest.split_once('}') else { return Ok(None) };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            true => text.parse::<u32>().ok().or(Some(u32::MAX)),
            false => None,
        };
        let bounds = match inside.split_once(',') {
            None => number(inside).map(|count| (count, Some(count))),
            Some((least, "")) => number(least).map(|least| (least, None)),
            Some((least, most)) => number(least).zip(number(most)).map(|(least, most)| (least, Some(most))),
        };
        let Some((least, most)) = bounds else { return Ok(None) };
        if least > MOST_REPETITIONS || most.is_some_and(|most| most > MOST_REPETITIONS || most < least) {
            return Err(format!("the repetition `{{{inside}}}` is not within 0 and {MOST_REPETITIONS}"));
        }
        self.last = self.last.max(1).saturating_mul(most.unwrap_or(least).max(1));
        self.most = self.most.max(self.last);
        if self.last > MOST_REPETITIONS {
            return Err(format!("`{{{inside}}}` and those around it repeat more than {MOST_REPETITIONS} times"));
        }
        self.rest = rest;
        Ok(Some(format!("{{{inside}}}")))
    }

    fn open(&mut self) {
        self.groups.push(std::mem::replace(&mut self.most, 1));
    }

    fn group(&mut self) -> Result<(), String> {
        if !self.take("?") {
            self.out.push('(');
            self.open();
            return Ok(());
        }
        if self.take("P<") || self.take("<") {
            let name = self.until(">").ok_or("a group's name has no end")?;
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("`{name}` is no name of a group"));
            }
            let _ = write!(self.out, "(?P<{name}>");
            self.open();
            return Ok(());
        }
        if self.take(")") {
            self.out.push_str("(?:)");
            return Ok(());
        }
        self.out.push_str("(?");
        while let Some(c) = self.next() {
            match c {
                'i' | 'm' | 's' | 'U' | '-' => self.out.push(c),
                ':' | ')' => {
                    self.out.push(c);
                    if c == ':' {
                        self.open();
                    }
                    return Ok(());
                }
                c => return Err(format!("`(?{c}` is no operator")),
            }
        }
        Err("the flags of a group have no end".to_owned())
    }

    fn escaped(&mut self) -> Result<(), String> {
        match self.rest.chars().next() {
            Some(c @ ('A' | 'z')) => {
                self.next();
                self.out.extend(['\\', c]);
            }
            Some(c @ ('b' | 'B')) => {
                self.next();
                let _ = write!(self.out, "(?-u:\\{c})");
            }
            // With our proxy it is a byte, which its end may split a character at.
            Some('C') if !self.portable => {
                self.next();
                self.out.push_str("(?s-u:.)");
            }
            Some('Q') => {
                self.next();
                let quoted = match self.until("\\E") {
                    Some(quoted) => quoted,
                    None => std::mem::take(&mut self.rest),
                };
                quoted.chars().for_each(|c| self.literal(c));
            }
            Some(c @ ('p' | 'P')) => {
                self.next();
                self.property(c)?;
            }
            _ => match self.escape()? {
                Item::One(c) => self.literal(c),
                Item::Many(class) => {
                    let _ = write!(self.out, "[{class}]");
                }
            },
        }
        Ok(())
    }

    /// A class by its Unicode property, of which `\p` or `\P` was taken.
    fn property(&mut self, kind: char) -> Result<(), String> {
        if self.take("{") {
            let name = self.until("}").ok_or("a property's name has no end")?;
            let (name, kind) = match name.strip_prefix('^') {
                Some(name) if kind == 'p' => (name, 'P'),
                Some(name) => (name, 'p'),
                None => (name, kind),
            };
            self.known(name)?;
            let _ = write!(self.out, "\\{kind}{{{name}}}");
        } else {
            let name = self.next().ok_or("a property has no name")?;
            self.known(name.encode_utf8(&mut [0; 4]))?;
            self.out.extend(['\\', kind, name]);
        }
        Ok(())
    }

    /// Refuses a class of Unicode that not every build of RE2 knows by this name.
    fn known(&self, name: &str) -> Result<(), String> {
        let mut letters = name.chars();
        let category = letters.next().is_some_and(|first| "CLMNPSZ".contains(first))
            && letters.next().is_none_or(|second| second.is_ascii_lowercase())
            && letters.next().is_none();
        match !self.portable || category || SCRIPTS.contains(&name) {
            true => Ok(()),
            false => Err(format!("`{name}` is no class of characters")),
        }
    }

    /// What a backslash and what follows it stand for, inside classes and outside.
    fn escape(&mut self) -> Result<Item, String> {
        let c = self.next().ok_or("a backslash ends the pattern")?;
        Ok(Item::One(match c {
            'd' => return Ok(Item::Many("0-9")),
            'D' => return Ok(Item::Many("[^0-9]")),
            's' => return Ok(Item::Many(r"\t\n\x0C\r\x20")),
            'S' => return Ok(Item::Many(r"[^\t\n\x0C\r\x20]")),
            'w' => return Ok(Item::Many("0-9A-Za-z_")),
            'W' => return Ok(Item::Many("[^0-9A-Za-z_]")),
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => self.hexadecimal()?,
            '1'..='7' if !self.rest.starts_with(|next: char| next.is_digit(8)) => {
                return Err(format!("`\\{c}` refers to a group, which is not supported"));
            }
            '0'..='7' => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|next| next.to_digit(8)) else { break };
                    self.next();
                    code = code * 8 + digit;
                }
                u8::try_from(code).map_err(|_| format!("`\\{code:o}` is above `\\377`"))?.into()
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
            c => return Err(format!("`\\{c}` is no escape")),
        }))
    }

    fn hexadecimal(&mut self) -> Result<char, String> {
        let digits = if self.take("{") {
            self.until("}")
        } else {
            let two = self.rest.get(..2);
            self.rest = self.rest.get(2..).unwrap_or("");
            two
        };
        let hexadecimal =
            digits.filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = hexadecimal.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        if self.portable && code.is_some_and(|code| code > LAST_CHARACTER) {
            return Err("`\\x{...}` above ff stands for no single byte".to_owned());
        }
        code.and_then(char::from_u32).ok_or_else(|| "`\\x` is not followed by a character's number".to_owned())
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.take("^") {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if !first && self.take("]") {
                self.out.push(']');
                return Ok(());
            }
            first = false;
            if self.rest.starts_with("[:")
                && let Some((name, rest)) = self.rest[2..].split_once(":]")
            {
                self.named(name)?;
                self.rest = rest;
                continue;
            }
            if let Some(kind) = ['p', 'P'].into_iter().find(|kind| self.take(&format!("\\{kind}"))) {
                self.property(kind)?;
                continue;
            }
            let low = match self.member()? {
                Item::Many(class) => {
                    self.out.push_str(class);
                    continue;
                }
                Item::One(c) => c,
            };
            self.literal(low);
            let ranges = self.rest.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && !rest.starts_with(']'));
            if !ranges {
                continue;
            }
            self.next();
            match self.member()? {
                Item::One(high) if high >= low => {
                    self.out.push('-');
                    self.literal(high);
                }
                _ => return Err(format!("the range that begins with `{low}` has no end after it")),
            }
        }
    }

    fn member(&mut self) -> Result<Item, String> {
        match self.next() {
            Some('\\') => self.escape(),
            Some(c) => Ok(Item::One(c)),
            None => Err("a `[` has no `]`".to_owned()),
        }
    }

    /// A class by its POSIX name.
    fn named(&mut self, name: &str) -> Result<(), String> {
        const NAMES: [&str; 14] = [
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
            "word", "xdigit",
        ];
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err(format!("`[:{name}:]` is no class"));
        }
        let _ = write!(self.out, "[:{name}:]");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As proxies compile it: the whole text has to match.
    fn whole(pattern: &str) -> Result<Regex, String> {
        let translated = translate(pattern).map_err(|error| error.to_string())?;
        Regex::new(&format!(r"\A(?:{translated})\z")).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(pattern: &str, matching: &[&[u8]], others: &[&[u8]]) {
        let regex = whole(pattern).unwrap();
        for text in matching {
            assert!(regex.is_match(text), "{pattern} matches {}", text.escape_ascii());
        }
        for text in others {
            assert!(!regex.is_match(text), "{pattern} does not match {}", text.escape_ascii());
        }
    }

    #[test]
    fn braces_when_they_count_nothing_then_are_braces() {
        check("/a/{id}", &[b"/a/{id}"], &[b"/a/id"]);
        check("a{,2}", &[b"a{,2}"], &[b"a", b"aa"]);
        check("a{2", &[b"a{2"], &[b"aa"]);
        check("a{2}b{1,}c{0,1}", &[b"aab", b"aabbbc"], &[b"ab"]);
    }

    #[test]
    fn classes_when_they_hold_signs_then_are_taken_by_the_letter() {
        check("[a&&b]", &[b"a", b"&", b"b"], &[b""]);
        check("[a-c--e]", &[b"a", b"b", b"-", b"."], &[b"f"]);
        check("[[a]", &[b"[", b"a"], &[b"]"]);
        check("[]a]", &[b"]", b"a"], &[b"[]a]"]);
        check("[^]a]", &[b"b", b"\n"], &[b"]", b"a"]);
        check(r"[\d-z]", &[b"5", b"-", b"z"], &[b"a"]);
        check("[[:alpha:]_.~]+", &[b"ab_.~"], &[b"1"]);
        check(r"[^\s\W]+", &[b"ab1_"], &[b"a b", b"-"]);
        check(r"[\pN\-]", &["½".as_bytes(), b"-"], &[b"a"]);
        check(r"\p{^Greek}(?)\_", &[b"a_"], &["α_".as_bytes()]);
    }

    #[test]
    fn escapes_when_they_are_of_re2_then_mean_what_they_mean_there() {
        check(r"\d+", &[b"12"], &["١".as_bytes()]);
        check(r"\w+", &[b"az_9"], &["é".as_bytes()]);
        check(r"\s", &[b" ", b"\x0c"], &[b"\x0b"]);
        check(r"\Qa.b*\E+", &[b"a.b*", b"a.b**"], &[b"axb"]);
        check(r"\Qa.b", &[b"a.b"], &[b"axb"]);
        check(r"\<b\>", &[b"<b>"], &[b"b"]);
        check(r"\101\x42\x{43}\0", &[b"ABC\0"], &[]);
        check(r"a\b.b", &[b"a-b"], &[b"aab"]);
        check(r"\C\C", &["é".as_bytes()], &[b"a"]);
        check(".", &["é".as_bytes(), b"a"], &[b"\n", b"\xff"]);
    }

    #[test]
    fn pattern_when_re2_refuses_it_then_is_refused() {
        for pattern in [
            "a**",
            "a+*",
            "a??*",
            "a{2}{3}",
            "a{1001}",
            "a{2,1}",
            "a)(b",
            "(a",
            r"\1",
            r"\y",
            r"a\",
            r"\é",
            "[b-a]",
            "[a",
            r"[a-\d]",
            "(?x)a",
            "(?=a)",
            "(?u:a)",
            "*a",
            "[[:foo:]]",
            r"\p{Foo}",
            r"\x{110000}",
            r"\xg0",
            r"\777",
        ] {
            assert!(whole(pattern).is_err(), "{pattern}");
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn pattern_when_not_every_proxy_takes_it_then_only_the_control_plane_refuses_it() {
        for pattern in [r"\p{Letter}", r"\p{Script=Greek}", r"\p{latin}", r"\x{100}", r"[\p{Letter}]", r"\C"] {
            assert!(compile(pattern).is_err(), "{pattern}");
            assert!(translate(pattern).is_ok(), "{pattern}");
        }
        assert!(compile(&"a".repeat(MAX_LEN + 1)).is_err());
    }

    #[test]
    fn pattern_when_repetitions_multiply_beyond_the_limit_then_is_refused() {
        for pattern in ["(a{40}b){40}", "a{1001}", "(?:(a{10}){10}){11}", "(a|b{30}){40}", "(?P<a.b>x)"] {
            assert!(compile(pattern).is_err(), "{pattern}");
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
            "/a/{id}",
        ] {
            assert!(compile(pattern).is_ok(), "{pattern}: {:?}", compile(pattern).err());
        }
    }

    proptest! {
        #[test]
        fn pattern_when_the_control_plane_takes_it_then_proxies_do(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("[[:foo:]]"), Just("[[:alpha:]"), Just("]"), Just("["), Just("^"), Just("-"), Just("a"), Just("\\é"), Just("é"),
                    Just("\\777"), Just("\\x{ff}"), Just("\\x4"), Just("\\Q"), Just("\\E"), Just("{2}"), Just("{,2}"), Just("{x}"),
                    Just("*"), Just("?"), Just("("), Just("(?i:"), Just("(?P<n>"), Just(")"), Just("|"), Just("\\pN"), Just("\\p{Greek}"),
                    Just("\\d"), Just("\\b"), Just("\\"), Just("&&"), Just("."), Just("$"),
                ],
                0..12,
            ),
            rest in "\\PC{0,8}",
        ) {
            let pattern = parts.concat() + &rest;
            if compile(&pattern).is_ok() {
                prop_assert!(whole(&pattern).is_ok(), "{}: {:?}", pattern, whole(&pattern).err());
            }
        }
    }
}
