//! One stream to a server of resources: asks, takes in, publishes, acknowledges; and again after it breaks.
//!
//! A response of the mesh's control plane is acknowledged when every worker has taken the root that holds it, so that the server's
//! count of acknowledgements is the number of proxies on which a change is in force. While there is no server, what was received
//! last goes on serving.
//!
//! There may be several clients, each for its own source: they share the state, and tell each other when it has changed.

use super::backoff::Backoff;
use super::source::{Grpc, Protocol, Rate, SourceId};
use super::state::{Kind, State};
use super::wire::{self, Event, Plan, Request, Requests, Response};
use crate::config::Root;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use leno_xds::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use prost_types::{Struct, Value, value::Kind as ValueKind};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// Responses that may wait for their acknowledgement; beyond it the stream is begun anew.
const MAX_UNACKNOWLEDGED: usize = 4096;
/// How long the control plane of the mesh may take to accept the stream.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// How long the answer waits when the same version is refused again: a server may send it again at once, for ever.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);
/// Shortest and longest wait between attempts to reach the control plane of the mesh.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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

/// Says that what was received has changed; every client looks again at what is now to be asked for.
#[derive(Clone)]
pub struct Changes(watch::Sender<u64>);

impl Default for Changes {
    fn default() -> Self {
        Self(watch::channel(0).0)
    }
}

impl Changes {
    /// Something has changed.
    pub fn tell(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Resolves with each change from now on.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// What a client asks for, and how.
#[derive(Debug, Clone)]
pub struct Role {
    /// Which source it is.
    pub source: SourceId,
    /// The form of the protocol.
    pub protocol: Protocol,
    /// The kind for which its stream is; none is the aggregated stream.
    pub only: Option<Kind>,
    /// The kinds of which everything is wanted.
    pub all_of: Vec<Kind>,
    /// Headers of the stream.
    pub metadata: Vec<(String, String)>,
    /// Whether every request says who we are.
    pub node_always: bool,
    /// How long the server may take to accept the stream; none is without limit, since some answer only with the first
    /// resource.
    pub open_limit: Option<Duration>,
    /// Shortest and longest wait between attempts.
    pub backoff: (Duration, Duration),
    /// How often requests may be sent; none is without limit.
    pub rate: Option<Rate>,
    /// Whether a listener or a route table is acknowledged only when it is in force, as the mesh counts its proxies. Other servers
    /// may send what a listener waits for only after its acknowledgement: they get it when every worker has what can be in
    /// force by then.
    pub tells_in_force: bool,
}

impl Role {
    /// The control plane of the mesh: everything on one stream, as changes.
    pub fn mesh() -> Self {
        Self {
            source: SourceId::ADS,
            protocol: Protocol::Delta,
            only: None,
            all_of: vec![Kind::Cluster, Kind::Listener],
            metadata: Vec::new(),
            node_always: false,
            open_limit: Some(OPEN_LIMIT),
            backoff: BACKOFF,
            rate: None,
            tells_in_force: true,
        }
    }

    /// A server that a bootstrap names: for all kinds, or for one. Of the kinds in `all_of` everything is wanted.
    pub fn server(grpc: &Grpc, source: SourceId, only: Option<Kind>, all_of: Vec<Kind>) -> Self {
        Self {
            source,
            protocol: grpc.protocol,
            only,
            all_of,
            metadata: grpc.metadata.clone(),
            node_always: grpc.node_always,
            open_limit: None,
            backoff: grpc.backoff,
            rate: grpc.rate,
            tells_in_force: false,
        }
    }

    /// The kinds that it asks for, in order.
    fn kinds(&self) -> Vec<Kind> {
        match self.only {
            Some(kind) => vec![kind],
            None => Kind::ALL.into_iter().filter(|kind| kind.by_name() || self.all_of.contains(kind)).collect(),
        }
    }
}

/// The client. Runs on one thread.
pub struct Client<C, P> {
    connect: C,
    publish: P,
    state: SharedState,
    node: Node,
    role: Role,
    changes: Changes,
    /// The versions that were taken last, for state of the world.
    accepted: BTreeMap<Kind, String>,
    /// Whether a response has come on this stream: it was a good one then, and the next attempt comes soon.
    answered: bool,
    status: watch::Sender<Connection>,
}

/// Who we are, for the logs of the control plane of the mesh; it decides by our certificate alone.
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
    kind: Kind,
    nonce: String,
    version: String,
    refused: Option<String>,
    waits: BTreeSet<(Kind, String)>,
}

/// The state of one stream.
struct Stream {
    requests: Requests,
    /// Whether the server knows who we are.
    introduced: bool,
    asked: BTreeMap<Kind, BTreeSet<String>>,
    /// The newest nonce of each kind.
    nonces: BTreeMap<Kind, String>,
    /// The version of each kind that was refused last.
    refused: BTreeMap<Kind, String>,
    waiting: Vec<Unacknowledged>,
    published: FuturesUnordered<LocalFuture<Vec<Unacknowledged>>>,
}

impl<C: Connect, P: Publish> Client<C, P> {
    /// A client of the mesh's control plane that has not connected. The receiver tells what it does.
    pub fn new(connect: C, publish: P, state: SharedState, node: Node) -> (Self, watch::Receiver<Connection>) {
        let (status, receiver) = watch::channel(Connection::default());
        let (role, changes, accepted) = (Role::mesh(), Changes::default(), BTreeMap::new());
        (Self { connect, publish, state, node, role, changes, accepted, answered: false, status }, receiver)
    }

