//! Versions, cipher suites and key exchange groups by the names under which a configuration knows them.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite as suites, kx_group as groups};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

/// A cipher suite with the name that OpenSSL gives it.
pub(super) struct NamedSuite {
    pub(super) name: &'static str,
    pub(super) suite: SupportedCipherSuite,
}

/// Every suite, those first that cost least on processors with AES instructions.
pub(super) static ORDER: [NamedSuite; 9] = [
    NamedSuite { name: "TLS_AES_128_GCM_SHA256", suite: suites::TLS13_AES_128_GCM_SHA256 },
    NamedSuite { name: "TLS_AES_256_GCM_SHA384", suite: suites::TLS13_AES_256_GCM_SHA384 },
    NamedSuite { name: "TLS_CHACHA20_POLY1305_SHA256", suite: suites::TLS13_CHACHA20_POLY1305_SHA256 },
    NamedSuite { name: "ECDHE-ECDSA-AES128-GCM-SHA256", suite: suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 },
    NamedSuite { name: "ECDHE-ECDSA-CHACHA20-POLY1305", suite: suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 },
    NamedSuite { name: "ECDHE-RSA-AES128-GCM-SHA256", suite: suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 },
    NamedSuite { name: "ECDHE-RSA-CHACHA20-POLY1305", suite: suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 },
    NamedSuite { name: "ECDHE-ECDSA-AES256-GCM-SHA384", suite: suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 },
    NamedSuite { name: "ECDHE-RSA-AES256-GCM-SHA384", suite: suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 },
];

/// Suites that Envoy has and this proxy does not: keys for all time (no forward secrecy) or CBC. Lists of control planes name them
/// beside better ones, and are taken without them.
const WEAK: [&str; 11] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES128-SHA256",
];

/// What is spoken: versions, cipher suites, groups.
#[derive(Debug, Clone)]
pub struct TlsParams {
    provider: Arc<CryptoProvider>,
    tls12: bool,
    tls13: bool,
}

impl Default for TlsParams {
    /// TLS 1.2 and 1.3 with every suite and group.
    fn default() -> Self {
        Self { provider: super::material::provider().clone(), tls12: true, tls13: true }
    }
}

impl TlsParams {
    /// Versions from lowest to highest (12 or 13, for 1.2 and 1.3), cipher suites of TLS 1.2 by OpenSSL's names (`[a|b]` for equally
    /// liked ones; none: all), and groups by BoringSSL's names (none: the default ones), best first. The suites of TLS 1.3 are
    /// always all there.
    ///
    /// # Errors
    /// When a name is not known, or nothing is left; the field and what is wrong with it.
    pub fn new(lowest: u8, highest: u8, ciphers: &[String], curves: &[String]) -> Result<Self, (String, String)> {
        let (tls12, tls13) = (lowest <= 12, highest >= 13);
        if !tls12 && !tls13 || lowest > highest {
            return Err(("tls_maximum_protocol_version".into(), "is below the minimum".into()));
        }
        let mut provider = CryptoProvider::clone(super::material::provider());
        if !ciphers.is_empty() {
            let (mut wanted, mut weak) = (Vec::new(), None);
            for (index, text) in ciphers.iter().enumerate() {
                for name in text.split([':', '|', '[', ']']).filter(|name| !name.is_empty()) {
                    let known = ORDER.iter().find(|suite| suite.name == name && !name.starts_with("TLS_"));
                    let Some(known) = known else {
                        if WEAK.contains(&name) {
                            weak.get_or_insert((index, name));
                            continue;
                        }
                        let all: Vec<&str> =
                            ORDER.iter().map(|suite| suite.name).filter(|name| !name.starts_with("TLS_")).collect();
                        let reason =
                            format!("`{name}` is not supported by this proxy; supported are {}", all.join(", "));
                        return Err((format!("cipher_suites[{index}]"), reason));
                    };
                    if !wanted.contains(&known.suite) {
                        wanted.push(known.suite);
                    }
                }
            }
            if let (Some((index, name)), true) = (weak, wanted.is_empty()) {
                let reason = format!("`{name}` is not supported by this proxy, and there is no better one beside it");
                return Err((format!("cipher_suites[{index}]"), reason));
            }
            provider.cipher_suites.retain(|suite| suite.tls13().is_some());
            provider.cipher_suites.extend(wanted);
        }
        if !curves.is_empty() {
            let mut wanted: Vec<&'static dyn SupportedKxGroup> = Vec::new();
            for (index, name) in curves.iter().enumerate() {
                let Some(group) = group(name) else {
                    let reason = format!(
                        "`{name}` is not supported by this proxy; supported are X25519, P-256, P-384, X25519MLKEM768"
                    );
                    return Err((format!("ecdh_curves[{index}]"), reason));
                };
                wanted.push(group);
            }
            provider.kx_groups = wanted;
        }
        // What no version has is not offered either.
        provider.cipher_suites.retain(|suite| if suite.tls13().is_some() { tls13 } else { tls12 });
        Ok(Self { provider: Arc::new(provider), tls12, tls13 })
    }

