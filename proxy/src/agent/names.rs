//! Whom a log entry speaks of, as the labels of metrics.
//!
//! Telemetry knows labels by their address, so equal texts must give the same object. Bounds: [`MAX_NAMES`] objects of a
//! kind; when there are more, all of that kind are forgotten and made again as they come.

use crate::telemetry::{ServiceLabels, WorkloadLabels, peer};
use crate::tls::PeerIdentity;
use std::collections::HashMap;
use std::sync::Arc;

/// Most objects of one kind that are kept; about 300 bytes each.
pub const MAX_NAMES: usize = 4096;

#[derive(Debug)]
struct Cache<V>(HashMap<String, Arc<V>>);

impl<V> Cache<V> {
    fn get(&mut self, key: String, make: impl FnOnce(&str) -> Arc<V>) -> Arc<V> {
        if let Some(known) = self.0.get(&key) {
            return known.clone();
        }
        if self.0.len() >= MAX_NAMES {
            self.0.clear();
        }
        let made = make(&key);
        self.0.insert(key, made.clone());
        made
    }
}

/// Labels by the texts of log entries.
#[derive(Debug)]
pub struct Names {
    trust_domain: String,
    workloads: Cache<WorkloadLabels>,
    services: Cache<ServiceLabels>,
    unknown: Arc<WorkloadLabels>,
}

impl Names {
    /// No labels yet; the trust domain is that of the own workload.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            workloads: Cache(HashMap::new()),
            services: Cache(HashMap::new()),
            unknown: WorkloadLabels::unknown(),
        }
    }

    /// The own workload: `name;namespace;app;version;cluster;service account`.
    pub fn own(&mut self, text: &str) -> Arc<WorkloadLabels> {
        if text.is_empty() {
            return self.unknown.clone();
        }
        let trust_domain = &self.trust_domain;
        self.workloads.get(format!("own\n{text}"), |_| {
            let mut parts = text.split(';').skip(1);
            let namespace = parts.next().unwrap_or_default();
            let account = parts.nth(3).unwrap_or_default();
            let principal = leno_runtime::certs::spiffe_id(trust_domain, namespace, account);
            WorkloadLabels::from_endpoint(text, Some(&principal))
        })
    }

    /// An endpoint: what its metadata says, and whom it must be.
    pub fn endpoint(&mut self, workload: &str, identity: &str) -> Arc<WorkloadLabels> {
        if workload.is_empty() {
            return self.unknown.clone();
        }
        self.workloads.get(format!("endpoint\n{workload}\n{identity}"), |_| {
            WorkloadLabels::from_endpoint(workload, Some(identity).filter(|identity| !identity.is_empty()))
        })
    }

    /// A caller: what its header claims, and what its certificate proves.
    pub fn caller(&mut self, claim: &str, principal: Option<&str>) -> Arc<WorkloadLabels> {
        let Some(principal) = principal else { return self.unknown.clone() };
        self.workloads.get(format!("caller\n{claim}\n{principal}"), |_| {
            let identity = PeerIdentity::parse(principal).ok();
            peer::from_header(Some(claim.as_bytes()).filter(|claim| !claim.is_empty()), identity.as_ref())
        })
    }

    /// A service: the list in its cluster's metadata as JSON, or else the cluster's own name.
    pub fn service(&mut self, list: &str, cluster: &str) -> Arc<ServiceLabels> {
        self.services.get(format!("{list}\n{cluster}"), |_| {
            let read: Option<serde_json::Value> = serde_json::from_str(list).ok();
            match read.as_ref().and_then(|list| list.get(0)) {
                Some(first) => {
                    let get = |field: &str| first[field].as_str().unwrap_or_default();
                    ServiceLabels::new(get("host"), get("name"), get("namespace"))
                }
                None if cluster.is_empty() => ServiceLabels::cluster_only("unknown"),
                None => ServiceLabels::cluster_only(cluster),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_when_texts_are_equal_then_are_the_same_object() {
        let mut names = Names::new("cluster.local");
        let one = names.own("front-v1;shop;front;v1;c1;front-account");
        assert_eq!(&*one.principal, "spiffe://cluster.local/ns/shop/sa/front-account");
        assert_eq!((&*one.workload, &*one.version, &*one.cluster), ("front-v1", "v1", "c1"));
        assert!(Arc::ptr_eq(&one, &names.own("front-v1;shop;front;v1;c1;front-account")));
        let list = r#"[{"host":"a.shop.svc.cluster.local","name":"a","namespace":"shop"}]"#;
        assert_eq!(&*names.service(list, "outbound|80||a").name, "a");
        assert_eq!(&*names.service("", "PassthroughCluster").host, "PassthroughCluster");
    }

    #[test]
    fn caller_when_the_certificate_disagrees_then_only_the_certificate_counts() {
        let mut names = Names::new("cluster.local");
        let principal = "spiffe://cluster.local/ns/shop/sa/front";
        assert_eq!(&*names.caller("front-v1;shop;front;v1;c1;front", Some(principal)).workload, "front-v1");
        let liar = names.caller("admin-v1;shop;admin;v1;c1;admin", Some(principal));
        assert_eq!((&*liar.workload, &*liar.principal), ("unknown", principal));
        assert_eq!(&*names.caller("front-v1;shop;front;v1;c1;front", None).namespace, "unknown");
    }
}
