//! What the node's programs are told: configuration files from templates, and the command line of each program.
//! All of it is decided from the layout alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::{API_PORT, DNS_IP, NODE_IP, Node, SERVICE_CIDR};
use super::{Error, Layout};

/// The image of the container that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/leno/pause:1";

/// The objects that every cluster has besides Kubernetes' own: DNS, and what the API server may ask of kubelets.
pub const ADDONS: Template =
    Template { name: "addons.yaml", text: include_str!("../../cluster/templates/addons.yaml") };

/// The templates that become files in the state folder, each with its path there.
const FILES: [(&str, Template); 6] = [
    (
        "containerd.toml",
        Template { name: "containerd.toml", text: include_str!("../../cluster/templates/containerd.toml") },
    ),
    (
        "cni/10-leno.conflist",
        Template { name: "cni.conflist", text: include_str!("../../cluster/templates/cni.conflist") },
    ),
    ("kubelet.yaml", Template { name: "kubelet.yaml", text: include_str!("../../cluster/templates/kubelet.yaml") }),
    (
        "kube-proxy.yaml",
        Template { name: "kube-proxy.yaml", text: include_str!("../../cluster/templates/kube-proxy.yaml") },
    ),
    ("Corefile", Template { name: "Corefile", text: include_str!("../../cluster/templates/Corefile") }),
    (
        "audit-policy.yaml",
        Template { name: "audit-policy.yaml", text: include_str!("../../cluster/templates/audit-policy.yaml") },
    ),
];

/// A file with places for values, written `${NAME}`.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The file that it comes from.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Template {
    /// The text with every `${NAME}` replaced.
    ///
    /// # Errors
    /// [`Error::Template`] for a name without a value and for a place that is not closed.
    pub fn fill(&self, values: &BTreeMap<&str, String>) -> Result<String, Error> {
        let problem = |problem: String| Error::Template { template: self.name, problem };
        let mut filled = String::with_capacity(self.text.len());
        let mut rest = self.text;
        while let Some(start) = rest.find("${") {
            filled.push_str(&rest[..start]);
            let place = &rest[start + 2..];
            let end = place.find('}').ok_or_else(|| problem("a ${ is not closed".to_owned()))?;
            let name = &place[..end];
            filled.push_str(values.get(name).ok_or_else(|| problem(format!("no value for ${{{name}}}")))?);
            rest = &place[end + 1..];
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

/// The values that templates can name.
pub fn values(layout: &Layout, runc: &Path) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("STATE", layout.state().display().to_string()),
        ("NODE_IP", layout.node_ip().to_owned()),
        ("NODE_NAME", layout.node_name()),
        ("POD_CIDR", layout.pod_cidr().to_owned()),
        ("DNS_IP", DNS_IP.to_owned()),
        ("CGROUP_ROOT", layout.cgroup_root()),
        ("PAUSE_IMAGE", PAUSE_IMAGE.to_owned()),
        ("RUNC", runc.display().to_string()),
    ])
}

/// All configuration files as (path in the state folder, content).
///
/// # Errors
/// As [`Template::fill`].
pub fn files(layout: &Layout, runc: &Path) -> Result<Vec<(&'static str, String)>, Error> {
    let values = values(layout, runc);
    let mut files = vec![("resolv.conf", format!("nameserver {NODE_IP}\n"))];
    for (path, template) in FILES {
        files.push((path, template.fill(&values)?));
    }
    Ok(files)
}

/// One program that the supervisor keeps running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name, which is also its log file's.
    pub name: String,
    /// The program.
    pub program: std::path::PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// A TCP address in the cluster's network that must accept connections before this program starts.
    pub after: Option<std::net::SocketAddr>,
}

/// Where the programs lie: Kubernetes' own, and the rest of the node's.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder of `kube-apiserver`, `kubelet`, `kubectl` and so on.
    pub kubernetes: std::path::PathBuf,
    /// The folder of `etcd`, `containerd`, `coredns` and `helm`.
    pub node: std::path::PathBuf,
}

/// The taint of the second node: only pods that tolerate it go there.
pub const SECOND_TAINT: &str = "leno.dev/second-node";

/// The programs of a node that carries pods only.
const FOR_PODS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// The programs of a node.
pub fn daemons(layout: &Layout, programs: &Programs) -> Vec<Daemon> {
    let mut all = all_daemons(layout, programs);
    all.retain(|daemon| layout.node == Node::First || FOR_PODS.contains(&daemon.name.as_str()));
    all
}

