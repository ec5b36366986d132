//! Secrets whose certificates, keys and roots lie in files: they are read again when a file has become another one, as those that
//! a platform mounts do.

use super::{Kind, Raw, State};
use crate::xds::convert::spiffe;
use crate::xds::files::{Stamp, stamp};
use leno_xds::envoy::config::core::v3::{DataSource, data_source::Specifier};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use prost_types::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Secrets that name files.
#[derive(Debug, Default)]
pub(super) struct Files {
    secrets: BTreeMap<String, Named>,
    looked: Option<Instant>,
}

/// A secret as it came, with its files as they were when it was read.
struct Named {
    body: Any,
    version: String,
    /// `None` where there is none.
    files: Vec<(String, Option<Stamp>)>,
}

impl fmt::Debug for Named {
    // Part of it may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Files {
    /// Takes note of the files that a secret names, before they are read.
    pub(super) fn note(&mut self, name: &str, version: &str, body: &Any) {
        let stamped = |path: String| {
            let stamp = stamp(Path::new(&path)).ok();
            (path, stamp)
        };
        let files: Vec<_> = names(body).into_iter().map(stamped).collect();
        if files.is_empty() {
            self.secrets.remove(name);
        } else {
            let named = Named { body: body.clone(), version: version.to_owned(), files };
            self.secrets.insert(name.to_owned(), named);
            self.looked.get_or_insert_with(Instant::now);
        }
    }

    /// Nothing uses the secret any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.secrets.remove(name);
    }

    /// When files are to be looked at next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.looked.filter(|_| !self.secrets.is_empty()).map(|looked| looked + INTERVAL)
    }
}

impl State {
    /// Reads secrets again whose files have changed. One that cannot be read, or is half replaced, stays as it was, and is tried with
    /// the next change.
    pub(super) fn look_at_files(&mut self, now: Instant) {
        if self.files.due().is_none_or(|due| now < due) {
            return;
        }
        self.files.looked = Some(now);
        let mut changed = Vec::new();
        for (name, named) in &mut self.files.secrets {
            let mut differs = false;
            for (path, known) in &mut named.files {
                let found = stamp(Path::new(path)).ok();
                differs |= std::mem::replace(known, found) != found;
            }
            if differs {
                changed.push((name.clone(), named.version.clone(), named.body.clone()));
            }
        }
        for (name, version, body) in changed {
            let raw = Raw { version: version.clone(), body, since: SystemTime::now() };
            match self.take_secret(&name, raw) {
                Ok(()) => {
                    tracing::info!(secret = %name, "its files have changed; read again");
                    self.refusals.remove(&(Kind::Secret, name));
                }
                Err(reason) => {
                    self.count_failed_rotation(&name);
                    self.refuse(Kind::Secret, &name, version, &reason, SystemTime::now());
                }
            }
        }
    }
}

/// The files that a secret names.
fn names(body: &Any) -> Vec<String> {
    let Ok(Some(Secret { name: _, r#type })) = leno_xds::unpack(body) else { return Vec::new() };
    let sources = match r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            [certificate.certificate_chain, certificate.private_key].into_iter().flatten().collect()
        }
        Some(secret::Type::ValidationContext(context)) => {
            let mut sources = spiffe::sources(context.custom_validator_config);
            sources.extend([context.trusted_ca, context.crl].into_iter().flatten());
            sources
        }
        Some(secret::Type::SessionTicketKeys(tickets)) => tickets.keys,
        Some(secret::Type::GenericSecret(_)) | None => Vec::new(),
    };
    let file = |source: DataSource| match source.specifier {
        Some(Specifier::Filename(path)) => Some(path),
        _ => None,
    };
    sources.into_iter().filter_map(file).collect()
}
