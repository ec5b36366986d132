//! The metrics of a process: a registry that can be shared, and its text for Prometheus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry as Inner};

pub use prometheus_client;

/// The content type of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry of metrics. Cheap to clone; clones share the metrics. The lock inside is taken to register and to encode,
/// never to count.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

impl Registry {
    /// A registry that holds `leno_build_info` with the version of this process.
    pub fn new() -> Self {
        let registry = Registry { inner: Arc::new(Mutex::new(Inner::default())) };
        let version = Info::new(vec![("version", crate::version())]);
        registry.register_owned("leno_build", "The release that this process is", version);
        registry
    }

    /// Adds a metric under `name` (counters get the suffix `_total` by themselves) and hands it back for use.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.lock().register(name, help, metric.clone());
        metric
    }

    /// Adds what only implements the trait and cannot be cloned.
    pub fn register_owned(&self, name: &str, help: &str, metric: impl Metric) {
        self.lock().register(name, help, metric);
    }

    /// Runs `build` on the registry itself, for sub-registries and collectors.
    pub fn with<T>(&self, build: impl FnOnce(&mut Inner) -> T) -> T {
        build(&mut self.lock())
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.lock()) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    /// A panic in a metric's registration leaves the registry usable: it is a list.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn registry_when_a_counter_counts_then_the_text_shows_it() {
        let registry = Registry::new();
        let counter: Counter = registry.register("leno_things", "Things", Counter::default());
        counter.inc();
        let text = registry.encode();
        assert!(text.contains("leno_things_total 1"), "{text}");
        assert!(text.contains("leno_build_info{version="), "{text}");
    }
}
