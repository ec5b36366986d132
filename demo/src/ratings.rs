//! Stars, over gRPC, and whether it is well, for gRPC probes.

use crate::{Failure, Listen, server};
use std::{pin::Pin, time::Duration};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, transport::Server};

#[allow(missing_docs, clippy::all)]
pub(crate) mod shop {
    include!(concat!(env!("OUT_DIR"), "/shop.v1.rs"));
}

use shop::{FollowRequest, Rating, RatingsReply, RatingsRequest, ratings_server};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
}

struct Ratings {
    version: String,
}

fn stars() -> Vec<Rating> {
    vec![Rating { reviewer: "Ada".into(), stars: 5 }, Rating { reviewer: "Karl".into(), stars: 4 }]
}

#[tonic::async_trait]
impl ratings_server::Ratings for Ratings {
    async fn get(&self, request: Request<RatingsRequest>) -> Result<Response<RatingsReply>, Status> {
        if request.get_ref().product == 0 {
            return Err(Status::invalid_argument("product 0 does not exist; ask for product 1"));
        }
        let mut reply = Response::new(RatingsReply { ratings: stars(), version: self.version.clone() });
        if let Ok(version) = self.version.parse() {
            reply.metadata_mut().insert("x-version", version);
        }
        Ok(reply)
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<Rating, Status>> + Send>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let count = request.get_ref().count.min(3600) as usize;
        let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
        let ratings = ticks.take(count).enumerate_with(stars());
        Ok(Response::new(Box::pin(ratings)))
    }
}

/// Pairs each tick with the next of a few items, round and round.
trait EnumerateWith: Stream + Sized {
    fn enumerate_with(self, items: Vec<Rating>) -> impl Stream<Item = Result<Rating, Status>> + Send
    where
        Self: Send + 'static,
    {
        let mut items = items.into_iter().cycle();
        self.filter_map(move |_| items.next().map(Ok))
    }
}

impl<S: Stream> EnumerateWith for S {}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let ratings = ratings_server::RatingsServer::new(Ratings { version: args.listen.version });
    // What a kubelet's gRPC probe asks (grpc.health.v1).
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ratings_server::RatingsServer<Ratings>>().await;
    Server::builder()
        .add_service(health)
        .add_service(ratings)
        .serve_with_shutdown(args.listen.listen, server::terminated())
        .await?;
    Ok(())
}
