//! What the active slot does, from its first request for a certificate to the end of its last connection.

use super::engine::Engine;
use super::plane::{Listening, Plane};
use super::podinfo::PodInfo;
use super::{DrainRequest, RunError};
use crate::admin::{self, Ports};
use crate::agent;
use crate::identity::link::{Link, Target};
use crate::identity::{Current, Files, Identity};
use crate::slots::Folder;
use crate::slots::active::{Active, HandOver};
use crate::slots::desk::Phase;
use crate::slots::lock::{Lock, lock_within};
use crate::slots::sockets::Sockets;
use crate::slots::standby::Standby;
use crate::tls::CredentialStore;
use crate::xds::{Client, Connect, LocalFuture, State, node};
use leno_runtime::http::Health;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How often the pod's labels are looked at.
const LABELS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the other slot may hold its lock after it was told that this one serves.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How long the standby may take to serve, when this slot hands over.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(15);
/// The same after SIGTERM, when the kubelet's patience is shorter.
const LATE_HAND_OVER_LIMIT: Duration = Duration::from_secs(2);

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

/// Whether what serves the traffic does so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not yet, or not any more and soon again.
    Starting,
    /// It does.
    Serves,
    /// It never will again, for this reason.
    Lost(Arc<str>),
}

/// What serves the traffic of a slot: our own workers, or Envoy.
pub(crate) trait Traffic {
    /// Resolves when the first configuration is in force.
    ///
    /// # Errors
    /// When that will never be.
    async fn served(&self) -> Result<(), RunError>;
    /// Whether it serves.
    fn standing(&self) -> watch::Receiver<Standing>;
    /// Open connections of clients.
    async fn connections(&self) -> usize;
    /// Closes this slot's listening sockets; open connections go on.
    async fn stop_accepting(&self);
    /// Lets open connections end, for at most `limit`.
    async fn drain(&self, limit: Duration);
}

impl Traffic for Plane {
    async fn served(&self) -> Result<(), RunError> {
        Plane::served(self).await
    }

    /// Workers serve for as long as the process lives.
    fn standing(&self) -> watch::Receiver<Standing> {
        watch::channel(Standing::Serves).1
    }

    async fn connections(&self) -> usize {
        Plane::connections(self)
    }

    async fn stop_accepting(&self) {
        Plane::stop_accepting(self).await;
    }

    async fn drain(&self, limit: Duration) {
        Plane::drain(self, limit).await;
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
    ) -> Result<(), RunError> {
        let Self { settings, sockets, phase } = &mut self;
        let slot = Slot { settings, sockets, phase, relieved, wishes, shutdown };
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
    phase: &'a watch::Sender<Phase>,
    relieved: Relieved,
    wishes: &'a mut mpsc::Receiver<DrainRequest>,
    shutdown: &'a CancellationToken,
}

impl Slot<'_> {
    /// With our own data plane.
    async fn run(self) -> Result<(), RunError> {
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
        let engine = Engine::new(self.settings.workers, state, store, Listening::These(traffic));
        let dial = Dial { link: link.clone(), current };
        let node = node(&self.settings.pod, &self.settings.namespace, &leno_runtime::version());
        let (client, connection) = Client::new(dial, engine.plane.publisher(), engine.state.clone(), node);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let stop_admin = stop.child_token();
        let view = engine.view(connection);
        let node = format!("{}.{}", self.settings.pod, self.settings.namespace);
        let view = admin::View { pod: Some(self.settings.podinfo.clone()), node, ..view };
        admin::serve(&self.settings.ports, self.sockets, &view, &stop_admin)?;
        tokio::spawn(identity.run(stop.clone()));
        tokio::spawn(follow_revision(self.settings.clone(), link, stop.clone()));

        let local = LocalSet::new();
        local.spawn_local(client.run(stop.clone()));
        local.run_until(self.life(&engine.plane, &engine.health, &stop_admin)).await
    }

