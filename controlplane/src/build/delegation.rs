//! Rules that VirtualServices take over from others. What a rule that delegates asks for holds for every rule that it takes
//! over: their conditions are joined, and what they leave open it decides. A rule whose conditions cannot be joined is left
//! out. One level only, as in Istio.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_core::route::{ClientMatch, Delegate, Forward, HttpAction, HttpMatch, HttpRule, RouteRules, TextMatch};
use leno_core::{Condition, Finding, ObjectKey, Reason, Severity};

/// The rules that have hosts, in the order given, with all that they take over from those that have none.
pub(super) fn put_together(all: Vec<Arc<RouteRules>>, findings: &mut Vec<Finding>) -> Vec<Arc<RouteRules>> {
    let (delegates, roots): (Vec<_>, Vec<_>) = all.into_iter().partition(|rules| rules.hosts.is_empty());
    let delegates: BTreeMap<ObjectKey, Arc<RouteRules>> =
        delegates.into_iter().map(|rules| (rules.origin.key(), rules)).collect();
    let mut used = BTreeSet::new();
    let roots = roots
        .into_iter()
        .map(|root| {
            if root.http.iter().all(|rule| !matches!(rule.action, HttpAction::Delegate(_))) {
                return root;
            }
            let mut merged = RouteRules { http: Vec::new(), ..RouteRules::clone(&root) };
            for rule in &root.http {
                match &rule.action {
                    HttpAction::Delegate(delegate) => {
                        merged.http.extend(taken_over(&root, rule, delegate, &delegates, &mut used, findings));
                    }
                    _ => merged.http.push(rule.clone()),
                }
            }
            Arc::new(merged)
        })
        .collect();
    for (key, rules) in &delegates {
        if !used.contains(key) {
            let message = "no VirtualService delegates to this one, so it has no effect; name it in a delegate, or give it \
                           hosts";
            findings.push(Finding {
                object: rules.origin.clone(),
                generation: rules.generation,
                condition: Condition::Accepted,
                severity: Severity::Remark,
                reason: Reason::NoEffect,
                field: "spec.hosts".to_owned(),
                message: message.to_owned(),
            });
        }
    }
    roots
}

/// The rules that take the place of one that delegates.
fn taken_over(
    root: &RouteRules,
    rule: &HttpRule,
    delegate: &Delegate,
    delegates: &BTreeMap<ObjectKey, Arc<RouteRules>>,
    used: &mut BTreeSet<ObjectKey>,
    findings: &mut Vec<Finding>,
) -> Vec<HttpRule> {
    let key = &delegate.key;
    let field = format!("{}.delegate", rule.field);
    let mut missing = |reason, message| {
        findings.push(Finding {
            object: root.origin.clone(),
            generation: root.generation,
            condition: Condition::ResolvedRefs,
            severity: Severity::Failing,
            reason,
            field: field.clone(),
            message,
        });
    };
    let Some(target) = delegates.get(key) else {
        let message = format!(
            "there is no valid VirtualService {key} without hosts whose rules could be taken over; this rule is left out"
        );
        missing(Reason::DelegateNotFound, message);
        return Vec::new();
    };
    used.insert(key.clone());
    if !target.export_to.includes(&root.origin.namespace) {
        let message = format!(
            "the VirtualService {key} is not exported to namespace {}; this rule is left out",
            root.origin.namespace
        );
        missing(Reason::DelegateNotFound, message);
        return Vec::new();
    }
    let mut merged = Vec::new();
    for own in &target.http {
        match joined_matches(rule.matches.as_deref(), own.matches.as_deref()) {
            Some(matches) => merged.push(merge(rule, &delegate.defaults, own, matches, target)),
            None => missing(
                Reason::Conflict,
                format!(
                    "{} of VirtualService {key} asks for requests that this rule does not take; it is left out. Its \
                     matches must lie within one of this rule's",
                    own.field
                ),
            ),
        }
    }
    merged
}

fn merge(
    root: &HttpRule,
    defaults: &Forward,
    own: &HttpRule,
    matches: Option<Vec<HttpMatch>>,
    target: &RouteRules,
) -> HttpRule {
    let action = match &own.action {
        HttpAction::Forward(forward) => {
            let Forward { destinations, rewrite, timeout, retry, mirrors } = Forward::clone(forward);
            HttpAction::Forward(Box::new(Forward {
                destinations,
                rewrite: rewrite.or_else(|| defaults.rewrite.clone()),
                timeout: timeout.or(defaults.timeout),
                retry: retry.or_else(|| defaults.retry.clone()),
                mirrors: if mirrors.is_empty() { defaults.mirrors.clone() } else { mirrors },
            }))
        }
        action => action.clone(),
    };
    HttpRule {
        name: joined_names(&root.name, &own.name),
        field: own.field.clone(),
        taken_from: Some((target.origin.clone(), target.generation)),
        matches,
        action,
        headers: if own.headers == Default::default() { root.headers.clone() } else { own.headers.clone() },
        fault: own.fault.clone().or_else(|| root.fault.clone()),
        cors: own.cors.clone().or_else(|| root.cors.clone()),
    }
}

