//! The Secrets that DestinationRules name, and no others: the control plane has no right to read any until somebody grants it
//! one by its name.
//!
//! They are read one by one, at once when they are named and then every [`POLL`]: a watch would need the right to list. What
//! was read stays when the API server cannot be reached. At most [`MAX_SECRETS`] are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use leno_core::ObjectKey;
use leno_core::credential::{Credential, Credentials};
use leno_crds::istio::destination_rule::DestinationRule;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often a Secret is read again.
pub const POLL: Duration = Duration::from_secs(10);
/// Most Secrets that are read.
pub const MAX_SECRETS: usize = 256;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The end of the name of a Secret with the authorities alone, which stands beside one without, as in Istio.
const AUTHORITIES_SUFFIX: &str = "-cacert";
/// What the account of the control plane is called.
const ACCOUNT: &str = "leno-control-plane";

/// What Secrets hold, by their names.
pub(super) type Secrets = BTreeMap<ObjectKey, Credential>;

/// The Secrets that an object names.
pub(super) fn named(rule: &DestinationRule) -> impl Iterator<Item = ObjectKey> {
    let namespace = rule.metadata.namespace.clone().unwrap_or_default();
    let policies = std::iter::once(&rule.spec.traffic_policy)
        .chain(rule.spec.subsets.iter().map(|subset| &subset.traffic_policy))
        .flatten();
    let names = policies.flat_map(|policy| {
        let ports = policy.port_level_settings.iter().map(|port| &port.tls);
        std::iter::once(&policy.tls).chain(ports).flatten().filter_map(|tls| tls.credential_name.as_deref())
    });
    names
        .filter(|name| !name.is_empty())
        .map(move |name| ObjectKey::new(&namespace, name))
        .collect::<BTreeSet<_>>()
        .into_iter()
}

/// What a Secret holds, by the names that Kubernetes and Istio have for it.
pub(super) fn credential(secret: &Secret) -> Credential {
    let text = |names: [&str; 2]| {
        let data = secret.data.as_ref();
        let plain = secret.string_data.as_ref();
        names
            .iter()
            .find_map(|name| {
                let bytes =
                    data.and_then(|data| data.get(*name)).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
                plain.and_then(|plain| plain.get(*name).cloned()).or(bytes)
            })
            .unwrap_or_default()
    };
    Credential {
        chain: text(["tls.crt", "cert"]),
        key: text(["tls.key", "key"]),
        authorities: text(["ca.crt", "cacert"]),
        revoked: text(["ca.crl", "crl"]),
    }
}

/// The name of the Secret beside another one that holds the authorities alone.
fn beside(key: &ObjectKey) -> ObjectKey {
    ObjectKey::new(&key.namespace, format!("{}{AUTHORITIES_SUFFIX}", key.name))
}

/// One Secret out of it and of the one beside it.
fn joined(own: Option<Credential>, beside: Option<Credential>) -> Option<Credential> {
    match (own, beside) {
        (Some(own), Some(beside)) if own.authorities.is_empty() => {
            Some(Credential { authorities: beside.authorities, revoked: beside.revoked, ..own })
        }
        (own, beside) => own.or(beside),
    }
}

/// Asks for Secrets, and knows what came.
pub(super) struct Reader {
    wanted: watch::Sender<BTreeSet<ObjectKey>>,
    found: watch::Receiver<Arc<Credentials>>,
}

impl Reader {
    /// Reads until `shutdown`. `namespace` is where the control plane runs.
    pub(super) fn spawn(client: Client, namespace: &str, shutdown: CancellationToken) -> Self {
        let (wanted, asked) = watch::channel(BTreeSet::new());
        let (told, found) = watch::channel(Arc::default());
        let namespace = namespace.to_owned();
        tokio::spawn(async move {
            shutdown.run_until_cancelled(read(client, namespace, asked, told)).await;
        });
        Reader { wanted, found }
    }

