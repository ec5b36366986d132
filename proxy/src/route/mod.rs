//! Finds the route of a request. Everything was compiled when the configuration arrived; here it is only compared.

#[cfg(test)]
mod tests;

use crate::{
    balance::Rng,
    config::{HeaderMatch, PathMatch, PathRewrite, Route, RouteMatch, RouteTable, VirtualHost},
    http::RequestHead,
};
use std::{borrow::Cow, sync::Arc};

/// The virtual host and the route of a request.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'t> {
    /// The virtual host.
    pub host: &'t VirtualHost,
    /// The route.
    pub route: &'t Arc<Route>,
}

/// Finds the virtual host by authority and in it the first route that matches.
pub fn select<'t>(table: &'t RouteTable, request: &RequestHead, strip_port: bool, rng: &Rng) -> Option<Selected<'t>> {
    let authority = request.authority();
    let authority = if strip_port { without_port(authority) } else { authority };
    let host = table.host(authority)?;
    let route = host.routes.iter().find(|route| matches(&route.matches, request, rng))?;
    Some(Selected { host, route })
}

/// The host of an authority, without its port.
pub fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|&b| b == b':') {
        Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
        _ => authority,
    }
}

fn matches(want: &RouteMatch, request: &RequestHead, rng: &Rng) -> bool {
    path_matches(want, request.path_only())
        && want.headers.iter().all(|header| header_matches(header, request))
        && want.query.iter().all(|query| query.matches(request.query()))
        && want.fraction.is_none_or(|millionths| rng.below(1_000_000) < u64::from(millionths))
}

/// Whether the condition on the path holds.
pub fn path_matches(want: &RouteMatch, path: &[u8]) -> bool {
    let same = |a: &[u8], b: &[u8]| if want.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
    match &want.path {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => same(path, exact.as_bytes()),
        PathMatch::Prefix(prefix) => path.len() >= prefix.len() && same(&path[..prefix.len()], prefix.as_bytes()),
        PathMatch::SeparatedPrefix(prefix) => {
            path.len() >= prefix.len()
                && same(&path[..prefix.len()], prefix.as_bytes())
                && matches!(path.get(prefix.len()), None | Some(b'/'))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

fn header_matches(want: &HeaderMatch, request: &RequestHead) -> bool {
    let value = match want.name.as_ref() {
        ":method" => Some(Cow::Borrowed(request.method())),
        ":path" => Some(Cow::Borrowed(request.path())),
        ":authority" | "host" => Some(Cow::Borrowed(request.authority())),
        ":scheme" => Some(Cow::Borrowed(if request.secure { &b"https"[..] } else { b"http" })),
        name => {
            let mut values = request.headers.values(name);
            let first = values.next().map(Cow::Borrowed);
            values.fold(first, |sum, value| {
                sum.map(|sum| {
                    let mut joined = sum.into_owned();
                    joined.push(b',');
                    joined.extend_from_slice(value);
                    Cow::Owned(joined)
                })
            })
        }
    };
    want.matches(value.as_deref())
}

/// The path after a rewrite; the query stays. `None` when nothing changes.
pub fn rewritten_path(rewrite: &PathRewrite, want: &RouteMatch, target: &[u8]) -> Option<Vec<u8>> {
    let end = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    let mut new = match rewrite {
        PathRewrite::Prefix(new) => {
            let matched = match &want.path {
                PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len().min(path.len()),
                // Every path begins with the `/` that was asked for.
                PathMatch::Any => usize::from(path.first() == Some(&b'/')),
                PathMatch::Exact(_) | PathMatch::Regex(_) => path.len(),
            };
            [new.as_bytes(), &path[matched..]].concat()
        }
        PathRewrite::Regex { regex, substitution } => regex.replace_all(path, substitution),
    };
    if new.first() != Some(&b'/') {
        new.insert(0, b'/');
    }
    // A line end or a blank in a path would be a second request.
    if new.iter().any(|&b| b <= b' ' || b == 0x7f) {
        return None;
    }
    new.extend_from_slice(query);
    Some(new)
}
