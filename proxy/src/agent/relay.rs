//! Discovery: passes Envoy's stream on to the control plane over the agent's own connection.
//!
//! Messages go through as they are, acknowledgements included, so that the control plane sees Envoy itself; only who asks is
//! said by the agent. When the control plane ends a stream (it leaves, or the certificate has ended), so does Envoy's, and Envoy
//! comes again, with what it has.

use super::socket::MAX_MESSAGE;
use crate::control::report::Newest;
use crate::identity::Current;
use crate::identity::link::Link;
use crate::xds::Rejections;
use leno_xds::envoy::config::core::v3::Node;
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Whether the control plane is there, in words.
pub type Connection = watch::Receiver<String>;

/// The service.
pub struct Relay {
    link: Link,
    current: Current,
    node: Node,
    connection: watch::Sender<String>,
    newest: Newest,
    rejections: Arc<watch::Sender<Rejections>>,
}

impl Relay {
    /// Relays over `link`, with the current certificate. The receiver tells for people what became of it.
    pub(crate) fn new(link: Link, current: Current, node: Node, newest: Newest) -> (Self, Connection) {
        let (connection, receiver) = watch::channel("Envoy has not asked yet".to_owned());
        (Self { link, current, node, connection, newest, rejections: Arc::default() }, receiver)
    }

    /// What Envoy has refused.
    pub fn rejections(&self) -> watch::Receiver<Rejections> {
        self.rejections.subscribe()
    }

    async fn channel(&self) -> Result<Channel, Status> {
        let mut current = self.current.clone();
        let held = current.wait_for(Option::is_some).await.map(|held| held.clone());
        let Some(material) = held.map_err(|_| Status::unavailable("the agent is leaving"))? else {
            return Err(Status::unavailable("there is no certificate"));
        };
        let channel = self.link.channel(&material.roots, Some(material.own.clone())).await;
        channel.inspect(|channel| self.newest.set(channel)).map_err(|error| {
            tracing::warn!(%error, "no stream with the control plane");
            self.connection.send_replace(error.to_string());
            Status::unavailable(error.to_string())
        })
    }

    fn client(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
        AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Tells how a stream goes, message by message.
    fn told<T: Send + 'static>(&self, replies: Streaming<T>) -> Replies<T> {
        let connection = self.connection.clone();
        connection.send_replace(format!("connected to {}", self.link.target().host));
        Box::pin(replies.map(move |reply| {
            if let Err(status) = &reply {
                tracing::info!(reason = status.message(), "the stream with the control plane has ended");
                connection.send_replace(format!("the stream has ended: {}", status.message()));
            }
            reply
        }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Relay {
    type StreamAggregatedResourcesStream = Replies<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Replies<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the agent relays the delta protocol only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let channel = self.channel().await?;
        let (node, rejections) = (self.node.clone(), self.rejections.clone());
        let requests = request.into_inner().map_while(move |request| {
            let mut request = request.ok()?;
            if let Some(error) = &request.error_detail {
                // Envoy's own log has it as a warning.
                tracing::debug!(kind = request.type_url, reason = error.message, "Envoy refused what was sent");
                rejections.send_modify(|rejections| rejections.add(&error.message));
            }
            if request.node.is_some() {
                request.node = Some(node.clone());
            }
            Some(request)
        });
        let replies = Self::client(channel).delta_aggregated_resources(requests).await?;
        Ok(Response::new(self.told(replies.into_inner())))
    }
}
