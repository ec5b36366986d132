//! Which cluster to use: a local one, or one that the user already has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cluster, Error, Name, run};

/// A cluster to work with.
#[derive(Clone, Debug)]
pub enum Target {
    /// A local one, started by this crate.
    Local(Box<Cluster>),
    /// The user's own.
    External(External),
}

/// A cluster that the user has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Its kubeconfig.
    pub kubeconfig: OsString,
    /// A shell command that brings an image archive, its last argument, onto the cluster's nodes; for kind
    /// `kind load image-archive`.
    pub load_image: Option<String>,
}

/// What the environment asks for: the user's cluster, or nothing for a local one.
///
/// `KUBECONFIG` means the user's cluster, but not inside `leno-cluster exec`, which sets it itself and `LENO_CLUSTER`
/// with it.
pub fn external(variable: impl Fn(&str) -> Option<OsString>) -> Option<External> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("LENO_CLUSTER").is_some() {
        return None;
    }
    let kubeconfig = set("KUBECONFIG")?;
    let load_image = set("LENO_LOAD_IMAGE").map(|command| command.to_string_lossy().into_owned());
    Some(External { kubeconfig, load_image })
}

/// The cluster to work with: the user's where the environment names one, else the local cluster `name`, which is
/// started where it does not run.
///
/// # Errors
/// As [`Cluster::up`].
pub fn target(name: Name) -> Result<Target, Error> {
    match external(|variable| std::env::var_os(variable)) {
        Some(external) => Ok(Target::External(external)),
        None => Cluster::up(name).map(|cluster| Target::Local(Box::new(cluster))),
    }
}

impl Target {
    /// Brings the images of an archive to where the cluster's pods find them.
    ///
    /// # Errors
    /// [`Error::Missing`] where the user's cluster has no loader command, [`Error::Command`] where it fails.
    pub fn load_image(&self, archive: &Path) -> Result<(), Error> {
        match self {
            Target::Local(cluster) => cluster.load_image(archive).map(drop),
            Target::External(external) => external.load_image(archive),
        }
    }

    /// A command with `KUBECONFIG` set, in the network where the API server is.
    ///
    /// # Errors
    /// As [`Cluster::command`].
    pub fn command(&self, program: &str) -> Result<Command, Error> {
        match self {
            Target::Local(cluster) => cluster.command(program),
            Target::External(external) => {
                let mut command = Command::new(program);
                command.env("KUBECONFIG", &external.kubeconfig);
                Ok(command)
            }
        }
    }
}

impl External {
    fn load_image(&self, archive: &Path) -> Result<(), Error> {
        let Some(loader) = &self.load_image else {
            return Err(Error::Missing {
                what: "the command that brings images to your cluster".to_owned(),
                remedy: "set LENO_LOAD_IMAGE; it gets an image archive as its last argument, such as \
                         LENO_LOAD_IMAGE='kind load image-archive'"
                    .to_owned(),
            });
        };
        let archive: PathBuf = archive.to_path_buf();
        run::output(
            Command::new("sh")
                .args(["-c", &format!("{loader} \"$1\""), "sh"])
                .arg(archive)
                .env("KUBECONFIG", &self.kubeconfig),
        )
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs = pairs.to_vec();
        move |wanted| pairs.iter().find(|(name, _)| *name == wanted).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn external_when_kubeconfig_is_set_then_the_users_cluster_is_meant() {
        assert!(external(environment(&[])).is_none());
        assert!(external(environment(&[("KUBECONFIG", "")])).is_none());
        let found = external(environment(&[("KUBECONFIG", "/k"), ("LENO_LOAD_IMAGE", "kind load image-archive")]));
        assert_eq!(found.unwrap().load_image.unwrap(), "kind load image-archive");
    }

    #[test]
    fn external_when_inside_exec_then_the_local_cluster_stays_meant() {
        assert!(external(environment(&[("KUBECONFIG", "/k"), ("LENO_CLUSTER", "test")])).is_none());
    }

    #[test]
    fn load_image_when_a_loader_is_named_then_it_gets_the_archive_last() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let loader = format!("printf '%s|' > {}", seen.display());
        let target = External { kubeconfig: "/k".into(), load_image: Some(loader) };
        target.load_image(Path::new("/some where/a.tar")).unwrap();
        assert_eq!(std::fs::read_to_string(seen).unwrap(), "/some where/a.tar|");
        let none = External { kubeconfig: "/k".into(), load_image: None };
        assert!(none.load_image(Path::new("/a")).unwrap_err().to_string().contains("LENO_LOAD_IMAGE"));
    }
}
