//! Rules of role-based access control that are written as a tree of matchers.

use super::common::{cidr, optional, unknown_type};
use super::{Converted, Refused, Within as _, matcher};
use crate::config::StringMatch;
use crate::rbac::{
    Action,
    matching::{Condition, End, Input, Matching, Then},
};
use leno_xds::envoy::config::core::v3::CidrRange;
use leno_xds::envoy::config::rbac::v3 as rbac;
use leno_xds::envoy::extensions::matching::common_inputs::{network::v3 as network, ssl::v3 as ssl};
use leno_xds::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use leno_xds::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use leno_xds::xds::core::v3::TypedExtensionConfig;
use leno_xds::xds::r#type::matcher::v3 as xds;
use leno_xds::xds::r#type::matcher::v3::matcher::{
    MatcherList, MatcherTree, MatcherType, OnMatch,
    matcher_list::{FieldMatcher, Predicate, predicate},
    matcher_tree::TreeType,
    on_match,
};
use prost_types::Any;

/// Matchers within matchers at most.
const MAX_DEPTH: usize = 32;

/// A tree of matchers whose leaves are `envoy.config.rbac.v3.Action`.
///
/// # Errors
/// When an input, a way to match or an action is not supported, or something is missing.
pub fn matching(value: xds::Matcher) -> Converted<Matching> {
    tree(value, 0)
}

fn tree(value: xds::Matcher, depth: usize) -> Converted<Matching> {
    if depth > MAX_DEPTH {
        return Err(Refused::new("", format!("is nested more than {MAX_DEPTH} times")));
    }
    let xds::Matcher { on_no_match, matcher_type } = value;
    let branches = match matcher_type {
        None => Vec::new(),
        Some(MatcherType::MatcherList(MatcherList { matchers })) => {
            let mut branches = Vec::with_capacity(matchers.len());
            for (index, one) in matchers.into_iter().enumerate() {
                branches.push(branch(one, depth).within(format_args!("matcher_list.matchers[{index}]"))?);
            }
            branches
        }
        Some(MatcherType::MatcherTree(value)) => by_value(value, depth).within("matcher_tree")?,
    };
    let otherwise = on_no_match.map(|value| then(*value, depth)).transpose().within("on_no_match")?;
    let logs = branches.iter().map(|(_, then)| then).chain(&otherwise).any(Then::logs);
    Ok(Matching { branches, otherwise: otherwise.map(Box::new), logs })
}

fn branch(FieldMatcher { predicate, on_match }: FieldMatcher, depth: usize) -> Converted<(Condition, Then)> {
    let predicate = predicate.ok_or_else(|| Refused::new("predicate", "is missing"))?;
    let on_match = on_match.ok_or_else(|| Refused::new("on_match", "is missing"))?;
    Ok((condition(predicate, depth).within("predicate")?, then(on_match, depth).within("on_match")?))
}

fn then(OnMatch { keep_matching, on_match }: OnMatch, depth: usize) -> Converted<Then> {
    if keep_matching {
        return Err(Refused::new("keep_matching", "is not supported by this proxy; leave it out"));
    }
    match on_match {
        Some(on_match::OnMatch::Matcher(value)) => Ok(Then::Ask(tree(*value, depth + 1).within("matcher")?)),
        Some(on_match::OnMatch::Action(value)) => {
            let any = typed(value).within("action")?;
            let Some(rbac::Action { name, action }) = optional(&any).within("action.typed_config")? else {
                return Err(unknown_type(&any).within("action.typed_config"));
            };
            let action = match rbac::rbac::Action::try_from(action) {
                Ok(rbac::rbac::Action::Allow) => Action::Allow,
                Ok(rbac::rbac::Action::Deny) => Action::Deny,
                Ok(rbac::rbac::Action::Log) => Action::Log,
                Err(_) => return Err(Refused::new("action.typed_config.action", "is not known to this proxy")),
            };
            Ok(Then::Decide(action, name.into()))
        }
        None => Err(Refused::new("on_match", "is missing")),
    }
}

