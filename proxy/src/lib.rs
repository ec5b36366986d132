//! The data plane.

pub mod capture;
pub mod config;
