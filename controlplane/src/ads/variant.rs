//! What the two variants of the protocol have in common, as the server sees them.

use std::sync::Arc;

use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::time::Instant;

use super::Progress;
use super::configuration::{Configuration, Kind};
use super::session::{Outcome, Session};
use super::state_of_the_world::StateOfTheWorld;

/// What is said of a message in metrics and logs.
#[derive(Debug)]
pub struct Described<'a> {
    /// The type of its resources.
    pub type_url: &'a str,
    /// The response that it is or answers.
    pub nonce: &'a str,
    /// How many resources it has.
    pub resources: usize,
    /// How many it removes.
    pub removed: usize,
}

/// A variant of the discovery protocol with one proxy.
pub trait Variant: Send + Sync + 'static {
    /// What the proxy sends.
    type Request: Send + Sync + 'static;
    /// What it is sent.
    type Response: Send + 'static;

    /// A session that has not seen a request.
    fn begin(now: Instant) -> Self;
    /// From now on the proxy should hold this.
    fn set_target(&mut self, target: Arc<Configuration>, now: Instant);
    /// Type and nonce of a request.
    fn about(request: &Self::Request) -> (&str, &str);
    /// Takes a request of a kind that is served.
    fn take(&mut self, kind: Kind, request: &Self::Request, now: Instant) -> Outcome;
    /// The answer to the first request of a type that is not served: there is nothing.
    fn nothing(request: &Self::Request) -> Self::Response;
    /// The next response that may be sent, if there is one.
    fn next(&mut self, now: Instant) -> Option<Self::Response>;
    /// What there is to say of a response.
    fn describe(response: &Self::Response) -> Described<'_>;
    /// When something would change without any event.
    fn deadline(&self, now: Instant) -> Option<Instant>;
    /// How far the proxy is.
    fn progress(&self, now: Instant) -> Progress;
    /// Whether the proxy has everything that it should hold, as far as it takes it.
    fn settled(&self) -> bool;
}

/// The nonce of answers that nobody waits to have acknowledged.
const NO_NONCE: &str = "none";

impl Variant for Session {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn begin(now: Instant) -> Self {
        Session::new(now)
    }

    fn set_target(&mut self, target: Arc<Configuration>, now: Instant) {
        Session::set_target(self, target, now);
    }

    fn about(request: &DeltaDiscoveryRequest) -> (&str, &str) {
        (&request.type_url, &request.response_nonce)
    }

    fn take(&mut self, kind: Kind, request: &DeltaDiscoveryRequest, now: Instant) -> Outcome {
        self.request(kind, request, now)
    }

    fn nothing(request: &DeltaDiscoveryRequest) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: request.type_url.clone(),
            removed_resources: request.resource_names_subscribe.clone(),
            nonce: NO_NONCE.to_owned(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn next(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        Session::next(self, now)
    }

    fn describe(response: &DeltaDiscoveryResponse) -> Described<'_> {
        Described {
            type_url: &response.type_url,
            nonce: &response.nonce,
            resources: response.resources.len(),
            removed: response.removed_resources.len(),
        }
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        Session::deadline(self, now)
    }

    fn progress(&self, now: Instant) -> Progress {
        Session::progress(self, now)
    }

    fn settled(&self) -> bool {
        Session::settled(self)
    }
}

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn begin(now: Instant) -> Self {
        StateOfTheWorld::new(now)
    }

    fn set_target(&mut self, target: Arc<Configuration>, now: Instant) {
        StateOfTheWorld::set_target(self, target, now);
    }

    fn about(request: &DiscoveryRequest) -> (&str, &str) {
        (&request.type_url, &request.response_nonce)
    }

    fn take(&mut self, kind: Kind, request: &DiscoveryRequest, now: Instant) -> Outcome {
        self.request(kind, request, now)
    }

    fn nothing(request: &DiscoveryRequest) -> DiscoveryResponse {
        DiscoveryResponse {
            type_url: request.type_url.clone(),
            nonce: NO_NONCE.to_owned(),
            ..DiscoveryResponse::default()
        }
    }

    fn next(&mut self, now: Instant) -> Option<DiscoveryResponse> {
        StateOfTheWorld::next(self, now)
    }

    fn describe(response: &DiscoveryResponse) -> Described<'_> {
        let resources = response.resources.len();
        Described { type_url: &response.type_url, nonce: &response.nonce, resources, removed: 0 }
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        StateOfTheWorld::deadline(self, now)
    }

    fn progress(&self, now: Instant) -> Progress {
        StateOfTheWorld::progress(self, now)
    }

    fn settled(&self) -> bool {
        StateOfTheWorld::settled(self)
    }
}
