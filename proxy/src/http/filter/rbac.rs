//! Role based access control: who may do what.

use super::{
    super::{call::Call, pipeline::Stop},
    refusal,
};
use crate::{
    config::{FilterStats, HeaderMatch, MetadataMatch, Rbac},
    rbac::{Facts, SHADOW_NAMES, Source, Verdict},
    route,
    telemetry::DynamicMetadata,
    tls::TlsInfo,
};
use prost_types::{Value, value::Kind};
use std::{borrow::Cow, net::SocketAddr, sync::Arc};

/// Where it is told what rules decided.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Lets the request pass, or answers 403. What is told has the prefixes of the rules that count, or else those of the `filter`.
pub(super) fn pass(call: &mut Call<'_>, rbac: &Rbac, filter: &Rbac, stats: &FilterStats) -> Result<(), Stop> {
    let or = |own: &Arc<str>, else_of: &Arc<str>| if own.is_empty() { else_of.clone() } else { own.clone() };
    let count = |verdict: Verdict<'_>, shadow: bool| {
        let FilterStats::Rbac(enforced, shadowed, policies) = stats else { return };
        let (allowed, denied) =
            if shadow { (&shadowed.allowed, &shadowed.denied) } else { (&enforced.allowed, &enforced.denied) };
        if verdict.allowed { allowed } else { denied }.add(1);
        if let Some(policy) = verdict.policy.filter(|_| rbac.by_policy) {
            policies.count(policy, verdict.allowed, shadow);
        }
    };
    let asked = call.asks_dynamic();
    let mut found = DynamicMetadata::default();
    // Shadow rules change nothing: what they would do is counted and told.
    if let Some(rules) = &rbac.shadow {
        let verdict = rules.decide(&*call);
        count(verdict, true);
        if asked {
            let prefix = or(&rbac.shadow_prefix, &filter.shadow_prefix);
            verdict.tell(&mut found, NAMESPACE, &prefix, SHADOW_NAMES);
        }
    }
    let verdict = rbac.rules.as_ref().map(|rules| rules.decide(&*call));
    if let Some(verdict) = verdict {
        count(verdict, false);
        if asked {
            let prefix = or(&rbac.prefix, &filter.prefix);
            let names = ["enforced_engine_result", "enforced_effective_policy_id"];
            verdict.tell(&mut found, NAMESPACE, &prefix, names);
        }
        if let Some(logged) = verdict.logged.filter(|_| asked) {
            found.set("envoy.common", "access_log_hint".to_owned(), Kind::BoolValue(logged));
        }
    }
    let denied = verdict.filter(|verdict| !verdict.allowed);
    if !found.is_empty() {
        let state = call.tally.filters();
        // Who is refused is not told by which policy, whatever his route tells of metadata.
        let told = if denied.is_some() { &mut state.late } else { &mut state.dynamic };
        told.merge(found);
    }
    let Some(verdict) = denied else { return Ok(()) };
    let policy = verdict.policy.map_or("none", |name| name);
    let details = format!("rbac_access_denied_matched_policy[{}]", policy.replace(char::is_whitespace, "_"));
    call.tally.filters().reply.details = Some(details.into());
    Err(refusal(403, "RBAC: access denied", "rbac_access_denied_matched_policy[none]").into())
}

impl Facts for Call<'_> {
    fn destination(&self) -> SocketAddr {
        self.conn.local
    }

    fn direct_source(&self) -> SocketAddr {
        self.conn.direct()
    }

    fn source(&self) -> SocketAddr {
        self.conn.remote
    }

    fn remote(&self) -> SocketAddr {
        self.client()
    }

    fn server_name(&self) -> Option<&str> {
        self.conn.server_name.as_deref()
    }

    fn tls(&self) -> Option<&TlsInfo> {
        self.conn.tls.as_deref()
    }

    fn header(&self, wanted: &HeaderMatch) -> bool {
        route::header_matches(wanted, self.request)
    }

    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        route::header_value(name, self.request)
    }

    fn path(&self) -> Option<&[u8]> {
        Some(self.request.path_only())
    }

    fn has_route(&self) -> bool {
        self.tally.route.is_some()
    }

    fn metadata(&self, of: Source, wanted: &MetadataMatch) -> Option<Cow<'_, Value>> {
        self.metadata_of(of, &wanted.filter, &wanted.path)
    }
}
