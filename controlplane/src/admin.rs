//! What a person can ask this process, on loopback: which proxies are connected, what is in force where.

use std::sync::Arc;

use leno_runtime::http::{Health, Routes, json};
use leno_runtime::metrics::Registry;
use serde_json::{Value, json};

use crate::acks::Acknowledgements;
use crate::pipeline::{Compile, Publisher};

/// The routes of every process and those of this one.
pub fn routes<C: Compile>(
    health: Health,
    registry: Registry,
    book: Arc<Acknowledgements>,
    publisher: Arc<Publisher<C>>,
) -> Routes {
    let proxies = book.clone();
    leno_runtime::admin::routes(health, registry)
        .get("/objects", "configuration objects and on how many proxies they are in force", move || {
            let objects: Vec<Value> = book
                .reports()
                .0
                .iter()
                .map(|(object, report)| {
                    json!({
                        "object": object.to_string(), "generation": report.generation, "affected": report.affected,
                        "inForce": report.in_force, "tookMilliseconds": report.took_ms,
                        "findings": report.findings, "rejections": report.rejections,
                    })
                })
                .collect();
            json(&objects)
        })
        .get("/proxies", "connected proxies and what they have not acknowledged", move || json(&proxies.proxies()))
        .get("/services", "services of the newest snapshot", move || {
            let snapshot = publisher.snapshots().borrow().clone();
            json(
                &snapshot
                    .iter()
                    .flat_map(|snapshot| snapshot.services.keys())
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
            )
        })
}
