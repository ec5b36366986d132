//! Flags of the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use leno_runtime::logging::LogFlags;

/// Leno's control plane: reads a cluster, or a folder of YAML, and serves configuration and certificates to proxies.
///
/// It writes nothing to Kubernetes. Every replica serves.
#[derive(clap::Parser, Clone, Debug)]
#[command(
    name = "leno-control-plane",
    version,
    after_help = "Examples:\n  \
        In a cluster (the operator does this):\n    \
        leno-control-plane --mesh-install default --revision default --namespace leno-system --ca-dir /etc/leno/ca\n  \
        On a laptop, with tokens of the form dev:<namespace>/<pod>:\n    \
        leno-control-plane --config-dir ./yaml --root-out ./roots.pem --grpc-address 127.0.0.1:15012"
)]
pub struct Flags {
    /// How to log.
    #[command(flatten)]
    pub logging: LogFlags,
    /// Name of the MeshInstall whose settings count.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub mesh_install: String,
    /// Revision of the mesh that this replica serves; the label of its pods and part of its service's name.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub revision: String,
    /// Namespace that this replica runs in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "leno-system", value_name = "NAME")]
    pub namespace: String,
    /// Folder with the mesh's authority: tls.crt, tls.key, roots.pem. Read again when they change.
    #[arg(long, value_name = "DIR", required_unless_present = "config_dir")]
    pub ca_dir: Option<PathBuf>,
    /// Reads objects from this folder of YAML instead of Kubernetes, and makes an authority of its own unless --ca-dir is
    /// given. Tokens are then dev:<namespace>/<pod>: for tests and laptops only.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Writes the trusted roots as PEM to this file at start; with --config-dir.
    #[arg(long, value_name = "FILE", requires = "config_dir")]
    pub root_out: Option<PathBuf>,
    /// Address of gRPC: configuration, certificates, reports.
    #[arg(long, default_value = "0.0.0.0:15012", value_name = "ADDRESS")]
    pub grpc_address: SocketAddr,
    /// Address of the injection webhook; not served with --config-dir.
    #[arg(long, default_value = "0.0.0.0:15017", value_name = "ADDRESS")]
    pub webhook_address: SocketAddr,
    /// Address of /metrics for Prometheus.
    #[arg(long, default_value = "0.0.0.0:15014", value_name = "ADDRESS")]
    pub metrics_address: SocketAddr,
    /// Address of /healthz/live and /healthz/ready.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub health_address: SocketAddr,
    /// Address of the admin server; keep it on loopback.
    #[arg(long, default_value = "127.0.0.1:15000", value_name = "ADDRESS")]
    pub admin_address: SocketAddr,
    /// Image of the proxy that is injected, instead of the one that the MeshInstall names.
    #[arg(long, value_name = "IMAGE")]
    pub proxy_image: Option<String>,
    /// Image of the agent with Envoy that is injected, instead of the one that the MeshInstall names.
    #[arg(long, value_name = "IMAGE")]
    pub envoy_image: Option<String>,
    /// Lifetime of workload certificates, in seconds.
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(60..=2_592_000))]
    pub certificate_lifetime: u64,
    /// Seconds between SIGTERM and the end of the first stream: by then no new connections are sent here any longer. Streams
    /// then end one by one, within 15 more.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=60))]
    pub drain: u64,
}

impl Flags {
    /// Lifetime of workload certificates.
    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.certificate_lifetime)
    }

    /// The names under which this replica is dialled.
    pub fn dns_names(&self) -> Vec<String> {
        let service = format!("leno-control-plane-{}.{}.svc", self.revision, self.namespace);
        vec![service.clone(), format!("{service}.cluster.local"), "localhost".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn flags_when_defined_then_make_sense_to_clap() {
        Flags::command().debug_assert();
    }

    #[test]
    fn flags_when_neither_authority_nor_folder_is_given_then_the_error_says_what_is_missing() {
        let error = Flags::try_parse_from(["leno-control-plane"]).unwrap_err().to_string();
        assert!(error.contains("--ca-dir"), "{error}");
    }

    #[test]
    fn dns_names_when_in_a_revision_then_are_those_of_its_service() {
        let flags = Flags::parse_from(["x", "--ca-dir", "/ca", "--revision", "blue", "--namespace", "mesh"]);
        assert_eq!(
            flags.dns_names(),
            ["leno-control-plane-blue.mesh.svc", "leno-control-plane-blue.mesh.svc.cluster.local", "localhost"]
        );
    }
}
