//! The sources of a bootstrap's resources, each a task: they begin when something is first to come from them.

use super::plane::Publisher;
use crate::xds::bootstrap::Dynamic;
use crate::xds::files::File;
use crate::xds::management::Dial;
use crate::xds::source::{Source, SourceId};
use crate::xds::{Changes, Client, Connection, Kind, Publish as _, Role, SharedState};
use leno_xds::envoy::config::core::v3::Node;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Instant;
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;

/// Everything from which resources come, and what brings them into force.
pub(super) struct Feed {
    pub state: SharedState,
    pub publisher: Publisher,
    pub node: Node,
    pub changes: Changes,
    pub stop: CancellationToken,
}

impl Feed {
    /// Begins the aggregated stream, if there is one. The receiver tells what it does.
    pub fn begin_ads(&self, dynamic: &Dynamic) -> watch::Receiver<Connection> {
        let Some(grpc) = &dynamic.ads else { return watch::channel(Connection::default()).1 };
        let role = Role::server(grpc, SourceId::ADS, None, dynamic.all_of.clone());
        let (client, connection) = self.client(Dial::new(grpc.clone()), role);
        spawn_local(client.run(self.stop.clone()));
        connection
    }

    fn client(&self, dial: Dial, role: Role) -> (Client<Dial, Publisher>, watch::Receiver<Connection>) {
        let (client, connection) = Client::new(dial, self.publisher.clone(), self.state.clone(), self.node.clone());
        (client.with_role(role, self.changes.clone()), connection)
    }

    /// Begins other sources as resources name them, and publishes what comes into force by itself or from files, until the
    /// process leaves.
    pub async fn run(mut self) {
        let mut changed = self.changes.listen();
        let mut running = BTreeSet::new();
        loop {
            let (root, deadline, sources) = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.settle(Instant::now());
                (state.root(), state.deadline(), state.sources().others())
            };
            if let Some(root) = root {
                drop(self.publisher.publish(root));
            }
            for (id, kind, source) in sources {
                if running.insert((id, kind)) {
                    self.begin(id, kind, source);
                }
            }
            let wake = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = changed.changed() => {}
                () = wake => {}
            }
        }
    }

    fn begin(&self, id: SourceId, kind: Kind, source: Source) {
        match source {
            Source::Ads => {}
            Source::Grpc(grpc) => {
                let all_of = if kind.by_name() { Vec::new() } else { vec![kind] };
                let role = Role::server(&grpc, id, Some(kind), all_of);
                let (client, _) = self.client(Dial::new(grpc), role);
                spawn_local(client.run(self.stop.clone()));
            }
            Source::Path(path) => {
                let file = File { path, kind, source: id };
                spawn_local(file.follow(self.state.clone(), self.changes.clone(), self.stop.clone()));
            }
        }
    }
}
