//! Certificates and kubeconfigs of the local cluster: two authorities (the cluster's and etcd's), made anew at every
//! start and valid for a year.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

use super::layout::{API_PORT, API_SERVICE_IP, NODE_IP, Node};
use super::{Error, Layout};

/// A certificate with its key, both PEM.
struct Pair {
    certificate: String,
    key: String,
}

struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

fn parameters(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        parameters.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::hours(1);
    parameters.not_after = now + Duration::days(365);
    parameters
}

fn authority(name: &str) -> Result<Authority, Error> {
    let failed = |source| Error::Certificate { name: name.to_owned(), source };
    let mut parameters = parameters(name, None);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    let pair = Pair { certificate: certificate.pem(), key: key.serialize_pem() };
    Ok(Authority { pair, issuer: Issuer::new(parameters, key) })
}

/// A certificate for `name`, for servers and clients alike. `alternatives` are host names and addresses.
fn issue(authority: &Authority, name: &str, organization: Option<&str>, alternatives: &[&str]) -> Result<Pair, Error> {
    let failed = |source| Error::Certificate { name: name.to_owned(), source };
    let mut parameters = parameters(name, organization);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !alternatives.is_empty() {
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    for alternative in alternatives {
        parameters.subject_alt_names.push(match alternative.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*alternative).try_into().map_err(failed)?),
        });
    }
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.signed_by(&key, &authority.issuer).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A kubeconfig that carries its certificates in itself.
fn kubeconfig(cluster: &str, authority: &Pair, client: &Pair) -> String {
    let encode = |pem: &str| BASE64.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {cluster}\nclusters:\n- name: {cluster}\n  cluster:\n    \
         server: https://{NODE_IP}:{API_PORT}\n    certificate-authority-data: {}\nusers:\n- name: {cluster}\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: {cluster}\n  context: {{cluster: {cluster}, user: {cluster}}}\n",
        encode(&authority.certificate),
        encode(&client.certificate),
        encode(&client.key),
    )
}

/// Writes `content` so that only its owner can read it.
fn write_private(path: &Path, content: &str) -> Result<(), Error> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.write_all(content.as_bytes()).map_err(Error::io("write", path))
}

/// Makes all keys, certificates and kubeconfigs of the cluster and writes them to its state folder.
///
/// # Errors
/// Where a certificate cannot be made or a file cannot be written.
pub fn write(layout: &Layout) -> Result<(), Error> {
    let cluster = authority("leno-local")?;
    let etcd = authority("leno-local-etcd")?;
    let node_user = format!("system:node:{}", layout.node_name());

    let mut files: BTreeMap<&str, Pair> = BTreeMap::new();
    let api_names = [
        NODE_IP,
        API_SERVICE_IP,
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    files.insert("apiserver", issue(&cluster, "kube-apiserver", None, &api_names)?);
    files.insert("apiserver-kubelet", issue(&cluster, "leno:apiserver", None, &[])?);
    files.insert("kubelet-server", kubelet_server(&cluster, layout)?);
    files.insert("etcd", issue(&etcd, "etcd", None, &["127.0.0.1", "localhost"])?);
    files.insert("apiserver-etcd", issue(&etcd, "kube-apiserver", None, &[])?);

    let users = [
        ("admin", "leno:admin", Some("system:masters")),
        ("kubelet", node_user.as_str(), Some("system:nodes")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("coredns", "system:coredns", None),
    ];
    for (file, user, organization) in users {
        let client = issue(&cluster, user, organization, &[])?;
        write_private(&layout.kubeconfig(file), &kubeconfig(&layout.netns(), &cluster.pair, &client))?;
    }

    write_for_joining(&cluster, &layout.at(Node::Second))?;

    let service_account =
        KeyPair::generate().map_err(|source| Error::Certificate { name: "service accounts".to_owned(), source })?;
    write_private(&layout.pki().join("service-account.key"), &service_account.serialize_pem())?;
    write_private(&layout.pki().join("service-account.pub"), &service_account.public_key_pem())?;

    files.insert("ca", cluster.pair);
    files.insert("etcd-ca", etcd.pair);
    for (name, pair) in &files {
        write_private(&layout.pki().join(format!("{name}.crt")), &pair.certificate)?;
        write_private(&layout.pki().join(format!("{name}.key")), &pair.key)?;
    }
    Ok(())
}

/// What a kubelet shows to those who ask it.
fn kubelet_server(cluster: &Authority, node: &Layout) -> Result<Pair, Error> {
    let name = node.node_name();
    issue(cluster, &format!("system:node:{name}"), None, &[node.node_ip(), &name])
}

/// What a further node needs. The authority's key is not kept, so it is made with the rest.
fn write_for_joining(cluster: &Authority, node: &Layout) -> Result<(), Error> {
    for folder in [node.pki(), node.state().join("kubeconfig")] {
        std::fs::create_dir_all(&folder).map_err(Error::io("create", folder))?;
    }
    let user = format!("system:node:{}", node.node_name());
    for (file, user, organization) in
        [("kubelet", user.as_str(), Some("system:nodes")), ("kube-proxy", "system:kube-proxy", None)]
    {
        let client = issue(cluster, user, organization, &[])?;
        write_private(&node.kubeconfig(file), &kubeconfig(&node.netns(), &cluster.pair, &client))?;
    }
    let server = kubelet_server(cluster, node)?;
    write_private(&node.pki().join("ca.crt"), &cluster.pair.certificate)?;
    write_private(&node.pki().join("kubelet-server.crt"), &server.certificate)?;
    write_private(&node.pki().join("kubelet-server.key"), &server.key)
}
