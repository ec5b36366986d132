//! Kubernetes objects to the mesh's own terms.
//!
//! Specs are taken apart exhaustively, so that a field nobody decided about does not compile: it is converted, or it is on
//! the list of what is not in force yet ([`not_yet`]). Conversion looks at one object only; whether what it names exists is
//! decided where the whole mesh is known. An object with a mistake that changes where traffic goes has no value at all,
//! rather than one of guesses.

mod client_tls;
mod destination_rule;
mod headers;
mod http;
mod l4;
mod locality;
mod not_yet;
mod policy;
mod report;
mod virtual_service;

pub use client_tls::is_secret_name;
pub use destination_rule::destination_rule;
pub use not_yet::{Feature, not_yet};
pub use virtual_service::virtual_service;

use leno_core::Finding;

/// The result of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted<T> {
    /// The object in the mesh's terms; `None` when a finding of the condition Accepted is failing.
    pub value: Option<T>,
    /// What there is to say about it.
    pub findings: Vec<Finding>,
}
