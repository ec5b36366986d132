//! The data plane.

pub mod admin;
pub mod agent;
pub mod balance;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod http;
pub mod http2;
pub mod identity;
pub mod listen;
pub mod logs;
pub mod overload;
pub mod pool;
pub mod profile;
pub mod rbac;
pub mod route;
pub mod slots;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod worker;
pub mod xds;
