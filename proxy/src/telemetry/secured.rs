//! Numbers of handshakes of TLS, of listeners and of clusters.

use super::envoy::{CLUSTER, LISTENER, Scope, Stat, as_part};
use super::histogram::Counter;
use crate::tls::{Distrust, TlsError, TlsInfo};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Numbers of handshakes, written by one worker.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct TlsStats {
    pub handshake: Counter,
    pub session_reused: Counter,
    pub no_certificate: Counter,
    pub connection_error: Counter,
    pub fail_verify_no_cert: Counter,
    pub fail_verify_error: Counter,
    pub fail_verify_san: Counter,
    pub fail_verify_cert_hash: Counter,
    /// Versions, ciphers and groups by their names; there are few.
    pub agreed: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl TlsStats {
    /// A handshake that succeeded.
    pub fn succeeded(&self, info: &TlsInfo) {
        self.handshake.add(1);
        if info.resumed {
            self.session_reused.add(1);
        }
        if info.chain().is_empty() {
            self.no_certificate.add(1);
        }
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        let group = info.group.map(|group| ("curves", group));
        for key in [("versions", info.version), ("ciphers", info.cipher)].into_iter().chain(group) {
            *agreed.entry(key).or_default() += 1;
        }
    }

    /// A handshake that did not.
    pub fn failed(&self, error: &TlsError) {
        let counter = match error.distrust() {
            Some(Distrust::NoCertificate) => &self.fail_verify_no_cert,
            Some(Distrust::Names) => &self.fail_verify_san,
            Some(Distrust::Fingerprint) => &self.fail_verify_cert_hash,
            Some(Distrust::Path) => &self.fail_verify_error,
            None if error.is_of_protocol() => &self.connection_error,
            // The connection broke.
            None => return,
        };
        counter.add(1);
    }
}

/// Whose certificates they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A listener's.
    Listener,
    /// A cluster's.
    Cluster,
}

/// Until when a certificate of this name is good, in seconds since 1970.
pub fn expiring(owner: Owner, of: &str, name: &str, seconds: u64) -> Stat {
    let (kind, label) = match owner {
        Owner::Listener => LISTENER,
        Owner::Cluster => CLUSTER,
    };
    let mut one = Vec::with_capacity(1);
    let family = format!("envoy_{kind}_ssl_certificate_expiration_unix_time_seconds");
    let stat = format!("ssl.certificate.{}.expiration_unix_time_seconds", as_part(name));
    let label_of_name = ("envoy_tls_certificate", as_part(name).into_owned());
    Scope::new(kind, label, of, &mut one).put(&stat, family, seconds, true, Some(label_of_name));
    one.remove(0)
}

/// Tells those of all workers together.
pub(super) fn tell<'t>(out: &mut Scope<'_>, family: &str, all: impl Iterator<Item = &'t TlsStats> + Clone) {
    let numbers: [(&str, fn(&TlsStats) -> &Counter); 8] = [
        ("handshake", |one| &one.handshake),
        ("session_reused", |one| &one.session_reused),
        ("no_certificate", |one| &one.no_certificate),
        ("connection_error", |one| &one.connection_error),
        ("fail_verify_no_cert", |one| &one.fail_verify_no_cert),
        ("fail_verify_error", |one| &one.fail_verify_error),
        ("fail_verify_san", |one| &one.fail_verify_san),
        ("fail_verify_cert_hash", |one| &one.fail_verify_cert_hash),
    ];
    for (name, of) in numbers {
        out.add(&format!("ssl.{name}"), all.clone().map(|one| of(one).get()).sum(), false);
    }
    // There is no stapling, and what a key is for is part of the path.
    for name in [
        "ocsp_staple_failed",
        "ocsp_staple_omitted",
        "ocsp_staple_requests",
        "ocsp_staple_responses",
        "was_key_usage_invalid",
    ] {
        out.add(&format!("ssl.{name}"), 0, false);
    }
    let mut agreed: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for one in all {
        for (key, count) in one.agreed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *agreed.entry(*key).or_default() += count;
        }
    }
    for ((kind, value), count) in agreed {
        let label = match kind {
            "versions" => "envoy_ssl_version",
            "ciphers" => "envoy_ssl_cipher",
            _ => "envoy_ssl_curve",
        };
        out.put(
            &format!("ssl.{kind}.{value}"),
            format!("{family}_ssl_{kind}"),
            count,
            false,
            Some((label, value.to_owned())),
        );
    }
}
