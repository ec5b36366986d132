//! One stream to the control plane: asks, takes in, publishes, acknowledges; and again after it breaks.
//!
//! A response is acknowledged when every worker has taken the root that holds it, so that the control plane's count of
//! acknowledgements is the number of proxies on which a change is in force. While there is no control plane, what was
//! received last goes on serving.

use super::backoff::Backoff;
use super::state::{Kind, State};
use crate::config::Root;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use leno_xds::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use leno_xds::google::rpc::Status;
use prost_types::{Struct, Value, value::Kind as ValueKind};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Largest response that is accepted, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// Requests that may wait to be sent.
const MAX_QUEUED_REQUESTS: usize = 64;
/// Responses that may wait for their acknowledgement; beyond it the stream is begun anew.
const MAX_UNACKNOWLEDGED: usize = 4096;
/// How long the control plane may take to accept the stream.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A stream that lived this long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// A future that need not move between threads.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Where new roots go.
pub trait Publish {
    /// Hands a root to the workers; the future resolves when every one of them has taken it.
    fn publish(&mut self, root: Arc<Root>) -> LocalFuture<()>;
}

/// How a connection to the control plane is made. The error is only logged.
pub trait Connect {
    /// Connects once.
    fn connect(&self) -> LocalFuture<Result<Channel, String>>;
}

/// What the client does right now, for the admin server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// Whether a stream is open.
    pub connected: bool,
    /// Why the last stream or attempt ended.
    pub last_error: Option<String>,
    /// Streams opened so far.
    pub streams: u64,
}

/// Shared view of what was received: the client writes, the admin server reads.
pub type SharedState = Arc<Mutex<State>>;

/// The client. Runs on one thread.
pub struct Client<C, P> {
    connect: C,
    publish: P,
    state: SharedState,
    node: Node,
    status: watch::Sender<Connection>,
}

/// Who we are, for the control plane's logs; it decides by our certificate alone.
pub fn node(pod: &str, namespace: &str, version: &str) -> Node {
    let text = |text: &str| Value { kind: Some(ValueKind::StringValue(text.to_owned())) };
    Node {
        id: format!("leno~{pod}.{namespace}"),
        cluster: namespace.to_owned(),
        metadata: Some(Struct { fields: BTreeMap::from([("LENO_VERSION".to_owned(), text(version))]) }),
        user_agent_name: "leno".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(version.to_owned())),
        ..Default::default()
    }
}

/// A response that is not acknowledged yet.
struct Unacknowledged {
    type_url: &'static str,
    nonce: String,
    refused: Option<String>,
    waits: BTreeSet<(Kind, String)>,
}

impl Unacknowledged {
    fn request(self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.type_url.to_owned(),
            response_nonce: self.nonce,
            // 3 is INVALID_ARGUMENT.
            error_detail: self.refused.map(|message| Status { code: 3, message, details: Vec::new() }),
            ..Default::default()
        }
    }
}

/// The state of one stream.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    asked: BTreeMap<Kind, BTreeSet<String>>,
    waiting: Vec<Unacknowledged>,
    published: FuturesUnordered<LocalFuture<Vec<Unacknowledged>>>,
}

impl Stream {
    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), String> {
        self.requests.send(request).await.map_err(|_| "the control plane closed the stream".to_owned())
    }
}

impl<C: Connect, P: Publish> Client<C, P> {
    /// A client that has not connected. The receiver tells what it does.
    pub fn new(connect: C, publish: P, state: SharedState, node: Node) -> (Self, watch::Receiver<Connection>) {
        let (status, receiver) = watch::channel(Connection::default());
        (Self { connect, publish, state, node, status }, receiver)
    }

