//! Entering the cluster's network namespace: for one closure, or for a program.
//!
//! Not `ip netns exec`: that also mounts a fresh `/sys`, which hides the control groups.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::{Error, Layout, run};

fn open(layout: &Layout) -> Result<File, Error> {
    File::open(layout.netns_path()).map_err(|_| Error::NotRunning(layout.name.to_string()))
}

/// Creates the network namespace with its loopback device, the node's address, and the route to the services, which
/// `kube-proxy`'s rules then rewrite. There is no other route: nothing that a test sends can leave.
///
/// # Errors
/// Where `ip` fails.
pub fn create(layout: &Layout) -> Result<(), Error> {
    run::output(Command::new("ip").args(["netns", "add", &layout.netns()]))?;
    let node = format!("{}/32", layout.node_ip());
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["address", "add", &node, "dev", "lo"],
        &["route", "add", super::layout::SERVICE_CIDR, "dev", "lo", "src", layout.node_ip()],
    ] {
        run::output(command(layout, "ip")?.args(arguments))?;
    }
    within(layout, || {
        for (file, value) in [
            ("/proc/sys/net/ipv4/ip_forward", "1"),
            // Services must be rewritten also between two pods of the same bridge.
            ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"),
            ("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1"),
        ] {
            std::fs::write(file, value).map_err(Error::io("write", file))?;
        }
        Ok(())
    })?
}

/// Joins the networks of two nodes: each has a wire to the other, and routes to its address and its pods.
///
/// # Errors
/// Where `ip` fails, or one of the networks is not there.
pub fn join(one: &Layout, other: &Layout) -> Result<(), Error> {
    let wire = ["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &other.netns()];
    run::output(command(one, "ip")?.args(wire))?;
    for (here, there) in [(one, other), (other, one)] {
        for arguments in [
            &["link", "set", "wire", "up"][..],
            &["route", "add", there.node_ip(), "dev", "wire", "src", here.node_ip()],
            &["route", "add", there.pod_cidr(), "via", there.node_ip(), "dev", "wire", "src", here.node_ip()],
        ] {
            run::output(command(here, "ip")?.args(arguments))?;
        }
    }
    Ok(())
}

/// Removes the network namespace with all its devices and rules. It is no error when there is none.
///
/// # Errors
/// Where `ip` fails.
pub fn remove(layout: &Layout) -> Result<(), Error> {
    if layout.netns_path().exists() {
        run::output(Command::new("ip").args(["netns", "delete", &layout.netns()]))?;
    }
    Ok(())
}

/// Runs `work` on a thread inside the cluster's network namespace.
///
/// # Errors
/// [`Error::NotRunning`] where there is no such namespace, [`Error::System`] where it cannot be entered.
pub fn within<T: Send>(layout: &Layout, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let namespace = open(layout)?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(Error::system(format!("enter network namespace {}", layout.netns())))?;
            Ok(work())
        });
        match inside.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A command that will run inside the cluster's network namespace.
///
/// # Errors
/// [`Error::NotRunning`] where there is no such namespace.
pub fn command(layout: &Layout, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, Error> {
    let mut command = Command::new(program);
    enter_before_exec(layout, &mut command)?;
    Ok(command)
}

/// Lets `command` enter the cluster's network namespace between fork and exec.
///
/// # Errors
/// [`Error::NotRunning`] where there is no such namespace.
pub fn enter_before_exec(layout: &Layout, command: &mut Command) -> Result<(), Error> {
    let namespace = open(layout)?;
    // SAFETY: the closure runs in the child between fork and exec and makes one system call; it allocates
    // nothing and takes no lock.
    unsafe {
        command.pre_exec(move || setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
    }
    Ok(())
}

/// The identity of a network namespace, to compare processes with; nothing where the file is not there.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
