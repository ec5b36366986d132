//! The active slot: what it is told, and what serves its traffic. What it does with that is in [`super::life`].

use super::engine::Engine;
use super::plane::Listening;
use super::podinfo::PodInfo;
use super::report::{Newest, Reporter, Situation};
use super::traffic::Own;
use super::{DrainRequest, End, RunError};
use crate::admin::{self, Ports};
use crate::agent;
use crate::config::Drain;
use crate::identity::link::{Link, Target};
use crate::identity::{Current, Files, Identity};
use crate::overload::Overload;
use crate::slots::Folder;
use crate::slots::desk::Phase;
use crate::slots::lock::Lock;
use crate::slots::sockets::Sockets;
use crate::slots::standby::Standby;
use crate::tls::CredentialStore;
use crate::xds::{Client, Connect, LocalFuture, State, node};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How often the pod's labels are looked at.
const LABELS_INTERVAL: Duration = Duration::from_secs(5);

/// Everything that a proxy is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which of the two slots this process is.
    pub slot: u8,
    /// The folder that the slots share.
    pub folder: Folder,
    /// The name of the pod.
    pub pod: String,
    /// The namespace of the pod.
    pub namespace: String,
    /// Token and roots.
    pub files: Files,
    /// Labels and annotations.
    pub podinfo: PodInfo,
    /// The control plane, if it is not found by the pod's revision.
    pub control_plane: Option<(String, u16)>,
    /// Namespace of the control plane.
    pub control_plane_namespace: String,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Port for connections from outside the pod.
    pub inbound_port: u16,
    /// Port for connections of the app.
    pub outbound_port: u16,
    /// Ports for people, probes and scrapers.
    pub ports: Ports,
    /// How long open connections may take to end.
    pub drain_limit: Duration,
    /// Envoy in place of our own data plane.
    pub envoy: Option<agent::Settings>,
}

impl Settings {
    /// Where the control plane of this pod's revision is.
    pub fn target(&self) -> Target {
        let namespace = &self.control_plane_namespace;
        let (host, port) = self
            .control_plane
            .clone()
            .unwrap_or_else(|| (format!("leno-control-plane-{}.{namespace}.svc", self.podinfo.revision()), 15012));
        let identity = leno_runtime::certs::spiffe_id(&self.trust_domain, namespace, "leno-control-plane");
        Target { host, port, identity }
    }

    /// The addresses of captured traffic, as the control plane names them.
    fn traffic_addresses(&self) -> Vec<SocketAddr> {
        [self.outbound_port, self.inbound_port]
            .into_iter()
            .flat_map(|port| {
                [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]
            })
            .collect()
    }
}

/// Whose place this slot takes.
pub enum Relieved {
    /// Nobody serves: the lock is ours.
    Nobody(Lock),
    /// The other slot serves until this one does.
    Other(Standby),
}

/// The active slot.
pub struct Serving {
    settings: Settings,
    sockets: Sockets,
    phase: watch::Sender<Phase>,
}

impl Serving {
    /// With sockets that the other slot handed over, if any.
    pub fn new(settings: Settings, sockets: Sockets, phase: watch::Sender<Phase>) -> Self {
        Self { settings, sockets, phase }
    }

    /// Serves until `shutdown`, or until another slot has taken over and the last connection has ended.
    pub(super) async fn run(
        mut self,
        relieved: Relieved,
        wishes: &mut mpsc::Receiver<DrainRequest>,
        shutdown: &CancellationToken,
    ) -> Result<End, RunError> {
        let Self { settings, sockets, phase } = &mut self;
        let situation = watch::Sender::default();
        let relieved = Some(relieved);
        let slot = Slot { settings, sockets, phase, relieved, wishes, shutdown, leaving: false, situation };
        match slot.settings.envoy.clone() {
            Some(envoy) => agent::run(slot, &envoy).await,
            None => slot.run().await,
        }
    }
}

