//! Where a cluster keeps its things: every path, name and address, from the cache folder and the cluster's name alone.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;

/// The first node's address, on the loopback device of its network namespace. All addresses are from the
/// benchmarking range (RFC 2544), so nothing of it can be mistaken for a real network.
pub const NODE_IP: &str = "198.18.255.1";
/// The addresses of services.
pub const SERVICE_CIDR: &str = "198.19.0.0/16";
/// The first service address, which is the API server's.
pub const API_SERVICE_IP: &str = "198.19.0.1";
/// The address of the cluster's DNS service.
pub const DNS_IP: &str = "198.19.0.10";
/// The API server's port on [`NODE_IP`].
pub const API_PORT: u16 = 6443;

/// Folders that the node covers with its own; the cache cannot lie under them.
const COVERED: [&str; 4] = ["/run", "/var/run", "/var/lib", "/var/log"];

/// The name of a local cluster: `demo` stays up for people, `test` is for the scenario tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let usable = (1..=20).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if usable { Ok(Self(text.to_owned())) } else { Err(Error::BadName(text.to_owned())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cache folder: `LENO_CACHE`, else `$XDG_CACHE_HOME/leno`, else `$HOME/.cache/leno`.
///
/// # Errors
/// [`Error::BadCache`] for a relative path, or one that the node's own folders would cover.
pub fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set("LENO_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("leno")))
        .or_else(|| set("HOME").map(|path| path.join(".cache/leno")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp/leno"));
    if !path.is_absolute() {
        return Err(Error::BadCache { path, problem: "the path is not absolute" });
    }
    if COVERED.iter().any(|covered| path.starts_with(covered)) {
        return Err(Error::BadCache { path, problem: "the cluster's node covers this part of the file system" });
    }
    Ok(path)
}

/// The paths and names of one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The cache folder, shared by all clusters.
    pub cache: PathBuf,
    /// The cluster's name.
    pub name: Name,
    /// Which node of it.
    pub node: Node,
}

/// A node of a cluster. Each has a network, folders and control groups of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The one that every cluster has, with the control plane of Kubernetes.
    First,
    /// One that can join it, for pods only.
    Second,
}

impl Layout {
    /// The layout of the cluster `name`, with the cache folder that the environment asks for.
    ///
    /// # Errors
    /// As [`cache_folder`].
    pub fn from_environment(name: Name) -> Result<Self, Error> {
        Ok(Self { cache: cache_folder(|variable| std::env::var_os(variable))?, name, node: Node::First })
    }

    /// The same cluster, seen from another node.
    pub fn at(&self, node: Node) -> Self {
        Self { node, ..self.clone() }
    }

    /// The folder of all clusters.
    pub fn clusters(&self) -> PathBuf {
        self.cache.join("clusters")
    }

    /// Everything that this node keeps on disk, for the first one all of the cluster's; gone after a stop.
    pub fn state(&self) -> PathBuf {
        let all = self.clusters().join(self.name.to_string());
        match self.node {
            Node::First => all,
            Node::Second => all.join("second"),
        }
    }

    /// Log files, one a program, and the API server's audit log.
    pub fn logs(&self) -> PathBuf {
        self.state().join("log")
    }

    /// The API server's audit log: JSON lines at level `Metadata`.
    pub fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.state().join("pki")
    }

    /// The kubeconfig of one user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state().join("kubeconfig").join(user)
    }

    /// The kubeconfig of the administrator, for people and tests.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.at(Node::First).kubeconfig("admin")
    }

    /// Exists when the cluster came up completely; holds the identity of what it was started from.
    pub fn ready_marker(&self) -> PathBuf {
        self.state().join("ready")
    }

    /// The programs that the supervisor starts.
    pub fn daemons_file(&self) -> PathBuf {
        self.state().join("daemons.json")
    }

    /// The network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> String {
        self.node_name()
    }

    /// The file that stands for the network namespace.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns())
    }

    /// The control group under which all pods of this node are.
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.node_name())
    }

    /// The node's name. No name of a cluster has a dot, so no two are the same.
    pub fn node_name(&self) -> String {
        match self.node {
            Node::First => format!("leno-{}", self.name),
            Node::Second => format!("leno-{}.second", self.name),
        }
    }

    /// The node's address.
    pub fn node_ip(&self) -> &'static str {
        match self.node {
            Node::First => NODE_IP,
            Node::Second => "198.18.255.2",
        }
    }

    /// The addresses of the node's pods.
    pub fn pod_cidr(&self) -> &'static str {
        match self.node {
            Node::First => "198.18.0.0/17",
            Node::Second => "198.18.128.0/18",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
        move |wanted| pairs.iter().find(|(name, _)| *name == wanted).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn cache_folder_when_several_variables_are_set_then_the_most_specific_wins() {
        let all = [("LENO_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        let found = |skip: usize| {
            let pairs = all[skip..].to_vec();
            cache_folder(move |wanted| {
                pairs.iter().find(|(name, _)| *name == wanted).map(|(_, value)| OsString::from(value))
            })
            .unwrap()
        };
        assert_eq!(found(0), Path::new("/a"));
        assert_eq!(found(1), Path::new("/b/leno"));
        assert_eq!(found(2), Path::new("/c/.cache/leno"));
    }

    #[test]
    fn cache_folder_when_a_variable_is_empty_then_it_counts_as_unset() {
        let path = cache_folder(environment(&[("LENO_CACHE", ""), ("HOME", "/c")])).unwrap();
        assert_eq!(path, Path::new("/c/.cache/leno"));
    }

    #[test]
    fn cache_folder_when_the_node_would_cover_it_then_it_is_refused() {
        for path in ["/var/lib/me", "/run/x", "/var/log"] {
            let error = cache_folder(|name| (name == "LENO_CACHE").then(|| OsString::from(path))).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        assert!(cache_folder(environment(&[("LENO_CACHE", "relative")])).is_err());
        assert!(cache_folder(environment(&[("LENO_CACHE", "/var/library")])).is_ok());
    }

    #[test]
    fn name_when_it_could_leave_its_folder_then_it_is_refused() {
        for bad in ["", "..", "a/b", "Test", "-a", "a-", "9a", "a b", "averyveryverylongname"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["demo", "test", "a", "t-2"] {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn layout_when_two_clusters_share_a_cache_then_they_share_nothing_else() {
        let layout = |name: &str| Layout { cache: "/c".into(), name: name.parse().unwrap(), node: Node::First };
        let (demo, test) = (layout("demo"), layout("test"));
        for other in [test.clone(), test.at(Node::Second), demo.at(Node::Second)] {
            assert_ne!(demo.state(), other.state());
            assert_ne!(demo.netns(), other.netns());
            assert_ne!(demo.cgroup_root(), other.cgroup_root());
        }
        assert_eq!(demo.at(Node::Second).admin_kubeconfig(), demo.admin_kubeconfig());
    }
}
