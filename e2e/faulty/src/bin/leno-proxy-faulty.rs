//! A proxy that is bad on purpose. Its short commands (`wait`, `drain`, `capture`) are good ones: they stand for the kubelet.

use leno_faulty::{Fault, proxy};
use leno_proxy::xds::amend;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

leno_runtime::use_jemalloc!("narenas:2");

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:9";

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "run") {
        return leno_proxy::cli::main();
    }
    match Fault::of_this_image() {
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            return ExitCode::FAILURE;
        }
        Ok(Fault::Crashes) => {
            eprintln!("leno-proxy: a build that crashes at its start, on purpose");
            return ExitCode::FAILURE;
        }
        // Without a control plane it never has what it needs to serve.
        Ok(Fault::Unready) => {
            if std::env::var_os("LENO_CONTROL_PLANE").is_none() {
                let error = Command::new("/proc/self/exe")
                    .args(std::env::args_os().skip(1))
                    .env("LENO_CONTROL_PLANE", NOWHERE)
                    .exec();
                eprintln!("leno-proxy: {error}");
                return ExitCode::FAILURE;
            }
        }
        Ok(Fault::Errors) => amend::with(proxy::errors),
        Ok(Fault::Slow) => amend::with(proxy::slow),
        Ok(Fault::Rejects) => amend::with(proxy::rejects),
        Ok(Fault::Leaks) => amend::with(proxy::leaks),
    }
    leno_proxy::cli::main()
}
