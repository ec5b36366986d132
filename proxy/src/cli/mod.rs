//! The command line of `leno-proxy`.

mod capture;
mod run;
mod serve;

use crate::slots::{Folder, desk};
use clap::{Parser, Subcommand};
use leno_runtime::logging::{self, LogFlags};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The data plane of Leno: a sidecar proxy, and the short commands that stand beside it in a pod.
#[derive(Debug, Parser)]
#[command(name = "leno-proxy", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    logging: LogFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy of one slot: serves, or stands by for the other slot.
    Run(Box<run::Flags>),
    /// Runs a proxy that Envoy's bootstrap configures, without a pod.
    Serve(Box<serve::Flags>),
    /// Leads the pod's TCP connections into the proxy; needs CAP_NET_ADMIN.
    Capture(Box<capture::Flags>),
    /// Waits until the pod's proxy serves, in this slot or in the other one.
    #[command(after_help = "Example (postStart hook of a slot):\n  leno-proxy wait --slot 0")]
    Wait(SlotFlags),
    /// Asks a slot to hand over to the other one and to let its connections end; returns when that is done.
    #[command(after_help = "Example (preStop hook of a slot):\n  leno-proxy drain --slot 0")]
    Drain(SlotFlags),
}

#[derive(Debug, clap::Args)]
struct SlotFlags {
    /// Which slot.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..2))]
    slot: u8,
    /// The folder that the slots share.
    #[arg(long, default_value = "/run/leno", value_name = "DIR")]
    folder: PathBuf,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    limit: u64,
}

/// Runs the process.
pub fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<(), Box<dyn Error>> {
    logging::init(&cli.logging)?;
    match cli.command {
        Command::Run(flags) => run::run(*flags),
        Command::Serve(flags) => serve::run(*flags),
        Command::Capture(flags) => Ok(capture::run(&flags)?),
        Command::Wait(SlotFlags { slot, folder, limit }) => runtime()?.block_on(async {
            let word = desk::wait(&Folder::new(folder), slot, Duration::from_secs(limit)).await?;
            println!("slot {slot}: {word}");
            Ok(())
        }),
        Command::Drain(SlotFlags { slot, folder, limit }) => {
            runtime()?.block_on(desk::drain(&Folder::new(folder), slot, Duration::from_secs(limit)))?;
            Ok(())
        }
    }
}

/// The control thread's runtime: this very thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
