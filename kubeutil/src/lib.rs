//! Kubernetes plumbing: client, watches, lease, server-side apply, conditions, events, backoff, and what a proxy needs of its pod.
//!
//! What decides something is a pure function with the time handed in; what talks to the API server is thin around it.

pub mod apply;
pub mod backoff;
pub mod client;
pub mod conditions;
pub mod events;
pub mod lease;
pub mod sidecar;
pub mod watch;
