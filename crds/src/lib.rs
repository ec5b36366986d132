//! The Kubernetes API types that Leno serves, with their schema and rules.
//!
//! One kind a module. [`istio`] holds the traffic kinds of `networking.istio.io`; [`schema`] and [`definition`] turn the
//! types into CustomResourceDefinitions, which the `crdgen` binary writes to `config/crd` and into the Helm chart
//! ([`generate`]).

pub mod convert;
pub mod definition;
pub mod generate;
pub mod istio;
pub mod meshinstall;
pub mod schema;
