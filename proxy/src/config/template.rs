//! Templates of paths: `/v1/{user}/*`, as Envoy's `uri_template` extensions have them.

use super::matcher::{RegexError, RegexMatch};

/// A compiled template.
#[derive(Debug)]
pub struct UriTemplate {
    parts: Vec<Part>,
    regex: RegexMatch,
}

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Variable(Box<str>),
}

/// Why a template is refused.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is not written as a template.
    #[error("template `{0}` is malformed: {1}")]
    Malformed(String, &'static str),
    /// It does not compile.
    #[error(transparent)]
    Regex(#[from] RegexError),
}

/// What a path segment may hold, as an expression.
const SEGMENT: &str = "[a-zA-Z0-9\\-._~%!$&'()*+,;:@=]+";
/// What a template may hold beside its variables and stars.
const PLAIN: &str = "-._~%!$&'()+,;:@=/";
/// Variables of a template at most.
const MAX_VARIABLES: usize = 5;
/// Characters of a variable's name at most.
const MAX_NAME: usize = 16;
/// What `**` stands for.
const REST: &str = "[a-zA-Z0-9\\-._~%!$&'()*+,;:@/=]*";

impl UriTemplate {
    /// Compiles a pattern: literals, `*` (one segment), `**` (the rest, behind which only text may follow, as in `/**.mpd`),
    /// `{name}`, `{name=pattern}`. What may stand in one is what Envoy allows.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn pattern(text: &str) -> Result<Self, TemplateError> {
        let bad = |why| TemplateError::Malformed(text.to_owned(), why);
        if !text.starts_with('/') {
            return Err(bad("it does not begin with `/`"));
        }
        let (mut out, mut parts, mut rest) = (String::new(), Vec::new(), text);
        let mut names: Vec<&str> = Vec::new();
        while let Some(c) = rest.chars().next() {
            if c != '{' {
                let end = rest.find('{').unwrap_or(rest.len());
                if !is_plain(&rest[..end]) {
                    return Err(bad("a character in it stands in no path, or two slashes follow each other"));
                }
                globs(&rest[..end], &mut out);
                rest = &rest[end..];
                continue;
            }
            let end = rest.find('}').ok_or_else(|| bad("`{` without `}`"))?;
            let (name, glob) = rest[1..end].split_once('=').unwrap_or((&rest[1..end], "*"));
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
            if !begins || !name.chars().all(plain) || name.len() > MAX_NAME {
                return Err(bad("a variable's name has a letter, then letters, digits and `_`, at most 16 in all"));
            }
            if glob.is_empty() || glob.starts_with('/') || !is_plain(glob) {
                return Err(bad("a variable has no pattern, or one that no part of a path fits"));
            }
            if names.len() >= MAX_VARIABLES {
                return Err(bad("it has more than 5 variables"));
            }
            if names.contains(&name) {
                return Err(bad("a variable stands twice"));
            }
            names.push(name);
            out.push_str(&format!("(?P<{name}>"));
            globs(glob, &mut out);
            out.push(')');
            parts.push(Part::Variable(name.into()));
            rest = &rest[end + 1..];
            if rest.starts_with('{') {
                return Err(bad("two variables follow each other"));
            }
        }
        if text.find("**").is_some_and(|at| text[at + 2..].contains(['*', '{'])) {
            return Err(bad("only text may follow `**`"));
        }
        Ok(Self { parts, regex: RegexMatch::new(&out)? })
    }

    /// Compiles what a path becomes: literals and `{name}`s of the pattern.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn rewrite(text: &str) -> Result<Self, TemplateError> {
        let bad = |why| TemplateError::Malformed(text.to_owned(), why);
        if !text.starts_with('/') {
            return Err(bad("it does not begin with `/`"));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('{') {
            let end = rest.find('}').filter(|&end| end > at).ok_or_else(|| bad("`{` without `}`"))?;
            parts.push(Part::Text(rest[..at].into()));
            parts.push(Part::Variable(rest[at + 1..end].into()));
            rest = &rest[end + 1..];
        }
        parts.push(Part::Text(rest.into()));
        let plain =
            |part: &Part| matches!(part, Part::Variable(_)) || matches!(part, Part::Text(text) if is_plain(text));
        if !parts.iter().all(plain) {
            return Err(bad("a character in it stands in no path, or two slashes follow each other"));
        }
        Ok(Self { parts, regex: RegexMatch::new("")? })
    }

    /// Whether a path (without query) fits the pattern.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(path)
    }

    /// Whether the pattern has all variables of a rewrite.
    pub fn has_variables_of(&self, rewrite: &Self) -> bool {
        let mine = |name: &str| self.parts.iter().any(|part| matches!(part, Part::Variable(have) if **have == *name));
        rewrite.parts.iter().all(|part| match part {
            Part::Variable(name) => mine(name),
            Part::Text(_) => true,
        })
    }

    /// What a path becomes, with what `pattern` finds in it.
    pub fn fill(&self, pattern: &Self, path: &[u8]) -> Option<Vec<u8>> {
        let found = pattern.regex.captures(path)?;
        let mut out = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(name) => out.extend_from_slice(found.name(name)?.as_bytes()),
            }
        }
        Some(out)
    }
}