    /// With another role, beside others that share its changes.
    pub fn with_role(mut self, role: Role, changes: Changes) -> Self {
        self.role = role;
        self.changes = changes;
        self
    }

    /// Runs until `shutdown`. Waits between attempts grow, and are jittered.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let (first, longest) = self.role.backoff;
        let mut backoff = Backoff::new(first, longest);
        loop {
            self.answered = false;
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.stream() => ended,
            };
            let Err(error) = ended;
            self.status.send_modify(|status| {
                status.connected = false;
                status.last_error = Some(error.clone());
            });
            let kinds = self.role.kinds();
            self.state().count_lost(self.role.source, &kinds);
            if self.answered {
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
        let mut changes = self.changes.listen();
        let channel = self.connect.connect().await?;
        let Role { protocol, only, rate, .. } = self.role;
        let enforced = self.state().counters().counter(&[], "control_plane.rate_limit_enforced");
        let plan = Plan { protocol, only, metadata: &self.role.metadata, rate, enforced };
        let (requests, mut responses) = wire::begin(channel, &plan)?;
        let mut stream = Stream {
            requests,
            introduced: false,
            asked: BTreeMap::new(),
            nonces: BTreeMap::new(),
            refused: BTreeMap::new(),
            waiting: Vec::new(),
            published: FuturesUnordered::new(),
        };
        for kind in self.role.kinds() {
            let wanted = self.state().wanted_from(kind, self.role.source);
            // Of these kinds nothing can be asked yet.
            if wanted.is_empty() && kind.by_name() {
                continue;
            }
            let request = Request {
                subscribe: wanted.clone(),
                versions: self.state().versions(kind, self.role.source),
                ..self.request(kind, &wanted, &stream)
            };
            stream.asked.insert(kind, wanted);
            self.send(request, &mut stream).await?;
        }
        if let Some(limit) = self.role.open_limit {
            let late = |_| format!("the server did not open the stream within {limit:?}");
            let event = tokio::time::timeout(limit, responses.next()).await.map_err(late)?;
            self.event(event, &mut stream).await?;
        }
        loop {
            let deadline = self.state().deadline();
            let wake = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = responses.next() => self.event(event, &mut stream).await?,
                Some(acknowledged) = stream.published.next(), if !stream.published.is_empty() => {
                    for response in acknowledged {
                        self.acknowledge(response, &mut stream).await?;
                    }
                }
                _ = changes.changed() => self.settle(&mut stream).await?,
                () = wake => self.settle(&mut stream).await?,
            }
        }
    }

    async fn event(&mut self, event: Result<Event<Response>, Status>, stream: &mut Stream) -> Result<(), String> {
        match event {
            Ok(Event::Open) => {
                tracing::info!("connected to the control plane");
                self.status.send_modify(|status| {
                    status.connected = true;
                    status.streams += 1;
                });
                Ok(())
            }
            Ok(Event::Response(response)) => self.take(response, stream).await,
            Ok(Event::End) => Err("the server ended the stream".to_owned()),
            Err(status) => Err(describe(&status)),
        }
    }

