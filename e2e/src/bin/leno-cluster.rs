//! The local cluster from the command line: start, stop, look into it, and bring images there.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use leno_e2e::cluster::{
    Cluster, Error, Layout, Name, Second, binaries, forward, images, lifecycle, supervisor, target,
};

/// A real Kubernetes on this machine, without a container engine.
#[derive(Parser)]
#[command(name = "leno-cluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Args)]
struct Which {
    /// The local cluster's name; `LENO_CLUSTER` or `demo` where none is given.
    #[arg(long)]
    name: Option<String>,
}

impl Which {
    fn name(&self) -> Result<Name, Error> {
        match &self.name {
            Some(name) => name.parse(),
            None => std::env::var("LENO_CLUSTER").unwrap_or_else(|_| "demo".to_owned()).parse(),
        }
    }
}

#[derive(Subcommand)]
enum Task {
    /// Start a cluster (needs root); builds its programs first where the cache does not have them.
    Up(Which),
    /// Stop a cluster and remove all of it but the cached programs (needs root).
    Down(Which),
    /// Let a second node join a running cluster, for pods that tolerate the taint `leno.dev/second-node` (needs root). It goes with
    /// the cluster.
    ///
    /// Example: `leno-cluster join --name demo`
    Join(Which),
    /// List the clusters and whether they run.
    Status,
    /// Build the cluster's programs, the load generator and the suites, fetch Envoy, and say where they are.
    Binaries,
    /// Fetch a stock Envoy where it is not there, and print its path.
    Envoy,
    /// Build the HTTP/2 conformance suite where it is not there, and print its path.
    H2spec,
    /// Build the management server made of go-control-plane where it is not there, and print its path.
    XdsServer,
    /// Build gRPC's own client and server for interoperability where they are not there, and print their folder.
    GrpcInterop,
    /// Fetch the WebSocket suite where it is not there, and print its folder.
    WebsocketSuite,
    /// Bring an image archive into a cluster.
    LoadImage {
        #[command(flatten)]
        which: Which,
        /// Archives as `docker save` or `buildah push oci-archive:` writes them.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Build the images of Leno's components, and bring them into a cluster.
    BuildImages {
        #[command(flatten)]
        which: Which,
        /// Where the binaries are.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The release that the binaries are.
        #[arg(long)]
        version: String,
        /// The release before it.
        #[arg(long, default_value = "")]
        previous_version: String,
        /// Tags for the images; the version where none is given.
        #[arg(long, value_delimiter = ',')]
        tags: Vec<String>,
        /// Only these components: operator, control-plane, proxy, demo.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Where to leave the archives.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Only write archives; no cluster is touched.
        #[arg(long, requires = "out")]
        no_load: bool,
    },
    /// Run kubectl against a cluster.
    Kubectl {
        #[command(flatten)]
        which: Which,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a program in a cluster's network, with KUBECONFIG set and kubectl and helm on the PATH.
    Exec {
        #[command(flatten)]
        which: Which,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<OsString>,
    },
    /// Lead a port of this machine to a Service of a local cluster, for a browser.
    ///
    /// Example: `leno-cluster forward shop/front:80 --listen 127.0.0.1:8080`
    Forward {
        #[command(flatten)]
        which: Which,
        /// `NAMESPACE/NAME:PORT` of the Service.
        service: String,
        /// The address to listen on.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: std::net::SocketAddr,
    },
    /// The cluster's first process; `up` starts it.
    #[command(name = supervisor::COMMAND, hide = true)]
    Supervise {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        inner: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-cluster: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(task: Task) -> Result<(), Error> {
    match task {
        Task::Up(which) => {
            let cluster = Cluster::up(which.name()?)?;
            let name = &cluster.layout().name;
            println!("kubectl:  LENO_CLUSTER={name} e2e/kubectl get nodes");
            println!("programs: leno-cluster exec --name {name} -- COMMAND");
            println!("logs:     {}", cluster.layout().logs().display());
            Ok(())
        }
        Task::Join(which) => {
            let first = Cluster::attach(which.name()?)?;
            let second = Second::join(&first)?;
            second.copy_images(&first)?;
            println!("node {} has joined, with the images of the first one", second.name());
            Ok(())
        }
        Task::Down(which) => lifecycle::down(which.name()?),
        Task::Status => status(),
        Task::Binaries => {
            let layout = Layout::from_environment("demo".parse()?)?;
            let programs = binaries::programs(&layout)?;
            println!("kubernetes {}", programs.kubernetes.display());
            println!("node       {}", programs.node.display());
            println!("pause      {}", images::pause(&layout)?.display());
            println!("envoy      {}", binaries::envoy(&layout)?.display());
            println!("fortio     {}", binaries::fortio(&layout)?.display());
            println!("h2spec     {}", binaries::h2spec(&layout)?.display());
            println!("xds-server {}", binaries::xds_server(&layout)?.display());
            println!("grpc       {}", binaries::grpc_interop(&layout)?.display());
            println!("websocket  {}", binaries::websocket_suite(&layout)?.display());
            Ok(())
        }
        Task::Envoy => {
            let layout = Layout::from_environment("demo".parse()?)?;
            println!("{}", binaries::envoy(&layout)?.display());
            Ok(())
        }
        Task::H2spec => {
            let layout = Layout::from_environment("demo".parse()?)?;
            println!("{}", binaries::h2spec(&layout)?.display());
            Ok(())
        }
        Task::XdsServer => {
            let layout = Layout::from_environment("demo".parse()?)?;
            println!("{}", binaries::xds_server(&layout)?.display());
            Ok(())
        }
        Task::GrpcInterop => {
            let layout = Layout::from_environment("demo".parse()?)?;
            println!("{}", binaries::grpc_interop(&layout)?.display());
            Ok(())
        }
        Task::WebsocketSuite => {
            let layout = Layout::from_environment("demo".parse()?)?;
            println!("{}", binaries::websocket_suite(&layout)?.display());
            Ok(())
        }
        Task::Forward { which, service, listen } => {
            forward::forward(&Cluster::attach(which.name()?)?, listen, &service)
        }
        Task::LoadImage { which, archives } => {
            let target = running_target(&which)?;
            for archive in archives {
                target.load_image(&archive)?;
                println!("loaded {}", archive.display());
            }
            Ok(())
        }
        Task::BuildImages { which, bin_dir, version, previous_version, tags, only, out, no_load } => {
            let tags = if tags.is_empty() { vec![version.clone()] } else { tags };
            let mut wanted = Vec::new();
            for tag in &tags {
                wanted.extend(images::images(&bin_dir, &only, &version, &previous_version, tag)?);
            }
            let scratch = tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
            let folder = out.unwrap_or_else(|| scratch.path().to_path_buf());
            let target = if no_load { None } else { Some(running_target(&which)?) };
            for archive in images::build(&wanted, &folder)? {
                if let Some(target) = &target {
                    target.load_image(&archive)?;
                }
            }
            for image in wanted {
                println!("{}", image.name);
            }
            Ok(())
        }
        Task::Kubectl { which, arguments } => {
            let mut words = vec![OsString::from("kubectl")];
            words.extend(arguments);
            replace_by(which, &words)
        }
        Task::Exec { which, arguments } => replace_by(which, &arguments),
        Task::Supervise { state, inner: true } => supervisor::inner(&state),
        Task::Supervise { state, inner: false } => supervisor::outer(&state),
    }
}

/// The local cluster that the command line names, which must run; else the user's where the environment names one.
fn running_target(which: &Which) -> Result<target::Target, Error> {
    let external = target::external(|variable| std::env::var_os(variable));
    match external.filter(|_| which.name.is_none()) {
        Some(external) => Ok(target::Target::External(external)),
        None => Ok(target::Target::Local(Box::new(Cluster::attach(which.name()?)?))),
    }
}

/// Turns this process into another program inside the cluster's network.
fn replace_by(which: Which, words: &[OsString]) -> Result<(), Error> {
    leno_e2e::cluster::error::require_root("entering the cluster's network", "only root may enter a namespace")?;
    let cluster = Cluster::attach(which.name()?)?;
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let source = cluster.command(program)?.args(arguments).exec();
    Err(Error::io("run", PathBuf::from(program))(source))
}

fn status() -> Result<(), Error> {
    let names = lifecycle::names()?;
    if names.is_empty() {
        println!("no clusters");
    }
    for name in names {
        match Cluster::attach(name.clone()) {
            Ok(cluster) => {
                println!("{name}: up, kubeconfig {}", cluster.kubeconfig().display());
                if nix::unistd::geteuid().is_root() {
                    print!("{}", cluster.kubectl(["get", "nodes", "--no-headers"])?);
                }
            }
            Err(Error::NotRunning(_)) => {
                println!("{name}: not running; `leno-cluster down --name {name}` removes what is left")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
