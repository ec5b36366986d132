//! The pure steps as the pipeline calls them.

use std::sync::Arc;

use leno_core::snapshot::Snapshot;
use leno_core::{Finding, ObjectKey};

use crate::build::Builder;
use crate::pipeline::Compile;
use crate::resolve::{self, Scope};
use crate::stores::Stores;
use crate::translate::{self, ENDPOINTS, Resource, Resources};

/// Build, resolve and translate as they are.
pub struct Mesh;

impl Compile for Mesh {
    type Scope = Scope;
    type Builder = Builder;

    fn build(builder: &mut Builder, stores: &Stores) -> Arc<Snapshot> {
        builder.build(stores)
    }

    fn scope_of(snapshot: &Snapshot, pod: &ObjectKey) -> Option<Scope> {
        resolve::scope_of(snapshot, pod)
    }

    fn resources(snapshot: &Snapshot, scope: &Scope) -> Resources {
        let (ir, _) = resolve::resolve(snapshot, scope);
        let mut resources = translate::translate(&ir);
        let endpoints = translate::endpoint_names(&ir).filter_map(|cluster| {
            let name = cluster.to_string();
            let made = translate::endpoints(snapshot, scope, &name)?;
            Some((name, Arc::new(made)))
        });
        resources.by_type.entry(ENDPOINTS).or_default().extend(endpoints);
        resources
    }

    fn endpoints(snapshot: &Snapshot, scope: &Scope, cluster: &str) -> Option<Resource> {
        translate::endpoints(snapshot, scope, cluster)
    }

    fn findings(snapshot: &Snapshot) -> Vec<Finding> {
        resolve::findings(snapshot)
    }
}
