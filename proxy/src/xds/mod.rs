//! The client of a control plane: Envoy's v3 discovery protocol in both of its forms, on one stream for everything (the
//! mesh's control plane: delta over mutual TLS), on a stream a kind, or from files.
//!
//! [`client`] speaks the protocol, [`state`] decides what is in force, [`convert`] knows Envoy's messages. Listeners and
//! clusters are taken as a whole; endpoints and routes are asked for by the names that these use.

pub mod amend;
pub mod backoff;
pub mod bootstrap;
pub mod client;
pub mod convert;
pub mod files;
pub mod management;
pub mod rejections;
pub mod source;
pub mod state;
mod wire;

pub use client::{Changes, Client, Connect, Connection, LocalFuture, Publish, Role, SharedState, node};
pub use rejections::Rejections;
pub use state::{Bind, Kind, State};
