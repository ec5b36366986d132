//! Cross-origin requests (the Fetch standard's CORS protocol), answered for the service.

use super::{
    super::{call::Call, headers::Headers, pipeline::Stop, reply::PREFLIGHT},
    Step, falls,
};
use crate::config::{Cors, FilterEntry, FilterSetting, FilterSettings, FilterStats, StringMatch};

/// What a response to an allowed origin says.
pub(super) struct Answer<'a> {
    origin: Vec<u8>,
    credentials: bool,
    expose: &'a str,
}

impl Answer<'_> {
    pub(super) fn write(self, headers: &mut Headers) {
        headers.set("access-control-allow-origin", &self.origin);
        if self.credentials {
            headers.set("access-control-allow-credentials", b"true");
        }
        if !self.expose.is_empty() {
            headers.set("access-control-expose-headers", self.expose.as_bytes());
        }
    }
}

/// Answers preflight requests and prepares what responses say. Each part of a policy comes from the most specific level that
/// has it.
pub(super) fn pass<'a>(
    call: &mut Call<'a>,
    settings: impl Iterator<Item = &'a FilterSettings>,
    entry: &FilterEntry,
) -> Result<(), Stop> {
    let policies: Vec<&Cors> = settings
        .filter_map(|settings| match settings.get(&entry.name) {
            Some(FilterSetting::Cors(policy)) => Some(policy.as_ref()),
            _ => None,
        })
        .collect();
    let Some(first) = policies.first() else { return Ok(()) };
    if !falls(call, first.enabled) {
        // A policy that only looks changes nothing, and counts.
        if falls(call, first.shadow)
            && let Some(origin) = call.request.headers.get("origin").filter(|origin| !origin.is_empty())
        {
            count(entry, is_allowed(&policies, origin));
        }
        return Ok(());
    }
    let request = &*call.request;
    let Some(origin) = request.headers.get("origin").filter(|origin| !origin.is_empty()) else { return Ok(()) };
    let text = |part: fn(&Cors) -> &str| policies.iter().map(|policy| part(policy)).find(|text| !text.is_empty());
    let flag = |part: fn(&Cors) -> Option<bool>| policies.iter().find_map(|policy| part(policy));
    let allowed = is_allowed(&policies, origin);
    count(entry, allowed);
    let credentials = flag(|policy| policy.credentials).unwrap_or(false);
    let origin = origin.to_vec();
    let wanted_method = request.headers.get("access-control-request-method").unwrap_or_default();
    let preflight = request.method() == b"OPTIONS" && !wanted_method.is_empty();
    if !preflight || !allowed && flag(|policy| policy.forward_not_matching).unwrap_or(true) {
        if allowed {
            let expose = text(|policy| &policy.expose).unwrap_or_default();
            call.tally.filters().steps.push(Step::Cors(Answer { origin, credentials, expose }));
        }
        return Ok(());
    }
    let mut headers: Vec<(&'static str, Vec<u8>)> = Vec::new();
    if allowed {
        headers.push(("access-control-allow-origin", origin));
    }
    if credentials {
        headers.push(("access-control-allow-credentials", b"true".to_vec()));
    }
    let mut star = |name, text: Option<&str>, asked: Option<&[u8]>| match text {
        Some("*") => headers.push((name, asked.unwrap_or_default().to_vec())),
        Some(text) => headers.push((name, text.as_bytes().to_vec())),
        None => {}
    };
    star("access-control-allow-methods", text(|policy| &policy.methods), Some(wanted_method));
    star(
        "access-control-allow-headers",
        text(|policy| &policy.headers),
        request.headers.get("access-control-request-headers"),
    );
    star("access-control-max-age", text(|policy| &policy.max_age).filter(|age| *age != "*"), None);
    if flag(|policy| policy.private_network).unwrap_or(false)
        && request.headers.get("access-control-request-private-network") == Some(b"true")
    {
        headers.push(("access-control-allow-private-network", b"true".to_vec()));
    }
    // Of what the client may see of the real response nothing is said yet, as in Envoy; an allowed one is told below.
    if allowed {
        let expose = text(|policy| &policy.expose).unwrap_or_default();
        let origin = headers[0].1.clone();
        call.tally.filters().steps.push(Step::Cors(Answer { origin, credentials, expose }));
    }
    call.tally.filters().steps.push(Step::Set(headers));
    Err(PREFLIGHT.into())
}

fn is_allowed(policies: &[&Cors], origin: &[u8]) -> bool {
    let origins = policies.iter().find(|policy| !policy.origins.is_empty()).map_or(&[][..], |policy| &policy.origins);
    origins.iter().any(|wanted| wanted.matches(b"*") || matches(wanted, origin))
}

fn count(entry: &FilterEntry, allowed: bool) {
    if let FilterStats::Cors(stats) = &entry.stats {
        if allowed { &stats.valid } else { &stats.invalid }.add(1);
    }
}

fn matches(wanted: &StringMatch, origin: &[u8]) -> bool {
    wanted.matches(origin)
}
