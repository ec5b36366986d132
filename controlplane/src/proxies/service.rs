//! Reports over gRPC: from proxies, each about itself alone, and to the operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use leno_api::proxies::v1 as wire;
use leno_api::proxies::v1::proxy_reports_server::ProxyReports;
use leno_api::proxies::v1::proxy_status_server::ProxyStatus;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Place, Table, Told};
use crate::ads::PodIdentity;
use crate::ads::server::UNKNOWN_POD;
use crate::identity::Directory;
use crate::tls::Peer;

/// Largest report in bytes.
pub const MAX_REPORT: usize = 16 * 1024;
/// Time between two messages to a reader.
const INTERVAL: Duration = Duration::from_secs(1);
/// Reports in one message; more are sent in several.
const BATCH: usize = 500;
/// Most classes of durations that are kept of a report.
const MAX_CLASSES: usize = 64;

/// Takes reports of proxies.
pub struct ReportService<D> {
    table: Arc<Table>,
    directory: Arc<D>,
    streams: AtomicU64,
    shutdown: CancellationToken,
}

impl<D: Directory> ReportService<D> {
    /// A service that believes a proxy what it says of the pod that its certificate was issued to, if `directory` knows that
    /// pod.
    pub fn new(table: Arc<Table>, directory: Arc<D>, shutdown: CancellationToken) -> Self {
        ReportService { table, directory, streams: AtomicU64::new(0), shutdown }
    }
}

#[tonic::async_trait]
impl<D: Directory> ProxyReports for ReportService<D> {
    type ReportStream = ReceiverStream<Result<wire::ReportRequest, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<wire::ProxyReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let connection = Peer::of(&request)?;
        let certificate = connection.certificate()?;
        let peer = certificate.pod()?;
        let life = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let (answers, outgoing) = mpsc::channel(1);
        let stream = Stream {
            number: self.streams.fetch_add(1, Ordering::Relaxed),
            table: self.table.clone(),
            peer,
            place: None,
        };
        let (directory, shutdown, reports) = (self.directory.clone(), self.shutdown.clone(), request.into_inner());
        tokio::spawn(async move {
            let result = tokio::select! {
                result = stream.run(&*directory, reports) => result,
                () = shutdown.cancelled() => {
                    Err(Status::unavailable("this control plane replica is leaving: connect to another"))
                }
                () = tokio::time::sleep(life) => {
                    Err(Status::unauthenticated("the client certificate has ended: connect with a new one"))
                }
                () = answers.closed() => Ok(()),
            };
            if let Err(status) = result {
                answers.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// One proxy's stream. Dropped, it does not report any more.
struct Stream {
    number: u64,
    table: Arc<Table>,
    peer: PodIdentity,
    place: Option<Place>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            self.table.gone(self.number, place);
        }
    }
}

impl Stream {
    async fn run(
        mut self,
        directory: &impl Directory,
        mut reports: Streaming<wire::ProxyReport>,
    ) -> Result<(), Status> {
        let Some(known) = directory.pod(&self.peer.pod, UNKNOWN_POD).await else {
            let pod = &self.peer.pod;
            return Err(Status::unavailable(format!("pod {pod} is not known to this control plane yet: try again")));
        };
        if known.uid != self.peer.uid || known.service_account != self.peer.service_account {
            return Err(Status::permission_denied(format!(
                "the certificate is of pod {} with uid {} and service account {}, which is not the pod of that name now",
                self.peer.pod, self.peer.uid, self.peer.service_account
            )));
        }
        while let Some(mut report) = reports.message().await? {
            if report.namespace != self.peer.pod.namespace || report.pod != self.peer.pod.name || report.slot > 1 {
                return Err(Status::permission_denied(format!(
                    "the certificate is of pod {}, the report of slot {} of {}/{}",
                    self.peer.pod, report.slot, report.namespace, report.pod
                )));
            }
            report.pod_uid.clone_from(&self.peer.uid);
            for counts in [&mut report.inbound, &mut report.outbound].into_iter().flatten() {
                counts.durations.truncate(MAX_CLASSES);
            }
            let place = (self.peer.pod.clone(), report.slot);
            if self.place.as_ref().is_some_and(|held| *held != place) {
                return Err(Status::invalid_argument("a stream is of one slot"));
            }
            self.place = Some(place);
            self.table.put(self.number, report);
        }
        Ok(())
    }
}

/// Tells the operator what proxies report.
pub struct StatusService {
    table: Arc<Table>,
    reader: Option<(String, String)>,
    shutdown: CancellationToken,
}

impl StatusService {
    /// A service that lets the holder of a certificate of this namespace and service account read; everybody with a
    /// certificate of the mesh when `None` (a folder of YAML has no operator).
    pub fn new(table: Arc<Table>, reader: Option<(String, String)>, shutdown: CancellationToken) -> Self {
        StatusService { table, reader, shutdown }
    }
}

#[tonic::async_trait]
impl ProxyStatus for StatusService {
    type WatchStream = ReceiverStream<Result<wire::ProxiesReport, Status>>;

    async fn watch(&self, request: Request<wire::WatchProxiesRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = Peer::of(&request)?;
        let certificate = peer.certificate()?;
        if let Some((namespace, account)) = &self.reader
            && (certificate.namespace != *namespace || certificate.service_account != *account)
        {
            return Err(Status::permission_denied(format!(
                "{} may not read reports of proxies; {namespace}/{account} may",
                certificate.identity
            )));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(tell(self.table.clone(), sender, self.shutdown.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn tell(
    table: Arc<Table>,
    sender: mpsc::Sender<Result<wire::ProxiesReport, Status>>,
    shutdown: CancellationToken,
) {
    let mut changes = table.changes.subscribe();
    let mut told = Told::default();
    loop {
        changes.mark_unchanged();
        for message in messages(table.news(&mut told)) {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        let next = async {
            tokio::time::sleep(INTERVAL).await;
            changes.changed().await.is_ok()
        };
        tokio::select! {
            () = shutdown.cancelled() => {
                sender.send(Err(Status::unavailable("this control plane replica is leaving"))).await.ok();
                return;
            }
            () = sender.closed() => return,
            open = next => if !open { return },
        }
    }
}

/// News in messages of bounded size; none, when there is nothing to say.
fn messages(news: super::News) -> Vec<wire::ProxiesReport> {
    let super::News { full, changed, gone } = news;
    let mut messages: Vec<_> = changed
        .chunks(BATCH)
        .map(|batch| wire::ProxiesReport {
            proxies: batch.iter().map(|report| (**report).clone()).collect(),
            ..wire::ProxiesReport::default()
        })
        .collect();
    if messages.is_empty() && (full || !gone.is_empty()) {
        messages.push(wire::ProxiesReport::default());
    }
    if let Some(first) = messages.first_mut() {
        first.full = full;
        first.gone = gone;
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxies::News;

    #[test]
    fn messages_when_there_is_much_to_say_are_several_and_only_the_first_replaces_what_was_said() {
        let changed = std::iter::repeat_with(Arc::default).take(2 * BATCH + 1).collect();
        let said = messages(News { full: true, changed, gone: Vec::new() });
        assert_eq!(said.iter().map(|message| message.proxies.len()).collect::<Vec<_>>(), [BATCH, BATCH, 1]);
        assert_eq!(said.iter().map(|message| message.full).collect::<Vec<_>>(), [true, false, false]);
        assert!(messages(News::default()).is_empty());
        assert!(messages(News { full: true, ..News::default() })[0].full);
    }
}
