//! The demo shop: five small services and a client in one binary, each a role.
//!
//! ```text
//! front ──HTTP──▶ reviews v1|v2|v3 ──gRPC──▶ ratings
//!       └─HTTP──▶ details ──TCP (server speaks first)──▶ inventory
//! ```
//!
//! It is also what the scenario tests measure with: `client` counts answers, `watch` tells when they change, `echo`
//! answers with what it saw, `ask` shows all of one answer.

mod ask;
mod client;
mod details;
mod echo;
mod front;
mod inventory;
mod load;
mod net;
mod ratings;
mod reviews;
mod server;

use clap::{Parser, Subcommand};
use std::{net::SocketAddr, process::ExitCode};

/// The demo shop of Leno.
///
/// Example: `leno-demo reviews --version v2 --ratings ratings:9090`
#[derive(Parser)]
#[command(name = "leno-demo", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// The front page, in HTML.
    Front(front::Args),
    /// Reviews of a product; v2 and v3 ask `ratings` for the stars.
    Reviews(reviews::Args),
    /// Stars, over gRPC.
    Ratings(ratings::Args),
    /// What a product is; asks `inventory` how many there are.
    Details(details::Args),
    /// How many there are, over a line protocol on TCP in which the server speaks first.
    Inventory(inventory::Args),
    /// Answers every request with what it saw of it, in JSON.
    Echo(echo::Args),
    /// Sends requests, counts what came back, and prints it as JSON.
    Client(client::Args),
    /// Keeps up constant loads of every kind until it is told to end, and tells what they counted over HTTP.
    Load(load::Args),
    /// Sends one request and prints all of its answer.
    Ask(ask::Args),
    /// Asks again and again, and prints a line of JSON each time the answering version changes.
    Watch(client::WatchArgs),
    /// Does nothing until it is told to end: a place to run `client` in.
    Idle,
}

/// What every serving role takes.
#[derive(clap::Args, Clone)]
struct Listen {
    /// The address to serve on.
    #[arg(long, default_value = "0.0.0.0:8080", env = "LISTEN")]
    listen: SocketAddr,
    /// The version that answers carry in `x-version`.
    #[arg(long, default_value = "v1", env = "VERSION")]
    version: String,
}

/// Any failure of a role, with its story.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let role = Cli::parse().role;
    let done = async {
        match role {
            Role::Front(args) => front::serve(args).await,
            Role::Reviews(args) => reviews::serve(args).await,
            Role::Ratings(args) => ratings::serve(args).await,
            Role::Details(args) => details::serve(args).await,
            Role::Inventory(args) => inventory::serve(args).await,
            Role::Echo(args) => echo::serve(args).await,
            Role::Client(args) => client::run(args).await,
            Role::Load(args) => load::run(args).await,
            Role::Ask(args) => ask::run(args).await,
            Role::Watch(args) => client::watch(args).await,
            Role::Idle => {
                server::terminated().await;
                Ok(())
            }
        }
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-demo: {error}");
            ExitCode::FAILURE
        }
    }
}
