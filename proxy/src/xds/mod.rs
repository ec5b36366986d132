//! The client of the control plane: Envoy's v3 discovery protocol, in its delta form, over one mutual TLS stream.
//!
//! [`client`] speaks the protocol, [`state`] decides what is in force, [`convert`] knows Envoy's messages. Listeners and
//! clusters are taken as a whole; endpoints and routes are asked for by the names that these use.

pub mod backoff;
pub mod bootstrap;
pub mod client;
pub mod convert;
pub mod state;

pub use client::{Client, Connect, Connection, LocalFuture, Publish, SharedState, node};
pub use state::{Bind, Kind, State};
