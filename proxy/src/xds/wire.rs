//! The two forms of discovery on the wire, made one: state of the world, and delta.

use super::source::{Protocol, Rate};
use super::state::{Kind, Update};
use crate::telemetry::counters::Number;
use futures::Stream;
use leno_xds::envoy::config::core::v3::Node;
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use leno_xds::google::rpc::Status as RpcStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::codec::Streaming;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request as Call, Status};

/// Largest response that is accepted, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// Requests that may wait to be sent.
const MAX_QUEUED_REQUESTS: usize = 64;

/// A request, in either form.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub type_url: &'static str,
    pub node: Option<Node>,
    /// Wanted from now on (delta).
    pub subscribe: BTreeSet<String>,
    /// Not wanted any more (delta).
    pub unsubscribe: BTreeSet<String>,
    /// Held already, at the start of a stream (delta).
    pub versions: BTreeMap<String, String>,
    /// Everything that is wanted (state of the world).
    pub names: BTreeSet<String>,
    /// The last version that was taken (state of the world).
    pub version: String,
    /// The response that is answered, if any.
    pub nonce: String,
    /// Why it was refused.
    pub refused: Option<String>,
}

/// A response, in either form.
#[derive(Debug)]
pub(super) struct Response {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    pub update: Update,
}

/// The end of a stream into which requests go.
pub(super) enum Requests {
    Delta(mpsc::Sender<DeltaDiscoveryRequest>),
    Whole(mpsc::Sender<DiscoveryRequest>),
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<Streaming<T>, Status>>>>;

/// A stream that the server has opened, or not yet.
pub(super) enum Answers<T> {
    Opening(Opening<T>),
    Open(Box<Streaming<T>>),
}

/// The end of a stream out of which responses come.
pub(super) enum Responses {
    Delta(Answers<DeltaDiscoveryResponse>),
    Whole(Answers<DiscoveryResponse>),
}

/// What a stream is to be like.
pub(super) struct Plan<'a> {
    pub protocol: Protocol,
    /// The kind that has a stream of its own; none is all of them.
    pub only: Option<Kind>,
    /// Headers.
    pub metadata: &'a [(String, String)],
    /// How often requests may be sent.
    pub rate: Option<Rate>,
    /// Counts requests that had to wait for that.
    pub enforced: Arc<Number>,
}

/// Begins a stream. What is sent may wait until the server has answered.
pub(super) fn begin(channel: Channel, plan: &Plan<'_>) -> Result<(Requests, Responses), String> {
    let path = path(plan.protocol, plan.only);
    Ok(match plan.protocol {
        Protocol::Delta => {
            let (requests, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
            let call = call(queue, plan)?;
            let opening = Box::pin(leno_xds::client::stream(channel, path, call, MAX_RESPONSE_BYTES));
            (Requests::Delta(requests), Responses::Delta(Answers::Opening(opening)))
        }
        Protocol::StateOfTheWorld => {
            let (requests, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
            let call = call(queue, plan)?;
            let opening = Box::pin(leno_xds::client::stream(channel, path, call, MAX_RESPONSE_BYTES));
            (Requests::Whole(requests), Responses::Whole(Answers::Opening(opening)))
        }
    })
}

fn call<T: Send + 'static>(
    queue: mpsc::Receiver<T>,
    plan: &Plan<'_>,
) -> Result<Call<impl Stream<Item = T> + Send + 'static>, String> {
    // As they go over the wire: the bytes of `-bin` names are base64 already.
    let mut headers = http::HeaderMap::new();
    for (name, value) in plan.metadata {
        let name: http::HeaderName = name.parse().map_err(|_| format!("`{name}` is no name of a header"))?;
        let value = value.parse::<http::HeaderValue>().map_err(|_| format!("`{name}` cannot have that value"))?;
        headers.append(name, value);
    }
    let mut call = Call::new(paced(queue, plan.rate, plan.enforced.clone()));
    *call.metadata_mut() = MetadataMap::from_headers(headers);
    Ok(call)
}

/// Tokens that requests take, and that grow again with time.
struct Tokens {
    rate: Rate,
    left: f64,
    since: Instant,
}

impl Tokens {
    fn new(rate: Rate) -> Self {
        Self { rate, left: f64::from(rate.most), since: Instant::now() }
    }

    /// Takes one, and says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let grown = now.saturating_duration_since(self.since).as_secs_f64() * self.rate.per_second;
        self.left = (self.left + grown).min(f64::from(self.rate.most)) - 1.0;
        self.since = now;
        Duration::try_from_secs_f64((-self.left).max(0.0) / self.rate.per_second).unwrap_or(Duration::MAX)
    }
}

