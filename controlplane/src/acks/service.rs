//! The reports as a gRPC stream, for the operator.
//!
//! Only the operator may read them: they name objects and pods of all namespaces. A stream sends everything once and then what
//! changed, at most one report in 100 ms; reports of a slow reader replace each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leno_api::status::v1 as wire;
use leno_api::status::v1::mesh_status_server::MeshStatus;
use leno_core::{Finding, ObjectRef};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Acknowledgements, ObjectReport};
use crate::identity::Fingerprints;
use crate::tls::Peer;

/// Time between two reports.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Objects in one message; a larger report is sent in several.
const BATCH: usize = 500;

/// The service.
pub struct StatusService {
    book: Arc<Acknowledgements>,
    reader: Option<(String, String)>,
    trust: watch::Receiver<Fingerprints>,
    shutdown: CancellationToken,
}

impl StatusService {
    /// A service that lets the holder of a certificate of this namespace and service account read; everybody with a
    /// certificate of the mesh when `None` (a folder of YAML has no operator). `trust` is what is said of the authority.
    pub fn new(
        book: Arc<Acknowledgements>,
        reader: Option<(String, String)>,
        trust: watch::Receiver<Fingerprints>,
        shutdown: CancellationToken,
    ) -> Self {
        StatusService { book, reader, trust, shutdown }
    }
}

#[tonic::async_trait]
impl MeshStatus for StatusService {
    type WatchStream = ReceiverStream<Result<wire::Report, Status>>;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = Peer::of(&request)?;
        let certificate = peer.certificate()?;
        if let Some((namespace, account)) = &self.reader
            && (certificate.namespace != *namespace || certificate.service_account != *account)
        {
            return Err(Status::permission_denied(format!(
                "{} may not read reports; {namespace}/{account} may",
                certificate.identity
            )));
        }
        tracing::info!(reader = certificate.identity, "a reader of reports connected");
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(report(self.book.clone(), self.trust.clone(), sender, self.shutdown.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn report(
    book: Arc<Acknowledgements>,
    mut trust: watch::Receiver<Fingerprints>,
    sender: mpsc::Sender<Result<wire::Report, Status>>,
    shutdown: CancellationToken,
) {
    let mut changes = book.subscribe();
    let mut sent: Option<Known> = None;
    loop {
        changes.mark_unchanged();
        let (objects, connected) = book.reports();
        let now = Known { objects, connected, trust: *trust.borrow_and_update() };
        for report in difference(sent.as_ref(), &now) {
            if sender.send(Ok(report)).await.is_err() {
                return;
            }
        }
        sent = Some(now);
        tokio::select! {
            () = shutdown.cancelled() => {
                sender.send(Err(Status::unavailable("this control plane replica is leaving"))).await.ok();
                return;
            }
            () = sender.closed() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            Ok(()) = trust.changed() => {}
        }
    }
}

/// What a reader knows.
struct Known {
    objects: BTreeMap<ObjectRef, ObjectReport>,
    connected: usize,
    trust: Fingerprints,
}

/// What must be said so that a reader that knows `before` knows `now`.
fn difference(before: Option<&Known>, now: &Known) -> Vec<wire::Report> {
    let known = |object: &ObjectRef| before.and_then(|before| before.objects.get(object));
    let objects: Vec<_> = now
        .objects
        .iter()
        .filter(|(object, report)| known(object) != Some(*report))
        .map(|(object, report)| object_report(object, report))
        .collect();
    let removed: Vec<_> = before
        .iter()
        .flat_map(|before| before.objects.keys())
        .filter(|object| !now.objects.contains_key(*object))
        .map(object_ref)
        .collect();
    let same = |before: &Known| before.connected == now.connected && before.trust == now.trust;
    if objects.is_empty() && removed.is_empty() && before.is_some_and(same) {
        return Vec::new();
    }
    let head = |full| wire::Report {
        full,
        connected_proxies: u32::try_from(now.connected).unwrap_or(u32::MAX),
        roots_sha256: now.trust.roots.to_vec(),
        signer_sha256: now.trust.signer.to_vec(),
        version: leno_runtime::version(),
        ..wire::Report::default()
    };
    let mut reports: Vec<_> =
        objects.chunks(BATCH).map(|batch| wire::Report { objects: batch.to_vec(), ..head(false) }).collect();
    if reports.is_empty() {
        reports.push(head(false));
    }
    if let Some(first) = reports.first_mut() {
        first.full = before.is_none();
        first.removed = removed;
    }
    reports
}

fn object_ref(object: &ObjectRef) -> wire::ObjectRef {
    let ObjectRef { group, kind, namespace, name } = object.clone();
    wire::ObjectRef { group, kind, namespace, name }
}

fn object_report(object: &ObjectRef, report: &ObjectReport) -> wire::ObjectReport {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    wire::ObjectReport {
        object: Some(object_ref(object)),
        generation: report.generation,
        affected: count(report.affected),
        in_force: count(report.in_force),
        accepted_by_envoy: count(report.accepted_by_envoy),
        took_ms: report.took_ms,
        findings: report.findings.iter().map(finding).collect(),
        rejections: report
            .rejections
            .iter()
            .map(|(proxy, message)| wire::Rejection { proxy: proxy.clone(), message: message.clone() })
            .collect(),
    }
}

fn finding(finding: &Finding) -> wire::Finding {
    wire::Finding {
        condition: finding.condition.as_str().to_owned(),
        failing: finding.failing(),
        reason: finding.reason.as_str().to_owned(),
        field: finding.field.clone(),
        message: finding.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str], connected: usize) -> Known {
        let object = |name: &&str| ObjectRef::new("networking.istio.io", "VirtualService", "shop", *name);
        let objects = names.iter().map(|name| (object(name), ObjectReport::default())).collect();
        Known { objects, connected, trust: Fingerprints { roots: [1; 32], signer: [2; 32] } }
    }

    #[test]
    fn report_when_it_is_the_first_then_is_full_even_if_empty() {
        let first = difference(None, &known(&[], 0));
        assert_eq!(first.len(), 1);
        assert!(first[0].full);
    }

    #[test]
    fn report_when_nothing_changed_then_nothing_is_said() {
        assert!(difference(Some(&known(&["a"], 2)), &known(&["a"], 2)).is_empty());
    }

    #[test]
    fn report_when_only_the_authority_changes_then_says_so() {
        let mut now = known(&["a"], 2);
        now.trust.signer = [3; 32];
        let said = difference(Some(&known(&["a"], 2)), &now);
        assert_eq!(said.len(), 1);
        assert!(!said[0].full && said[0].objects.is_empty());
        assert_eq!((said[0].roots_sha256.as_slice(), said[0].signer_sha256.as_slice()), (&[1; 32][..], &[3; 32][..]));
    }

    #[test]
    fn report_when_an_object_goes_then_only_that_is_said() {
        let said = difference(Some(&known(&["a", "b"], 2)), &known(&["a"], 2));
        assert_eq!(said.len(), 1);
        assert!(!said[0].full && said[0].objects.is_empty());
        assert_eq!(said[0].removed.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
