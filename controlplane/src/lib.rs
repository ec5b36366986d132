//! Kubernetes, or a folder of YAML, to xDS; workload certificates; sidecar injection.

pub mod stores;
pub mod translate;
