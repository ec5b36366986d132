//! What hostile peers do. A program of its own, so that nothing else runs beside the well-behaved client whose time is measured.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod flood;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