fn all_daemons(layout: &Layout, programs: &Programs) -> Vec<Daemon> {
    let (zone, taints) = match layout.node {
        Node::First => ("local-a", String::new()),
        Node::Second => ("local-b", format!("{SECOND_TAINT}=true:NoSchedule")),
    };
    let state = layout.state();
    let file = |path: &str| state.join(path).display().to_string();
    let etcd = std::net::SocketAddr::from(([127, 0, 0, 1], 2379));
    let api = std::net::SocketAddr::from((std::net::Ipv4Addr::new(198, 18, 255, 1), API_PORT));
    let daemon = |folder: &Path, name: &str, after: Option<std::net::SocketAddr>, arguments: Vec<String>| Daemon {
        name: name.to_owned(),
        program: folder.join(name),
        arguments,
        after,
    };
    let (kubernetes, node) = (&programs.kubernetes, &programs.node);
    vec![
        daemon(
            node,
            "etcd",
            None,
            vec![
                "--name=leno".into(),
                format!("--data-dir={}", file("etcd")),
                "--listen-client-urls=https://127.0.0.1:2379".into(),
                "--advertise-client-urls=https://127.0.0.1:2379".into(),
                "--listen-peer-urls=https://127.0.0.1:2380".into(),
                "--initial-advertise-peer-urls=https://127.0.0.1:2380".into(),
                "--initial-cluster=leno=https://127.0.0.1:2380".into(),
                format!("--cert-file={}", file("pki/etcd.crt")),
                format!("--key-file={}", file("pki/etcd.key")),
                format!("--trusted-ca-file={}", file("pki/etcd-ca.crt")),
                "--client-cert-auth".into(),
                format!("--peer-cert-file={}", file("pki/etcd.crt")),
                format!("--peer-key-file={}", file("pki/etcd.key")),
                format!("--peer-trusted-ca-file={}", file("pki/etcd-ca.crt")),
                "--peer-client-cert-auth".into(),
                // The data does not outlive the cluster.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ],
        ),
        daemon(
            kubernetes,
            "kube-apiserver",
            Some(etcd),
            vec![
                format!("--advertise-address={NODE_IP}"),
                format!("--bind-address={NODE_IP}"),
                format!("--secure-port={API_PORT}"),
                "--allow-privileged=true".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                format!("--client-ca-file={}", file("pki/ca.crt")),
                format!("--tls-cert-file={}", file("pki/apiserver.crt")),
                format!("--tls-private-key-file={}", file("pki/apiserver.key")),
                "--etcd-servers=https://127.0.0.1:2379".into(),
                format!("--etcd-cafile={}", file("pki/etcd-ca.crt")),
                format!("--etcd-certfile={}", file("pki/apiserver-etcd.crt")),
                format!("--etcd-keyfile={}", file("pki/apiserver-etcd.key")),
                format!("--kubelet-certificate-authority={}", file("pki/ca.crt")),
                format!("--kubelet-client-certificate={}", file("pki/apiserver-kubelet.crt")),
                format!("--kubelet-client-key={}", file("pki/apiserver-kubelet.key")),
                "--kubelet-preferred-address-types=InternalIP".into(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("--service-account-key-file={}", file("pki/service-account.pub")),
                format!("--service-account-signing-key-file={}", file("pki/service-account.key")),
                format!("--service-cluster-ip-range={SERVICE_CIDR}"),
                format!("--audit-policy-file={}", file("audit-policy.yaml")),
                format!("--audit-log-path={}", layout.audit_log().display()),
                "--audit-log-maxsize=200".into(),
                "--audit-log-maxbackup=2".into(),
                "--profiling=false".into(),
            ],
        ),
        daemon(
            kubernetes,
            "kube-controller-manager",
            Some(api),
            vec![
                format!("--kubeconfig={}", file("kubeconfig/controller-manager")),
                "--bind-address=127.0.0.1".into(),
                "--leader-elect=false".into(),
                "--use-service-account-credentials=true".into(),
                format!("--service-account-private-key-file={}", file("pki/service-account.key")),
                format!("--root-ca-file={}", file("pki/ca.crt")),
                format!("--cluster-signing-cert-file={}", file("pki/ca.crt")),
                format!("--cluster-signing-key-file={}", file("pki/ca.key")),
                "--allocate-node-cidrs=false".into(),
                "--flex-volume-plugin-dir=/run/kubelet-volume-plugins".into(),
                "--kube-api-qps=200".into(),
                "--kube-api-burst=400".into(),
                "--profiling=false".into(),
            ],
        ),
        daemon(
            kubernetes,
            "kube-scheduler",
            Some(api),
            vec![
                format!("--kubeconfig={}", file("kubeconfig/scheduler")),
                "--bind-address=127.0.0.1".into(),
                "--leader-elect=false".into(),
                "--kube-api-qps=200".into(),
                "--kube-api-burst=400".into(),
                "--profiling=false".into(),
            ],
        ),
        daemon(node, "containerd", None, vec![format!("--config={}", file("containerd.toml"))]),
        daemon(
            kubernetes,
            "kubelet",
            Some(api),
            vec![
                format!("--config={}", file("kubelet.yaml")),
                format!("--kubeconfig={}", file("kubeconfig/kubelet")),
                format!("--hostname-override={}", layout.node_name()),
                format!("--node-ip={}", layout.node_ip()),
                format!("--node-labels=topology.kubernetes.io/region=local,topology.kubernetes.io/zone={zone}"),
                format!("--register-with-taints={taints}"),
            ],
        ),
        daemon(kubernetes, "kube-proxy", Some(api), vec![format!("--config={}", file("kube-proxy.yaml"))]),
        daemon(node, "coredns", Some(api), vec![format!("-conf={}", file("Corefile"))]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str) -> Layout {
        Layout { cache: "/cache".into(), name: name.parse().unwrap(), node: Node::First }
    }

    #[test]
    fn template_when_a_value_is_missing_then_the_error_names_file_and_value() {
        let template = Template { name: "x.yaml", text: "a: ${KNOWN}\nb: ${OTHER}\n" };
        let error = template.fill(&BTreeMap::from([("KNOWN", "1".to_owned())])).unwrap_err().to_string();
        assert!(error.contains("x.yaml") && error.contains("OTHER"), "{error}");
        assert!(Template { name: "x", text: "${A" }.fill(&BTreeMap::new()).is_err());
    }

    #[test]
    fn files_when_filled_then_no_place_is_left_and_the_cluster_is_named() {
        let files = files(&layout("demo"), Path::new("/usr/sbin/runc")).unwrap();
        for (path, content) in &files {
            assert!(!content.contains("${"), "{path}");
        }
        let content = |wanted: &str| &files.iter().find(|(path, _)| *path == wanted).unwrap().1;
        assert!(content("kubelet.yaml").contains("cgroupRoot: /leno-demo"));
        assert!(content("kube-proxy.yaml").contains("/cache/clusters/demo/kubeconfig/kube-proxy"));
        let addons = ADDONS.fill(&values(&layout("demo"), Path::new("/usr/sbin/runc"))).unwrap();
        assert!(addons.contains(&format!("clusterIP: {DNS_IP}")));
    }

    #[test]
    fn daemons_when_two_clusters_run_then_no_file_is_shared() {
        let programs = Programs { kubernetes: "/bin/k".into(), node: "/bin/n".into() };
        for daemon in daemons(&layout("demo"), &programs) {
            for argument in &daemon.arguments {
                assert!(!argument.contains("/cache/") || argument.contains("/cache/clusters/demo/"), "{argument}");
            }
        }
    }

    #[test]
    fn daemons_when_the_node_is_for_pods_only_then_it_has_nothing_of_the_control_plane() {
        let programs = Programs { kubernetes: "/bin/k".into(), node: "/bin/n".into() };
        let daemons = daemons(&layout("demo").at(Node::Second), &programs);
        assert_eq!(daemons.iter().map(|daemon| daemon.name.as_str()).collect::<Vec<_>>(), FOR_PODS);
        assert!(daemons[1].arguments.contains(&"--node-ip=198.18.255.2".to_owned()), "{:?}", daemons[1].arguments);
    }

    #[test]
    fn daemons_when_they_use_the_api_then_they_wait_for_it() {
        let programs = Programs { kubernetes: "/bin/k".into(), node: "/bin/n".into() };
        let api: std::net::SocketAddr = format!("{NODE_IP}:{API_PORT}").parse().unwrap();
        for daemon in daemons(&layout("demo"), &programs) {
            let uses_api = daemon.arguments.iter().any(|argument| argument.contains("kubeconfig/"))
                || ["kube-proxy", "coredns"].contains(&daemon.name.as_str());
            assert_eq!(daemon.after == Some(api), uses_api, "{}", daemon.name);
        }
    }
}