    /// Whether TLS 1.3 is spoken.
    pub fn speaks_tls13(&self) -> bool {
        self.tls13
    }

    /// The cryptography.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The versions.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match (self.tls12, self.tls13) {
            (true, true) => &BOTH,
            (true, false) => &BOTH[1..],
            (false, _) => &BOTH[..1],
        }
    }
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    Some(match name {
        "X25519" => groups::X25519,
        "P-256" | "prime256v1" | "secp256r1" => groups::SECP256R1,
        "P-384" | "secp384r1" => groups::SECP384R1,
        "X25519MLKEM768" => groups::X25519MLKEM768,
        _ => return None,
    })
}

/// A suite's name as OpenSSL and access logs write it.
pub fn suite_name(suite: SupportedCipherSuite) -> &'static str {
    ORDER.iter().find(|named| named.suite == suite).map_or("unknown", |named| named.name)
}

/// The name that Envoy writes for a group.
pub fn group_name(group: rustls::NamedGroup) -> Option<&'static str> {
    Some(match group {
        rustls::NamedGroup::X25519 => "X25519",
        rustls::NamedGroup::secp256r1 => "P-256",
        rustls::NamedGroup::secp384r1 => "P-384",
        rustls::NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => return None,
    })
}

/// All algorithms for signatures in certificates and handshakes.
pub(super) fn algorithms() -> &'static rustls::crypto::WebPkiSupportedAlgorithms {
    static PROVIDER: std::sync::LazyLock<CryptoProvider> = std::sync::LazyLock::new(aws_lc_rs::default_provider);
    &PROVIDER.signature_verification_algorithms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn ciphers_when_named_then_only_they_are_spoken_below_tls_1_3() {
        let params = TlsParams::new(
            12,
            13,
            &names(&["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "ECDHE-RSA-AES256-GCM-SHA384"]),
            &names(&["P-256"]),
        )
        .unwrap();
        let spoken: Vec<&str> = params.provider().cipher_suites.iter().map(|suite| suite_name(*suite)).collect();
        let tls12 = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-AES256-GCM-SHA384"];
        assert_eq!(spoken[3..], tls12);
        assert!(spoken[..3].iter().all(|name| name.starts_with("TLS_")));
        assert_eq!(params.provider().kx_groups.len(), 1);
    }

    #[test]
    fn names_when_unknown_then_they_are_refused_by_name() {
        let (field, reason) = TlsParams::new(12, 13, &names(&["AES128-SHA"]), &[]).unwrap_err();
        assert!(field == "cipher_suites[0]" && reason.contains("`AES128-SHA`"), "{field} {reason}");
        let (field, reason) = TlsParams::new(12, 13, &[], &names(&["X25519", "P-521"])).unwrap_err();
        assert!(field == "ecdh_curves[1]" && reason.contains("`P-521`"), "{field} {reason}");
        assert!(TlsParams::new(13, 12, &[], &[]).is_err());
    }
}
