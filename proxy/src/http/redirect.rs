//! Redirects: those that routes answer with, and those of endpoints that are followed here.

use super::{call::Call, reply};
use crate::{
    config::{InternalRedirect, Redirect, RedirectPredicate},
    http::BodyLength,
    pool::ClusterState,
    route::{self, Asker, Certificate, Choice, Selected},
    telemetry::{Wire, stats::NotFollowed},
};
use std::sync::Arc;

/// Where a route's redirect leads to. Of a rewritten path the log and the answer's headers tell the new one, as in Envoy.
pub(super) fn location(call: &mut Call<'_>, selected: Selected<'_>, redirect: &Redirect) -> Vec<u8> {
    if let (None, Some(rewrite)) = (&redirect.path, &redirect.rewrite)
        && let Some(path) = route::rewritten_path(rewrite, &selected.route.matches, call.request.path())
    {
        if !call.router.suppress_envoy_headers {
            let original = call.request.path().to_vec();
            call.request.headers.set("x-envoy-original-path", &original);
        }
        call.request.set_path(&path);
    }
    let target = call.request.path();
    let mut path = match &redirect.path {
        Some(path) => {
            let mut path = path.as_bytes().to_vec();
            if !path.contains(&b'?')
                && let Some(at) = target.iter().position(|&b| b == b'?')
            {
                path.extend_from_slice(&target[at..]);
            }
            path
        }
        None => target.to_vec(),
    };
    // A query that the redirect brings itself stays.
    if redirect.strip_query && !redirect.path.as_ref().is_some_and(|path| path.contains('?')) {
        path.truncate(path.iter().position(|&b| b == b'?').unwrap_or(path.len()));
    }
    // Without a slash it would be read as a part of the host's name.
    if !path.starts_with(b"/") {
        path.insert(0, b'/');
    }
    reply::location(redirect, &path, call.request)
}

/// Whether the endpoint's answer is one that is to be followed.
pub(super) fn is_meant(call: &Call<'_>, follow: &InternalRedirect) -> bool {
    follow.codes.contains(&call.response.status)
}

/// Counts whether an answer was `followed`, and says it.
pub(super) fn counted(cluster: &ClusterState, followed: bool) -> bool {
    let stats = cluster.stats();
    if followed { &stats.internal_redirect_succeeded } else { &stats.internal_redirect_failed }.add(1);
    followed
}

/// Counts a request that has become another one: to statistics those are two.
pub(super) fn count(call: &Call<'_>, cluster: &ClusterState, wire: Wire) {
    cluster.stats().moved(wire);
    let attempts = call.tally.attempts.saturating_sub(call.tally.unconnected);
    call.tally.groups().for_each(|group| group.count_redirected(attempts));
    if let Some(counted) = &call.conn.counted {
        counted.http().count_begun(call.is_http2());
    }
}

/// Turns the request into the one that the endpoint's answer redirects to; false where the answer is to go to the client.
pub(super) fn follow(call: &mut Call<'_>, follow: &InternalRedirect, before: u32) -> bool {
    let followed = try_follow(call, follow, before);
    if let (Err(why), Some(stats)) = (&followed, call.conn.http_stats()) {
        stats.not_followed(*why);
    }
    followed.is_ok()
}

fn try_follow(call: &mut Call<'_>, follow: &InternalRedirect, before: u32) -> Result<(), NotFollowed> {
    let bad = NotFollowed::BadLocation;
    if before >= follow.max {
        return Err(NotFollowed::TooMany);
    }
    let location = call.response.headers.get("location").and_then(|value| std::str::from_utf8(value).ok());
    let (scheme, rest) = location.and_then(|location| location.split_once("://")).ok_or(bad)?;
    let secure = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(bad),
    };
    // What came in clear text was not secure, whatever it is said to have been.
    let was_secure = call.request.secure && call.conn.secure;
    if secure != was_secure && !follow.cross_scheme {
        return Err(NotFollowed::UnsafeScheme);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = (rest.as_bytes()[..end].to_vec(), rest[end..].split('#').next().unwrap_or_default());
    let path = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let graphic = |text: &[u8]| text.iter().all(u8::is_ascii_graphic);
    if authority.is_empty() || !graphic(&authority) || !graphic(path.as_bytes()) {
        return Err(bad);
    }
    let unchanged = call.request.clone();
    let request = &mut *call.request;
    for name in &follow.copied_headers {
        request.headers.remove(name);
        for value in call.response.headers.values(name) {
            request.headers.push(name.as_bytes(), value);
        }
    }
    let own = if was_secure { &b"https"[..] } else { b"http" };
    let original = [own, b"://", request.authority(), request.path()].concat();
    request.headers.set("x-envoy-original-url", &original);
    request.secure = secure;
    request.set_authority(&authority);
    request.set_path(path.as_bytes());
    if call.response.status == 303 && !matches!(request.method(), b"GET" | b"HEAD") {
        request.set_method(b"GET");
        request.headers.remove("content-length");
        request.body = BodyLength::Empty;
    }
    // A redirect to what has no route is the client's to follow.
    let asker = Asker { certificate: Certificate::of(call), dynamic: call.dynamic(), rng: &call.worker.rng };
    let target = match route::select(&call.manager.routes, call.request, asker) {
        Choice::None => {
            *call.request = unchanged;
            call.tally.lost = true;
            return Err(NotFollowed::NoRoute);
        }
        // Who answers that by itself has no name.
        Choice::NeedsTls => Arc::default(),
        Choice::Route(selected) => selected.route.name.clone(),
    };
    if !follow.predicates.is_empty() && !may_lead(call, follow, target, (was_secure, secure)) {
        *call.request = unchanged;
        return Err(NotFollowed::Predicate);
    }
    Ok(())
}

/// Whether all that must hold for the route with this name does; that it was chosen is remembered.
fn may_lead(call: &mut Call<'_>, follow: &InternalRedirect, target: Arc<str>, (from, to): (bool, bool)) -> bool {
    let own = call.tally.route.map(|route| route.name.clone()).unwrap_or_default();
    let mut remember = false;
    let holds = follow.predicates.iter().all(|predicate| match predicate {
        RedirectPredicate::AllowedRoutes(names) => names.iter().any(|name| **name == *target),
        RedirectPredicate::SafeCrossScheme => from || !to,
        RedirectPredicate::PreviousRoutes => {
            remember = true;
            let followed = call.tally.filters.as_ref().map_or(&[][..], |state| &state.followed);
            !followed.iter().any(|(before, after)| (before, after) == (&own, &target))
        }
    });
    if holds && remember {
        call.tally.filters().followed.push((own, target));
    }
    holds
}
