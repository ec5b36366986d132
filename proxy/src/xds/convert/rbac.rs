//! Rules of role-based access control, for connections and for requests.

use super::common::{cidr, port};
use super::{Converted, Refused, Within as _, action, matcher, rbac_matching, refuse};
use crate::config::{MetadataMatch, StringMatch};
use crate::rbac::{Action, Decider, Permission, Policy, Principal, Rules, Source};
use leno_xds::envoy::config::rbac::v3 as xds;
use leno_xds::envoy::config::rbac::v3::{permission::Rule, principal::Identifier};
use leno_xds::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use leno_xds::envoy::r#type::v3::Int32Range;
use leno_xds::xds::r#type::matcher::v3::Matcher;

/// Conditions within conditions at most.
const MAX_DEPTH: usize = 32;

/// Rules in one of their two forms; where both are there the tree counts, as in Envoy.
///
/// # Errors
/// When a condition is not supported, or missing. `fields` are the names of the fields.
pub fn decider(
    value: Option<xds::Rbac>,
    tree: Option<Matcher>,
    [rules_field, tree_field]: [&str; 2],
) -> Converted<Option<Decider>> {
    if let Some(tree) = tree {
        return rbac_matching::matching(tree).within(tree_field).map(|tree| Some(Decider::Matching(tree)));
    }
    let rules = value.map(rules).transpose().within(rules_field)?;
    Ok(rules.map(Decider::Rules))
}

/// A set of policies.
///
/// # Errors
/// When a condition is not supported, or missing.
pub fn rules(value: xds::Rbac) -> Converted<Rules> {
    let xds::Rbac { action, policies, audit_logging_options } = value;
    refuse!(audit_logging_options);
    let action = match xds::rbac::Action::try_from(action) {
        Ok(xds::rbac::Action::Allow) => Action::Allow,
        Ok(xds::rbac::Action::Deny) => Action::Deny,
        Ok(xds::rbac::Action::Log) => Action::Log,
        Err(_) => return Err(Refused::new("action", "is not known to this proxy")),
    };
    let policies = policies
        .into_iter()
        .map(|(name, value)| {
            let within = format!("policies[\"{name}\"]");
            policy(&name, value).within(within)
        })
        .collect::<Converted<_>>()?;
    Ok(Rules { action, policies })
}

fn policy(name: &str, value: xds::Policy) -> Converted<Policy> {
    let xds::Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    refuse!(condition, checked_condition, cel_config);
    Ok(Policy {
        name: name.into(),
        permissions: each(permissions, "permissions", |value| permission(value, 0))?,
        principals: each(principals, "principals", |value| principal(value, 0))?,
    })
}

/// At least one of each.
fn each<A, B>(values: Vec<A>, field: &str, convert: impl Fn(A) -> Converted<B>) -> Converted<Vec<B>> {
    if values.is_empty() {
        return Err(Refused::new(field, "is empty"));
    }
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| convert(value).within(format_args!("{field}[{index}]")))
        .collect()
}

fn not_too_deep(depth: usize) -> Converted<()> {
    if depth < MAX_DEPTH { Ok(()) } else { Err(Refused::new("", format!("is nested more than {MAX_DEPTH} times"))) }
}

fn always(value: bool) -> Converted<()> {
    if value { Ok(()) } else { Err(Refused::new("any", "must be true")) }
}

fn permission(value: xds::Permission, depth: usize) -> Converted<Permission> {
    not_too_deep(depth)?;
    let xds::Permission { rule } = value;
    let Some(rule) = rule else { return Err(Refused::new("rule", "is missing")) };
    Ok(match rule {
        Rule::AndRules(xds::permission::Set { rules }) => {
            Permission::And(each(rules, "and_rules.rules", |value| permission(value, depth + 1))?)
        }
        Rule::OrRules(xds::permission::Set { rules }) => {
            Permission::Or(each(rules, "or_rules.rules", |value| permission(value, depth + 1))?)
        }
        Rule::Any(value) => {
            always(value)?;
            Permission::Any
        }
        Rule::Header(value) => Permission::Header(matcher::header(value).within("header")?),
        Rule::UrlPath(value) => Permission::Path(path(value).within("url_path")?),
        Rule::DestinationIp(value) => Permission::DestinationIp(cidr(value).within("destination_ip")?),
        Rule::DestinationPort(value) => {
            let port = port(value).map_err(|refused| Refused::new("destination_port", refused.reason))?;
            Permission::DestinationPorts(port, port)
        }
        Rule::DestinationPortRange(Int32Range { start, end }) => {
            let number = |value: i32| u16::try_from(value).ok();
            match (number(start), number(end.saturating_sub(1))) {
                (Some(from), Some(to)) if from <= to => Permission::DestinationPorts(from, to),
                _ => return Err(Refused::new("destination_port_range", "is not a range of ports")),
            }
        }
        Rule::NotRule(value) => Permission::Not(Box::new(permission(*value, depth + 1).within("not_rule")?)),
        Rule::RequestedServerName(value) => {
            Permission::ServerName(matcher::string(value).within("requested_server_name")?)
        }
        Rule::Metadata(value) => Permission::Metadata(Source::Request, matcher::metadata(value).within("metadata")?),
        Rule::Matcher(_) => return unsupported("matcher"),
        Rule::UriTemplate(value) => Permission::Template(action::uri_template(value).within("uri_template")?),
        Rule::SourcedMetadata(value) => {
            let (of, wanted) = sourced(value).within("sourced_metadata")?;
            Permission::Metadata(of, wanted)
        }
    })
}

