//! Conditions on text, headers and query parameters.

use super::{Converted, Refused, Within as _};
use crate::config::{
    CookieMatch, HeaderMatch, HeaderTest, MetadataMatch, QueryMatch, QueryTest, RegexMatch, StringMatch, ValueMatch,
};
use leno_xds::envoy::config::route::v3::{
    CookieMatcher, HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier,
};
use leno_xds::envoy::r#type::matcher::v3::{
    DoubleMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher, double_matcher, list_matcher,
    metadata_matcher, string_matcher::MatchPattern, value_matcher,
};
use leno_xds::envoy::r#type::v3::{DoubleRange, Int64Range};
use leno_xds::xds::r#type::matcher::v3 as xds;

/// A regular expression; the engine is always one with the meaning of RE2.
pub fn pattern(value: RegexMatcher) -> String {
    let RegexMatcher { regex, engine_type: _ } = value;
    regex
}

/// A regular expression for the whole text.
pub fn regex(value: RegexMatcher) -> Converted<RegexMatch> {
    RegexMatch::new(&pattern(value)).map_err(|error| Refused::new("regex", error.to_string()))
}

/// A condition on a text.
pub fn string(value: StringMatcher) -> Converted<StringMatch> {
    let StringMatcher { ignore_case, match_pattern } = value;
    let matcher = match match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatch::Exact(text.into()),
        Some(MatchPattern::Prefix(text)) => StringMatch::Prefix(text.into()),
        Some(MatchPattern::Suffix(text)) => StringMatch::Suffix(text.into()),
        Some(MatchPattern::Contains(text)) => StringMatch::Contains(text.into()),
        Some(MatchPattern::SafeRegex(_)) if ignore_case => {
            return Err(Refused::new("ignore_case", "has no effect on `safe_regex`; leave it out"));
        }
        Some(MatchPattern::SafeRegex(value)) => return Ok(StringMatch::Regex(regex(value).within("safe_regex")?)),
        Some(MatchPattern::Custom(_)) => return Err(Refused::new("custom", "is not supported by this proxy")),
        None => return Err(Refused::new("match_pattern", "is missing")),
    };
    Ok(if ignore_case { StringMatch::IgnoreCase(Box::new(matcher)) } else { matcher })
}

/// The same as trees of matchers write it.
pub fn xds_string(value: xds::StringMatcher) -> Converted<StringMatch> {
    use xds::string_matcher::MatchPattern as Pattern;
    let xds::StringMatcher { ignore_case, match_pattern } = value;
    let match_pattern = match_pattern.map(|pattern| match pattern {
        Pattern::Exact(text) => MatchPattern::Exact(text),
        Pattern::Prefix(text) => MatchPattern::Prefix(text),
        Pattern::Suffix(text) => MatchPattern::Suffix(text),
        Pattern::Contains(text) => MatchPattern::Contains(text),
        Pattern::SafeRegex(xds::RegexMatcher { regex, engine_type: _ }) => {
            MatchPattern::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() })
        }
        Pattern::Custom(_) => MatchPattern::Custom(<_>::default()),
    });
    string(StringMatcher { ignore_case, match_pattern })
}

/// A condition on a value of metadata.
pub fn metadata(value: MetadataMatcher) -> Converted<MetadataMatch> {
    let MetadataMatcher { filter, path, value, invert } = value;
    if filter.is_empty() {
        return Err(Refused::new("filter", "is empty"));
    }
    let key = |segment: metadata_matcher::PathSegment| match segment.segment {
        Some(metadata_matcher::path_segment::Segment::Key(key)) if !key.is_empty() => Ok(Box::from(key)),
        _ => Err(Refused::new("path", "has a segment without a key")),
    };
    let path: Vec<Box<str>> = path.into_iter().map(key).collect::<Converted<_>>()?;
    if path.is_empty() {
        return Err(Refused::new("path", "is empty"));
    }
    let value = value.ok_or_else(|| Refused::new("value", "is missing"))?;
    Ok(MetadataMatch { filter: filter.into(), path, test: value_match(value, 0).within("value")?, invert })
}

