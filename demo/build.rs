//! Generates the gRPC types of the ratings service, without `protoc`.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["ratings.proto"], ["proto"])?;
    tonic_prost_build::configure().out_dir(PathBuf::from(env::var("OUT_DIR")?)).compile_fds(descriptors)?;
    Ok(())
}
