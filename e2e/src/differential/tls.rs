//! Keys and certificates of a run.

use super::case::ClientTls;
use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A certificate authority, another one, and what they have signed, as files in a folder.
pub struct Pki {
    /// The folder.
    pub folder: PathBuf,
}

/// Name, authority, DNS names, URIs.
const CERTIFICATES: [(&str, &str, &[&str], &[&str]); 6] = [
    ("server", "ca", &["server.example", "localhost"], &[]),
    ("second", "ca", &["second.example", "*.wild.example"], &[]),
    ("backend", "ca", &["backend.example"], &["spiffe://cluster.local/ns/shop/sa/reviews"]),
    ("client", "ca", &["client.example"], &["spiffe://cluster.local/ns/shop/sa/front"]),
    ("other", "ca", &["other.example"], &["spiffe://cluster.local/ns/shop/sa/other"]),
    ("foreign", "foreign-ca", &["client.example"], &["spiffe://cluster.local/ns/shop/sa/front"]),
];

impl Pki {
    /// Makes one in a folder.
    pub fn new(folder: &Path) -> Result<Pki> {
        let authority = |name: &str| -> Result<CertifiedIssuer<'static, KeyPair>> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, name);
            Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
        };
        let authorities = [("ca", authority("ca")?), ("foreign-ca", authority("foreign-ca")?)];
        for (name, authority) in &authorities {
            std::fs::write(folder.join(format!("{name}.pem")), authority.pem())?;
        }
        for (name, by, names, uris) in CERTIFICATES {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            for uri in uris {
                params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
            }
            let (_, authority) = authorities.iter().find(|(name, _)| *name == by).context("no such authority")?;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, authority)?;
            std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
            std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Pki { folder: folder.to_owned() })
    }

    fn pair(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificate = CertificateDer::from_pem_file(self.folder.join(format!("{name}.pem")))?;
        let key = PrivateKeyDer::from_pem_file(self.folder.join(format!("{name}.key")))
            .with_context(|| format!("there is no certificate {name}"))?;
        Ok((vec![certificate], key))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.join("ca.pem"))?)?;
        Ok(roots)
    }

    /// The configuration of a server that shows a certificate.
    pub fn server(&self, name: &str, alpn: &[&[u8]], client_certificate: bool) -> Result<Arc<ServerConfig>> {
        let (chain, key) = self.pair(name)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match client_certificate {
            true => {
                let roots = Arc::new(self.roots()?);
                builder
                    .with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?)
            }
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The configuration of a client; it takes any certificate of the authority, whatever its name.
    pub fn client(&self, tls: &ClientTls) -> Result<Arc<ClientConfig>> {
        let own = tls.certificate.as_deref().map(|name| self.pair(name)).transpose()?;
        let roots = vec![CertificateDer::from_pem_file(self.folder.join("ca.pem"))?];
        let own = own.map(|(chain, key)| leno_runtime::certs::Keypair { chain, key });
        let mut config = leno_runtime::tls::client_config(&roots, own, leno_runtime::tls::ExpectedPeer::AnyTrusted)?;
        config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        config.enable_sni = !tls.sni.is_empty();
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