fn joined_names(root: &str, own: &str) -> String {
    match (root.is_empty(), own.is_empty()) {
        (_, true) => root.to_owned(),
        (true, false) => own.to_owned(),
        (false, false) => format!("{root}-{own}"),
    }
}

/// What both ask for; `None` when one of a rule's own conditions lies in none of the root's.
fn joined_matches(root: Option<&[HttpMatch]>, own: Option<&[HttpMatch]>) -> Option<Option<Vec<HttpMatch>>> {
    let (root, own) = match (root, own) {
        (None, own) => return Some(own.map(<[_]>::to_vec)),
        (root, None) => return Some(root.map(<[_]>::to_vec)),
        (Some(root), Some(own)) => (root, own),
    };
    let mut joined = Vec::new();
    for entry in own {
        let before = joined.len();
        joined.extend(root.iter().filter(|outer| lies_within(outer, entry)).map(|outer| join(outer, entry)));
        if joined.len() == before {
            return None;
        }
    }
    (!joined.is_empty()).then_some(Some(joined))
}

/// Whether all that `own` takes is taken by `root`, as far as both say something.
fn lies_within(root: &HttpMatch, own: &HttpMatch) -> bool {
    let texts = [
        (&root.path, &own.path),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let maps =
        [(&root.headers, &own.headers), (&root.without_headers, &own.without_headers), (&root.query, &own.query)];
    let in_maps = maps
        .into_iter()
        .all(|(root, own)| own.iter().all(|(name, text)| root.get(name).is_none_or(|outer| text_within(outer, text))));
    let (outer, inner) = (&root.client, &own.client);
    texts.into_iter().all(|(root, own)| match (root, own) {
        (Some(root), Some(own)) => text_within(root, own),
        _ => true,
    }) && in_maps
        && root.ignore_path_case == own.ignore_path_case
        && outer.port.is_none_or(|port| inner.port.is_none_or(|own| own == port))
        && outer.namespace.as_ref().is_none_or(|name| inner.namespace.as_ref().is_none_or(|own| own == name))
        && inner.labels.iter().all(|(name, value)| outer.labels.get(name).is_none_or(|outer| outer == value))
}

/// Whether all that `own` matches is matched by `root`. Of regular expressions nobody knows.
fn text_within(root: &TextMatch, own: &TextMatch) -> bool {
    match (root, own) {
        (TextMatch::Present, _) => true,
        (TextMatch::Exact(root), TextMatch::Exact(own)) => root == own,
        (TextMatch::Prefix(root), TextMatch::Exact(own) | TextMatch::Prefix(own)) => own.starts_with(root.as_str()),
        _ => false,
    }
}

fn join(root: &HttpMatch, own: &HttpMatch) -> HttpMatch {
    let both = |root: &BTreeMap<String, TextMatch>, own: &BTreeMap<String, TextMatch>| {
        let mut joined = root.clone();
        joined.extend(own.iter().map(|(name, text)| (name.clone(), text.clone())));
        joined
    };
    let mut labels = root.client.labels.clone();
    labels.extend(own.client.labels.clone());
    HttpMatch {
        name: joined_names(&root.name, &own.name),
        path: own.path.clone().or_else(|| root.path.clone()),
        ignore_path_case: own.ignore_path_case,
        scheme: own.scheme.clone().or_else(|| root.scheme.clone()),
        method: own.method.clone().or_else(|| root.method.clone()),
        authority: own.authority.clone().or_else(|| root.authority.clone()),
        headers: both(&root.headers, &own.headers),
        without_headers: both(&root.without_headers, &own.without_headers),
        query: both(&root.query, &own.query),
        client: ClientMatch {
            port: own.client.port.or(root.client.port),
            labels,
            namespace: own.client.namespace.clone().or_else(|| root.client.namespace.clone()),
        },
        stat_prefix: if own.stat_prefix.is_empty() { root.stat_prefix.clone() } else { own.stat_prefix.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: TextMatch) -> HttpMatch {
        HttpMatch { path: Some(text), ..HttpMatch::default() }
    }

    #[test]
    fn match_when_it_lies_within_the_roots_then_joined_and_else_refused() {
        let root = [HttpMatch {
            headers: [("x-a".to_owned(), TextMatch::Present)].into(),
            ..path(TextMatch::Prefix("/a".to_owned()))
        }];
        let joined = |own: TextMatch| joined_matches(Some(&root), Some(&[path(own)]));
        let exact = TextMatch::Exact("/a/b".to_owned());
        let one = joined(exact.clone()).flatten().expect("it lies within");
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].path, Some(exact));
        assert!(one[0].headers.contains_key("x-a"));
        assert_eq!(joined(TextMatch::Prefix("/".to_owned())), None);
        assert_eq!(joined(TextMatch::Regex("/a.*".to_owned())), None);
        // A condition that no path is asked of keeps the root's.
        let open = joined_matches(Some(&root), Some(&[HttpMatch::default()])).flatten().expect("joined");
        assert_eq!(open[0].path, root[0].path);
    }
}
