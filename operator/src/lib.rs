//! The MeshInstall lifecycle, and every write to the cluster.
//!
//! ```text
//! observe  watches → one look at everything (observe)
//! plan     look → steps and claims, pure (plan, plan::render, plan::status)
//! apply    steps → server-side apply, delete (execute)
//! report   look → status, events (report)
//! proxies  control planes' streams → what the proxies of every pod count (proxies)
//! traffic  control planes' streams → status of VirtualServices and DestinationRules (traffic)
//! ```
//!
//! Two replicas run; the one that holds the lease works, the other waits for it. A leader that loses the lease ends its
//! process.

pub mod execute;
pub mod meter;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod plan;
pub mod proxies;
pub mod reconcile;
pub mod report;
pub mod traffic;
