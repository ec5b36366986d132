//! The control plane as its clients see it. One program: each more would be linked once more.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod ads;
mod common;
mod golden;
mod identity;
mod properties;
mod proxies;
mod spread;
mod state_of_the_world;
mod warming;