/// Requests as they come out of the queue, no more often than they may.
fn paced<T: Send + 'static>(
    queue: mpsc::Receiver<T>,
    rate: Option<Rate>,
    enforced: Arc<Number>,
) -> impl Stream<Item = T> + Send + 'static {
    let tokens = rate.map(|rate| (Tokens::new(rate), enforced));
    futures::stream::unfold((queue, tokens), |(mut queue, mut tokens)| async move {
        let request = queue.recv().await?;
        if let Some((tokens, enforced)) = &mut tokens {
            let wait = tokens.take(Instant::now());
            enforced.add(u64::from(!wait.is_zero()));
            tokio::time::sleep(wait).await;
        }
        Some((request, (queue, tokens)))
    })
}

impl Requests {
    pub(super) async fn send(&self, request: Request) -> Result<(), String> {
        let Request { type_url, node, subscribe, unsubscribe, versions, names, version, nonce, refused } = request;
        // 13 is INTERNAL, as Envoy says it.
        let error_detail = refused.map(|message| RpcStatus { code: 13, message, details: Vec::new() });
        let closed = "the server closed the stream";
        match self {
            Self::Delta(requests) => {
                let request = DeltaDiscoveryRequest {
                    node,
                    type_url: type_url.to_owned(),
                    resource_names_subscribe: subscribe.into_iter().collect(),
                    resource_names_unsubscribe: unsubscribe.into_iter().collect(),
                    initial_resource_versions: versions,
                    response_nonce: nonce,
                    error_detail,
                    ..Default::default()
                };
                requests.send(request).await.map_err(|_| closed.to_owned())
            }
            Self::Whole(requests) => {
                let request = DiscoveryRequest {
                    node,
                    type_url: type_url.to_owned(),
                    resource_names: names.into_iter().collect(),
                    version_info: version,
                    response_nonce: nonce,
                    error_detail,
                    ..Default::default()
                };
                requests.send(request).await.map_err(|_| closed.to_owned())
            }
        }
    }
}

/// What comes out of a stream.
pub(super) enum Event<R> {
    /// The server has answered: the stream is open.
    Open,
    /// It says something.
    Response(R),
    /// It has ended the stream.
    End,
}

impl<T> Answers<T> {
    /// What comes next. May be given up and called again.
    async fn next(&mut self) -> Result<Event<T>, Status> {
        match self {
            Self::Opening(opening) => {
                let open = opening.await?;
                *self = Self::Open(Box::new(open));
                Ok(Event::Open)
            }
            Self::Open(open) => Ok(open.message().await?.map_or(Event::End, Event::Response)),
        }
    }
}

impl<T> Event<T> {
    fn map(self, make: impl FnOnce(T) -> Response) -> Event<Response> {
        match self {
            Self::Open => Event::Open,
            Self::Response(response) => Event::Response(make(response)),
            Self::End => Event::End,
        }
    }
}

impl Responses {
    /// What comes next. May be given up and called again.
    pub(super) async fn next(&mut self) -> Result<Event<Response>, Status> {
        match self {
            Self::Delta(answers) => Ok(answers.next().await?.map(|response| Response {
                type_url: response.type_url.clone(),
                nonce: response.nonce.clone(),
                version: response.system_version_info.clone(),
                update: response.into(),
            })),
            Self::Whole(answers) => Ok(answers.next().await?.map(|response| Response {
                type_url: response.type_url.clone(),
                nonce: response.nonce.clone(),
                version: response.version_info.clone(),
                update: response.into(),
            })),
        }
    }
}

/// The service and method of a stream.
fn path(protocol: Protocol, only: Option<Kind>) -> &'static str {
    let (whole, delta) = match only {
        None => (
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        ),
        Some(Kind::Cluster) => (
            "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        ),
        Some(Kind::Endpoints) => (
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        ),
        Some(Kind::Runtime) => (
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
        ),
        Some(Kind::Secret) => (
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        ),
        Some(Kind::Listener) => (
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        ),
        Some(Kind::Routes) => (
            "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        ),
        Some(Kind::Extension) => (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
        ),
    };
    match protocol {
        Protocol::StateOfTheWorld => whole,
        Protocol::Delta => delta,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_when_they_are_used_up_then_each_request_waits_for_one_to_grow() {
        let mut tokens = Tokens::new(Rate { most: 2, per_second: 10.0 });
        let now = tokens.since;
        assert_eq!((tokens.take(now), tokens.take(now)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(tokens.take(now).as_millis(), 100);
        assert_eq!(tokens.take(now + Duration::from_secs(1)), Duration::ZERO, "they grow with time");
    }
}
