//! A real Kubernetes on this machine, without a container engine or a registry: of one node, and a second one where a test needs it.
//!
//! The cluster lives in a network namespace `leno-<name>` (reachable by that name from outside) and in a process
//! and a mount namespace of its own. Its first process, the [`supervisor`], starts etcd, the Kubernetes programs,
//! containerd and CoreDNS. That shape is what makes a stop complete: when the supervisor dies, even by a `kill -9`,
//! the kernel ends every process of the cluster, pods included, and drops every mount; what remains
//! are control groups, the network namespace and the state folder, which [`lifecycle`] removes. The same clean-up
//! stands before every start, so a start copes with whatever an interrupted run left.
//!
//! Everything that can be decided from data alone is here as pure functions ([`layout`], [`settings`]); what needs
//! the kernel or other programs is in [`netns`], [`lifecycle`], [`supervisor`], [`binaries`], [`images`] and [`kernel`].

pub mod binaries;
pub mod error;
pub mod forward;
pub mod images;
pub mod kernel;
pub mod layout;
pub mod lifecycle;
pub mod netns;
pub mod pki;
pub mod run;
pub mod second;
pub mod settings;
pub mod supervisor;
pub mod target;

pub use error::Error;
pub use layout::{Layout, Name, Node};
pub use lifecycle::Cluster;
pub use second::Second;
pub use target::{Target, target};
