//! Finds the route of a request. Everything was compiled when the configuration arrived; here it is only compared.

#[cfg(test)]
mod tests;

use crate::{
    balance::Rng,
    config::{
        CookieMatch, HeaderMatch, PathMatch, PathRewrite, RequireTls, Route, RouteMatch, RouteTable, VirtualHost,
        WeightedCluster,
    },
    http::{Call, Headers, Known, RequestHead},
    telemetry::DynamicMetadata,
};
use std::{borrow::Cow, sync::Arc};

/// The virtual host and the route of a request.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'t> {
    /// The virtual host.
    pub host: &'t VirtualHost,
    /// The route.
    pub route: &'t Arc<Route>,
    /// The target among the route's, once it is chosen.
    pub target: Option<&'t WeightedCluster>,
}

/// What a table says to a request.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'t> {
    /// A route.
    Route(Selected<'t>),
    /// It must come by TLS: a redirect to itself.
    NeedsTls,
    /// Nothing.
    None,
}

/// What is known of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Certificate {
    /// There is one.
    pub presented: bool,
    /// It was verified.
    pub validated: bool,
}

impl Certificate {
    /// That of a request's connection.
    pub fn of(call: &Call<'_>) -> Self {
        let conn = call.conn;
        let verified = conn.tls.as_ref().is_some_and(|tls| tls.verified && tls.peer().is_some());
        Self {
            presented: conn.peer.is_some() || conn.tls.as_ref().is_some_and(|tls| tls.peer().is_some()),
            validated: conn.peer.is_some() || verified,
        }
    }
}

/// What a table is searched with beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'w> {
    /// The client's certificate.
    pub certificate: Certificate,
    /// What filters found out.
    pub dynamic: Option<&'w DynamicMetadata>,
    /// Chance, for shares.
    pub rng: &'w Rng,
}

/// Finds the virtual host by authority and in it the first route that matches.
pub fn select<'t>(table: &'t RouteTable, request: &RequestHead, asker: Asker<'_>) -> Choice<'t> {
    let named = match &table.options.host_header {
        None => Some(request.authority()),
        Some(name) => match &**name {
            ":authority" | "host" => Some(request.authority()),
            ":method" => Some(request.method()),
            ":path" => Some(request.path()).filter(|path| !path.is_empty()),
            ":scheme" => request.scheme().map(str::as_bytes),
            name => request.headers.get(name),
        },
    };
    let named = if table.options.ignore_port { named.map(without_port) } else { named };
    let Some(host) = table.host(named) else { return Choice::None };
    if host.require_tls != RequireTls::Nobody && needs_tls(host.require_tls, request) {
        return Choice::NeedsTls;
    }
    let path = match request.path_only() {
        path if table.options.ignore_path_parameters && path.contains(&b';') => Cow::Owned(without_parameters(path)),
        path => Cow::Borrowed(path),
    };
    match host.routes.iter().find(|route| matches(&route.matches, &path, request, asker)) {
        Some(route) => Choice::Route(Selected { host, route, target: None }),
        None => Choice::None,
    }
}

/// A path without the parameters of its segments: `/a/b` of `/a;x=1/b;y`.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|&b| b == b'/').map(|segment| segment.split(|&b| b == b';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join(&b'/')
}

fn needs_tls(who: RequireTls, request: &RequestHead) -> bool {
    let scheme =
        request.headers.known(Known::ForwardedProto).unwrap_or(if request.secure { b"https" } else { b"http" });
    scheme != b"https" && (who == RequireTls::All || request.headers.get("x-envoy-internal") != Some(b"true"))
}

/// The host of an authority, without its port.
pub fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|&b| b == b':') {
        Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
        _ => authority,
    }
}

