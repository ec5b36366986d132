//! The contexts in use, so that equal configurations share one: a listener or cluster that comes again as it was keeps its sessions
//! and its connections.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::material::{KeyPair, TrustSettings};
use super::{ClientContext, ServerContext};

/// Contexts by the hash of what they were made of, for as long as something uses them.
#[derive(Debug, Default)]
pub struct Contexts {
    servers: HashMap<[u8; 32], Weak<ServerContext>>,
    clients: HashMap<[u8; 32], Weak<ClientContext>>,
    sweep_at: usize,
}

impl Contexts {
    /// The one context equal to this one.
    pub fn server(&mut self, made: ServerContext) -> Arc<ServerContext> {
        self.sweep();
        if let Some(known) = self.servers.get(made.fingerprint()).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(made);
        self.servers.insert(*made.fingerprint(), Arc::downgrade(&made));
        made
    }

    /// The one context equal to this one.
    pub fn client(&mut self, made: ClientContext) -> Arc<ClientContext> {
        self.sweep();
        if let Some(known) = self.clients.get(made.fingerprint()).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(made);
        self.clients.insert(*made.fingerprint(), Arc::downgrade(&made));
        made
    }

    /// The trust that contexts in use have of their own beside that of this secret.
    pub fn combined_with(&self, secret: &str) -> Vec<TrustSettings> {
        let servers = self.servers.values().filter_map(Weak::upgrade);
        let clients = self.clients.values().filter_map(Weak::upgrade);
        let servers = servers.filter_map(|context| context.combined_with(secret).cloned());
        servers.chain(clients.filter_map(|context| context.combined_with(secret).cloned())).collect()
    }

    /// The certificates that contexts in use show.
    pub fn certificates(&self) -> Vec<Arc<KeyPair>> {
        let servers = self.servers.values().filter_map(Weak::upgrade).flat_map(|context| context.key_pairs());
        let clients = self.clients.values().filter_map(Weak::upgrade).flat_map(|context| context.key_pairs());
        let mut all: Vec<_> = servers.chain(clients).collect();
        all.sort_by(|a, b| a.facts().serial.cmp(&b.facts().serial));
        all
    }

    fn sweep(&mut self) {
        if self.servers.len() + self.clients.len() >= self.sweep_at.max(64) {
            self.servers.retain(|_, context| context.strong_count() > 0);
            self.clients.retain(|_, context| context.strong_count() > 0);
            self.sweep_at = 2 * (self.servers.len() + self.clients.len());
        }
    }
}
