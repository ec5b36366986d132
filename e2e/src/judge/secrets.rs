//! The secrets of a pod as its agent would serve them: `default` and `ROOTCA` by SDS on a Unix socket.

use super::control_plane::Credentials;
use anyhow::{Context, Result};
use leno_xds::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret},
    service::{
        discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource},
        secret::v3::secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer},
    },
};
use std::{os::unix::fs::PermissionsExt, path::Path, pin::Pin};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Secrets(Vec<Secret>);

/// Serves them at `path` until the task ends.
pub(super) fn serve(path: &Path, credentials: &Credentials) -> Result<JoinHandle<()>> {
    let text =
        |text: String| Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() });
    let own = TlsCertificate {
        certificate_chain: text(credentials.chain_pem()),
        private_key: text(credentials.key_pem()),
        ..TlsCertificate::default()
    };
    let roots = CertificateValidationContext {
        trusted_ca: text(credentials.roots_pem()),
        ..CertificateValidationContext::default()
    };
    let secrets = Secrets(vec![
        Secret { name: "default".into(), r#type: Some(secret::Type::TlsCertificate(own)) },
        Secret { name: "ROOTCA".into(), r#type: Some(secret::Type::ValidationContext(roots)) },
    ]);
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    let server = tonic::transport::Server::builder().add_service(SecretDiscoveryServiceServer::new(secrets));
    Ok(tokio::spawn(async move {
        server.serve_with_incoming(UnixListenerStream::new(listener)).await.ok();
    }))
}

impl Secrets {
    fn named(&self, names: &[String]) -> Vec<Secret> {
        self.0.iter().filter(|secret| names.contains(&secret.name)).cloned().collect()
    }
}

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Replies<DiscoveryResponse>;
    type DeltaSecretsStream = Replies<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let secrets = Secrets(self.0.clone());
        let mut asked = Vec::new();
        let replies = request.into_inner().filter_map(move |request| match request {
            // An acknowledgement asks for what was asked for before.
            Ok(request) if request.resource_names == asked => None,
            Ok(request) => {
                asked.clone_from(&request.resource_names);
                let resources = secrets.named(&asked).iter().map(leno_xds::any).collect();
                let (version, kind) = ("1".to_owned(), TYPE.to_owned());
                Some(Ok(DiscoveryResponse {
                    version_info: version.clone(),
                    resources,
                    type_url: kind,
                    nonce: version,
                    ..DiscoveryResponse::default()
                }))
            }
            Err(status) => Some(Err(status)),
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let secrets = Secrets(self.0.clone());
        let replies = request.into_inner().filter_map(move |request| match request {
            Ok(request) if request.resource_names_subscribe.is_empty() => None,
            Ok(request) => {
                let asked = secrets.named(&request.resource_names_subscribe);
                let resources = asked.iter().map(|secret| Resource {
                    name: secret.name.clone(),
                    version: "1".to_owned(),
                    resource: Some(leno_xds::any(secret)),
                    ..Resource::default()
                });
                let (resources, nonce) = (resources.collect(), "1".to_owned());
                Some(Ok(DeltaDiscoveryResponse {
                    resources,
                    nonce,
                    type_url: TYPE.to_owned(),
                    ..DeltaDiscoveryResponse::default()
                }))
            }
            Err(status) => Some(Err(status)),
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are streamed"))
    }
}
