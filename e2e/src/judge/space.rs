//! Network namespaces without a name: gone with the last open file, so nothing is left behind however a run ends.

use crate::cluster::run;
use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid},
};
use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::process::CommandExt},
    process::Command,
    sync::Arc,
    time::Duration,
};

/// A network namespace of its own, with its loopback device up.
#[derive(Clone)]
pub(super) struct Space(Arc<File>);

impl Space {
    /// Makes one.
    pub(super) fn new() -> Result<Space> {
        let file = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread of a network namespace ended"))??;
        let space = Space(Arc::new(file));
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// A command that runs inside.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_as(program, None)
    }

    /// A command that runs inside, as another user (and the group of the same number) where one is given.
    pub(super) fn command_as(&self, program: impl AsRef<std::ffi::OsStr>, user: Option<u32>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.0.clone();
        // Not `Command::uid`: only root may enter the namespace, and that setting takes effect first.
        // SAFETY: the closure runs in the child between fork and exec and makes only system calls; it allocates nothing
        // and takes no lock.
        unsafe {
            command.pre_exec(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                if let Some(user) = user {
                    nix::unistd::setgroups(&[])?;
                    nix::unistd::setgid(Gid::from_raw(user))?;
                    nix::unistd::setuid(Uid::from_raw(user))?;
                }
                Ok(())
            });
        }
        command
    }

    /// Runs `work` on a thread inside: sockets that it opens belong to the namespace.
    pub(super) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let namespace = self.0.clone();
        std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            Ok(work())
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread in a network namespace ended"))?
    }

    /// `ip ARGUMENTS` inside.
    pub(super) fn ip(&self, arguments: &str) -> Result<()> {
        run::output(self.command("ip").args(arguments.split_whitespace()))?;
        Ok(())
    }

    /// Gives a device an address.
    pub(super) fn own(&self, address: IpAddr, device: &str) -> Result<()> {
        let rest = if address.is_ipv4() { "/32" } else { "/128 nodad" };
        self.ip(&format!("address add {address}{rest} dev {device}"))
    }

    /// Joins two by a cable; `ours` and `theirs` are the ends' names.
    pub(super) fn join(&self, ours: &str, other: &Space, theirs: &str) -> Result<()> {
        // `ip` finds the other namespace by a path, which its own descriptors are good for.
        let file = other.0.try_clone()?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), io_fd(&file));
        self.ip(&format!("link add {ours} type veth peer name {theirs} netns {path}"))?;
        self.ip(&format!("link set {ours} up"))?;
        other.ip(&format!("link set {theirs} up"))
    }

    /// Listens inside.
    pub(super) fn listen(&self, address: SocketAddr) -> Result<tokio::net::TcpListener> {
        let listener = self.within(move || -> io::Result<TcpListener> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        Ok(tokio::net::TcpListener::from_std(listener)?)
    }

    /// Connects from inside, within two seconds, from `source` where that is given.
    pub(super) async fn connect(&self, source: Option<IpAddr>, to: SocketAddr) -> Result<tokio::net::TcpStream> {
        let socket = self.within(move || -> io::Result<tokio::net::TcpSocket> {
            let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
            if let Some(source) = source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            Ok(socket)
        })??;
        let connecting = tokio::time::timeout(Duration::from_secs(2), socket.connect(to));
        let stream = connecting.await.map_err(|_| anyhow::anyhow!("no connection to {to} within 2 s"))?;
        let stream = stream.with_context(|| format!("no connection to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A blocking connection from inside, for short questions.
    pub(super) fn connect_blocking(&self, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
        let stream = self.within(move || TcpStream::connect_timeout(&to, patience))?;
        let stream = stream.with_context(|| format!("no connection to {to}"))?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    }
}

fn io_fd(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}
