//! Builds that are bad on purpose, for tests of upgrades. They are programs of their own around the libraries of the proxy and the
//! control plane, not features of these: what is released cannot contain them, whatever is built with it. Images of theirs say
//! by [`VARIABLE`] which fault they have; running pods cannot be told another.

pub mod fault;
pub mod proxy;

pub use fault::{Fault, VARIABLE};
