//! What the operator plans and does. One program: each more would be linked once more.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod golden;
mod revisions;
mod upgrades;