    /// What every request of a kind has.
    fn request(&self, kind: Kind, wanted: &BTreeSet<String>, stream: &Stream) -> Request {
        let mut request = Request { type_url: kind.type_url(), ..Request::default() };
        if self.role.protocol == Protocol::StateOfTheWorld {
            request.names.clone_from(wanted);
            request.version = self.accepted.get(&kind).cloned().unwrap_or_default();
            request.nonce = stream.nonces.get(&kind).cloned().unwrap_or_default();
        }
        request
    }

    async fn acknowledge(&mut self, response: Unacknowledged, stream: &mut Stream) -> Result<(), String> {
        let Unacknowledged { kind, nonce, version, refused, waits: _ } = response;
        let whole = self.role.protocol == Protocol::StateOfTheWorld;
        if whole && stream.nonces.get(&kind) != Some(&nonce) {
            // A newer response of this kind has come: to answer that one is to answer this one.
            return Ok(());
        }
        if refused.is_none() {
            self.accepted.insert(kind, version);
        }
        let wanted = stream.asked.get(&kind).cloned().unwrap_or_default();
        let request = Request { nonce, refused, ..self.request(kind, &wanted, stream) };
        self.send(request, stream).await
    }

    /// Sends a request, with who we are where the server does not know it yet or wants it always.
    async fn send(&self, mut request: Request, stream: &mut Stream) -> Result<(), String> {
        if self.role.node_always || !std::mem::replace(&mut stream.introduced, true) {
            request.node = Some(self.node.clone());
        }
        stream.requests.send(request).await
    }

    async fn take(&mut self, response: Response, stream: &mut Stream) -> Result<(), String> {
        let Response { type_url, nonce, version, mut update } = response;
        super::amend::update(&mut update);
        self.answered = true;
        let Some(kind) = Kind::of(&type_url).filter(|kind| self.role.kinds().contains(kind)) else {
            tracing::debug!(%type_url, "came and was not asked for; passed over");
            return Ok(());
        };
        stream.nonces.insert(kind, nonce.clone());
        // To acknowledge it would be to ask for everything.
        let unasked = kind.by_name() && stream.asked.get(&kind).is_none_or(BTreeSet::is_empty);
        if unasked && self.role.protocol == Protocol::StateOfTheWorld {
            tracing::debug!(kind = kind.noun(), "came and was not asked for; passed over");
            return Ok(());
        }
        tracing::debug!(
            kind = kind.noun(),
            sent = update.resources.len(),
            removed = update.removed.len(),
            %nonce,
            "received"
        );
        let applied = self.state().apply(kind, update, Instant::now(), SystemTime::now());
        let waits = if self.role.tells_in_force { applied.waits } else { BTreeSet::new() };
        let refused = applied.refused;
        let answer = Unacknowledged { kind, nonce, version, refused, waits };
        let before = match &answer.refused {
            Some(_) => stream.refused.insert(kind, answer.version.clone()),
            None => None,
        };
        if self.role.protocol == Protocol::StateOfTheWorld && before.as_ref() == Some(&answer.version) {
            stream.published.push(Box::pin(async move {
                tokio::time::sleep(REFUSED_AGAIN).await;
                vec![answer]
            }));
        } else {
            stream.waiting.push(answer);
        }
        if stream.waiting.len() > MAX_UNACKNOWLEDGED {
            return Err(format!("{MAX_UNACKNOWLEDGED} responses wait for what they need; beginning anew"));
        }
        self.settle(stream).await?;
        self.changes.tell();
        Ok(())
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
        for kind in self.role.kinds().into_iter().filter(|kind| kind.by_name()) {
            self.ask(kind, stream).await?;
        }
        Ok(())
    }

    /// Tells the server what is wanted now and was not before, and the other way round.
    async fn ask(&mut self, kind: Kind, stream: &mut Stream) -> Result<(), String> {
        let wanted = self.state().wanted_from(kind, self.role.source);
        let asked = stream.asked.entry(kind).or_default();
        if *asked == wanted {
            return Ok(());
        }
        let gone: BTreeSet<String> = asked.difference(&wanted).cloned().collect();
        let subscribe = wanted.difference(asked).cloned().collect();
        asked.clone_from(&wanted);
        self.state().forget(kind, &gone);
        let request = Request { subscribe, unsubscribe: gone, ..self.request(kind, &wanted, stream) };
        self.send(request, stream).await
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
