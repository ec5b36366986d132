//! A last change of resources before they are taken in, for programs that are built around this library: upgrades are tested with
//! proxies that are bad on purpose, and those are a crate of their own. The proxy itself never sets one.

use super::state::Update;
use prost_types::Any;
use std::sync::OnceLock;

/// Changes a resource, named by its type.
pub type Amend = fn(&mut Any);

static AMEND: OnceLock<Amend> = OnceLock::new();

/// From now on every resource of this process goes through `amend` first. Only the first call counts.
pub fn with(amend: Amend) {
    AMEND.set(amend).ok();
}

/// Changes what a response brings.
pub(super) fn update(update: &mut Update) {
    let Some(amend) = AMEND.get() else { return };
    update.resources.iter_mut().filter_map(|resource| resource.resource.as_mut()).for_each(amend);
}
