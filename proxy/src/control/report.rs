//! Tells the control plane what this process counts and how it is: `leno.proxies.v1.ProxyReports`.
//!
//! The stream goes over the connection of discovery, so that it costs no other one. Every report says everything. One goes every
//! few seconds, and at once when the process begins to serve, begins to leave, or refuses a resource. What cannot be sent in time
//! is left out: the next one says it too.

use crate::identity::Current;
use crate::telemetry::{Telemetry, process};
use crate::xds::Rejections;
use crate::xds::backoff::Backoff;
use crate::xds::rejections::{MAX_REASON, cut};
use leno_api::proxies::v1::proxy_reports_client::ProxyReportsClient;
use leno_api::proxies::v1::{ProxyReport, ReportRequest};
use leno_runtime::trust::{issuer_sha256, roots_sha256};
use rand::Rng as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Time between two reports when nothing else is asked for.
const EVERY: Duration = Duration::from_secs(5);
/// Shortest time between two reports, whatever happens.
const SHORTEST: Duration = Duration::from_millis(200);
/// First and longest wait before a stream is tried again on the same connection.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a control plane that does not know the protocol is left alone; a new connection may be to another one.
const UNKNOWN: Duration = Duration::from_secs(300);
/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 1024;
/// Memory is told in whole steps of so many bytes, so that a process at rest tells the same again and again.
const MEMORY_STEP: u64 = 1 << 20;

/// How the slot is, as its life goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Situation {
    /// When this process began to serve, milliseconds since the Unix epoch; 0 before.
    pub serving_since_ms: u64,
    /// It accepts connections, with configuration in force.
    pub ready: bool,
    /// It was asked to leave.
    pub draining: bool,
    /// Why the other slot does not serve though it should.
    pub hand_over_failure: String,
}

/// The newest connection to the control plane that has our certificate.
#[derive(Debug, Clone)]
pub(crate) struct Newest(Arc<watch::Sender<Option<Channel>>>);

impl Newest {
    /// None yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// This one from now on.
    pub fn set(&self, channel: &Channel) {
        self.0.send_replace(Some(channel.clone()));
    }
}

/// What the reports are made of.
pub(crate) struct Reporter {
    pub namespace: String,
    pub pod: String,
    pub slot: u8,
    pub engine: &'static str,
    pub newest: Newest,
    pub current: Current,
    pub situation: watch::Receiver<Situation>,
    pub rejections: watch::Receiver<Rejections>,
    pub telemetry: Telemetry,
    /// The process of another engine; 0 while there is none.
    pub beside: Arc<AtomicU32>,
}

impl Reporter {
    /// Reports until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = self.newest.0.subscribe();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let channel = connections.borrow_and_update().clone();
            let wait = async {
                let Some(channel) = channel else { return std::future::pending().await };
                let begun = Instant::now();
                let ended = self.stream(channel).await;
                if begun.elapsed() > BACKOFF.1 {
                    backoff.reset();
                }
                let wait = match &ended {
                    Err(status) if status.code() == Code::Unimplemented => UNKNOWN,
                    _ => backoff.next(),
                };
                tracing::debug!(?ended, again_in = ?wait, "the stream of reports has ended");
                tokio::time::sleep(wait).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = connections.changed() => if changed.is_err() { return },
                () = wait => {}
            }
        }
    }

    async fn stream(&self, channel: Channel) -> Result<(), Status> {
        let (mut situation, mut rejections) = (self.situation.clone(), self.rejections.clone());
        situation.mark_unchanged();
        rejections.mark_unchanged();
        let (reports, outgoing) = mpsc::channel(1);
        reports.try_send(self.report()).ok();
        let mut client = ProxyReportsClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let mut answers = client.report(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut every = EVERY;
        // Those that began together do not go on together.
        let mut next = tokio::time::Instant::now() + every.mul_f64(rand::rng().random_range(0.2..1.0));
        loop {
            tokio::select! {
                answer = answers.message() => match answer? {
                    Some(ReportRequest { every_seconds }) => {
                        every = Duration::from_secs(u64::from(every_seconds.clamp(1, 60)));
                        next = next.min(tokio::time::Instant::now() + every);
                        continue;
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(next) => {}
                Ok(()) = situation.changed() => {}
                Ok(()) = rejections.changed() => {}
            }
            reports.try_send(self.report()).ok();
            next = tokio::time::Instant::now() + every;
            tokio::time::sleep(SHORTEST).await;
        }
    }

    fn report(&self) -> ProxyReport {
        let Situation { serving_since_ms, ready, draining, hand_over_failure } = self.situation.borrow().clone();
        let Rejections { count, last } = self.rejections.borrow().clone();
        let material = self.current.borrow().clone();
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let tally = self.telemetry.tally();
        let beside = Some(self.beside.load(Ordering::Relaxed)).filter(|pid| *pid != 0).and_then(process::resident);
        let resident = process::resident(std::process::id()).unwrap_or(0) + beside.unwrap_or(0);
        ProxyReport {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            // The control plane knows which pod the certificate is of.
            pod_uid: std::env::var("POD_UID").unwrap_or_default(),
            slot: self.slot.into(),
            version: leno_runtime::version(),
            engine: self.engine.to_owned(),
            serving_since_ms,
            ready,
            draining,
            inbound: Some(tally.inbound()),
            outbound: Some(tally.outbound()),
            rejected: count,
            last_rejection: last,
            roots_sha256: material.as_ref().map(|own| roots_sha256(&own.roots).to_vec()).unwrap_or_default(),
            certificate_issuer_sha256: material
                .as_ref()
                .and_then(|own| issuer_sha256(&own.own.chain).ok())
                .map(|fingerprint| fingerprint.to_vec())
                .unwrap_or_default(),
            certificate_not_after: material
                .and_then(|material| i64::try_from(seconds(material.not_after)).ok())
                .unwrap_or_default(),
            resident_bytes: resident.div_ceil(MEMORY_STEP) * MEMORY_STEP,
            hand_over_failure: cut(&hand_over_failure, MAX_REASON).to_owned(),
        }
    }
}
