//! A control plane that is bad on purpose.

use clap::Parser;
use leno_controlplane::translate::amend;
use leno_controlplane::{app, flags::Flags};
use leno_faulty::{Fault, proxy};
use std::process::ExitCode;

leno_runtime::use_jemalloc!("narenas:2");

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    leno_runtime::logging::init(&flags.logging)?;
    match Fault::of_this_image()? {
        Fault::Crashes => return Err("a build that crashes at its start, on purpose".into()),
        // It runs, and answers nobody.
        Fault::Unready => {
            leno_runtime::shutdown::signal()?.cancelled().await;
            return Ok(());
        }
        Fault::Rejects => amend::with(|resource| {
            if resource.type_url.ends_with("config.route.v3.RouteConfiguration") {
                proxy::garble(resource);
            }
        }),
        fault @ (Fault::Errors | Fault::Slow | Fault::Leaks) => {
            return Err(format!("a control plane cannot have the fault {fault:?}").into());
        }
    }
    Ok(app::run(flags).await?)
}
