//! A last change of resources before they get their version, for programs that are built around this library: upgrades are tested
//! with control planes that are bad on purpose, and those are a crate of their own. The control plane itself never sets one.

use prost_types::Any;
use std::sync::OnceLock;

/// Changes a resource, named by its type.
pub type Amend = fn(&mut Any);

static AMEND: OnceLock<Amend> = OnceLock::new();

/// From now on every resource of this process goes through `amend` first. Only the first call counts.
pub fn with(amend: Amend) {
    AMEND.set(amend).ok();
}

/// The resource as it is sent.
pub(super) fn amended(mut body: Any) -> Any {
    if let Some(amend) = AMEND.get() {
        amend(&mut body);
    }
    body
}
