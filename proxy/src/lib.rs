//! The data plane.

pub mod capture;
pub mod config;
pub mod identity;
pub mod telemetry;
pub mod tls;
pub mod xds;
