//! The one list of what a spec may say and this release does not act upon. A field on it is reported in the status of
//! every object that uses it; taking a field into force is taking it off the list.

/// A part of an API whose effect may not be there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Gateways as the place where a VirtualService applies.
    Gateways,
}

/// What is not in force yet, and what becomes of traffic meanwhile.
const NOT_YET_IN_FORCE: &[(Feature, &str)] =
    &[(Feature::Gateways, "gateways are not served yet; the rules apply to sidecars only (the reserved gateway mesh)")];

/// What to tell about a feature that is not in force yet; `None` when it is.
pub fn not_yet(feature: Feature) -> Option<&'static str> {
    NOT_YET_IN_FORCE.iter().find(|(listed, _)| *listed == feature).map(|(_, message)| *message)
}