    /// Runs until `shutdown`. Waits between attempts grow to five seconds, jittered.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let begun = Instant::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.stream() => ended,
            };
            let Err(error) = ended;
            self.status.send_modify(|status| {
                status.connected = false;
                status.last_error = Some(error.clone());
            });
            if begun.elapsed() > GOOD_AFTER {
                backoff.reset();
            }
            let wait = backoff.next();
            tracing::warn!(%error, retry_in = ?wait, "no stream to the control plane; serving with what is known");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One stream, to its end.
    async fn stream(&mut self) -> Result<std::convert::Infallible, String> {
        let channel = self.connect.connect().await?;
        let (requests, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let mut stream =
            Stream { requests, asked: BTreeMap::new(), waiting: Vec::new(), published: FuturesUnordered::new() };
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let wanted = self.state().wanted(kind);
            // Of these kinds nothing can be asked yet.
            if wanted.is_empty() && matches!(kind, Kind::Endpoints | Kind::Routes) {
                continue;
            }
            let request = DeltaDiscoveryRequest {
                node: (index == 0).then(|| self.node.clone()),
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: wanted.iter().cloned().collect(),
                initial_resource_versions: self.state().versions(kind),
                ..Default::default()
            };
            stream.asked.insert(kind, wanted);
            stream.send(request).await?;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let opening = client.delta_aggregated_resources(ReceiverStream::new(queue));
        let mut responses = tokio::time::timeout(OPEN_LIMIT, opening)
            .await
            .map_err(|_| format!("the control plane did not open the stream within {OPEN_LIMIT:?}"))?
            .map_err(|status| describe(&status))?
            .into_inner();
        tracing::info!("connected to the control plane");
        self.status.send_modify(|status| {
            status.connected = true;
            status.streams += 1;
        });
        loop {
            let deadline = self.state().deadline();
            let wake = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => self.take(response, &mut stream).await?,
                    Ok(None) => return Err("the control plane ended the stream".to_owned()),
                    Err(status) => return Err(describe(&status)),
                },
                Some(acknowledged) = stream.published.next(), if !stream.published.is_empty() => {
                    for response in acknowledged {
                        stream.send(response.request()).await?;
                    }
                }
                () = wake => self.settle(&mut stream).await?,
            }
        }
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse, stream: &mut Stream) -> Result<(), String> {
        let Some(kind) = Kind::of(&response.type_url) else {
            return Err(format!("the control plane sent {}, which was not asked for", response.type_url));
        };
        let nonce = response.nonce.clone();
        tracing::debug!(
            kind = kind.noun(),
            sent = response.resources.len(),
            removed = response.removed_resources.len(),
            %nonce,
            "received"
        );
        let applied = self.state().apply(kind, response, Instant::now(), SystemTime::now());
        stream.waiting.push(Unacknowledged {
            type_url: kind.type_url(),
            nonce,
            refused: applied.refused,
            waits: applied.waits,
        });
        if stream.waiting.len() > MAX_UNACKNOWLEDGED {
            return Err(format!("{MAX_UNACKNOWLEDGED} responses wait for what they need; beginning anew"));
        }
        self.settle(stream).await
    }

    /// Brings into force what can be, publishes it, and asks for what is now needed.
    async fn settle(&mut self, stream: &mut Stream) -> Result<(), String> {
        let root = {
            let mut state = self.state();
            state.settle(Instant::now());
            state.root()
        };
        let (done, waiting) = {
            let state = self.state();
            let waits = |response: &Unacknowledged| response.waits.iter().any(|(kind, name)| state.waits(*kind, name));
            stream.waiting.drain(..).partition::<Vec<_>, _>(|response| !waits(response))
        };
        stream.waiting = waiting;
        match root {
            Some(root) => {
                let taken = self.publish.publish(root);
                stream.published.push(Box::pin(async move {
                    taken.await;
                    done
                }));
            }
            // Nothing changed: what comes later on an earlier publication is acknowledged no earlier than that.
            None if !done.is_empty() => stream.published.push(Box::pin(std::future::ready(done))),
            None => {}
        }
        for kind in [Kind::Endpoints, Kind::Routes] {
            self.ask(kind, stream).await?;
        }
        Ok(())
    }

    /// Tells the control plane what is wanted now and was not before, and the other way round.
    async fn ask(&mut self, kind: Kind, stream: &mut Stream) -> Result<(), String> {
        let wanted = self.state().wanted(kind);
        let asked = stream.asked.entry(kind).or_default();
        if *asked == wanted {
            return Ok(());
        }
        let gone: BTreeSet<String> = asked.difference(&wanted).cloned().collect();
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: wanted.difference(asked).cloned().collect(),
            resource_names_unsubscribe: gone.iter().cloned().collect(),
            ..Default::default()
        };
        *asked = wanted;
        self.state().forget(kind, &gone);
        stream.send(request).await
    }
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