fn principal(value: xds::Principal, depth: usize) -> Converted<Principal> {
    not_too_deep(depth)?;
    let xds::Principal { identifier } = value;
    let Some(identifier) = identifier else { return Err(Refused::new("identifier", "is missing")) };
    Ok(match identifier {
        Identifier::AndIds(xds::principal::Set { ids }) => {
            Principal::And(each(ids, "and_ids.ids", |value| principal(value, depth + 1))?)
        }
        Identifier::OrIds(xds::principal::Set { ids }) => {
            Principal::Or(each(ids, "or_ids.ids", |value| principal(value, depth + 1))?)
        }
        Identifier::Any(value) => {
            always(value)?;
            Principal::Any
        }
        Identifier::Authenticated(xds::principal::Authenticated { principal_name }) => {
            let name = principal_name.map(matcher::string).transpose().within("authenticated.principal_name")?;
            Principal::Authenticated(name)
        }
        Identifier::SourceIp(value) => Principal::SourceIp(cidr(value).within("source_ip")?),
        Identifier::DirectRemoteIp(value) => Principal::DirectSourceIp(cidr(value).within("direct_remote_ip")?),
        Identifier::RemoteIp(value) => Principal::RemoteIp(cidr(value).within("remote_ip")?),
        Identifier::Header(value) => Principal::Header(matcher::header(value).within("header")?),
        Identifier::UrlPath(value) => Principal::Path(path(value).within("url_path")?),
        Identifier::Metadata(value) => {
            Principal::Metadata(Source::Request, matcher::metadata(value).within("metadata")?)
        }
        Identifier::SourcedMetadata(value) => {
            let (of, wanted) = sourced(value).within("sourced_metadata")?;
            Principal::Metadata(of, wanted)
        }
        Identifier::NotId(value) => Principal::Not(Box::new(principal(*value, depth + 1).within("not_id")?)),
        _ => return unsupported("identifier"),
    })
}

fn sourced(value: xds::SourcedMetadata) -> Converted<(Source, MetadataMatch)> {
    let xds::SourcedMetadata { metadata_matcher, metadata_source } = value;
    let of = match xds::MetadataSource::try_from(metadata_source) {
        Ok(xds::MetadataSource::Dynamic) => Source::Request,
        Ok(xds::MetadataSource::Route) => Source::Route,
        Err(_) => return Err(Refused::new("metadata_source", "is not known to this proxy")),
    };
    let wanted = metadata_matcher.ok_or_else(|| Refused::new("metadata_matcher", "is missing"))?;
    Ok((of, matcher::metadata(wanted).within("metadata_matcher")?))
}

fn path(value: PathMatcher) -> Converted<StringMatch> {
    let PathMatcher { rule } = value;
    match rule {
        Some(path_matcher::Rule::Path(value)) => matcher::string(value).within("path"),
        None => Err(Refused::new("rule", "is missing")),
    }
}

fn unsupported<T>(field: &str) -> Converted<T> {
    Err(Refused::new(field, "is not supported by this proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn converted(policy: Value) -> Converted<Rules> {
        rules(leno_xds::json::from_value(&json!({"action": "DENY", "policies": {"p": policy}})).unwrap())
    }

    #[test]
    fn policy_with_everything_that_is_supported_is_converted() {
        let rules = converted(json!({
            "permissions": [
                {"and_rules": {"rules": [
                    {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
                    {"url_path": {"path": {"prefix": "/a"}}},
                    {"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
                    {"destination_port": 80}, {"destination_port_range": {"start": 1, "end": 65536}},
                    {"not_rule": {"any": true}}, {"requested_server_name": {"exact": "a"}}
                ]}},
                {"or_rules": {"rules": [{"any": true}]}}
            ],
            "principals": [
                {"and_ids": {"ids": [
                    {"authenticated": {"principal_name": {"exact": "spiffe://a"}}}, {"authenticated": {}},
                    {"source_ip": {"address_prefix": "::1"}}, {"direct_remote_ip": {"address_prefix": "1.2.3.4", "prefix_len": 32}},
                    {"remote_ip": {"address_prefix": "1.2.3.4", "prefix_len": 32}},
                    {"header": {"name": "x", "present_match": true}}, {"url_path": {"path": {"exact": "/"}}},
                    {"not_id": {"any": true}}
                ]}},
                {"or_ids": {"ids": [{"any": true}]}}
            ]
        }))
        .unwrap();
        assert_eq!((rules.action, rules.policies.len()), (Action::Deny, 1));
        let Permission::And(all) = &rules.policies[0].permissions[0] else { panic!("and") };
        assert!(matches!(all[4], Permission::DestinationPorts(1, 65535)));
    }

    #[test]
    fn policy_with_something_unsupported_is_refused_by_its_path() {
        let any = || json!([{"any": true}]);
        for (policy, field) in [
            (json!({"permissions": [], "principals": any()}), "permissions"),
            (json!({"permissions": any(), "principals": [{}]}), "principals[0].identifier"),
            (
                json!({"permissions": [{"metadata": {"filter": "a"}}], "principals": any()}),
                "permissions[0].metadata.path",
            ),
            (json!({"permissions": any(), "principals": any(), "condition": {"id": "1"}}), "condition"),
            (
                json!({"permissions": [{"not_rule": {"url_path": {}}}], "principals": any()}),
                "permissions[0].not_rule.url_path.rule",
            ),
        ] {
            let refused = converted(policy).unwrap_err();
            assert_eq!(refused.field, format!("policies[\"p\"].{field}"), "{refused}");
        }
    }
}
