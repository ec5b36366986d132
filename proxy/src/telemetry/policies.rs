//! Decisions of rules counted by the policy that made them, where a configuration wants that.

use super::counters::{Counters, Label, Number, Scope};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Policies that are counted apart, for each filter; what further ones decide is only in the sums.
const MAX_POLICIES: usize = 4096;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Decision {
    allowed: bool,
    shadow: bool,
}

/// The numbers of a filter's policies, and of those that routes have in their place. Made when a policy first decides, as in Envoy.
#[derive(Debug)]
pub struct PolicyCounts {
    counters: Counters,
    http: Box<str>,
    /// What stands before the names of rules in force, and of those that only look.
    prefixes: [Box<str>; 2],
    known: Mutex<HashMap<(Arc<str>, Decision), Arc<Number>>>,
}

impl PolicyCounts {
    /// Those of a filter of connection managers with this prefix.
    pub fn new(counters: &Counters, http: &str, prefix: &str, shadow_prefix: &str) -> Self {
        let prefixes = [prefix.into(), shadow_prefix.into()];
        Self { counters: counters.clone(), http: http.into(), prefixes, known: Mutex::default() }
    }

    /// A policy has decided, or would have.
    pub fn count(&self, policy: &Arc<str>, allowed: bool, shadow: bool) {
        let decision = Decision { allowed, shadow };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (policy.clone(), decision);
        if let Some(number) = known.get(&key) {
            return number.add(1);
        }
        if known.len() < MAX_POLICIES {
            let number = self.number(policy, decision);
            number.add(1);
            known.insert(key, number);
        }
    }

    fn number(&self, policy: &str, decision: Decision) -> Arc<Number> {
        let (stat, family) = match decision {
            Decision { allowed: true, shadow: false } => ("allowed", "policy_allowed"),
            Decision { allowed: false, shadow: false } => ("denied", "policy_denied"),
            Decision { allowed: true, shadow: true } => ("shadow_allowed", "policy_shadow_allowed"),
            Decision { allowed: false, shadow: true } => ("shadow_denied", "policy_shadow_denied"),
        };
        let scopes = [Scope::http(&self.http), Scope::rbac(&self.prefixes[usize::from(decision.shadow)])];
        let label = Label { family, name: "envoy_rbac_policy_name", value: policy.to_owned() };
        self.counters.labelled(&scopes, &format!("policy.{policy}.{stat}"), label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_when_they_decide_then_each_is_counted_under_envoys_name() {
        let counters = Counters::default();
        let counts = PolicyCounts::new(&counters, "in", "", "sp");
        let policy: Arc<str> = "p.one".into();
        counts.count(&policy, true, false);
        counts.count(&policy, true, false);
        counts.count(&policy, false, true);
        let told: Vec<(String, u64)> = counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
        assert_eq!(
            told,
            [
                ("http.in.rbac.policy.p.one.allowed".to_owned(), 2),
                ("http.in.rbac.sp.policy.p.one.shadow_denied".to_owned(), 1)
            ]
        );
    }
}
