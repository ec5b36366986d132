//! Role based access control: who may do what.

use super::{
    super::{call::Call, pipeline::Stop},
    refusal,
};
use crate::{
    config::{HeaderMatch, Rbac},
    rbac::Facts,
    route,
    tls::TlsInfo,
};
use std::net::SocketAddr;

/// Lets the request pass, or answers 403.
pub(super) fn pass(call: &mut Call<'_>, rbac: &Rbac) -> Result<(), Stop> {
    // Shadow rules change nothing; there are no counters of them.
    let Some(rules) = &rbac.rules else { return Ok(()) };
    let verdict = rules.decide(&*call);
    if verdict.allowed {
        return Ok(());
    }
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

    fn path(&self) -> Option<&[u8]> {
        Some(self.request.path_only())
    }
}
