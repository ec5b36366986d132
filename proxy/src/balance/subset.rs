//! Groups of endpoints by labels, and which one a request is served from.

use super::{Picked, Plan, Rng, Sizes, Whole, one_more, zone::Peers};
use crate::{
    config::{Balancing, Fallback, LabelValue, Labels, LbPolicy, Selector, Spread, Subsets},
    pool::Host,
};
use std::{cell::Cell, collections::HashMap, rc::Rc, sync::Arc};

/// Groups of a cluster at most; endpoints whose labels would make more are in none.
pub const MAX_SUBSETS: usize = 8192;

/// The label whose list has alternatives.
const ALTERNATIVES: &str = "fallback_list";

type Values = Vec<LabelValue>;

/// Every group.
#[derive(Debug)]
pub(super) struct SubsetTable {
    config: Subsets,
    /// One for each selector: its groups by the values of its labels.
    groups: Vec<HashMap<Values, Plan>>,
    default: Option<Plan>,
}

impl SubsetTable {
    pub(super) fn new(
        hosts: &[Rc<Host>],
        config: &Subsets,
        policy: LbPolicy,
        balancing: &Balancing,
        spread: Spread,
        whole: Whole<'_>,
        rng: &Rng,
    ) -> Self {
        let inner = Balancing { by_locality: balancing.by_locality && config.by_locality, ..balancing.clone() };
        let sizes = config.scale_localities.then(|| sizes(hosts));
        let whole = Whole { sizes: sizes.as_ref(), ..whole };
        let plan = |hosts: &[Rc<Host>]| Plan::new(hosts, policy, &inner, spread, rng, whole);
        let mut room = MAX_SUBSETS;
        let groups = config
            .selectors
            .iter()
            .map(|selector| {
                let mut members: HashMap<Values, Vec<Rc<Host>>> = HashMap::new();
                for host in hosts {
                    for values in values_of(&host.endpoint().labels, selector, config.list_as_any) {
                        if !members.contains_key(&values) {
                            if room == 0 {
                                continue;
                            }
                            room -= 1;
                        }
                        let group = members.entry(values).or_default();
                        if !selector.single || group.is_empty() {
                            group.push(host.clone());
                        }
                    }
                }
                members.into_iter().map(|(values, hosts)| (values, plan(&hosts))).collect()
            })
            .collect();
        let default = uses_default(config).then(|| {
            let fits = |host: &&Rc<Host>| has(&host.endpoint().labels, &config.default, config.list_as_any);
            plan(&hosts.iter().filter(fits).cloned().collect::<Vec<_>>())
        });
        Self { config: config.clone(), groups, default }
    }

    /// An endpoint for these labels, chosen `within` its group; `all` are those of the cluster. With alternatives (see
    /// [`Subsets::alternatives`]) it is one for the first of them that finds any.
    pub(super) fn pick(
        &self,
        all: &Plan,
        labels: Option<&Labels>,
        picked: &Picked,
        within: impl Fn(&Plan) -> Option<Rc<Host>>,
    ) -> Option<Rc<Host>> {
        let none = Labels::default();
        let wanted = labels.unwrap_or(&none);
        let one = |wanted: &Labels| {
            let (plan, count) = self.find(all, wanted, picked)?;
            within(plan).inspect(|_| one_more(count))
        };
        let Some(alternatives) = wanted.get(ALTERNATIVES).filter(|_| self.config.alternatives) else {
            return one(wanted);
        };
        let rest = Labels::new(
            wanted.iter().filter(|(name, _)| &***name != ALTERNATIVES).map(|(k, v)| (k.clone(), v.clone())),
        );
        match alternatives {
            LabelValue::List(list) if !list.is_empty() => list.iter().find_map(|alternative| match alternative {
                LabelValue::Object(fields) => one(&rest.with(&Labels::new(fields.iter().cloned()))),
                _ => one(&rest),
            }),
            _ => one(&rest),
        }
    }

