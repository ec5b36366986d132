//! Who is at the other end, as far as metrics are concerned.
//!
//! A Leno proxy tells its workload in the request header [`HEADER`]: `name;namespace;app;version;cluster;service
//! account`. Anybody can write a header, so it counts only on a connection with mutual TLS whose certificate names the
//! same namespace and service account. Without that the certificate alone speaks, and without a certificate nobody.

use std::sync::Arc;

use http::HeaderValue;

use super::WorkloadLabels;
use crate::tls::PeerIdentity;

/// Name of the header. Sent only to endpoints that have shown a certificate of the mesh; removed before the request reaches the application.
pub const HEADER: &str = "x-leno-peer";

/// Longest header value that is read, in bytes.
pub const MAX_HEADER_BYTES: usize = 1024;

/// The peer's labels, from its header (if there is one) and its certificate (if there was one).
///
/// The caller keeps the result with the connection, keyed by the header's bytes: metrics find series by the address of
/// this object.
pub fn from_header(header: Option<&[u8]>, identity: Option<&PeerIdentity>) -> Arc<WorkloadLabels> {
    let Some(identity) = identity else { return WorkloadLabels::unknown() };
    let claim =
        header.filter(|value| value.len() <= MAX_HEADER_BYTES).and_then(|value| std::str::from_utf8(value).ok());
    if let Some(claim) = claim {
        let parts: Vec<&str> = claim.split(';').collect();
        if let [workload, namespace, app, version, cluster, account] = parts[..]
            && namespace == identity.namespace()
            && account == identity.service_account()
        {
            return WorkloadLabels::new(workload, namespace, app, version, cluster, identity.uri());
        }
    }
    WorkloadLabels::from_principal(identity.namespace(), identity.uri())
}

/// What our own workload tells others; `None` when a part holds what a header or this format cannot carry.
pub fn header_value(own: &WorkloadLabels, service_account: &str) -> Option<HeaderValue> {
    let parts = [&*own.workload, &*own.namespace, &*own.app, &*own.version, &*own.cluster, service_account];
    if parts.iter().any(|part| part.contains(';')) {
        return None;
    }
    HeaderValue::from_str(&parts.join(";")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> PeerIdentity {
        PeerIdentity::parse("spiffe://cluster.local/ns/shop/sa/front").unwrap()
    }

    #[test]
    fn peer_header_when_the_certificate_agrees_then_it_is_believed() {
        let own = WorkloadLabels::new("front-v1", "shop", "front", "v1", "c1", "ignored");
        let value = header_value(&own, "front").unwrap();
        let peer = from_header(Some(value.as_bytes()), Some(&identity()));
        assert_eq!(&*peer.workload, "front-v1");
        assert_eq!(&*peer.version, "v1");
        assert_eq!(&*peer.principal, "spiffe://cluster.local/ns/shop/sa/front");
    }

    #[test]
    fn peer_header_when_the_certificate_disagrees_then_only_the_certificate_counts() {
        for claim in [&b"front-v1;other;front;v1;c1;front"[..], b"front-v1;shop;front;v1;c1;admin", b"garbage", b"\xff"]
        {
            let peer = from_header(Some(claim), Some(&identity()));
            assert_eq!(&*peer.workload, "unknown");
            assert_eq!(&*peer.namespace, "shop");
        }
    }

    #[test]
    fn peer_header_when_the_connection_is_plain_text_then_nothing_is_believed() {
        let peer = from_header(Some(b"front-v1;shop;front;v1;c1;front"), None);
        assert_eq!(*peer, *WorkloadLabels::unknown());
    }
}
