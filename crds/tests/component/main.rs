//! The schema as the API server reads it, and the generated files. One program: each more would be linked once more.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test program: its helpers may fail loudly

mod common;
mod generated;
mod round_trip;
mod schema;
