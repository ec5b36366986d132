//! Generates the Rust types of Envoy's API from its descriptors; no protoc and no network are needed.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=envoy.binpb");
    let descriptors = prost_types::FileDescriptorSet::decode(fs::read("envoy.binpb")?.as_slice())?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut config = tonic_prost_build::Config::new();
    config.include_file("envoy.rs").enable_type_names().type_name_domain(["."], "type.googleapis.com").btree_map(["."]);
    tonic_prost_build::configure().out_dir(out).compile_fds_with_config(descriptors, config)?;
    Ok(())
}
