//! Kubernetes, or a folder of YAML, to xDS; workload certificates; sidecar injection.

pub mod acks;
pub mod admin;
pub mod ads;
pub mod app;
pub mod build;
pub mod compile;
pub mod flags;
pub mod grpc;
pub mod identity;
pub mod metrics;
pub mod pipeline;
pub mod proxies;
pub mod resolve;
pub mod source;
pub mod stores;
pub mod tls;
pub mod translate;
pub mod webhook;