/// A map is a list in which at most one holds; of prefixes the longest goes first.
fn by_value(MatcherTree { input, tree_type }: MatcherTree, depth: usize) -> Converted<Vec<(Condition, Then)>> {
    let any = typed(input.ok_or_else(|| Refused::new("input", "is missing"))?).within("input")?;
    let (field, map, exact) = match tree_type {
        Some(TreeType::ExactMatchMap(value)) => ("exact_match_map", value.map, true),
        Some(TreeType::PrefixMatchMap(value)) => ("prefix_match_map", value.map, false),
        Some(TreeType::CustomMatch(_)) => return Err(Refused::new("custom_match", "is not supported by this proxy")),
        None => return Err(Refused::new("tree_type", "is missing")),
    };
    let mut entries: Vec<(String, OnMatch)> = map.into_iter().collect();
    entries.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    let mut branches = Vec::with_capacity(entries.len());
    for (text, value) in entries {
        let wanted =
            if exact { StringMatch::Exact(text.as_str().into()) } else { StringMatch::Prefix(text.as_str().into()) };
        let follows = then(value, depth).within(format_args!("{field}[\"{text}\"]"))?;
        branches.push((of_text(&any, wanted).within("input.typed_config")?, follows));
    }
    Ok(branches)
}

fn condition(Predicate { match_type }: Predicate, depth: usize) -> Converted<Condition> {
    if depth > MAX_DEPTH {
        return Err(Refused::new("", format!("is nested more than {MAX_DEPTH} times")));
    }
    let each = |list: predicate::PredicateList, field: &str| -> Converted<Vec<Condition>> {
        if list.predicate.len() < 2 {
            return Err(Refused::new(format!("{field}.predicate"), "are fewer than two"));
        }
        let one = |(index, value)| condition(value, depth + 1).within(format_args!("{field}.predicate[{index}]"));
        list.predicate.into_iter().enumerate().map(one).collect()
    };
    match match_type {
        Some(predicate::MatchType::OrMatcher(list)) => Ok(Condition::Or(each(list, "or_matcher")?)),
        Some(predicate::MatchType::AndMatcher(list)) => Ok(Condition::And(each(list, "and_matcher")?)),
        Some(predicate::MatchType::NotMatcher(one)) => {
            Ok(Condition::Not(Box::new(condition(*one, depth + 1).within("not_matcher")?)))
        }
        Some(predicate::MatchType::SinglePredicate(value)) => single(value).within("single_predicate"),
        None => Err(Refused::new("match_type", "is missing")),
    }
}

fn single(predicate::SinglePredicate { input, matcher: test }: predicate::SinglePredicate) -> Converted<Condition> {
    let any = typed(input.ok_or_else(|| Refused::new("input", "is missing"))?).within("input")?;
    match test {
        Some(predicate::single_predicate::Matcher::ValueMatch(value)) => {
            let wanted = matcher::xds_string(value).within("value_match")?;
            of_text(&any, wanted).within("input.typed_config")
        }
        Some(predicate::single_predicate::Matcher::CustomMatch(value)) => {
            let custom = typed(value).within("custom_match")?;
            let Some(Ip { cidr_ranges, stat_prefix: _ }) = optional(&custom).within("custom_match.typed_config")?
            else {
                return Err(unknown_type(&custom).within("custom_match.typed_config"));
            };
            let Some(Input::Address(end)) = input_of(&any)? else {
                return Err(Refused::new("input", "is no address, and `custom_match` looks at addresses"));
            };
            let mut networks = Vec::with_capacity(cidr_ranges.len());
            for (index, CidrRange { address_prefix, prefix_len }) in cidr_ranges.into_iter().enumerate() {
                let within = format!("custom_match.typed_config.cidr_ranges[{index}]");
                networks.push(cidr(CidrRange { address_prefix, prefix_len }).within(within)?);
            }
            Ok(Condition::Address(end, networks))
        }
        None => Err(Refused::new("matcher", "is missing")),
    }
}

