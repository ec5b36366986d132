//! What the proxies of every pod last told of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::proxies::v1::ProxyReport;
use leno_kubeutil::watch::Key;

/// The last report of every process that serves, by pod, sorted by slot. Two of one pod while one hands over to the other.
pub type Snapshot = Arc<BTreeMap<Key, Vec<ProxyReport>>>;
