//! Which pods each wave reaches.

use std::collections::{BTreeMap, BTreeSet};

use leno_crds::meshinstall::{UpdateStrategy, Wave};
use leno_kubeutil::watch::Key;

use super::pods::{Owner, PodView};
use crate::plan::claims::matches;

/// The label of a namespace that says when its pods are moved: a number, the smallest first; 100 unless given.
pub const ORDER: &str = "mesh.leno.dev/upgrade-order";
/// The label of pods that are moved first of all, when its value is `true`.
pub const CANARY: &str = "mesh.leno.dev/canary";
/// Pods of the first wave when no waves are given.
const FIRST: usize = 1;
/// Percentages of the further ones.
const SHARES: [usize; 3] = [10, 50, 100];

/// The pods of each wave with those of the waves before it; the last holds all. Waves that add nothing are left out. `labels` are
/// those of the namespaces; `begun` says which pods are on the way already and so stay in the wave that they are in.
pub fn waves(
    strategy: &UpdateStrategy,
    pods: &[&PodView],
    labels: &BTreeMap<String, BTreeMap<String, String>>,
    begun: &BTreeSet<Key>,
) -> Vec<BTreeSet<Key>> {
    let order = order(pods, labels, begun);
    let mut sets: Vec<BTreeSet<Key>> = Vec::new();
    let mut reached = BTreeSet::new();
    let mut add = |reached: &BTreeSet<Key>| {
        if !reached.is_empty() && sets.last().is_none_or(|last| last.len() < reached.len()) {
            sets.push(reached.clone());
        }
    };
    if strategy.waves.is_empty() {
        add(&order.iter().take(FIRST).map(|pod| pod.key.clone()).collect());
        for share in SHARES {
            add(&order.iter().take((order.len() * share).div_ceil(100)).map(|pod| pod.key.clone()).collect());
        }
        return sets;
    }
    for wave in &strategy.waves {
        let named: Vec<&&PodView> = order.iter().filter(|pod| names(wave, pod, labels)).collect();
        let percent = usize::try_from(wave.percent.unwrap_or(100)).unwrap_or(100);
        reached.extend(named.iter().take((named.len() * percent).div_ceil(100)).map(|pod| pod.key.clone()));
        add(&reached);
    }
    reached.extend(order.iter().map(|pod| pod.key.clone()));
    add(&reached);
    sets
}

fn names(wave: &Wave, pod: &PodView, labels: &BTreeMap<String, BTreeMap<String, String>>) -> bool {
    let empty = BTreeMap::new();
    let namespace = labels.get(&pod.key.namespace).unwrap_or(&empty);
    wave.pods.as_ref().is_none_or(|selector| matches(selector, &pod.labels))
        && wave.namespaces.as_ref().is_none_or(|selector| matches(selector, namespace))
}

/// The order in which pods are moved: what is on the way, then canaries, then by the order of namespaces; within one, a pod of each
/// workload before the second of any, and large workloads first, since one pod of many is least to lose.
fn order<'a>(
    pods: &[&'a PodView],
    labels: &BTreeMap<String, BTreeMap<String, String>>,
    begun: &BTreeSet<Key>,
) -> Vec<&'a PodView> {
    let mut of_owner: BTreeMap<(&str, &Owner), Vec<&Key>> = BTreeMap::new();
    for pod in pods {
        of_owner.entry((&pod.key.namespace, &pod.owner)).or_default().push(&pod.key);
    }
    of_owner.values_mut().for_each(|keys| keys.sort());
    let mut sorted: Vec<&PodView> = pods.to_vec();
    sorted.sort_by_cached_key(|pod| {
        let namespace_order = labels.get(&pod.key.namespace).and_then(|labels| labels.get(ORDER)?.parse::<i64>().ok());
        let siblings = of_owner.get(&(pod.key.namespace.as_str(), &pod.owner)).map_or(&[][..], Vec::as_slice);
        let rank = siblings.iter().position(|key| **key == pod.key).unwrap_or(0);
        (
            !begun.contains(&pod.key),
            pod.labels.get(CANARY).is_none_or(|value| value != "true"),
            namespace_order.unwrap_or(100),
            rank,
            usize::MAX - siblings.len(),
            pod.key.clone(),
        )
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, owner: &str, name: &str) -> PodView {
        PodView {
            key: Key::new(namespace, name),
            owner: Owner { kind: "Deployment".to_owned(), name: owner.to_owned() },
            labels: BTreeMap::from([("app".to_owned(), owner.to_owned())]),
            ..PodView::default()
        }
    }

    fn sets(strategy: serde_json::Value, pods: &[PodView], begun: &[Key]) -> Vec<Vec<String>> {
        let strategy: UpdateStrategy = serde_json::from_value(strategy).unwrap();
        let labels = BTreeMap::from([("edge".to_owned(), BTreeMap::from([(ORDER.to_owned(), "200".to_owned())]))]);
        waves(&strategy, &pods.iter().collect::<Vec<_>>(), &labels, &begun.iter().cloned().collect())
            .into_iter()
            .map(|set| set.into_iter().map(|key| key.name).collect())
            .collect()
    }

    #[test]
    fn waves_when_none_are_given_then_begin_with_one_pod_and_end_with_all() {
        let pods: Vec<PodView> = (0..30).map(|n| pod("shop", "front", &format!("front-{n:02}"))).collect();
        let sizes: Vec<usize> = sets(json!({}), &pods, &[]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 3, 15, 30]);
        let sizes: Vec<usize> = sets(json!({}), &pods[..2], &[]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2]);
        assert!(sets(json!({}), &[], &[]).is_empty());
    }

    #[test]
    fn first_pod_when_chosen_then_is_a_canary_or_one_of_many() {
        let mut pods = vec![pod("shop", "alone", "alone"), pod("shop", "two", "two-a"), pod("shop", "two", "two-b")];
        assert_eq!(sets(json!({}), &pods, &[])[0], ["two-a"]);
        pods[0].labels.insert(CANARY.to_owned(), "true".to_owned());
        assert_eq!(sets(json!({}), &pods, &[])[0], ["alone"]);
        assert_eq!(sets(json!({}), &pods, &[Key::new("shop", "two-b")])[0], ["two-b"], "it is on the way");
    }

    #[test]
    fn waves_when_given_by_namespace_and_share_then_add_up_and_end_with_all() {
        let pods = [pod("edge", "gate", "gate"), pod("shop", "a", "a"), pod("shop", "b", "b")];
        let strategy = json!({ "waves": [
            { "percent": 50, "pods": { "matchLabels": { "app": "b" } } }, { "percent": 60 } ] });
        assert_eq!(sets(strategy, &pods, &[]), [vec!["b"], vec!["a", "b"], vec!["gate", "a", "b"]]);
    }
}
