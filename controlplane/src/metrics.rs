//! What this process counts about itself.

use leno_runtime::metrics::Registry;
use leno_runtime::metrics::prometheus_client::encoding::EncodeLabelSet;
use leno_runtime::metrics::prometheus_client::metrics::counter::Counter;
use leno_runtime::metrics::prometheus_client::metrics::family::Family;
use leno_runtime::metrics::prometheus_client::metrics::gauge::Gauge;
use leno_runtime::metrics::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::ads::Kind;

/// A label with the kind of an xDS resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    r#type: String,
}

impl TypeLabel {
    /// The label of a kind.
    pub fn new(kind: Kind) -> Self {
        TypeLabel { r#type: kind.as_str().to_owned() }
    }
}

/// A label with how something ended: a bounded set of words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: &'static str,
}

impl ResultLabel {
    /// The label.
    pub fn new(result: &'static str) -> Self {
        ResultLabel { result }
    }
}

/// The metrics. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Streams of proxies that are open.
    pub streams: Gauge,
    /// Responses sent to proxies.
    pub pushes: Family<TypeLabel, Counter>,
    /// Resources in them.
    pub pushed_resources: Family<TypeLabel, Counter>,
    /// Responses that proxies took.
    pub acknowledged: Family<TypeLabel, Counter>,
    /// Responses that proxies refused.
    pub refused: Family<TypeLabel, Counter>,
    /// Seconds from the end of debouncing to the publication of all configurations.
    pub publish_seconds: Histogram,
    /// Seconds from the first change to the publication.
    pub delay_seconds: Histogram,
    /// Publications, by lane.
    pub publications: Family<ResultLabel, Counter>,
    /// Distinct scopes that are served.
    pub scopes: Gauge,
    /// Objects that could not be read.
    pub malformed: Gauge,
    /// Certificates asked for, by how it ended.
    pub certificates: Family<ResultLabel, Counter>,
    /// Streams that this replica ended, to spread them or to leave.
    pub ended: Family<ResultLabel, Counter>,
    /// Pods that the webhook was asked about, by what it did.
    pub injections: Family<ResultLabel, Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        Metrics {
            streams: registry.register(
                "leno_control_plane_streams",
                "Streams of proxies that are open",
                Gauge::default(),
            ),
            pushes: registry.register("leno_control_plane_pushes", "Responses sent to proxies", Family::default()),
            pushed_resources: registry.register(
                "leno_control_plane_pushed_resources",
                "Resources sent to proxies",
                Family::default(),
            ),
            acknowledged: registry.register(
                "leno_control_plane_acknowledgements",
                "Responses that proxies took",
                Family::default(),
            ),
            refused: registry.register(
                "leno_control_plane_refusals",
                "Responses that proxies refused",
                Family::default(),
            ),
            publish_seconds: registry.register(
                "leno_control_plane_publish_seconds",
                "Time to make all configurations after a change",
                seconds(),
            ),
            delay_seconds: registry.register(
                "leno_control_plane_delay_seconds",
                "Time from a change to its publication, debouncing included",
                seconds(),
            ),
            publications: registry.register(
                "leno_control_plane_publications",
                "Publications of configuration, by lane",
                Family::default(),
            ),
            scopes: registry.register("leno_control_plane_scopes", "Distinct scopes that are served", Gauge::default()),
            malformed: registry.register(
                "leno_control_plane_malformed_objects",
                "Objects that could not be read",
                Gauge::default(),
            ),
            certificates: registry.register(
                "leno_control_plane_certificates",
                "Certificates asked for, by how it ended",
                Family::default(),
            ),
            ended: registry.register(
                "leno_control_plane_ended_streams",
                "Streams that this replica ended, to spread them or to leave",
                Family::default(),
            ),
            injections: registry.register(
                "leno_control_plane_injections",
                "Pods that the webhook was asked about, by what it did",
                Family::default(),
            ),
        }
    }
}
