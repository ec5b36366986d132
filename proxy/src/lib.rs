//! The data plane.

pub mod capture;
pub mod config;
pub mod identity;
pub mod telemetry;
pub mod tls;
pub mod xds;
pub mod slots;
pub mod balance;
pub mod http;
pub mod http2;
pub mod listen;
pub mod pool;
pub mod route;
pub mod tcp;
pub mod worker;
pub mod admin;
pub mod cli;
pub mod control;
