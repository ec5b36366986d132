//! From changed objects to published configuration: debounce, build, resolve, translate, publish.
//!
//! One task owns the source and the builder. Everything that takes time on a processor happens on a blocking thread, so
//! that streams and webhooks go on; changes that come meanwhile are picked up by the next round. Two lanes: a change of
//! endpoints or pods waits 10 ms for its like, anything else 50 ms; neither is put off for more than 500 ms.

mod publish;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use leno_core::snapshot::Snapshot;
use leno_core::{Finding, ObjectKey};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, ResultLabel};
use crate::source::{Lane, Source};
use crate::stores::Stores;
use crate::translate::{Resource, Resources};

pub use publish::Publisher;

/// How long it must be quiet after a change.
pub const QUIET: Duration = Duration::from_millis(50);
/// How long it must be quiet after a change of endpoints.
pub const QUIET_ENDPOINTS: Duration = Duration::from_millis(10);
/// How long a change is put off at most.
pub const AT_MOST: Duration = Duration::from_millis(500);

/// The pure steps between stores and resources; a trait so that what surrounds them can be tested without them.
pub trait Compile: Send + Sync + 'static {
    /// All that translation may depend on, for one proxy.
    type Scope: Clone + Ord + Send + Sync + 'static;
    /// What is kept between builds.
    type Builder: Default + Send + 'static;
    /// What scopes of one snapshot share.
    type Shared: Default;

    /// Makes the domain model.
    fn build(builder: &mut Self::Builder, stores: &Stores) -> Arc<Snapshot>;
    /// The scope of a pod; `None` when there is no such pod.
    fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<Self::Scope>;
    /// All resources of a scope. `shared` is of this snapshot.
    fn resources(snapshot: &Snapshot, scope: &Self::Scope, shared: &mut Self::Shared) -> Resources;
    /// The endpoints of one cluster of a scope; `None` when there is no such cluster.
    fn endpoints(snapshot: &Snapshot, scope: &Self::Scope, cluster: &str) -> Option<Resource>;
    /// Everything that was found wrong, whether or not a proxy is connected.
    fn findings(snapshot: &Snapshot) -> Vec<Finding>;
}

/// When waiting ends: `quiet` after the last change, and never later than [`AT_MOST`] after the first.
fn waits_until(first: Instant, last: Instant, lane: Lane) -> Instant {
    let quiet = if lane == Lane::Endpoints { QUIET_ENDPOINTS } else { QUIET };
    (last + quiet).min(first + AT_MOST)
}

/// Waits for a change and until it is quiet. Returns when the first change was seen; `None` when the source has ended.
pub async fn debounce(source: &mut impl Source) -> Option<Instant> {
    let mut lane = source.changed().await?;
    let first = Instant::now();
    let mut last = first;
    loop {
        match timeout_at(waits_until(first, last, lane), source.changed()).await {
            Ok(next) => {
                lane = lane.max(next?);
                last = Instant::now();
            }
            Err(_) => return Some(first),
        }
    }
}

/// Runs until the source ends or `shutdown`. `on_first` is called when the first configuration is published.
pub async fn run<C: Compile>(
    mut source: impl Source,
    publisher: Arc<Publisher<C>>,
    metrics: Metrics,
    on_first: impl FnOnce() + Send,
    shutdown: CancellationToken,
) {
    let mut on_first = Some(on_first);
    let mut builder = C::Builder::default();
    let mut joins = publisher.joins();
    loop {
        let since = {
            // One for all who connect meanwhile: dropped, it would forget the change that it has seen.
            let mut quiet = pin!(debounce(&mut source));
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    since = &mut quiet => match since {
                        Some(since) => break since,
                        None => return,
                    },
                    // A new pod connected: nothing changed but who listens.
                    Ok(()) = joins.changed() => {
                        let publisher = publisher.clone();
                        tokio::task::spawn_blocking(move || publisher.join()).await.ok();
                    }
                }
            }
        };
        let stores = source.stores().clone();
        let started = Instant::now();
        let round = publisher.clone();
        let done = tokio::task::spawn_blocking(move || {
            let snapshot = C::build(&mut builder, &stores);
            let lane = round.publish(snapshot, &stores, since);
            (builder, lane, stores.malformed.len())
        });
        let Ok((kept, lane, malformed)) = done.await else {
            // A panic in a pure step: what is published stays, and the next change starts from nothing.
            tracing::error!("making configuration failed; proxies keep what they have");
            builder = C::Builder::default();
            continue;
        };
        builder = kept;
        let label = if lane == Lane::Endpoints { "endpoints" } else { "all" };
        metrics.publications.get_or_create(&ResultLabel::new(label)).inc();
        metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        metrics.delay_seconds.observe(since.elapsed().as_secs_f64());
        metrics.malformed.set(i64::try_from(malformed).unwrap_or(i64::MAX));
        tracing::debug!(lane = label, took = ?started.elapsed(), "published");
        if let Some(on_first) = on_first.take() {
            on_first();
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod debounce_tests {
    use super::*;

    /// Changes without a pause, and how many were taken.
    struct Restless {
        changes: usize,
        stores: Stores,
    }

    impl Source for Restless {
        async fn changed(&mut self) -> Option<Lane> {
            if self.changes > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.changes += 1;
            Some(Lane::All)
        }

        fn stores(&mut self) -> &Stores {
            &self.stores
        }
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn debounce_when_one_change_comes_then_waits_until_it_is_quiet() {
        let start = Instant::now();
        assert_eq!(waits_until(start, start, Lane::All), start + ms(50));
        assert_eq!(waits_until(start, start, Lane::Endpoints), start + ms(10));
    }

    #[test]
    fn debounce_when_changes_go_on_then_gives_up_waiting_after_half_a_second() {
        let start = Instant::now();
        assert_eq!(waits_until(start, start + ms(30), Lane::All), start + ms(80));
        assert_eq!(waits_until(start, start + ms(480), Lane::All), start + ms(500));
    }

    #[tokio::test]
    async fn debounce_when_a_source_never_rests_then_returns_with_the_time_of_the_first_change() {
        let mut source = Restless { changes: 0, stores: Stores::default() };
        let start = Instant::now();
        let since = tokio::time::timeout(Duration::from_secs(10), debounce(&mut source)).await.unwrap().unwrap();
        assert!(since - start < AT_MOST, "the first change is the one that counts");
        assert!(source.changes > 2, "changes were taken together: {}", source.changes);
        assert!(start.elapsed() >= AT_MOST - ms(1));
    }
}