fn matches(want: &RouteMatch, path: &[u8], request: &RequestHead, asker: Asker<'_>) -> bool {
    let path_fits = match want.path {
        PathMatch::Connect => request.is_connect(),
        // Only CONNECT has no path, and then no other condition on it holds.
        _ => !path.is_empty() && path_matches(want, path),
    };
    let asked = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    path_fits
        && want.headers.iter().all(|header| header_matches(header, request))
        && want.query.iter().all(|query| query.matches(request.query()))
        && want.cookies.iter().all(|cookie| cookie_matches(cookie, request))
        && want
            .metadata
            .iter()
            .all(|wanted| wanted.holds(asker.dynamic.and_then(|all| all.at(&wanted.filter, &wanted.path))))
        && (!want.grpc || request.is_grpc())
        && asked(want.certificate_presented, asker.certificate.presented)
        && asked(want.certificate_validated, asker.certificate.validated)
        && want.fraction.is_none_or(|millionths| asker.rng.below(1_000_000) < u64::from(millionths))
}

/// Whether the condition on the path holds.
pub fn path_matches(want: &RouteMatch, path: &[u8]) -> bool {
    let same = |a: &[u8], b: &[u8]| if want.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
    match &want.path {
        // Not `*`, which asks about the whole server.
        PathMatch::Any => path.first() == Some(&b'/'),
        PathMatch::Exact(exact) => same(path, exact.as_bytes()),
        PathMatch::Prefix(prefix) => path.len() >= prefix.len() && same(&path[..prefix.len()], prefix.as_bytes()),
        PathMatch::SeparatedPrefix(prefix) => {
            path.len() >= prefix.len()
                && same(&path[..prefix.len()], prefix.as_bytes())
                && matches!(path.get(prefix.len()), None | Some(b'/'))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Template(template) => template.matches(path),
        PathMatch::Connect => false,
    }
}

/// Whether a header's name is that of a pseudo header, or `host`, which is as good as one.
pub fn is_pseudo(name: &str) -> bool {
    name.starts_with(':') || name == "host"
}

/// A header's value as one text: that of a pseudo header, or all values joined by `,`.
pub fn header_value<'r>(name: &str, request: &'r RequestHead) -> Option<Cow<'r, [u8]>> {
    match name {
        ":method" => Some(Cow::Borrowed(request.method())),
        ":path" => Some(request.path()).filter(|path| !path.is_empty()).map(Cow::Borrowed),
        ":authority" | "host" => Some(Cow::Borrowed(request.authority())),
        ":scheme" => request.scheme().map(|scheme| Cow::Borrowed(scheme.as_bytes())),
        name => joined(&request.headers, name),
    }
}

/// All values of a header joined by `,`.
pub fn joined<'r>(headers: &'r Headers, name: &str) -> Option<Cow<'r, [u8]>> {
    let named = headers.iter().filter(|(have, ..)| have.eq_ignore_ascii_case(name.as_bytes()));
    let mut values = named.map(|(_, value, _)| value);
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

/// Whether a condition on a header of the request holds.
pub fn header_matches(want: &HeaderMatch, request: &RequestHead) -> bool {
    match &*want.name {
        name if is_pseudo(name) => want.matches(header_value(name, request).as_deref()),
        name => want.matches(request.headers.values(name)),
    }
}

fn cookie_matches(want: &CookieMatch, request: &RequestHead) -> bool {
    cookie(&request.headers, &want.name).is_some_and(|value| want.test.matches(value)) != want.invert
}

/// The value of a cookie, without the quotes around it.
pub fn cookie<'r>(headers: &'r Headers, name: &str) -> Option<&'r [u8]> {
    let lines = headers.iter().filter(|(have, ..)| have.eq_ignore_ascii_case(b"cookie"));
    let mut pairs = lines.flat_map(|(_, line, _)| line.split(|&b| b == b';')).map(<[u8]>::trim_ascii);
    pairs.find_map(|pair| {
        let at = pair.iter().position(|&b| b == b'=')?;
        let value = pair[at + 1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        (pair[..at].trim_ascii() == name.as_bytes()).then_some(value)
    })
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
                PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Template(_) | PathMatch::Connect => path.len(),
            };
            [new.as_bytes(), &path[matched..]].concat()
        }
        PathRewrite::Regex(rewrite) => rewrite.apply(path),
        PathRewrite::Template(new) => match &want.path {
            PathMatch::Template(pattern) => new.fill(pattern, path)?,
            _ => return None,
        },
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
