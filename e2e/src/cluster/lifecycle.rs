//! A cluster's start and stop, and what one does with a running one.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::require_root;
use super::layout::Node;
use super::layout::{API_SERVICE_IP, DNS_IP};
use super::run::{self, Progress};
use super::settings::{self, Programs};
use super::{Error, Layout, Name, binaries, images, kernel, netns, pki, supervisor};

/// How long the whole of a start may take once its programs are built.
pub(super) const START_LIMIT: Duration = Duration::from_secs(180);
/// How long the processes of a cluster may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);
/// The pause between two looks at a condition.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// How long one connection to a program of the node may take.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// What root is needed for.
const WHY_ROOT: &str = "it makes a network namespace, mounts and control groups";

/// A running local cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) layout: Layout,
    pub(super) programs: Programs,
}

/// A lock on a cluster's state folder: one start or stop at a time.
fn lock(layout: &Layout) -> Result<Flock<File>, Error> {
    use std::os::unix::fs::MetadataExt;
    let state = layout.state();
    loop {
        std::fs::create_dir_all(&state).map_err(Error::io("create", &state))?;
        let Ok(folder) = File::open(&state) else { continue };
        let locked = Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, source)| Error::System { action: format!("lock {}", state.display()), source })?;
        // Who held the lock before may have removed the folder; then this is a lock on nothing.
        let held = locked.metadata().map_err(Error::io("look at", &state))?.ino();
        if std::fs::metadata(&state).is_ok_and(|now| now.ino() == held) {
            return Ok(locked);
        }
    }
}

/// The command line of a process, one string an argument; empty where it has ended.
fn command_line(process: i32) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

fn processes() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether `arguments` are those of a supervisor of the cluster whose state folder is `state`.
fn is_supervisor(arguments: &[Vec<u8>], state: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let state = state.as_os_str().as_bytes();
    arguments.get(1).is_some_and(|argument| argument == supervisor::COMMAND.as_bytes())
        && arguments.get(2).is_some_and(|argument| argument == b"--state")
        && arguments.get(3).is_some_and(|argument| argument == state)
}

/// The supervisors of the cluster, found by their command line, so that also one is found whose starter was killed
/// before it could write anything down.
fn supervisors(layout: &Layout) -> Vec<i32> {
    let state = layout.state();
    processes().into_iter().filter(|process| is_supervisor(&command_line(*process), &state)).collect()
}

/// The processes in the cluster's network namespace, without this one and its ancestors.
fn inhabitants(layout: &Layout) -> Vec<i32> {
    let Some(wanted) = netns::identity(&layout.netns_path()) else { return Vec::new() };
    let mut own = vec![];
    let mut process = i32::try_from(std::process::id()).unwrap_or_default();
    while process > 1 {
        own.push(process);
        process = parent(process).unwrap_or_default();
    }
    let inside = |process: &i32| netns::identity(Path::new(&format!("/proc/{process}/ns/net"))) == Some(wanted);
    processes().into_iter().filter(|process| !own.contains(process)).filter(inside).collect()
}

fn parent(process: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn end_all(find: impl Fn() -> Vec<i32>, what: &str) -> Result<(), Error> {
    run::wait_for(&format!("{what} to end"), END_LIMIT, Duration::from_millis(20), "See `ps -ef`.", || {
        let alive = find();
        for process in &alive {
            // A process that has just ended is what is wanted.
            let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        alive.is_empty()
    })
}

/// The control groups of the cluster's pods, one in every hierarchy.
fn control_groups(layout: &Layout) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = layout.cgroup_root();
    let name = name.trim_start_matches('/');
    let mut groups = vec![root.join(name)];
    if let Ok(entries) = std::fs::read_dir(root) {
        groups.extend(entries.filter_map(|entry| entry.ok()).map(|entry| entry.path().join(name)));
    }
    groups.into_iter().filter(|group| group.is_dir()).collect()
}

/// Makes the control group that all pods of the cluster will be under, in every hierarchy.
pub(super) fn create_control_groups(layout: &Layout) -> Result<(), Error> {
    let root = Path::new("/sys/fs/cgroup");
    let name = layout.cgroup_root();
    let name = name.trim_start_matches('/');
    let create = |group: PathBuf| std::fs::create_dir_all(&group).map_err(Error::io("create", group));
    if root.join("cgroup.controllers").exists() {
        return create(root.join(name));
    }
    for entry in std::fs::read_dir(root).map_err(Error::io("read", root))?.filter_map(|entry| entry.ok()) {
        let hierarchy = entry.path();
        if !hierarchy.is_dir() || hierarchy.is_symlink() {
            continue;
        }
        let group = hierarchy.join(name);
        create(group.clone())?;
        // A new group of this hierarchy may run nowhere until it is told where.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read(hierarchy.join(file)) {
                std::fs::write(group.join(file), value).map_err(Error::io("write", group.join(file)))?;
            }
        }
    }
    Ok(())
}

