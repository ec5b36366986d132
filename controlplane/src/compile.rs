//! The pure steps as the pipeline calls them. What a client can reach is worked out once for all scopes that see the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_core::snapshot::Snapshot;
use leno_core::{Finding, ObjectKey};

use crate::build::Builder;
use crate::pipeline::Compile;
use crate::resolve::{self, ClientScope, Outbound, Scope};
use crate::stores::Stores;
use crate::translate::{self, ENDPOINTS, Resource, Resources};

/// Build, resolve and translate as they are.
pub struct Mesh;

impl Compile for Mesh {
    type Scope = Scope;
    type Builder = Builder;
    type Shared = BTreeMap<ClientScope, Arc<Outbound>>;

    fn build(builder: &mut Builder, stores: &Stores) -> Arc<Snapshot> {
        builder.build(stores)
    }

    fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<Scope> {
        resolve::scope_of(snapshot, pod)
    }

    fn resources(snapshot: &Snapshot, scope: &Scope, shared: &mut Self::Shared) -> Resources {
        let outbound = match shared.get(&scope.client) {
            Some(outbound) => outbound.clone(),
            None => {
                let made = Arc::new(resolve::outbound(snapshot, &scope.client).0);
                shared.insert(scope.client.clone(), made.clone());
                made
            }
        };
        let ir = resolve::with_outbound(snapshot, scope, outbound);
        let mut resources = translate::translate(&ir);
        resources.by_type.entry(ENDPOINTS).or_default().extend(translate::all_endpoints(snapshot, scope, &ir));
        resources
    }

    fn endpoints(snapshot: &Snapshot, scope: &Scope, cluster: &str) -> Option<Resource> {
        translate::endpoints(snapshot, scope, cluster)
    }

    fn findings(snapshot: &Snapshot) -> Vec<Finding> {
        resolve::findings(snapshot)
    }
}
