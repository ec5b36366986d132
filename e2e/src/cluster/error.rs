//! What can go wrong around the local cluster, each with what a person can do about it.

use std::path::{Path, PathBuf};

/// An error of the local cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation needs root, and the process is not root.
    #[error(
        "{operation} needs root: {why}. Remedy: run it with sudo, or set KUBECONFIG (and LENO_LOAD_IMAGE) to use a cluster of your own"
    )]
    NeedsRoot {
        /// What was asked for.
        operation: String,
        /// What root is needed for.
        why: &'static str,
    },
    /// The name of a cluster is not usable.
    #[error("cluster name {0:?}: use 1 to 20 lower case letters, digits and hyphens, starting with a letter")]
    BadName(String),
    /// The cache folder cannot be where it was asked to be.
    #[error("cache folder {path}: {problem}. Remedy: set LENO_CACHE to an absolute path elsewhere, such as /srv/leno")]
    BadCache {
        /// The folder.
        path: PathBuf,
        /// Why it cannot serve.
        problem: &'static str,
    },
    /// Something that has to be installed is not there.
    #[error("{what} is missing. Remedy: {remedy}")]
    Missing {
        /// The program or file.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program ended badly.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of its error output.
        output: String,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: nix::errno::Errno,
    },
    /// Something did not happen in time.
    #[error("waited {seconds} s for {what}. {hint}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// Where to look.
        hint: String,
    },
    /// The cluster is not there.
    #[error("cluster {0} is not running. Remedy: leno-cluster up --name {0}")]
    NotRunning(String),
    /// A template names a value that does not exist.
    #[error("template {template}: {problem}")]
    Template {
        /// Which template.
        template: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate could not be made.
    #[error("certificate {name}: {source}")]
    Certificate {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A file of ours holds what it should not.
    #[error("{path}: {problem}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// A closure that wraps an I/O error with what was being done, for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// A closure that wraps a kernel error with what was being done, for `map_err`.
    pub fn system(action: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Error {
        let action = action.into();
        move |source| Error::System { action, source }
    }

    /// The exit code that a program should end with: 77 where root is missing, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NeedsRoot { .. } => 77,
            _ => 1,
        }
    }
}

/// Refuses, with a remedy, where the process is not root.
///
/// # Errors
/// [`Error::NeedsRoot`] where the effective user is not root.
pub fn require_root(operation: &str, why: &'static str) -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::NeedsRoot { operation: operation.to_owned(), why })
}
