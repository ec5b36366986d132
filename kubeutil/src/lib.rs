//! Kubernetes plumbing: client, watches, lease, server-side apply, conditions, events, backoff.
//!
//! What decides something is a pure function with the time handed in; what talks to the API server is thin around it.

pub mod apply;
pub mod backoff;
pub mod client;
pub mod conditions;
pub mod events;
pub mod lease;
pub mod watch;
