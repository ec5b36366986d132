//! The kinds of `networking.istio.io`, as Istio 1.31 serves them.

pub mod destination_rule;
pub mod duration;
pub mod null;
pub mod number;
pub mod status;
pub mod virtual_service;
