//! The Secrets that DestinationRules name, and no others: the control plane has no right to read any until somebody grants it
//! one by its name.
//!
//! They are read by name, at once when they are named and then every [`POLL`]: a watch would need the right to list. What
//! was read stays when the API server cannot be reached. At most [`MAX_SECRETS`] of a namespace are read, so that one namespace
//! takes nothing from the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use leno_core::ObjectKey;
use leno_core::credential::{AUTHORITIES_SUFFIX, Credential, Credentials};
use leno_crds::convert::is_secret_name;
use leno_crds::istio::destination_rule::DestinationRule;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often a Secret is read again.
pub const POLL: Duration = Duration::from_secs(10);
/// Most Secrets of one namespace that are read, the first by name.
pub const MAX_SECRETS: usize = 32;
/// How many are asked for at a time.
const AT_A_TIME: usize = 16;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What is known of one.
type Held = Result<Arc<Credential>, String>;

/// What Secrets hold, by their names.
pub(super) type Secrets = BTreeMap<ObjectKey, Credential>;

/// The Secrets that an object names, as far as conversion lets it: those of rules for chosen workloads, by names that there can be.
pub(super) fn named(rule: &DestinationRule) -> BTreeSet<ObjectKey> {
    let namespace = rule.metadata.namespace.clone().unwrap_or_default();
    let spec = Some(&rule.spec).filter(|spec| spec.chooses_workloads());
    let policies = spec.into_iter().flat_map(|spec| {
        std::iter::once(&spec.traffic_policy).chain(spec.subsets.iter().map(|subset| &subset.traffic_policy)).flatten()
    });
    let names = policies.flat_map(|policy| {
        let ports = policy.port_level_settings.iter().map(|port| &port.tls);
        std::iter::once(&policy.tls).chain(ports).flatten().filter_map(|tls| tls.credential_name.as_deref())
    });
    names.filter(|name| is_secret_name(name)).map(|name| ObjectKey::new(&namespace, name)).collect()
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

/// Asks for Secrets, and knows what came.
pub(super) struct Reader {
    wanted: watch::Sender<BTreeSet<ObjectKey>>,
    found: watch::Receiver<Arc<Credentials>>,
}

impl Reader {
    /// Reads until `shutdown`. `account` is the control plane's, as `namespace:name`.
    pub(super) fn spawn(client: Client, account: &str, shutdown: CancellationToken) -> Self {
        let (wanted, asked) = watch::channel(BTreeSet::new());
        let (told, found) = watch::channel(Arc::default());
        let account = account.to_owned();
        tokio::spawn(async move {
            shutdown.run_until_cancelled(read(client, account, asked, told)).await;
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
        let all = self.found.wait_for(|found| wanted.iter().all(|key| found.contains_key(key)));
        tokio::time::timeout(limit, all).await.ok();
    }
}

async fn read(
    client: Client,
    account: String,
    mut asked: watch::Receiver<BTreeSet<ObjectKey>>,
    told: watch::Sender<Arc<Credentials>>,
) {
    let tell = |key: ObjectKey, held: Held| {
        told.send_if_modified(|known| {
            let differs = known.get(&key) != Some(&held);
            if differs {
                Arc::make_mut(known).insert(key, held);
            }
            differs
        });
    };
    loop {
        let wanted = asked.borrow_and_update().clone();
        told.send_if_modified(|known| {
            let gone = known.keys().any(|key| !wanted.contains(key));
            if gone {
                Arc::make_mut(known).retain(|key, _| wanted.contains(key));
            }
            gone
        });
        let (few, many) = limited(wanted);
        for key in many {
            tell(
                key,
                Err(format!("DestinationRules of this namespace name more than {MAX_SECRETS} Secrets; name fewer")),
            );
        }
        let reads = few.into_iter().map(|key| {
            let (client, account) = (&client, &account);
            async move {
                let held = tokio::time::timeout(LIMIT, secret(client, account, &key)).await;
                (key, held)
            }
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(AT_A_TIME);
        while let Some((key, held)) = reads.next().await {
            let reason = match held {
                Ok(Ok(held)) => {
                    tell(key, held);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(secret = %key, reason, "a Secret cannot be read now; trying again");
            if !told.borrow().contains_key(&key) {
                tell(key, Err(format!("it cannot be read yet: {reason}")));
            }
        }
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Those that are read, and those that are too many.
fn limited(wanted: BTreeSet<ObjectKey>) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    wanted.into_iter().partition(|key| {
        let count = counts.entry(key.namespace.clone()).or_default();
        *count += 1;
        *count <= MAX_SECRETS
    })
}

/// What a Secret holds, or why nobody can have it.
async fn secret(client: &Client, account: &str, key: &ObjectKey) -> Result<Held, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let get = async |name: &str| match api.get_opt(name).await {
        Ok(found) => Ok(found.as_ref().map_or(Found::Missing, |found| Found::There(credential(found)))),
        // Kubernetes tells who may not read whether there is one no more than others.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Found::Forbidden),
        Err(error) => Err(error),
    };
    let own = get(&key.name).await?;
    let other = match &own {
        Found::There(own) if !own.authorities.is_empty() => Found::Missing,
        _ => get(&beside(key).name).await?,
    };
    Ok(judged(key, account, own, other))
}

/// What asking for a Secret brought.
enum Found {
    There(Credential),
    Missing,
    Forbidden,
}

/// One Secret and the one beside it together. `account` is that of the control plane.
fn judged(key: &ObjectKey, account: &str, own: Found, other: Found) -> Held {
    let held = match (own, other) {
        (Found::There(own), Found::There(other)) if own.authorities.is_empty() => {
            Credential { authorities: other.authorities, revoked: other.revoked, ..own }
        }
        (Found::There(own), Found::Forbidden) if own.authorities.is_empty() && own.chain.is_empty() => {
            return Err(ungranted(account, key));
        }
        (Found::There(held), _) | (_, Found::There(held)) => held,
        (Found::Forbidden, _) => return Err(ungranted(account, key)),
        (Found::Missing, _) => return Err(missing(key)),
    };
    Ok(Arc::new(held))
}

fn missing(key: &ObjectKey) -> String {
    format!("there is no Secret {}; make one with tls.crt, tls.key and ca.crt", key.name)
}

fn ungranted(account: &str, key: &ObjectKey) -> String {
    let ObjectKey { namespace: of, name } = key;
    format!(
        "the control plane may not read the Secret; allow it: kubectl -n {of} create role read-{name} --verb=get \
         --resource=secrets --resource-name={name} --resource-name={name}{AUTHORITIES_SUFFIX} && kubectl -n {of} create \
         rolebinding read-{name} --role=read-{name} --serviceaccount={account}"
    )
}

/// What Secrets hold that were read all at once, each with the one beside it: nobody keeps any from being read.
pub(super) fn of_all(secrets: &Secrets, wanted: impl Iterator<Item = ObjectKey>) -> Credentials {
    let found = |key: &ObjectKey| secrets.get(key).cloned().map_or(Found::Missing, Found::There);
    wanted
        .map(|key| {
            let held = judged(&key, "", found(&key), found(&beside(&key)));
            (key, held)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(chain: &str, authorities: &str) -> Found {
        Found::There(Credential { chain: chain.into(), authorities: authorities.into(), ..Credential::default() })
    }

    #[test]
    fn secret_when_it_or_the_one_beside_it_may_not_be_read_then_what_there_is_counts_or_the_grant_is_told() {
        let key = ObjectKey::new("shop", "bank");
        let judge = |own, other| judged(&key, "leno-system:leno-control-plane", own, other);
        let told = |held: Held| held.expect_err("nobody may have it");
        let grant = "--resource-name=bank --resource-name=bank-cacert";
        for (own, other) in [(Found::Forbidden, Found::Forbidden), (Found::Forbidden, Found::Missing)] {
            assert!(told(judge(own, other)).contains(grant));
        }
        assert!(told(judge(Found::Missing, Found::Missing)).starts_with("there is no Secret bank;"));
        for own in [Found::Forbidden, Found::Missing] {
            assert_eq!(judge(own, found("", "ca")).unwrap().authorities, "ca");
        }
        let both = judge(found("own", ""), found("other", "ca")).unwrap();
        assert_eq!((both.chain.as_str(), both.authorities.as_str()), ("own", "ca"));
        assert_eq!(judge(found("own", ""), Found::Forbidden).unwrap().chain, "own");
    }

    #[test]
    fn secrets_when_a_namespace_names_too_many_then_others_lose_none() {
        let many = (0..40).map(|number| ObjectKey::new("aaa", format!("s{number:02}")));
        let (few, left) = limited(many.chain([ObjectKey::new("shop", "bank")]).collect());
        assert_eq!((few.len(), left.len()), (MAX_SECRETS + 1, 8));
        assert!(few.contains(&ObjectKey::new("shop", "bank")));
    }

    #[test]
    fn rule_when_it_is_for_all_or_names_what_no_secret_is_called_then_nothing_is_asked_for() {
        let rule = |selector: &str, name: &str| -> DestinationRule {
            let text = format!(
                "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: a, namespace: shop}}, \
                 spec: {{host: a, {selector} trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: \"{name}\"}}}}}}}}"
            );
            serde_yaml::from_str(&text).unwrap()
        };
        let selector = "workloadSelector: {matchLabels: {app: a}},";
        assert_eq!(named(&rule(selector, "bank")), [ObjectKey::new("shop", "bank")].into());
        for (selector, name) in [("", "bank"), (selector, "?limit=1"), (selector, "../x"), (selector, "")] {
            assert!(named(&rule(selector, name)).is_empty(), "{selector} {name}");
        }
    }
}