/// A condition on a value.
fn value_match(value: ValueMatcher, depth: usize) -> Converted<ValueMatch> {
    use value_matcher::MatchPattern as Pattern;
    if depth > 8 {
        return Err(Refused::new("", "is nested more than 8 times"));
    }
    Ok(match value.match_pattern {
        Some(Pattern::NullMatch(value_matcher::NullMatch {})) => ValueMatch::Null,
        Some(Pattern::PresentMatch(present)) => ValueMatch::Present(present),
        Some(Pattern::BoolMatch(wanted)) => ValueMatch::Bool(wanted),
        Some(Pattern::StringMatch(value)) => ValueMatch::Text(string(value).within("string_match")?),
        Some(Pattern::DoubleMatch(DoubleMatcher { match_pattern })) => match match_pattern {
            Some(double_matcher::MatchPattern::Exact(number)) => ValueMatch::Number(number),
            Some(double_matcher::MatchPattern::Range(DoubleRange { start, end })) => ValueMatch::Range(start, end),
            None => return Err(Refused::new("double_match.match_pattern", "is missing")),
        },
        Some(Pattern::OrMatch(OrMatcher { value_matchers })) => {
            let each = |one| value_match(one, depth + 1).within("or_match");
            ValueMatch::Any(value_matchers.into_iter().map(each).collect::<Converted<_>>()?)
        }
        Some(Pattern::ListMatch(value)) => match value.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                ValueMatch::List(Box::new(value_match(*one, depth + 1).within("list_match.one_of")?))
            }
            None => return Err(Refused::new("list_match.match_pattern", "is missing")),
        },
        None => return Err(Refused::new("match_pattern", "is missing")),
    })
}

/// A condition on a header.
pub fn header(value: HeaderMatcher) -> Converted<HeaderMatch> {
    let HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = value;
    let test = match header_match_specifier {
        None => HeaderTest::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderTest::Present(present),
        // As in Envoy: the empty text is every value.
        Some(HeaderMatchSpecifier::ExactMatch(text)) if text.is_empty() => {
            HeaderTest::Text(StringMatch::Prefix(text.into()))
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => HeaderTest::Text(StringMatch::Exact(text.into())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => HeaderTest::Text(StringMatch::Prefix(text.into())),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => HeaderTest::Text(StringMatch::Suffix(text.into())),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => HeaderTest::Text(StringMatch::Contains(text.into())),
        Some(HeaderMatchSpecifier::SafeRegexMatch(value)) => {
            HeaderTest::Text(StringMatch::Regex(regex(value).within("safe_regex_match")?))
        }
        Some(HeaderMatchSpecifier::StringMatch(value)) => HeaderTest::Text(string(value).within("string_match")?),
        Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start, end })) => HeaderTest::Range(start, end),
    };
    let name = name.to_ascii_lowercase();
    if !name.starts_with(':') && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Refused::new("name", format!("`{name}` is no name of a header")));
    }
    Ok(HeaderMatch { name: name.into(), test, invert: invert_match, missing_as_empty: treat_missing_header_as_empty })
}

/// Conditions on headers.
pub fn headers(values: Vec<HeaderMatcher>, field: &str) -> Converted<Vec<HeaderMatch>> {
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| header(value).within(format_args!("{field}[{index}]")))
        .collect()
}

/// A condition on a cookie.
pub fn cookie(value: CookieMatcher) -> Converted<CookieMatch> {
    let CookieMatcher { name, string_match, invert_match } = value;
    let Some(test) = string_match else { return Err(Refused::new("string_match", "is missing")) };
    Ok(CookieMatch { name: name.into(), test: string(test).within("string_match")?, invert: invert_match })
}

/// A condition on a query parameter.
pub fn query(value: QueryParameterMatcher) -> Converted<QueryMatch> {
    let QueryParameterMatcher { name, query_parameter_match_specifier } = value;
    let test = match query_parameter_match_specifier {
        None => QueryTest::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryTest::Present(present),
        Some(QueryParameterMatchSpecifier::StringMatch(value)) => {
            QueryTest::Text(string(value).within("string_match")?)
        }
    };
    Ok(QueryMatch { name: name.into(), test })
}
