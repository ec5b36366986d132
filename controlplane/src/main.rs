//! Leno's control plane.

use clap::Parser;
use leno_controlplane::app;
use leno_controlplane::flags::Flags;

leno_runtime::use_jemalloc!("narenas:2");

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let flags = Flags::parse();
    if let Err(error) = leno_runtime::logging::init(&flags.logging) {
        eprintln!("leno-control-plane: {error}");
        return std::process::ExitCode::FAILURE;
    }
    match app::run(flags).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
