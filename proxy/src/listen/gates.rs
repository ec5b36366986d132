//! What a connection must pass before it is served: counts and rates before TLS costs anything, policy when it is known who comes.

use crate::{
    config::{ConnectionLimit, Gate, Network},
    http::ConnInfo,
    rbac::{Facts, SHADOW_NAMES},
    tcp::{self, Refused},
    telemetry::{DynamicMetadata, ResponseFlags},
    tls::TlsInfo,
    worker::Worker,
};
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// The places that a connection has in counts, given back when it ends. Mostly there are none, and nothing is allocated.
// One word in every connection, where a list would be three.
#[allow(clippy::box_collection)]
#[derive(Debug, Default)]
pub(super) struct Places(Option<Box<Vec<Counted>>>);

#[derive(Debug)]
struct Counted(Arc<ConnectionLimit>);

impl Counted {
    fn one_of(limit: &Arc<ConnectionLimit>) -> Option<Self> {
        let more = |count: u32| (count < limit.max).then_some(count + 1);
        let counted = limit.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if counted.is_err() {
            limit.stats.limited.add(1);
            return None;
        }
        limit.stats.active.add(1);
        Some(Self(limit.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.stats.active.down();
    }
}

/// Where it is told what shadow rules would have decided.
const NAMESPACE: &str = "envoy.filters.network.rbac";

/// Tells that a connection is not served to those who log what becomes of connections.
pub(super) fn tell(refused: Refused, worker: &Rc<Worker>, conn: &ConnInfo, network: &Network) {
    if let Some(visit) = &conn.visit {
        refused.reason.iter().for_each(|reason| visit.closed_for(reason));
        refused.termination.iter().for_each(|details| visit.ended_by(details));
    }
    if let Network::Tcp(proxy) = network {
        tcp::refused(worker, conn, proxy, refused);
    }
}

/// Counts and rates.
///
/// # Errors
/// When the connection is to be closed.
pub(super) async fn limits(gates: &[Gate]) -> Result<Places, Refused> {
    let mut places = Places::default();
    for gate in gates {
        match gate {
            Gate::Rbac(_) => {}
            Gate::ConnectionLimit(limit) => match Counted::one_of(limit) {
                Some(place) => places.0.get_or_insert_default().push(place),
                None => {
                    tracing::debug!(filter = %limit.stat_prefix, "too many connections; closed");
                    rest(limit.delay).await;
                    return Err(Refused { reason: Some("over_connection_limit"), ..Refused::default() });
                }
            },
            Gate::RateLimit(limit) => {
                if !limit.bucket.take(Instant::now()) {
                    limit.stats.limited.add(1);
                    tracing::debug!(filter = %limit.stat_prefix, "too many new connections; closed");
                    let (reason, flags) = (Some("local_ratelimit_close_over_limit"), ResponseFlags::RETRY_LIMIT);
                    return Err(Refused { reason, flags, ..Refused::default() });
                }
            }
        }
    }
    Ok(places)
}

/// Who may connect.
///
/// # Errors
/// When the connection is to be closed.
pub(super) async fn policies(gates: &[Gate], conn: &ConnInfo) -> Result<(), Refused> {
    let mut found = DynamicMetadata::default();
    let decided = decide(gates, conn, &mut found).await;
    if !found.is_empty() {
        let _ = conn.found.set(Box::new(found));
    }
    decided
}

async fn decide(gates: &[Gate], conn: &ConnInfo, found: &mut DynamicMetadata) -> Result<(), Refused> {
    for gate in gates {
        let Gate::Rbac(rbac) = gate else { continue };
        if let Some(verdict) = rbac.shadow.as_ref().map(|rules| rules.decide(conn)) {
            verdict.tell(found, NAMESPACE, &rbac.shadow_prefix, SHADOW_NAMES);
            let (allowed, policy) = (verdict.allowed, verdict.policy.map(AsRef::as_ref).unwrap_or("none"));
            if allowed { &rbac.stats.1.allowed } else { &rbac.stats.1.denied }.add(1);
            tracing::debug!(filter = %rbac.stat_prefix, remote = %conn.remote, allowed, policy, "shadow rules");
        }
        let Some(verdict) = rbac.rules.as_ref().map(|rules| rules.decide(conn)) else { continue };
        if verdict.allowed {
            rbac.stats.0.allowed.add(1);
        } else {
            rbac.stats.0.denied.add(1);
            let policy = verdict.policy.map(AsRef::as_ref).unwrap_or("none");
            tracing::debug!(filter = %rbac.stat_prefix, remote = %conn.remote, policy, "denied; closed");
            rest(rbac.delay).await;
            let termination = Some(format!("rbac_access_denied_matched_policy[{policy}]").into());
            return Err(Refused { termination, reason: Some("rbac_deny_close"), ..Refused::default() });
        }
    }
    Ok(())
}

async fn rest(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

impl Facts for ConnInfo {
    fn destination(&self) -> SocketAddr {
        self.local
    }

    fn direct_source(&self) -> SocketAddr {
        self.direct()
    }

    fn source(&self) -> SocketAddr {
        self.remote
    }

    fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_deref()
    }
}
