//! The data plane.

pub mod capture;
pub mod config;
pub mod telemetry;
pub mod tls;
pub mod http;
pub mod http2;