/// Whether text has what paths have, and stars.
fn is_plain(text: &str) -> bool {
    !text.contains("//") && text.chars().all(|c| c == '*' || c.is_ascii_alphanumeric() || PLAIN.contains(c))
}

/// Adds the expression of text with `*` and `**`.
fn globs(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('*') {
        out.push_str(&regex::escape(&rest[..at]));
        let (glob, expression) = if rest[at..].starts_with("**") { ("**", REST) } else { ("*", SEGMENT) };
        out.push_str(expression);
        rest = &rest[at + glob.len()..];
    }
    out.push_str(&regex::escape(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_when_it_fits_then_the_rewrite_gets_its_parts() {
        let pattern = UriTemplate::pattern("/videos/*/{id=*}/{rest=**}").unwrap();
        assert!(pattern.matches(b"/videos/a/7/x/y.mp4") && !pattern.matches(b"/videos/a/7"));
        let rewrite = UriTemplate::rewrite("/{rest};v={id}").unwrap();
        assert!(pattern.has_variables_of(&rewrite));
        assert_eq!(rewrite.fill(&pattern, b"/videos/a/7/x/y.mp4").unwrap(), b"/x/y.mp4;v=7");
        let one = UriTemplate::pattern("/a/{name}").unwrap();
        let ends = UriTemplate::pattern("/live/**.mpd").unwrap();
        assert!(ends.matches(b"/live/a/b.mpd") && ends.matches(b"/live/a.mpd") && !ends.matches(b"/live/a.mp4"));
        let between = UriTemplate::pattern("/y/{part=**}/end").unwrap();
        assert!(between.matches(b"/y/a/b/end") && !between.matches(b"/y/a/b"));
        assert!(one.matches(b"/a/b") && !one.matches(b"/a/b/c") && !one.matches(b"/a/"));
    }

    #[test]
    fn template_when_malformed_then_it_is_refused() {
        for bad in [
            "a",
            "/{",
            "/{a}/{a}",
            "/{}",
            "/**/*",
            "/{a=**}/{b}",
            "/{1a}",
            "/{_a}",
            "/{abcdefghijklmnopq}",
            "/{a}{b}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "//a",
            "/a//b",
            "/a?b",
            "/a#b",
            "/a b",
            "/{a=}",
            "/{a=/b}",
        ] {
            assert!(UriTemplate::pattern(bad).is_err(), "{bad}");
        }
        for bad in ["{a}", "x/{a}", "//{a}", "/x?{a}"] {
            assert!(UriTemplate::rewrite(bad).is_err(), "{bad}");
        }
        for good in
            ["/", "/a/", "/a*", "/{a}x", "/x{a}", "/{abcdefghijklmnop}", "/a%20b:c@d=e,f!g$h&i'j(k)l+m;n~o-p_q.r"]
        {
            assert!(UriTemplate::pattern(good).is_ok(), "{good}");
        }
    }
}
