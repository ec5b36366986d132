//! The aggregated discovery service over gRPC: one task a stream, which moves messages between the socket and its
//! [`Session`].
//!
//! Bounds: a request is at most 8 MiB, four responses wait for the socket, and there are at most four more under way (one a
//! kind). A stream ends when the certificate that it was opened with does, so that nobody stays connected on an old proof.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt};
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::session::{Outcome, Session};
use super::spread::{Membership, Reason, Streams};
use super::state_of_the_world::StateOfTheWorld;
use super::variant::Variant;
use super::{Configs, Kind, PodIdentity, Target};
use crate::metrics::{Metrics, TypeLabel};
use crate::tls::Peer;

/// Most bytes of a request: a reconnecting proxy names all that it has, about 100 bytes a resource.
pub const MAX_REQUEST: usize = 8 * 1024 * 1024;
/// How long a proxy may be connected before its pod must have been seen. The control plane learns of pods later than the
/// pods' proxies start only when its watch is behind.
pub const UNKNOWN_POD: Duration = Duration::from_secs(10);
const QUEUE: usize = 4;

type Reply<V> = Result<<V as Variant>::Response, Status>;

/// The service.
pub struct Ads<C> {
    configs: Arc<C>,
    metrics: Metrics,
    shutdown: CancellationToken,
    streams: AtomicU64,
    open: Streams,
}

impl<C: Configs> Ads<C> {
    /// A service that serves what `configs` has, until `shutdown`.
    pub fn new(configs: Arc<C>, metrics: Metrics, shutdown: CancellationToken) -> Self {
        Ads { configs, metrics, shutdown, streams: AtomicU64::new(0), open: Streams::default() }
    }

    /// The open streams, for those who spread them.
    pub fn streams(&self) -> Streams {
        self.open.clone()
    }

    /// The service for a gRPC server, with its limits.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

#[tonic::async_trait]
impl<C: Configs> AggregatedDiscoveryService for Ads<C> {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.serve::<StateOfTheWorld>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.serve::<Session>(request)
    }
}

impl<C: Configs> Ads<C> {
    /// Lets a stream run in a task of its own.
    fn serve<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
    ) -> Result<Response<ReceiverStream<Reply<V>>>, Status> {
        let connection = Peer::of(&request)?;
        let certificate = connection.certificate()?;
        let peer = certificate.pod()?;
        let life = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let membership = self.open.enter(number).ok_or_else(|| Status::unavailable(Reason::Leaving.message()))?;
        let (replies, outgoing) = mpsc::channel(QUEUE);
        let stream = ProxyStream::<C, V> {
            number,
            membership,
            target: self.configs.follow(&peer),
            peer,
            configs: self.configs.clone(),
            metrics: self.metrics.clone(),
            replies,
            variant: PhantomData,
        };
        let expires = Instant::now() + life;
        tokio::spawn(stream.run(request.into_inner(), expires, self.shutdown.clone()));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

struct ProxyStream<C: Configs, V: Variant> {
    number: u64,
    membership: Membership,
    peer: PodIdentity,
    target: watch::Receiver<Target>,
    configs: Arc<C>,
    metrics: Metrics,
    replies: mpsc::Sender<Reply<V>>,
    variant: PhantomData<fn() -> V>,
}

impl<C: Configs, V: Variant> ProxyStream<C, V> {
    async fn run(
        mut self,
        requests: impl Stream<Item = Result<V::Request, Status>> + Unpin + Send,
        expires: Instant,
        shutdown: CancellationToken,
    ) {
        tracing::info!(proxy = %self.peer.pod, stream = self.number, "proxy connected");
        self.metrics.streams.inc();
        let end = self.serve(requests, expires, shutdown).await;
        self.metrics.streams.dec();
        self.configs.gone(self.number);
        match end {
            Ok(()) => tracing::info!(proxy = %self.peer.pod, stream = self.number, "proxy disconnected"),
            Err(status) => {
                tracing::info!(proxy = %self.peer.pod, stream = self.number, reason = status.message(), "stream ended");
                self.replies.send(Err(status)).await.ok();
            }
        }
    }

    async fn serve(
        &mut self,
        mut requests: impl Stream<Item = Result<V::Request, Status>> + Unpin + Send,
        expires: Instant,
        shutdown: CancellationToken,
    ) -> Result<(), Status> {
        let mut session = V::begin(Instant::now());
        let must_be_known = Instant::now() + UNKNOWN_POD;
        let mut known = false;
        self.target.mark_changed();
        loop {
            let deadline = session.deadline(Instant::now());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Status::unavailable(Reason::Leaving.message())),
                reason = self.membership.ended() => return Err(Status::unavailable(reason.message())),
                changed = self.target.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("configuration is no longer served here: connect again"));
                    }
                    if let Target::Ready(configuration) = &*self.target.borrow_and_update() {
                        known = true;
                        session.set_target(configuration.clone(), Instant::now());
                    }
                }
                request = requests.next() => match request {
                    Some(Ok(request)) => self.request(&mut session, &request).await?,
                    Some(Err(_)) | None => return Ok(()),
                },
                () = sleep_until(must_be_known), if !known => return Err(self.unknown()),
                () = sleep_until(expires) => {
                    return Err(Status::unauthenticated("the client certificate has ended: connect with a new one"));
                }
                () = sleep_until(deadline.unwrap_or(expires)), if deadline.is_some() => {}
            }
            while let Some(response) = session.next(Instant::now()) {
                let said = V::describe(&response);
                if let Some(kind) = Kind::of(said.type_url) {
                    self.metrics.pushes.get_or_create(&TypeLabel::new(kind)).inc();
                    let resources = said.resources as u64;
                    self.metrics.pushed_resources.get_or_create(&TypeLabel::new(kind)).inc_by(resources);
                }
                tracing::debug!(
                    proxy = %self.peer.pod, kind = said.type_url, resources = said.resources, removed = said.removed,
                    nonce = said.nonce, "push"
                );
                if self.replies.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            self.membership.set_settled(known && session.settled());
            if known {
                self.configs.progress(self.number, &self.peer, session.progress(Instant::now()));
            }
        }
    }

    async fn request(&self, session: &mut V, request: &V::Request) -> Result<(), Status> {
        let (type_url, nonce) = V::about(request);
        let Some(kind) = Kind::of(type_url) else {
            // An answer without resources lets a client go on that waits for one.
            if nonce.is_empty() {
                tracing::warn!(proxy = %self.peer.pod, type_url, "a type that is not served");
                let nothing = V::nothing(request);
                self.replies.send(Ok(nothing)).await.map_err(|_| Status::cancelled("the proxy is gone"))?;
            }
            return Ok(());
        };
        match session.take(kind, request, Instant::now()) {
            Outcome::Subscribed => {}
            Outcome::Acknowledged(kind) => {
                self.metrics.acknowledged.get_or_create(&TypeLabel::new(kind)).inc();
            }
            Outcome::Refused(kind, message) => {
                self.metrics.refused.get_or_create(&TypeLabel::new(kind)).inc();
                tracing::warn!(proxy = %self.peer.pod, kind = kind.as_str(), %message, "the proxy refused a response");
            }
        }
        Ok(())
    }

    fn unknown(&self) -> Status {
        let pod = &self.peer.pod;
        match &*self.target.borrow() {
            Target::Foreign => Status::permission_denied(format!(
                "the certificate is of pod {pod} with uid {}, which is not the pod of that name now",
                self.peer.uid
            )),
            _ => Status::unavailable(format!("pod {pod} is not known to this control plane yet: try again")),
        }
    }
}
