//! Intermediate form to xDS: pure, and the only place that knows Envoy's messages.

mod resources;

pub use resources::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resource, Resources, TypeUrl};