    /// From now on these are read.
    pub(super) fn want(&self, wanted: BTreeSet<ObjectKey>) {
        self.wanted.send_if_modified(|before| {
            let differs = *before != wanted;
            *before = wanted;
            differs
        });
    }

    /// Waits until something is different from what was last [seen](Reader::seen); `None` at the end.
    pub(super) async fn changed(&mut self) -> Option<()> {
        self.found.changed().await.ok()
    }

    /// What is known now.
    pub(super) fn seen(&mut self) -> Credentials {
        Credentials::clone(&self.found.borrow_and_update())
    }

    /// Waits, at most for `limit`, until all that is asked for has been read once.
    pub(super) async fn ready(&mut self, limit: Duration) {
        let wanted = self.wanted.borrow().clone();
        let all = self.found.wait_for(|found| wanted.iter().take(MAX_SECRETS).all(|key| found.contains_key(key)));
        tokio::time::timeout(limit, all).await.ok();
    }
}

async fn read(
    client: Client,
    namespace: String,
    mut asked: watch::Receiver<BTreeSet<ObjectKey>>,
    told: watch::Sender<Arc<Credentials>>,
) {
    loop {
        let wanted = asked.borrow_and_update().clone();
        let before = told.borrow().clone();
        let mut now = Credentials::new();
        for (count, key) in wanted.into_iter().enumerate() {
            if count >= MAX_SECRETS {
                now.insert(key, Err(format!("more than {MAX_SECRETS} Secrets are named; name fewer")));
                continue;
            }
            let held = match tokio::time::timeout(LIMIT, secret(&client, &namespace, &key)).await {
                Ok(Ok(held)) => held,
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "the API server does not answer".to_owned(),
                    };
                    tracing::warn!(secret = %key, reason, "a Secret cannot be read now; trying again");
                    before.get(&key).cloned().unwrap_or_else(|| Err(format!("it cannot be read yet: {reason}")))
                }
            };
            now.insert(key, held);
        }
        told.send_if_modified(|before| {
            let differs = **before != now;
            *before = Arc::new(now);
            differs
        });
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// What a Secret holds, or why nobody can have it.
async fn secret(
    client: &Client,
    namespace: &str,
    key: &ObjectKey,
) -> Result<Result<Arc<Credential>, String>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let own = match api.get_opt(&key.name).await {
        Ok(own) => own.as_ref().map(credential),
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Err(ungranted(namespace, key))),
        Err(error) => return Err(error),
    };
    let lacks = own.as_ref().is_none_or(|own| own.authorities.is_empty());
    let other = match lacks {
        false => None,
        true => match api.get_opt(&beside(key).name).await {
            Ok(other) => other.as_ref().map(credential),
            // Whoever has no such Secret grants no right to it.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            Err(error) => return Err(error),
        },
    };
    Ok(joined(own, other).map(Arc::new).ok_or_else(|| missing(key)))
}

fn missing(key: &ObjectKey) -> String {
    format!("there is no Secret {}; make one with tls.crt, tls.key and ca.crt", key.name)
}

fn ungranted(namespace: &str, key: &ObjectKey) -> String {
    let ObjectKey { namespace: of, name } = key;
    format!(
        "the control plane may not read the Secret; allow it: kubectl -n {of} create role read-{name} --verb=get \
         --resource=secrets --resource-name={name} && kubectl -n {of} create rolebinding read-{name} --role=read-{name} \
         --serviceaccount={namespace}:{ACCOUNT}"
    )
}

/// What Secrets hold that were read all at once, each with the one beside it.
pub(super) fn of_all(secrets: &Secrets, wanted: impl Iterator<Item = ObjectKey>) -> Credentials {
    let found = |key: &ObjectKey| joined(secrets.get(key).cloned(), secrets.get(&beside(key)).cloned());
    wanted.map(|key| (key.clone(), found(&key).map(Arc::new).ok_or_else(|| missing(&key)))).collect()
}
