//! Leader election over a `coordination.k8s.io` Lease, with client-go's semantics and numbers.
//!
//! [`decide`] is the whole decision, from what was seen and when; the loop around it only reads, writes and sleeps. Clocks
//! of other machines are not trusted: a lease has run out when it did not change for its duration by *our* clock. Whoever
//! loses the lease must stop at once, which a process does best by ending: [`Held::keep`] returns, `main` exits.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Others may take the lease when it did not change for so long.
pub const DURATION: Duration = Duration::from_secs(15);
/// The holder gives up when it could not renew for so long.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often holder and waiters look.
pub const RETRY: Duration = Duration::from_secs(2);

/// What somebody saw of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// When it was last renewed, by the holder's clock: only compared for equality.
    pub renewed: Option<Timestamp>,
    /// How long it lasts without a change.
    pub duration: Duration,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write it with us as holder: it is free or has run out.
    Acquire,
    /// Write it with a new time: it is ours.
    Renew,
    /// Another holds it.
    Wait,
}

/// Decides from the lease as last seen (`None`: there is none) and when it was first seen like that.
pub fn decide(me: &str, seen: Option<&Seen>, unchanged_for: Duration) -> Decision {
    match seen {
        None => Decision::Acquire,
        Some(seen) if seen.holder == me => Decision::Renew,
        Some(seen) if seen.holder.is_empty() || unchanged_for >= seen.duration => Decision::Acquire,
        Some(_) => Decision::Wait,
    }
}

/// Remembers since when a lease looks as it does.
#[derive(Debug, Default)]
struct Observation {
    seen: Option<Seen>,
    since: Option<Instant>,
}

impl Observation {
    fn update(&mut self, seen: Option<Seen>, now: Instant) -> Duration {
        if self.seen != seen || self.since.is_none() {
            self.seen = seen;
            self.since = Some(now);
        }
        self.since.map(|since| now.duration_since(since)).unwrap_or_default()
    }
}

/// Takes part in the election for one lease.
pub struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    observation: Observation,
}

/// The lease is ours; [`Held::keep`] keeps it so.
pub struct Held {
    election: Election,
}

/// Why the lease is not ours any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was given back at shutdown.
    Released,
    /// It was lost: the process must exit now, another may lead.
    Lost,
}

impl Election {
    /// An election for the lease `name` in the API's namespace, as `me` (unique a process: pod name and a random part).
    pub fn new(api: Api<Lease>, name: impl Into<String>, me: impl Into<String>) -> Self {
        Election { api, name: name.into(), me: me.into(), observation: Observation::default() }
    }

    /// Waits until the lease is ours; `None` when `shutdown` comes first. Errors of the API server are logged and tried
    /// again.
    pub async fn acquire(mut self, shutdown: &CancellationToken) -> Option<Held> {
        loop {
            match self.step().await {
                Ok(true) => {
                    tracing::info!(lease = self.name, identity = self.me, "leading");
                    return Some(Held { election: self });
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, lease = self.name, "the lease cannot be read or written"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Reads, decides, writes. True when the lease is ours now.
    async fn step(&mut self) -> Result<bool, kube::Error> {
        let present = self.api.get_opt(&self.name).await?;
        let unchanged_for = self.observation.update(present.as_ref().map(seen), Instant::now());
        let decision = decide(&self.me, self.observation.seen.as_ref(), unchanged_for);
        if decision == Decision::Wait {
            return Ok(false);
        }
        let now = MicroTime(Timestamp::now());
        let written = match present {
            None => self.api.create(&PostParams::default(), &self.fresh(now)).await,
            Some(mut lease) => {
                let spec = lease.spec.get_or_insert_default();
                if decision == Decision::Acquire {
                    spec.holder_identity = Some(self.me.clone());
                    spec.acquire_time = Some(now.clone());
                    spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
                }
                spec.lease_duration_seconds = Some(DURATION.as_secs() as i32);
                spec.renew_time = Some(now);
                // The resource version in it makes this fail when somebody else was faster.
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observation.update(Some(seen(&lease)), Instant::now());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn fresh(&self, now: MicroTime) -> Lease {
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(DURATION.as_secs() as i32),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        }
    }
}

impl Held {
    /// Renews until `shutdown` (the lease is then given back, so that the next holder need not wait) or until it is lost.
    pub async fn keep(mut self, shutdown: &CancellationToken) -> End {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.release().await;
                    return End::Released;
                }
                () = tokio::time::sleep(RETRY) => {}
            }
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.election.step()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) if !self.still_ours() => return self.lost("another holds it"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = self.election.name, "the lease cannot be renewed"),
                Err(_) => return self.lost("it could not be renewed in time"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return self.lost("it could not be renewed in time");
            }
        }
    }

    fn still_ours(&self) -> bool {
        self.election.observation.seen.as_ref().is_some_and(|seen| seen.holder == self.election.me)
    }

    fn lost(&self, why: &str) -> End {
        tracing::error!(lease = self.election.name, why, "the lease is lost");
        End::Lost
    }

    async fn release(self) {
        let api = &self.election.api;
        let give_back = async {
            let mut lease = api.get(&self.election.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(self.election.me.as_str()) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            api.replace(&self.election.name, &PostParams::default(), &lease).await.map(|_| ())
        };
        match tokio::time::timeout(Duration::from_secs(3), give_back).await {
            Ok(Ok(())) => tracing::info!(lease = self.election.name, "gave the lease back"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back; it will run out"),
            Err(_) => tracing::warn!("the lease could not be given back in time; it will run out"),
        }
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|time| time.0),
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> Seen {
        Seen { holder: holder.to_owned(), renewed: None, duration: DURATION }
    }

    #[test]
    fn lease_when_there_is_none_then_is_taken() {
        assert_eq!(decide("a", None, Duration::ZERO), Decision::Acquire);
    }

    #[test]
    fn lease_when_given_back_then_is_taken_at_once() {
        assert_eq!(decide("a", Some(&lease("")), Duration::ZERO), Decision::Acquire);
    }

    #[test]
    fn lease_when_ours_then_is_renewed_however_old() {
        assert_eq!(decide("a", Some(&lease("a")), Duration::from_secs(99)), Decision::Renew);
    }

    #[test]
    fn lease_when_anothers_then_is_left_alone_until_it_did_not_change_for_its_duration() {
        assert_eq!(decide("a", Some(&lease("b")), Duration::from_millis(14_999)), Decision::Wait);
        assert_eq!(decide("a", Some(&lease("b")), DURATION), Decision::Acquire);
    }

    #[test]
    fn observation_when_the_lease_changes_then_counts_from_anew() {
        let start = Instant::now();
        let mut observation = Observation::default();
        assert_eq!(observation.update(Some(lease("b")), start), Duration::ZERO);
        assert_eq!(observation.update(Some(lease("b")), start + DURATION), DURATION);
        let renewed = Seen { renewed: Some(Timestamp::UNIX_EPOCH), ..lease("b") };
        assert_eq!(observation.update(Some(renewed), start + DURATION), Duration::ZERO);
    }
}
