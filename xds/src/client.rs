//! Calls of services by their path: discovery has a service a resource type, all with the same two pairs of messages.

use prost::Message;
use tonic::codec::Streaming;
use tonic::transport::Channel;
use tonic::{Request, Status, client::Grpc};
use tonic_prost::ProstCodec;

/// Opens a stream of requests and responses at `path` (`/package.Service/Method`). Resolves when the server has answered
/// with its headers, which may be only when it has a first message to send.
///
/// # Errors
/// What the server or the connection says.
pub async fn stream<Q, R>(
    channel: Channel,
    path: &'static str,
    requests: Request<impl tokio_stream::Stream<Item = Q> + Send + 'static>,
    max_message_bytes: usize,
) -> Result<Streaming<R>, Status>
where
    Q: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel).max_decoding_message_size(max_message_bytes);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(path);
    Ok(grpc.streaming(requests, path, ProstCodec::<Q, R>::default()).await?.into_inner())
}
