//! The authority that signs certificates of the mesh, and the roots that the mesh trusts.
//!
//! Both are files that the operator makes (a mounted Secret). They are read again when they change, so that a rotation needs no
//! restart: while it goes on, `roots.pem` holds the old root and the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use leno_runtime::certs::{Authority, CertError};
use leno_runtime::trust::{Fingerprint, Signing, roots_sha256};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. A Secret takes up to a minute to reach a pod anyway.
pub const POLL: Duration = Duration::from_secs(5);
/// Lifetime of an authority that this process makes for itself (`--config-dir`).
const OWN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// The authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}; the operator writes it to the Secret leno-ca")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in the files is not usable.
    #[error("the authority in {dir} is unusable: {source}")]
    Content {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: CertError,
    },
}

/// What an authority and its roots are known by. The operator goes on with a rotation when every replica says the new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// Of the trusted roots.
    pub roots: Fingerprint,
    /// Of what signs.
    pub signer: Fingerprint,
}

/// The authority and the roots at one moment.
pub struct Material {
    /// Signs.
    pub authority: Authority,
    /// What follows the leaf in a chain: empty when the authority is itself a root.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// All roots that the mesh trusts.
    pub roots: Vec<CertificateDer<'static>>,
    /// What it is known by.
    pub fingerprints: Fingerprints,
    /// The files as they were read, to see changes.
    files: [Vec<u8>; 3],
}

impl Material {
    fn from_pem(certificate: Vec<u8>, key: Vec<u8>, roots: Vec<u8>) -> Result<Self, CertError> {
        let signing = Signing::from_pem(&certificate, &key, &roots)?;
        // The files are read one after the other, and may be replaced between two of them.
        if !signing.owns_its_key() {
            let reason = "it is not the key of the certificate".to_owned();
            return Err(CertError::Parse { what: "the authority's key", reason });
        }
        let fingerprints = Fingerprints { roots: roots_sha256(&signing.roots), signer: signing.fingerprint()? };
        let Signing { authority, intermediates, roots: trusted } = signing;
        Ok(Material { authority, intermediates, roots: trusted, fingerprints, files: [certificate, key, roots] })
    }
}

/// The authority, kept up to date. Cheap to clone.
#[derive(Clone)]
pub struct Ca {
    current: Arc<ArcSwap<Material>>,
    changes: watch::Receiver<u64>,
    announce: Arc<watch::Sender<u64>>,
    dir: Option<Arc<Path>>,
}

impl Ca {
    /// Reads `tls.crt`, `tls.key` and `roots.pem` in a folder.
    ///
    /// # Errors
    ///
    /// [`CaError`].
    pub fn from_dir(dir: &Path) -> Result<Self, CaError> {
        Ok(Self::new(read(dir)?, Some(dir)))
    }

    /// Makes an authority that only this process knows. Returns its root as PEM too.
    ///
    /// # Errors
    ///
    /// [`CertError`].
    pub fn in_memory(trust_domain: &str) -> Result<(Self, String), CertError> {
        let (certificate, key) = Authority::create(trust_domain, OWN_LIFETIME, SystemTime::now())?;
        let bytes = certificate.clone().into_bytes();
        let material = Material::from_pem(bytes.clone(), key.into_bytes(), bytes)?;
        Ok((Self::new(material, None), certificate))
    }

    fn new(material: Material, dir: Option<&Path>) -> Self {
        let (announce, changes) = watch::channel(0);
        Ca {
            current: Arc::new(ArcSwap::from_pointee(material)),
            changes,
            announce: Arc::new(announce),
            dir: dir.map(Arc::from),
        }
    }

    /// The authority and the roots now.
    pub fn current(&self) -> Arc<Material> {
        self.current.load_full()
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Looks at the files `every` so often ([`POLL`]) and reads them again when they changed, until `shutdown`. What cannot be used is logged, and the last good stays.
    pub async fn follow_files(self, every: Duration, shutdown: CancellationToken) {
        let Some(dir) = self.dir.clone() else { return };
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            self.read_again(&dir);
        }
    }

    /// Whether the authority was replaced.
    fn read_again(&self, dir: &Path) -> bool {
        match read(dir) {
            Ok(material) if material.files == self.current.load().files => false,
            Ok(material) => {
                tracing::info!(dir = %dir.display(), roots = material.roots.len(), "the authority has changed");
                self.current.store(Arc::new(material));
                self.announce.send_modify(|version| *version += 1);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "keeping the authority that was read before");
                false
            }
        }
    }
}

fn read(dir: &Path) -> Result<Material, CaError> {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|source| CaError::Read { path, source })
    };
    Material::from_pem(file("tls.crt")?, file("tls.key")?, file("roots.pem")?)
        .map_err(|source| CaError::Content { dir: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path) -> String {
        let (certificate, key) =
            Authority::create("cluster.local", Duration::from_secs(60), SystemTime::now()).unwrap();
        std::fs::write(dir.join("tls.key"), key).unwrap();
        std::fs::write(dir.join("roots.pem"), &certificate).unwrap();
        std::fs::write(dir.join("tls.crt"), &certificate).unwrap();
        certificate
    }

    #[tokio::test]
    async fn ca_when_its_files_change_then_the_new_authority_signs() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let ca = Ca::from_dir(dir.path()).unwrap();
        let mut changes = ca.subscribe();
        let before = ca.current().authority.certificate().clone();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(ca.clone().follow_files(Duration::from_millis(5), shutdown.clone()));
        write(dir.path());
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
        assert_ne!(*ca.current().authority.certificate(), before);
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn ca_when_a_file_turns_bad_then_the_last_good_stays() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let ca = Ca::from_dir(dir.path()).unwrap();
        let before = ca.current().authority.certificate().clone();
        std::fs::write(dir.path().join("tls.crt"), "no certificate").unwrap();
        assert!(!ca.read_again(dir.path()));
        assert_eq!(*ca.current().authority.certificate(), before);
    }

    #[test]
    fn ca_when_a_file_is_missing_then_the_error_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Ca::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tls.crt") && error.contains("leno-ca"), "{error}");
    }
}
