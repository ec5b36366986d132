//! What every process needs: logging, shutdown, metrics, health, admin server, certificates, name resolution, version.
//!
//! Nothing here knows Kubernetes, a protocol of the mesh, or what a process is for. Each `main` is a few lines over it:
//!
//! ```no_run
//! leno_runtime::use_jemalloc!("narenas:2");
//!
//! # #[derive(clap::Parser)] struct Flags { #[command(flatten)] logging: leno_runtime::logging::LogFlags }
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let flags = <Flags as clap::Parser>::parse();
//!     leno_runtime::logging::init(&flags.logging)?;
//!     leno_runtime::certs::install_crypto_provider();
//!     let shutdown = leno_runtime::shutdown::signal()?;
//!     let registry = leno_runtime::metrics::Registry::new();
//!     let health = leno_runtime::http::Health::new();
//!     let server = leno_runtime::http::serve_health(([0, 0, 0, 0], 8080).into(), health.clone(), registry, shutdown.clone());
//!     tokio::spawn(server);
//!     health.set_ready(true);
//!     shutdown.cancelled().await;
//!     Ok(())
//! }
//! ```

pub mod admin;
pub mod certs;
pub mod dns;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod shutdown;
pub mod tls;
pub mod trust;
pub mod version;

pub use version::{previous_version, version};