    /// From the first configuration to the end of the last connection: until the process is told to leave, or another slot
    /// has taken over.
    pub(crate) async fn life(
        self,
        traffic: &impl Traffic,
        health: &Health,
        stop_admin: &CancellationToken,
    ) -> Result<(), RunError> {
        let Self { settings, sockets, phase, relieved, wishes, shutdown } = self;
        // A wish to leave before anything is served is granted at once: there is nothing to hand over.
        let mut leaving = false;
        let begun = tokio::time::Instant::now();
        let served = traffic.served();
        tokio::pin!(served);
        loop {
            tokio::select! {
                result = &mut served => break result?,
                () = shutdown.cancelled() => return Ok(()),
                Some(wish) = wishes.recv() => {
                    leaving = true;
                    wish.send(()).ok();
                }
            }
        }
        tracing::info!(took = ?begun.elapsed(), "the first configuration is in force; serving");
        let lock = match relieved {
            Relieved::Nobody(lock) => lock,
            Relieved::Other(mut standby) => {
                standby.serving().await?;
                lock_within(&settings.folder, LOCK_LIMIT).await?.ok_or(RunError::NotRelieved)?
            }
        };
        let active = Active::start(&settings.folder, lock, sockets.try_clone()?)?;
        phase.send_replace(if leaving { Phase::Leaving } else { Phase::Serving });
        health.set_ready(!leaving);
        let mut standing = traffic.standing();
        loop {
            tokio::select! {
                now = turned(&mut standing) => match now {
                    Standing::Serves => health.set_ready(!leaving),
                    Standing::Starting => health.set_ready(false),
                    Standing::Lost(reason) => return Err(RunError::Engine(reason)),
                },
                () = shutdown.cancelled() => {
                    health.set_ready(false);
                    let limit = LATE_HAND_OVER_LIMIT;
                    let handed_over = !leaving && active.hand_over(limit).await == HandOver::Done;
                    tracing::info!(handed_over, connections = traffic.connections().await, "leaving");
                    stop_admin.cancel();
                    drop(active);
                    traffic.stop_accepting().await;
                    traffic.drain(settings.drain_limit).await;
                    return Ok(());
                }
                Some(wish) = wishes.recv() => {
                    let handed_over = active.hand_over(HAND_OVER_LIMIT).await;
                    phase.send_replace(Phase::Leaving);
                    if handed_over == HandOver::Done {
                        let connections = traffic.connections().await;
                        tracing::info!(connections, "the other slot serves; draining");
                        stop_admin.cancel();
                        traffic.stop_accepting().await;
                        tokio::select! {
                            () = traffic.drain(settings.drain_limit) => {}
                            () = shutdown.cancelled() => {}
                        }
                        wish.send(()).ok();
                        shutdown.cancelled().await;
                        return Ok(());
                    }
                    // The pod goes: nothing may be refused while the app still accepts. Not ready, and serving on.
                    tracing::info!("nobody to hand over to; serving until the end of the pod");
                    leaving = true;
                    health.set_ready(false);
                    wish.send(()).ok();
                }
            }
        }
    }
}

/// The standing, whenever it is another one; never, when it cannot change.
async fn turned(standing: &mut watch::Receiver<Standing>) -> Standing {
    match standing.changed().await {
        Ok(()) => standing.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

/// Connects to the control plane with the current certificate.
struct Dial {
    link: Link,
    current: Current,
}

impl Connect for Dial {
    fn connect(&self) -> LocalFuture<Result<Channel, String>> {
        let (link, mut current) = (self.link.clone(), self.current.clone());
        Box::pin(async move {
            let material = {
                let held = current.wait_for(Option::is_some).await.map_err(|_| "the process is leaving".to_owned())?;
                held.clone()
            };
            let Some(material) = material else { return Err("there is no certificate".to_owned()) };
            let channel = link.channel(&material.roots, Some(material.own.clone())).await;
            channel.map_err(|error| error.to_string())
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
