//! Matching of headers and query parameters, with every pattern compiled when configuration arrives.

use std::fmt;

/// A regular expression that must match the whole text, in the meaning of RE2: `\d`, `\w`, `\s` and `\b` are ASCII.
/// Matching takes time linear in the text.
#[derive(Clone)]
pub struct RegexMatch {
    source: Box<str>,
    regex: regex::bytes::Regex,
}

/// Why a pattern is refused.
#[derive(Debug, thiserror::Error)]
#[error("regular expression `{pattern}` does not compile: {reason}; write it in RE2's syntax, at most 10 MiB compiled")]
pub struct RegexError {
    pattern: String,
    reason: String,
}

/// The compiled size that a pattern may have, in bytes.
const REGEX_SIZE_LIMIT: usize = 10 << 20;

impl RegexMatch {
    /// Compiles the pattern, anchored at both ends.
    ///
    /// # Errors
    /// When it is not a regular expression, or is larger than 10 MiB compiled.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        Ok(Self { source: pattern.into(), regex: compile(true, pattern)? })
    }

    /// Compiles the pattern without anchors, for replacing what it finds.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn searching(pattern: &str) -> Result<Self, RegexError> {
        Ok(Self { source: pattern.into(), regex: compile(false, pattern)? })
    }

    /// Whether the text matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// Every match replaced; `substitution` in the syntax of the regex crate (`${1}`).
    pub fn replace_all(&self, text: &[u8], substitution: &str) -> Vec<u8> {
        self.regex.replace_all(text, substitution.as_bytes()).into_owned()
    }

    /// What the groups of the pattern found.
    pub fn captures<'t>(&self, text: &'t [u8]) -> Option<regex::bytes::Captures<'t>> {
        self.regex.captures(text)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

fn compile(anchored: bool, pattern: &str) -> Result<regex::bytes::Regex, RegexError> {
    let refused = |reason| RegexError { pattern: pattern.to_owned(), reason };
    let translated = leno_core::re2::translate(pattern).map_err(|error| refused(error.to_string()))?;
    let full = if anchored { format!(r"\A(?:{translated})\z") } else { translated };
    let built = regex::bytes::RegexBuilder::new(&full).size_limit(REGEX_SIZE_LIMIT).build();
    built.map_err(|error| refused(error.to_string()))
}

/// Turns RE2's `\1` into `${1}` and protects `$`. As RE2 does, it ends before a backslash that stands before anything else, and is
/// none where a group is named that the expression does not have: then nothing is replaced.
pub(super) fn re2_substitution(text: &str, regex: &RegexMatch) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 8);
    let (groups, mut rest) = (regex.regex.captures_len(), text.chars());
    while let Some(c) = rest.next() {
        let group = if c == '\\' { rest.next().and_then(|c| c.to_digit(10)) } else { None };
        if group.is_some_and(|group| group as usize >= groups) {
            return None;
        }
    }
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(d) if d.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(d);
                    out.push('}');
                }
                Some('\\') => out.push('\\'),
                Some(_) | None => break,
            },
            other => out.push(other),
        }
    }
    Some(out)
}

impl fmt::Debug for RegexMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

/// How a text is compared.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal.
    Exact(Box<str>),
    /// Begins with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Contains.
    Contains(Box<str>),
    /// The same four without regard to ASCII case.
    IgnoreCase(Box<StringMatch>),
    /// Matches as a whole.
    Regex(RegexMatch),
}

impl StringMatch {
    /// Whether the text matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(want) => text == want.as_bytes(),
            Self::Prefix(want) => text.starts_with(want.as_bytes()),
            Self::Suffix(want) => text.ends_with(want.as_bytes()),
            Self::Contains(want) => contains(text, want.as_bytes(), false),
            Self::Regex(regex) => regex.is_match(text),
            Self::IgnoreCase(inner) => match inner.as_ref() {
                Self::Exact(want) => text.eq_ignore_ascii_case(want.as_bytes()),
                Self::Prefix(want) => {
                    text.len() >= want.len() && text[..want.len()].eq_ignore_ascii_case(want.as_bytes())
                }
                Self::Suffix(want) => {
                    text.len() >= want.len() && text[text.len() - want.len()..].eq_ignore_ascii_case(want.as_bytes())
                }
                Self::Contains(want) => contains(text, want.as_bytes(), true),
                other => other.matches(text),
            },
        }
    }
}

fn contains(text: &[u8], want: &[u8], ignore_case: bool) -> bool {
    want.is_empty()
        || text.windows(want.len()).any(|part| if ignore_case { part.eq_ignore_ascii_case(want) } else { part == want })
}

/// A condition on one header. Of several values of a header one that passes the test is enough, as it is to Envoy.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Lower-case name; `:method`, `:path`, `:authority` and `:scheme` mean those of the request.
    pub name: Box<str>,
    /// What is asked of the value.
    pub test: HeaderTest,
    /// The condition holds when the test does not.
    pub invert: bool,
    /// A missing header is tested as an empty one; else a missing header fails the condition, inverted or not (but for
    /// [`HeaderTest::Present`]).
    pub missing_as_empty: bool,
}

/// What is asked of a header's value.
#[derive(Debug, Clone)]
pub enum HeaderTest {
    /// It is there (true) or not there (false).
    Present(bool),
    /// Its text matches.
    Text(StringMatch),
    /// It is a decimal number, at least the first and below the second.
    Range(i64, i64),
}

impl HeaderTest {
    /// Whether a header with this value passes.
    fn passes(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(wanted) => *wanted,
            Self::Text(text) => text.matches(value),
            Self::Range(from, to) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse::<i64>().ok());
                number.is_some_and(|n| n >= *from && n < *to)
            }
        }
    }
}

impl HeaderMatch {
    /// Whether the condition holds for the header's values.
    pub fn matches<'v>(&self, values: impl IntoIterator<Item = &'v [u8]>) -> bool {
        let mut values = values.into_iter();
        let first = match (values.next(), self.missing_as_empty) {
            (None, true) => Some(&b""[..]),
            (first, _) => first,
        };
        match (&self.test, first) {
            (HeaderTest::Present(wanted), first) => (first.is_some() == *wanted) != self.invert,
            (_, None) => false,
            (test, Some(first)) => (test.passes(first) || values.any(|value| test.passes(value))) != self.invert,
        }
    }
}

/// A condition on one parameter of the query string.
#[derive(Debug)]
pub struct QueryMatch {
    /// The parameter's name.
    pub name: Box<str>,
    /// What is asked of it.
    pub test: QueryTest,
}

/// What is asked of a query parameter.
#[derive(Debug)]
pub enum QueryTest {
    /// It is there (true) or not there (false).
    Present(bool),
    /// Its first value matches.
    Text(StringMatch),
}

impl QueryMatch {
    /// Whether the condition holds for the query string (without `?`).
    pub fn matches(&self, query: &[u8]) -> bool {
        let value = query.split(|&b| b == b'&').find_map(|pair| {
            let mut parts = pair.splitn(2, |&b| b == b'=');
            let name = parts.next()?;
            (name == self.name.as_bytes()).then(|| parts.next().unwrap_or(b""))
        });
        match (&self.test, value) {
            (QueryTest::Present(wanted), value) => value.is_some() == *wanted,
            (QueryTest::Text(text), Some(value)) => text.matches(value),
            (QueryTest::Text(_), None) => false,
        }
    }
}
