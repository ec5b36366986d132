//! Envoy's v3 API as Rust types with their descriptors.
//!
//! The types are generated at build time from `envoy.binpb`, which `make generate` writes from the Go module
//! `github.com/envoyproxy/go-control-plane/envoy`. The descriptors also give every message a JSON form ([`json`]):
//! golden files, config dumps and bootstrap files are written in it.

pub mod client;
mod forms;
pub mod json;
pub mod rules;
pub mod yaml;

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::panic, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy.rs"));
}

pub use generated::*;

/// Packs a message with its type, as xDS resources and extension configurations are sent.
pub fn any<M: prost::Message + prost::Name>(message: &M) -> prost_types::Any {
    prost_types::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Unpacks a message if it is of type `M`; `None` when it is of another type.
///
/// # Errors
/// When the type fits and the bytes do not.
pub fn unpack<M: prost::Message + prost::Name + Default>(
    any: &prost_types::Any,
) -> Result<Option<M>, prost::DecodeError> {
    if any.type_url == M::type_url() { M::decode(any.value.as_slice()).map(Some) } else { Ok(None) }
}
