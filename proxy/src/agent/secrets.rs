//! Secrets: the workload's certificate (`default`) and the mesh's roots (`ROOTCA`), over both forms of the protocol.
//!
//! They are sent when they are asked for and whenever they change, so Envoy renews what it shows without closing a
//! connection. Whatever else is asked for is not there, and never will be.

use crate::identity::{Current, Material};
use leno_runtime::certs::{certificate_to_pem, key_to_pem};
use leno_xds::envoy::config::core::v3::{DataSource, data_source::Specifier};
use leno_xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use leno_xds::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The workload's certificate with its key.
const OWN: &str = "default";
/// The roots.
const ROOTS: &str = "ROOTCA";
/// Responses that wait for the socket.
const QUEUE: usize = 2;
/// Most names that one stream may ask for.
const MAX_NAMES: usize = 16;

/// The service.
pub struct Secrets {
    current: Current,
}

impl Secrets {
    /// Serves what `current` has.
    pub fn new(current: Current) -> Self {
        Self { current }
    }
}

/// The secrets of these names; names that are not known are left out.
fn named(names: &BTreeSet<String>, material: &Material) -> Vec<Secret> {
    let text =
        |text: String| Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() });
    let pem = |certificates: &[rustls_pki_types::CertificateDer<'static>]| {
        certificates.iter().map(|certificate| certificate_to_pem(certificate)).collect::<String>()
    };
    let made = |name: &String| match name.as_str() {
        OWN => Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: text(pem(&material.own.chain)),
            private_key: text(key_to_pem(&material.own.key)),
            ..TlsCertificate::default()
        })),
        ROOTS => Some(secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: text(pem(&material.roots)),
            ..CertificateValidationContext::default()
        })),
        _ => None,
    };
    names.iter().filter_map(|name| Some(Secret { name: name.clone(), r#type: Some(made(name)?) })).collect()
}

/// What a stream asks for now: the names, and whether they were asked for anew.
trait Ask: Send + 'static {
    type Reply: Send + 'static;
    /// Takes a request in; true when it wants an answer.
    fn take(&self, names: &mut BTreeSet<String>) -> bool;
    fn reply(secrets: &[Secret], version: u64) -> Self::Reply;
}

impl Ask for DiscoveryRequest {
    type Reply = DiscoveryResponse;

    fn take(&self, names: &mut BTreeSet<String>) -> bool {
        // An acknowledgement asks for what was asked for before.
        let asked: BTreeSet<String> = self.resource_names.iter().cloned().collect();
        let anew = asked != *names;
        *names = asked;
        anew
    }

    fn reply(secrets: &[Secret], version: u64) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_string(),
            resources: secrets.iter().map(leno_xds::any).collect(),
            type_url: TYPE.to_owned(),
            nonce: version.to_string(),
            ..DiscoveryResponse::default()
        }
    }
}

impl Ask for DeltaDiscoveryRequest {
    type Reply = DeltaDiscoveryResponse;

    fn take(&self, names: &mut BTreeSet<String>) -> bool {
        names.retain(|name| !self.resource_names_unsubscribe.contains(name));
        names.extend(self.resource_names_subscribe.iter().cloned());
        !self.resource_names_subscribe.is_empty()
    }

    fn reply(secrets: &[Secret], version: u64) -> DeltaDiscoveryResponse {
        let resource = |secret: &Secret| Resource {
            name: secret.name.clone(),
            version: version.to_string(),
            resource: Some(leno_xds::any(secret)),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            resources: secrets.iter().map(resource).collect(),
            type_url: TYPE.to_owned(),
            nonce: version.to_string(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// Serves one stream in a task of its own.
fn follow<A: Ask>(mut requests: Streaming<A>, mut current: Current) -> ReceiverStream<Result<A::Reply, Status>> {
    let (replies, stream) = mpsc::channel(QUEUE);
    current.mark_changed();
    tokio::spawn(async move {
        let mut names = BTreeSet::new();
        let mut material: Option<Arc<Material>> = None;
        let mut version = 0;
        loop {
            let send = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => request.take(&mut names),
                    Ok(None) | Err(_) => return,
                },
                changed = current.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    material = current.borrow_and_update().clone();
                    true
                }
            };
            if names.len() > MAX_NAMES {
                let many = Status::resource_exhausted(format!("more than {MAX_NAMES} secrets"));
                replies.send(Err(many)).await.ok();
                return;
            }
            let Some(material) = material.as_ref().filter(|_| send && !names.is_empty()) else { continue };
            version += 1;
            if replies.send(Ok(A::reply(&named(&names, material), version))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(follow(request.into_inner(), self.current.clone())))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(follow(request.into_inner(), self.current.clone())))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are streamed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_runtime::certs::{Authority, LeafSpec};
    use std::time::{Duration, SystemTime};

    fn material() -> Material {
        let now = SystemTime::now();
        let (certificate, key) = Authority::create("cluster.local", Duration::from_secs(60), now).unwrap();
        let authority = Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/reviews".to_owned();
        let spec = LeafSpec { identity, lifetime: Duration::from_secs(60), ..LeafSpec::default() };
        let own = authority.issue(&spec, now).unwrap();
        Material { own, roots: vec![authority.certificate().clone()], issuer: [0; 32], not_after: now, renew_at: now }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn secrets_when_asked_for_by_name_then_only_those_that_are_there() {
        let made = named(&names(&["ROOTCA", "default", "kubernetes://shop/tls"]).into_iter().collect(), &material());
        assert_eq!(made.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["ROOTCA", "default"]);
        let Some(secret::Type::TlsCertificate(own)) = &made[1].r#type else { panic!("{:?}", made[1].name) };
        let text = |source: &Option<DataSource>| match source.as_ref().and_then(|source| source.specifier.clone()) {
            Some(Specifier::InlineString(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text(&own.certificate_chain).starts_with("-----BEGIN CERTIFICATE-----\n"));
        let key = text(&own.private_key);
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n") && key.ends_with("-----END PRIVATE KEY-----\n"));
    }

    #[test]
    fn request_when_it_only_acknowledges_then_nothing_is_sent() {
        let mut asked = BTreeSet::new();
        let whole = |resource_names| DiscoveryRequest { resource_names, ..DiscoveryRequest::default() };
        assert!(whole(names(&["default"])).take(&mut asked));
        assert!(!whole(names(&["default"])).take(&mut asked));
        assert!(whole(names(&["default", "ROOTCA"])).take(&mut asked));
        let mut asked = BTreeSet::new();
        let delta = |subscribe: &[&str], unsubscribe: &[&str]| DeltaDiscoveryRequest {
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        };
        assert!(delta(&["default", "ROOTCA"], &[]).take(&mut asked));
        assert!(!delta(&[], &["ROOTCA"]).take(&mut asked));
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), ["default"]);
    }
}
