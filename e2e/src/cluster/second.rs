//! A second node for a running cluster: for pods only, in a network of its own that has a wire to the first one's. It can lose its
//! power and get it back, as a machine does.

use std::process::Stdio;

use super::layout::Node;
use super::lifecycle::{self, Cluster, START_LIMIT};
use super::run::{self, Progress};
use super::{Error, binaries, images, netns, settings, supervisor};

/// The second node of a cluster. It goes with the cluster.
#[derive(Clone, Debug)]
pub struct Second(Cluster);

impl Second {
    /// Lets the second node join, or finds it there. It has no images but those that are copied to it.
    ///
    /// # Errors
    /// Where a program or a network cannot be set up; or it is not Ready in time.
    pub fn join(first: &Cluster) -> Result<Self, Error> {
        let layout = first.layout().at(Node::Second);
        let runc = lifecycle::system_program("runc")?;
        let second = Self(Cluster { programs: binaries::programs(&layout)?, layout });
        if !second.0.layout.netns_path().exists() {
            let progress = Progress::new(format!("node {}", second.name()));
            let daemons = settings::daemons(&second.0.layout, &second.0.programs);
            second.0.write_files(&daemons, &settings::files(&second.0.layout, &runc)?)?;
            netns::create(&second.0.layout)?;
            netns::join(first.layout(), &second.0.layout)?;
            lifecycle::create_control_groups(&second.0.layout)?;
            second.power_on()?;
            second.0.load_image(&images::pause(&second.0.layout)?)?;
            progress.finished("has joined");
        }
        second.wait_until_ready(first)?;
        Ok(second)
    }

    /// The node's name.
    pub fn name(&self) -> String {
        self.0.layout.node_name()
    }

    /// Ends everything that runs on the node, at once and without a word.
    ///
    /// # Errors
    /// Where a process cannot be ended.
    pub fn power_off(&self) -> Result<(), Error> {
        lifecycle::cut(&self.0.layout)
    }

    /// Starts it again, with the disk that it had.
    ///
    /// # Errors
    /// Where its programs do not start.
    pub fn power_on(&self) -> Result<(), Error> {
        supervisor::start(&self.0.layout, &lifecycle::supervisor_program()?)?;
        self.wait("containerd", || self.0.ctr(["version"]).is_ok())
    }

    /// Waits until Kubernetes calls it Ready.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not in time.
    pub fn wait_until_ready(&self, first: &Cluster) -> Result<(), Error> {
        self.wait("the second node to be Ready", || first.has_node(&self.0.layout))
    }

    fn wait(&self, what: &str, condition: impl FnMut() -> bool) -> Result<(), Error> {
        let hint = format!("See the logs in {}.", self.0.layout.logs().display());
        run::wait_for(what, START_LIMIT, lifecycle::PAUSE, &hint, condition)
    }

    /// Copies the project's images that the first node has.
    ///
    /// # Errors
    /// Where containerd refuses.
    pub fn copy_images(&self, first: &Cluster) -> Result<(), Error> {
        let listed = first.ctr(["--namespace", "k8s.io", "images", "ls", "-q"])?;
        let names: Vec<&str> = listed.lines().filter(|name| name.starts_with("docker.io/leno/")).collect();
        let failed = |source| Error::io("copy images with", "ctr")(source);
        let mut export = first.node_command(&first.programs.node.join("ctr"))?;
        // Local: what goes through the daemon's transfer service lacks its end.
        export.args(["--namespace", "k8s.io", "images", "export", "--local", "-"]).args(&names);
        let mut export = export.stdout(Stdio::piped()).spawn().map_err(failed)?;
        let archive = export.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let copied = self.0.import(archive, "the first node's images").map(drop);
        export.wait().map_err(failed)?;
        copied
    }
}
