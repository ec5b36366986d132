//! Kubernetes events, for what people should see in `kubectl describe`.
//!
//! Events are news, so the same news about the same object is published once in [`QUIET`]; later repeats are dropped, not
//! counted, which needs the verb `create` and no other. Publishing never blocks the caller: the queue holds [`QUEUE`]
//! events, more are dropped and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events that may wait to be published.
pub const QUEUE: usize = 256;
/// For how long the same news about the same object is not published again.
pub const QUIET: Duration = Duration::from_secs(600);
/// News that are remembered; when there are more, all are forgotten.
const REMEMBERED: usize = 2048;
/// Longest note that the API takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Publishes events. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<News>,
    dropped: Arc<AtomicU64>,
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// To whom.
    pub regarding: ObjectReference,
    /// Whether it is a warning.
    pub warning: bool,
    /// One CamelCase word of a bounded set.
    pub reason: String,
    /// What was being done, CamelCase.
    pub action: String,
    /// What happened and what to do about it.
    pub note: String,
}

impl Recorder {
    /// Publishes as `controller` (for example `mesh.leno.dev/operator`) and `instance` (the pod's name), until all clones
    /// are gone.
    pub fn start(client: Client, controller: &str, instance: &str) -> Self {
        let (queue, mut waiting) = mpsc::channel::<News>(QUEUE);
        let (controller, instance) = (controller.to_owned(), instance.to_owned());
        tokio::spawn(async move {
            let mut memory = Memory::default();
            while let Some(news) = waiting.recv().await {
                if !memory.is_new(&news, Instant::now()) {
                    continue;
                }
                let namespace = news.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let event = event(news, &controller, &instance, Timestamp::now());
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    tracing::warn!(%error, reason = event.reason, "an event could not be published");
                }
            }
        });
        Recorder { queue, dropped: Arc::default() }
    }

    /// Publishes, unless the same was published a short time ago or the queue is full.
    pub fn publish(&self, news: News) {
        if self.queue.try_send(news).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What was published when.
#[derive(Debug, Default)]
struct Memory {
    published: HashMap<(String, String, String), Instant>,
}

impl Memory {
    fn is_new(&mut self, news: &News, now: Instant) -> bool {
        if self.published.len() >= REMEMBERED {
            self.published.retain(|_, then| now.duration_since(*then) < QUIET);
            if self.published.len() >= REMEMBERED {
                self.published.clear();
            }
        }
        let object = news.regarding.uid.clone().or_else(|| news.regarding.name.clone()).unwrap_or_default();
        match self.published.entry((object, news.reason.clone(), news.note.clone())) {
            std::collections::hash_map::Entry::Occupied(then) if now.duration_since(*then.get()) < QUIET => false,
            entry => {
                entry.insert_entry(now);
                true
            }
        }
    }
}

fn event(news: News, controller: &str, instance: &str, now: Timestamp) -> Event {
    let mut note = news.note;
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE - 3).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    let name = news.regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", name, now.as_nanosecond())),
            namespace: Some(news.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(news.action),
        reason: Some(news.reason),
        note: Some(note),
        type_: Some(if news.warning { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(news.regarding),
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(reason: &str, note: &str) -> News {
        News {
            regarding: ObjectReference { name: Some("default".to_owned()), ..ObjectReference::default() },
            warning: false,
            reason: reason.to_owned(),
            action: "Reconcile".to_owned(),
            note: note.to_owned(),
        }
    }

    #[test]
    fn news_when_the_same_within_the_quiet_time_then_are_not_new() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        assert!(memory.is_new(&news("Ready", "2 of 2"), start));
        assert!(!memory.is_new(&news("Ready", "2 of 2"), start + Duration::from_secs(1)));
        assert!(memory.is_new(&news("Ready", "1 of 2"), start + Duration::from_secs(1)));
        assert!(memory.is_new(&news("Ready", "2 of 2"), start + QUIET));
    }

    #[test]
    fn event_when_its_object_is_cluster_scoped_then_goes_to_the_default_namespace() {
        let event = event(news("Ready", &"x".repeat(5000)), "mesh.leno.dev/operator", "pod-1", Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert!(event.note.is_some_and(|note| note.len() <= MAX_NOTE));
    }
}
