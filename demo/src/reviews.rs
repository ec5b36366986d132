//! Reviews of a product. v1 has no stars, v2 black ones, v3 red ones.

use crate::{
    Failure, Listen,
    net::{Connector, host_port},
    ratings::shop::{RatingsRequest, ratings_client::RatingsClient},
    server,
};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
    /// HOST:PORT of the ratings service.
    #[arg(long, default_value = "ratings:9090")]
    ratings: String,
}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let (host, port) = host_port(&args.ratings)?;
    let channel: Channel =
        Endpoint::from_shared(format!("http://{host}:{port}"))?.connect_with_connector_lazy(Connector::new()?);
    let version = args.listen.version.clone();
    server::serve(args.listen, move |request, _| {
        let (version, channel) = (version.clone(), channel.clone());
        async move {
            let mut reviews = json!([
                {"reviewer": "Ada", "text": "A fabric that keeps its shape."},
                {"reviewer": "Karl", "text": "Light, open, and nothing slips."},
            ]);
            if version != "v1" {
                let mut call = tonic::Request::new(RatingsRequest { product: 1 });
                *call.metadata_mut() = tonic::metadata::MetadataMap::from_headers(server::passed_on(request.headers()));
                let reply = RatingsClient::new(channel).get(call).await?.into_inner();
                for (review, rating) in reviews.as_array_mut().into_iter().flatten().zip(reply.ratings) {
                    review["stars"] = rating.stars.into();
                }
            }
            let colour = if version == "v3" { "red" } else { "black" };
            Ok(server::json(&json!({"version": version, "colour": colour, "reviews": reviews})))
        }
    })
    .await
}