/// Removes a control group and those below it; only folders can and must be removed there.
fn remove_control_group(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)?.filter_map(|entry| entry.ok()) {
        if entry.file_type()?.is_dir() {
            remove_control_group(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// The mount points under `folder` from the text of a `mountinfo` file, deepest first.
fn mounts_below(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(folder))
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Ends every process of a node at once.
pub(super) fn cut(layout: &Layout) -> Result<(), Error> {
    // With the supervisor ends every process of the node, and with the last of them its mounts.
    end_all(|| supervisors(layout), "the supervisor")?;
    // What others started inside: `leno-cluster exec`, and what a killed start left.
    end_all(|| inhabitants(layout), "the processes in the node's network")
}

/// Removes everything of a cluster, whatever state it is in; it is no error when there is nothing.
fn sweep(layout: &Layout) -> Result<(), Error> {
    for node in [Node::Second, Node::First] {
        let layout = &layout.at(node);
        cut(layout)?;
        run::wait_for(
            "the control groups to be empty",
            END_LIMIT,
            PAUSE,
            &format!("See the folders {} under /sys/fs/cgroup.", layout.cgroup_root()),
            || control_groups(layout).iter().all(|group| remove_control_group(group).is_ok()),
        )?;
        netns::remove(layout)?;
    }
    let state = layout.state();
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts_below(&mountinfo, &state) {
        umount2(&mount, MntFlags::MNT_DETACH).map_err(Error::system(format!("unmount {}", mount.display())))?;
    }
    match std::fs::remove_dir_all(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &state)(error)),
        _ => Ok(()),
    }
}

/// Stops the cluster `name` and removes all of it but the cached programs; no error when there is none.
///
/// # Errors
/// [`Error::NeedsRoot`] without root; [`Error::Timeout`] where something does not end.
pub fn down(name: Name) -> Result<(), Error> {
    let layout = Layout::from_environment(name)?;
    require_root("stopping the local cluster", WHY_ROOT)?;
    let progress = Progress::new(format!("cluster {}", layout.name));
    let _lock = lock(&layout)?;
    sweep(&layout)?;
    if names()?.is_empty() {
        kernel::restore(&layout)?;
        // Another cluster may just be starting; then the folder is not empty and stays.
        let _ = std::fs::remove_dir(layout.clusters());
    }
    progress.finished("removed");
    Ok(())
}

/// The names of the clusters that have state on this machine, running or not.
///
/// # Errors
/// As [`Layout::from_environment`].
pub fn names() -> Result<Vec<Name>, Error> {
    let cache = super::layout::cache_folder(|variable| std::env::var_os(variable))?;
    let Ok(entries) = std::fs::read_dir(cache.join("clusters")) else { return Ok(Vec::new()) };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// The program that holds the supervisor: this one, or the `leno-cluster` beside the running test.
pub(super) fn supervisor_program() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?;
    let named = |path: &Path| path.file_name() == Some(OsStr::new("leno-cluster"));
    if named(&own) {
        return Ok(own);
    }
    // Tests lie in `target/<profile>/deps`, programs one folder above.
    own.ancestors().skip(1).take(2).map(|folder| folder.join("leno-cluster")).find(|path| path.is_file()).ok_or_else(
        || Error::Missing {
            what: format!("the program leno-cluster beside {}", own.display()),
            remedy: "cargo build -p leno-e2e --bin leno-cluster".to_owned(),
        },
    )
}

/// A program of the system, with the folders that a user's PATH may lack.
pub(super) fn system_program(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/usr/lib/cni", "/opt/cni/bin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Missing { what: name.to_owned(), remedy: "run e2e/install-deps.sh".to_owned() })
}

