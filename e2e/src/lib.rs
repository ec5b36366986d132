//! The local cluster, the demo, scenario tests on a real Kubernetes, and a stock Envoy as judge.

pub mod audit;
pub mod bed;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod differential;
pub mod figures;
pub mod gate;
pub mod install;
pub mod judge;
pub mod lab;
pub mod metrics;
pub mod scenarios;
pub mod upgrades;