    /// The endpoints from which the request is served, and what counts it.
    fn find<'a>(&'a self, all: &'a Plan, wanted: &Labels, picked: &'a Picked) -> Option<(&'a Plan, &'a Cell<u64>)> {
        let mut fallback = &self.config.fallback;
        if !wanted.is_empty() {
            let keys = wanted.iter().map(|(name, _)| name);
            if let Some(at) = self.selector(keys.clone()) {
                let values: Values = wanted.iter().map(|(_, value)| value.clone()).collect();
                if let Some(plan) = self.groups[at].get(&values).filter(|plan| !plan.is_empty()) {
                    return Some((plan, &picked.selected));
                }
                fallback = self.config.selectors[at].fallback.as_ref().unwrap_or(fallback);
            }
        }
        // A selector may fall back to another with fewer labels, which may again: each time fewer.
        for _ in 0..self.config.selectors.len() {
            let Fallback::Keys(keys) = fallback else { break };
            let Some(at) = self.selector(keys.iter()) else {
                fallback = &self.config.fallback;
                break;
            };
            let values: Option<Values> = keys.iter().map(|key| wanted.get(key).cloned()).collect();
            if let Some(plan) = values.and_then(|values| self.groups[at].get(&values)).filter(|plan| !plan.is_empty()) {
                return Some((plan, &picked.selected));
            }
            fallback = self.config.selectors[at].fallback.as_ref().unwrap_or(&self.config.fallback);
        }
        let found = match fallback {
            Fallback::None | Fallback::Keys(_) => return None,
            Fallback::Any => Some(all),
            Fallback::Default => self.default.as_ref().filter(|plan| !plan.is_empty()),
        };
        let found = found.map(|plan| (plan, &picked.fallback));
        found.or_else(|| self.config.panic_any.then_some((all, &picked.fallback_panic)))
    }

    /// Every group: its selector's place and its values.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &[LabelValue])> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(at, groups)| groups.keys().map(move |values| (at, values.as_slice())))
    }

    /// See [`super::Balancer::peers_changed`].
    pub(super) fn peers_changed(&self, peers: &Peers) {
        self.groups.iter().flat_map(HashMap::values).chain(&self.default).for_each(|plan| plan.peers_changed(peers));
    }

    fn selector<'a>(&self, keys: impl Iterator<Item = &'a Arc<str>> + Clone) -> Option<usize> {
        self.config.selectors.iter().position(|selector| selector.keys.iter().eq(keys.clone()))
    }
}

/// Endpoints of each locality of each priority.
fn sizes(hosts: &[Rc<Host>]) -> Sizes {
    let mut sizes = Sizes::new();
    for host in hosts {
        *sizes.entry((host.endpoint().priority, host.endpoint().locality.clone())).or_default() += 1;
    }
    sizes
}

fn uses_default(config: &Subsets) -> bool {
    let of_selector = |selector: &Selector| selector.fallback == Some(Fallback::Default);
    config.fallback == Fallback::Default || config.selectors.iter().any(of_selector)
}

/// The values by which an endpoint belongs to groups of a selector; none if it lacks one of the labels.
fn values_of(labels: &Labels, selector: &Selector, list_as_any: bool) -> Vec<Values> {
    let mut all: Vec<Values> = vec![Vec::new()];
    for key in &selector.keys {
        let choices: &[LabelValue] = match labels.get(key) {
            None => return Vec::new(),
            Some(LabelValue::List(values)) if list_as_any => values,
            Some(value) => std::slice::from_ref(value),
        };
        all = all
            .iter()
            .flat_map(|values| choices.iter().map(move |value| values.iter().cloned().chain([value.clone()]).collect()))
            .take(MAX_SUBSETS)
            .collect();
    }
    all
}

fn has(labels: &Labels, wanted: &Labels, list_as_any: bool) -> bool {
    wanted.iter().all(|(name, value)| match labels.get(name) {
        Some(LabelValue::List(values)) if list_as_any => values.contains(value),
        have => have == Some(value),
    })
}
