//! Generates clients and servers of the protocols in `proto/`; protox reads them, so that no `protoc` is needed.

use std::{env, error::Error, path::PathBuf};

const PROTOCOLS: [&str; 3] = ["proto/identity.proto", "proto/proxies.proto", "proto/status.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOCOLS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure().out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
