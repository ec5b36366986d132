//! What Envoy is told so that a kept connection that ends just as a request is written to it costs no request.
//!
//! Leno's own proxy knows whether a connection was kept, and asks again by itself (`leno-stale-connection`). Envoy knows only that the
//! connection has ended (`reset`), be it kept or new, and whether it may repeat is a matter of the route. So each route is there twice:
//! first for requests that may be repeated whatever has become of them, since they change nothing (RFC 9110, section 9.2.1), and
//! then for all others.

use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use leno_xds::envoy::config::route::v3::route::Action;

use super::forwards::STALE_CONNECTION;
use super::values::text_matcher;
use leno_core::route::TextMatch;

/// The methods of requests that change nothing, as an expression.
const HARMLESS: &str = "GET|HEAD|OPTIONS|TRACE";
/// The condition on which Envoy repeats what may have been sent.
const RESET: &str = "reset";

/// Puts before each route that repeats what a stale connection has lost one that does so for harmless requests.
pub(super) fn split(routes: &mut Vec<xds::Route>) {
    let all = std::mem::take(routes);
    for route in all {
        routes.extend(of_harmless(&route));
        routes.push(route);
    }
}

/// The route for harmless requests, where it differs from the one for all.
fn of_harmless(route: &xds::Route) -> Option<xds::Route> {
    let mut route = route.clone();
    let Some(Action::Route(action)) = &mut route.action else { return None };
    let policy = action.retry_policy.as_mut()?;
    let has = |condition: &str| policy.retry_on.split(',').any(|on| on == condition);
    // A try that takes too long is a `reset` to Envoy as well: nobody has asked to repeat that.
    if !has(STALE_CONNECTION) || has(RESET) || policy.num_retries == Some(0) || policy.per_try_timeout.is_some() {
        return None;
    }
    policy.retry_on.push(',');
    policy.retry_on.push_str(RESET);
    let matching = route.r#match.as_mut()?;
    matching.headers.push(xds::HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: text_matcher(&TextMatch::Regex(HARMLESS.to_owned()))
            .map(HeaderMatchSpecifier::StringMatch),
        ..Default::default()
    });
    Some(route)
}