fn of_text(any: &Any, wanted: StringMatch) -> Converted<Condition> {
    if let Some(HttpRequestHeaderMatchInput { header_name }) = optional(any)? {
        if header_name.is_empty() {
            return Err(Refused::new("header_name", "is empty"));
        }
        return Ok(Condition::Header(header_name.to_ascii_lowercase().into(), wanted));
    }
    match input_of(any)? {
        Some(input) => Ok(Condition::Text(input, wanted)),
        None => Err(unknown_type(any)),
    }
}

/// What a matcher looks at, if this proxy knows it.
fn input_of(any: &Any) -> Converted<Option<Input>> {
    let is = |name: &str| any.type_url.rsplit('/').next() == Some(name);
    macro_rules! inputs {
        ($($message:ty => $input:expr),* $(,)?) => {
            $(if is(&<$message as prost::Name>::full_name()) {
                return Ok(optional::<$message>(any)?.map(|_| $input));
            })*
        };
    }
    inputs!(
        network::SourceIpInput => Input::Address(End::Source),
        network::DirectSourceIpInput => Input::Address(End::DirectSource),
        network::DestinationIpInput => Input::Address(End::Destination),
        network::SourcePortInput => Input::Port(End::Source),
        network::DestinationPortInput => Input::Port(End::Destination),
        network::ServerNameInput => Input::ServerName,
        ssl::UriSanInput => Input::UriNames,
        ssl::DnsSanInput => Input::DnsNames,
        ssl::SubjectInput => Input::Subject,
    );
    Ok(None)
}

fn typed(TypedExtensionConfig { name: _, typed_config }: TypedExtensionConfig) -> Converted<Any> {
    typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn converted(value: &serde_json::Value) -> Converted<Matching> {
        matching(leno_xds::json::from_value(value).unwrap())
    }

    #[test]
    fn tree_when_it_has_everything_that_is_supported_then_is_converted() {
        let action = |name: &str, action: &str| json!({"action": {"name": "a", "typed_config": {"@type": "type.googleapis.com/envoy.config.rbac.v3.Action", "name": name, "action": action}}});
        let header = json!({"input": {"name": "h", "typed_config": {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": "x-user"}}, "value_match": {"exact": "me"}});
        let source = json!({"input": {"name": "i", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput"}},
            "custom_match": {"name": "ip", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip", "stat_prefix": "s",
                "cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}}});
        let made = converted(&json!({
            "matcher_list": {"matchers": [{
                "predicate": {"and_matcher": {"predicate": [{"single_predicate": header}, {"not_matcher": {"single_predicate": source}}]}},
                "on_match": action("one", "ALLOW"),
            }]},
            "on_no_match": {"matcher": {"matcher_tree": {
                "input": {"name": "s", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"}},
                "prefix_match_map": {"map": {"a": action("short", "DENY"), "ab": action("long", "LOG")}},
            }}},
        }))
        .unwrap();
        assert!(
            matches!(&made.branches[..], [(Condition::And(all), Then::Decide(Action::Allow, name))] if all.len() == 2 && &**name == "one")
        );
        let Some(Then::Ask(further)) = made.otherwise.as_deref() else { panic!("further conditions") };
        assert!(
            matches!(&further.branches[0], (Condition::Text(Input::ServerName, _), Then::Decide(Action::Log, name)) if &**name == "long")
        );
    }

    #[test]
    fn tree_when_something_is_not_supported_then_is_refused_by_its_path() {
        let refused = converted(&json!({"matcher_list": {"matchers": [{
            "predicate": {"single_predicate": {
                "input": {"name": "i", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput", "key": "k"}},
                "value_match": {"exact": "v"},
            }},
            "on_match": {"action": {"name": "a", "typed_config": {"@type": "type.googleapis.com/envoy.config.rbac.v3.Action"}}},
        }]}}))
        .unwrap_err();
        assert_eq!(refused.field, "matcher_list.matchers[0].predicate.single_predicate.input.typed_config");
    }
}
