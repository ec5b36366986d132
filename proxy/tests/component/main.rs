//! Whole proxies and their parts with real peers around them. One program: each more would be linked once more.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod capture;
mod change;
mod control_plane;
mod fuzz;
mod fuzz_served;
mod golden;
mod h2spec;
mod hand_over;
mod http2;
mod identity;
mod memory;
#[path = "../support/mesh.rs"]
mod mesh;
#[path = "../support/process.rs"]
mod process;
mod serve;
mod sidecars;
mod slots;
mod subscriptions;
mod suites;
#[path = "../support/mod.rs"]
mod support;
mod xds;