/// A slot that is about to serve, with everything that belongs to its life.
pub(crate) struct Slot<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) sockets: &'a mut Sockets,
    pub(super) phase: &'a watch::Sender<Phase>,
    /// Taken when the life begins.
    pub(super) relieved: Option<Relieved>,
    pub(super) wishes: &'a mut mpsc::Receiver<DrainRequest>,
    pub(super) shutdown: &'a CancellationToken,
    /// It was asked to leave, and there was nobody to hand over to.
    pub(super) leaving: bool,
    /// What is reported of it.
    pub(crate) situation: watch::Sender<Situation>,
}

impl Slot<'_> {
    /// With our own data plane.
    async fn run(self) -> Result<End, RunError> {
        self.sockets.add(&self.settings.traffic_addresses())?;
        self.sockets.add(&self.settings.ports.addresses())?;
        let store = CredentialStore::new();
        let link = Link::new(self.settings.target());
        let (identity, current) = Identity::new(self.settings.files.clone(), link.clone(), store.clone());
        let state = State::new(&self.settings.trust_domain).only_at(self.settings.traffic_addresses());
        let traffic = self
            .settings
            .traffic_addresses()
            .into_iter()
            .filter(|address| self.sockets.addresses().any(|held| held == *address))
            .map(|address| Ok((address, self.sockets.copy(address)?)))
            .collect::<Result<Vec<_>, RunError>>()?;
        let engine = Engine::new(self.settings.workers, state, store, Listening::These(traffic), Overload::usual());
        let newest = Newest::new();
        let dial = Dial { link: link.clone(), current: current.clone(), newest: newest.clone() };
        let node = node(&self.settings.pod, &self.settings.namespace, &leno_runtime::version());
        let (client, connection) = Client::new(dial, engine.plane.publisher(), engine.state.clone(), node);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let view = engine.view(connection.clone());
        let node = serde_json::json!({
            "id": format!("{}.{}", self.settings.pod, self.settings.namespace), "user_agent_name": "leno",
            "user_agent_version": leno_runtime::version(),
        });
        let drain = Drain { time: self.settings.drain_limit, at_once: false };
        let view = admin::View { pod: Some(self.settings.podinfo.clone()), node, drain, ..view };
        let ports = self.settings.ports;
        let admin = |sockets: &Sockets| {
            let open = stop.child_token();
            admin::serve(&ports, sockets, &view, &open).map(|()| open.drop_guard())
        };
        tokio::spawn(identity.run(stop.clone()));
        let reporter = Reporter {
            namespace: self.settings.namespace.clone(),
            pod: self.settings.pod.clone(),
            slot: self.settings.slot,
            engine: "leno",
            newest,
            current: current.clone(),
            situation: self.situation.subscribe(),
            rejections: engine.rejections(),
            telemetry: view.telemetry.clone(),
            beside: Arc::default(),
        };
        tokio::spawn(reporter.run(stop.clone()));
        tokio::spawn(follow_revision(self.settings.clone(), link, stop.clone()));

        let local = LocalSet::new();
        local.spawn_local(client.run(stop.clone()));
        let ports = [self.settings.outbound_port, self.settings.inbound_port];
        let own = Own { plane: &engine.plane, state: engine.state.clone(), current, connection, ports };
        local.run_until(self.life(&own, &engine.health, &admin)).await
    }
}

/// Connects to the control plane with the current certificate.
struct Dial {
    link: Link,
    current: Current,
    newest: Newest,
}

impl Connect for Dial {
    fn connect(&self) -> LocalFuture<Result<Channel, String>> {
        let (link, mut current, newest) = (self.link.clone(), self.current.clone(), self.newest.clone());
        Box::pin(async move {
            let material = {
                let held = current.wait_for(Option::is_some).await.map_err(|_| "the process is leaving".to_owned())?;
                held.clone()
            };
            let Some(material) = material else { return Err("there is no certificate".to_owned()) };
            let channel = link.channel(&material.roots, Some(material.own.clone())).await;
            channel.inspect(|channel| newest.set(channel)).map_err(|error| error.to_string())
        })
    }
}

/// Follows the pod's revision label: the connection to the control plane of the revision before ends, and the next one goes
/// to that of this revision.
pub(crate) async fn follow_revision(settings: Settings, link: Link, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LABELS_INTERVAL) => {}
        }
        let target = settings.target();
        if link.retarget(target.clone()) {
            tracing::info!(host = %target.host, "the pod's revision has changed");
        }
    }
}