/// Connects to `address` and returns the answer to `request`; nothing is sent or read where that is empty.
fn asked(address: &str, request: &str) -> std::io::Result<String> {
    use std::io::{Error, Read, Write};
    let address: SocketAddr = address.parse().map_err(Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    let mut answer = String::new();
    if !request.is_empty() {
        stream.set_read_timeout(Some(CONNECT_LIMIT))?;
        stream.write_all(request.as_bytes())?;
        stream.take(4096).read_to_string(&mut answer)?;
    }
    Ok(answer)
}

impl Cluster {
    /// Starts the cluster `name`, or finds it running. Whatever an interrupted start left is removed first.
    ///
    /// Builds the programs of the cluster where the cache does not have them; then it takes about 7 s.
    ///
    /// # Errors
    /// [`Error::NeedsRoot`], [`Error::Missing`] with the remedy, or whatever failed; the next start cleans up.
    pub fn up(name: Name) -> Result<Self, Error> {
        let layout = Layout::from_environment(name)?;
        require_root("starting the local cluster", WHY_ROOT)?;
        for program in ["ip", "iptables", "conntrack", "bridge"] {
            system_program(program)?;
        }
        let runc = system_program("runc")?;
        kernel::require_bridge_filter()?;
        let programs = binaries::programs(&layout)?;
        let pause = images::pause(&layout)?;
        let mut progress = Progress::new(format!("cluster {}", layout.name));
        let _lock = lock(&layout)?;
        let cluster = Self { layout, programs };
        let daemons = settings::daemons(&cluster.layout, &cluster.programs);
        let files = settings::files(&cluster.layout, &runc)?;
        let origin = serde_json::to_string(&(&daemons, &files))
            .map_err(|error| Error::Corrupt { path: cluster.layout.daemons_file(), problem: error.to_string() })?;
        if cluster.is_up(&origin) {
            progress.finished("is already up");
            return Ok(cluster);
        }
        sweep(&cluster.layout)?;
        // The folder of the lock went with the sweep; the new one is locked from here on.
        let _lock = lock(&cluster.layout)?;
        cluster.prepare(&daemons, &files)?;
        progress.done("prepared");
        supervisor::start(&cluster.layout, &supervisor_program()?)?;
        cluster.wait_until_serving(&mut progress, &pause)?;
        let marker = cluster.layout.ready_marker();
        std::fs::write(&marker, origin).map_err(Error::io("write", marker))?;
        progress.finished("is up");
        Ok(cluster)
    }

    /// The cluster `name`, which must be running.
    ///
    /// # Errors
    /// [`Error::NotRunning`] where it is not, or did not come up completely.
    pub fn attach(name: Name) -> Result<Self, Error> {
        let layout = Layout::from_environment(name)?;
        let ready = layout.ready_marker().exists() && layout.netns_path().exists();
        if !ready || supervisors(&layout).is_empty() {
            return Err(Error::NotRunning(layout.name.to_string()));
        }
        let programs = binaries::programs(&layout)?;
        Ok(Self { layout, programs })
    }

    /// Where things of this cluster are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The administrator's kubeconfig. Its address is inside the cluster's network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.admin_kubeconfig()
    }

    /// The API server's audit log: JSON lines at level `Metadata`.
    pub fn audit_log(&self) -> PathBuf {
        self.layout.audit_log()
    }

    /// Whether the cluster runs completely, from the same files as a start would use now.
    fn is_up(&self, origin: &str) -> bool {
        std::fs::read_to_string(self.layout.ready_marker()).is_ok_and(|text| text == origin)
            && !supervisors(&self.layout).is_empty()
            && self.kubectl(["get", "--raw", "/readyz"]).is_ok()
    }

    /// Whether that node of the cluster is Ready.
    pub(super) fn has_node(&self, node: &Layout) -> bool {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.kubectl(["get", "node", &node.node_name(), "-o", ready]).is_ok_and(|status| status == "True")
    }

    fn prepare(&self, daemons: &[settings::Daemon], files: &[(&str, String)]) -> Result<(), Error> {
        self.write_files(daemons, files)?;
        let state = self.layout.state();
        // `e2e/kubectl` finds the program here.
        let link = state.join("kubectl");
        std::os::unix::fs::symlink(self.programs.kubernetes.join("kubectl"), &link).map_err(Error::io("link", link))?;
        pki::write(&self.layout)?;
        kernel::remember(&self.layout)?;
        netns::create(&self.layout)?;
        create_control_groups(&self.layout)
    }

    /// Writes what the node's programs read, but for keys and certificates.
    pub(super) fn write_files(&self, daemons: &[settings::Daemon], files: &[(&str, String)]) -> Result<(), Error> {
        let state = self.layout.state();
        for folder in ["log", "pki", "kubeconfig", "cni", "etcd", "var-lib", "var-log"] {
            let folder = state.join(folder);
            std::fs::create_dir_all(&folder).map_err(Error::io("create", folder))?;
        }
        use std::os::unix::fs::PermissionsExt;
        // etcd refuses a folder that others can read.
        let private = std::fs::Permissions::from_mode(0o700);
        for folder in ["etcd", "pki"] {
            std::fs::set_permissions(state.join(folder), private.clone())
                .map_err(Error::io("restrict", state.join(folder)))?;
        }
        for (path, content) in files {
            let path = state.join(path);
            std::fs::write(&path, content).map_err(Error::io("write", path))?;
        }
        let path = self.layout.daemons_file();
        let text = serde_json::to_vec_pretty(daemons)
            .map_err(|error| Error::Corrupt { path: path.clone(), problem: error.to_string() })?;
        std::fs::write(&path, text).map_err(Error::io("write", path))
    }

    fn wait_until_serving(&self, progress: &mut Progress, pause: &Path) -> Result<(), Error> {
        let hint = format!("See the logs in {}.", self.layout.logs().display());
        let wait =
            |what: &str, condition: &mut dyn FnMut() -> bool| run::wait_for(what, START_LIMIT, PAUSE, &hint, condition);
        wait("containerd", &mut || self.ctr(["version"]).is_ok())?;
        self.load_image(pause)?;
        progress.done("container runtime ready");
        wait("the API server", &mut || self.kubectl(["get", "--raw", "/readyz"]).is_ok())?;
        progress.done("API server ready");
        let addons = settings::ADDONS.fill(&settings::values(&self.layout, Path::new("")))?;
        // kube-system and the first service address are made shortly after the API server is ready.
        wait("the DNS service to be accepted", &mut || {
            self.kubectl_with_input(["apply", "--server-side", "-f", "-"], addons.as_bytes()).is_ok()
        })?;
        wait("the node to be Ready", &mut || self.has_node(&self.layout))?;
        // A pod cannot be made before its namespace has a service account.
        wait("the default service account", &mut || self.kubectl(["get", "serviceaccount", "default"]).is_ok())?;
        progress.done("node Ready");
        let answers = |address: &str, request: &str, wanted: &str| {
            netns::within(&self.layout, || asked(address, request).is_ok_and(|answer| answer.contains(wanted)))
                .unwrap_or(false)
        };
        wait("CoreDNS to be ready", &mut || answers("127.0.0.1:8181", "GET /ready HTTP/1.0\r\n\r\n", " 200 "))?;
        wait("service addresses to work", &mut || {
            answers(&format!("{API_SERVICE_IP}:443"), "", "") && answers(&format!("{DNS_IP}:53"), "", "")
        })?;
        progress.done("services and DNS ready");
        Ok(())
    }

    /// Sets up `command` as everything here is run: in the cluster's network, with its kubeconfig and programs.
    fn at_home(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        let (kubernetes, node) = (self.programs.kubernetes.display(), self.programs.node.display());
        command.env("PATH", format!("{kubernetes}:{node}:{path}"));
        command.env("KUBECONFIG", self.kubeconfig());
        command.env("LENO_CLUSTER", self.layout.name.to_string());
    }

    /// A command that runs in the cluster's network, with `KUBECONFIG` set, `LENO_CLUSTER` the cluster's name, and
    /// `kubectl`, `helm` and the other programs of the cluster on the `PATH`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] where the network is not there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, Error> {
        // Looked up here and not in the child: its own PATH is set for it only then.
        let program = program.as_ref();
        let own = [&self.programs.kubernetes, &self.programs.node]
            .into_iter()
            .map(|folder| folder.join(program))
            .find(|path| path.is_file() && !program.is_empty());
        let mut command = netns::command(&self.layout, own.as_deref().map_or(program, |path| path.as_os_str()))?;
        self.at_home(&mut command);
        Ok(command)
    }

    /// Runs `arguments` with kubectl and returns what it wrote.
    ///
    /// # Errors
    /// [`Error::Command`] with kubectl's own words.
    pub fn kubectl<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<String, Error> {
        run::output(self.command("kubectl")?.args(arguments))
    }

    /// As [`Self::kubectl`], with `input` as its standard input.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn kubectl_with_input<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(
        &self,
        arguments: I,
        input: &[u8],
    ) -> Result<String, Error> {
        run::output_with_input(self.command("kubectl")?.args(arguments), input)
    }

    /// Runs containerd's client inside the node.
    pub(super) fn ctr<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<String, Error> {
        run::output(self.node_command(&self.programs.node.join("ctr"))?.args(arguments))
    }

    /// A command that runs on the node: in its network and with its file system.
    pub(super) fn node_command(&self, program: &Path) -> Result<Command, Error> {
        use std::os::fd::AsFd;
        use std::os::unix::process::CommandExt;
        let gone = || Error::NotRunning(self.layout.name.to_string());
        let inner = supervisors(&self.layout).into_iter().max().ok_or_else(gone)?;
        let mount = File::open(format!("/proc/{inner}/ns/mnt")).map_err(|_| gone())?;
        let mut command = netns::command(&self.layout, program)?;
        command.current_dir("/");
        // SAFETY: the closure runs in the child between fork and exec and makes one system call; it allocates
        // nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                nix::sched::setns(mount.as_fd(), nix::sched::CloneFlags::CLONE_NEWNS).map_err(std::io::Error::from)
            });
        }
        Ok(command)
    }

    /// Ends a program of the node with SIGKILL, such as `kubelet`; the supervisor starts it again after a second. Gives how many
    /// processes that were: none while it is just not running.
    ///
    /// # Errors
    /// Where a process cannot be ended.
    pub fn kill_program(&self, name: &str) -> Result<usize, Error> {
        // The kernel keeps 15 bytes of a name.
        let name = &name[..name.len().min(15)];
        let named = |process: &i32| {
            std::fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let found: Vec<i32> = inhabitants(&self.layout).into_iter().filter(named).collect();
        for process in &found {
            kill(Pid::from_raw(*process), Signal::SIGKILL).or_else(|error| match error {
                // It ended by itself meanwhile.
                nix::errno::Errno::ESRCH => Ok(()),
                error => Err(Error::system(format!("end {name}"))(error)),
            })?;
        }
        Ok(found.len())
    }

    /// Removes an image from the node, by its full name. What runs from it goes on.
    ///
    /// # Errors
    /// Where containerd refuses.
    pub fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.ctr(["--namespace", "k8s.io", "images", "rm", "--sync", name]).map(drop)
    }

    /// Brings the images of an archive (OCI or Docker) into the cluster and returns their names.
    ///
    /// # Errors
    /// Where the archive cannot be read or containerd refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<Vec<String>, Error> {
        let file = File::open(archive).map_err(Error::io("open", archive))?;
        // From an open file: the node has folders of its own and may not see the path.
        self.import(file.into(), &archive.display().to_string())
    }

    /// Brings the images that `archive` gives into the node; `what` names it in errors.
    pub(super) fn import(&self, archive: Stdio, what: &str) -> Result<Vec<String>, Error> {
        let mut command = self.node_command(&self.programs.node.join("ctr"))?;
        command.args(["--namespace", "k8s.io", "images", "import", "--local", "-"]).stdin(archive);
        let output = command.output().map_err(Error::io("run ctr for", what))?;
        if !output.status.success() {
            return Err(Error::Command {
                command: format!("ctr images import < {what}"),
                status: output.status.to_string(),
                output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.split_whitespace().filter(|word| word.contains('/') && word.contains(':')).map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_when_nested_then_the_deepest_comes_first_and_others_stay() {
        let text = "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /c/test/a rw - tmpfs t rw\n\
                    3 2 0:6 / /c/test/a/b\\040c rw - tmpfs t rw\n4 1 0:7 / /c/test2 rw - tmpfs t rw\n";
        let found = mounts_below(text, Path::new("/c/test"));
        assert_eq!(found, [PathBuf::from("/c/test/a/b c"), PathBuf::from("/c/test/a")]);
    }

    #[test]
    fn is_supervisor_when_another_cluster_or_program_then_it_is_not_ours() {
        let line = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        let state = Path::new("/c/clusters/test");
        assert!(is_supervisor(&line(&["x", "supervise", "--state", "/c/clusters/test", "--inner"]), state));
        assert!(!is_supervisor(&line(&["x", "supervise", "--state", "/c/clusters/test2"]), state));
        assert!(!is_supervisor(&line(&["vi", "/c/clusters/test"]), state));
    }
}
