//! The client of the control plane: Envoy's v3 discovery protocol, in its delta form, over one mutual TLS stream.

pub mod convert;
