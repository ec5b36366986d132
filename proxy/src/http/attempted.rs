//! Where the attempts of a request were, and where the next one goes because of that.

use crate::{
    balance::{PickContext, Rng},
    config::RetryPolicy,
    pool::{Chosen, ClusterState, Find, Host},
};
use std::{cell::Cell, net::SocketAddr, rc::Rc};

/// The attempts of one request so far.
#[derive(Debug, Default)]
pub(super) struct Attempted {
    /// Endpoints that come last (`previous_hosts`).
    hosts: Vec<SocketAddr>,
    /// Priorities of all attempts that failed (`previous_priorities`).
    priorities: Vec<u32>,
    /// Enough attempts failed for the priorities to be looked at again.
    due: bool,
    /// Priorities that are passed over now, one bit each.
    passed_over: u128,
}

impl Attempted {
    /// Takes note of an attempt that is followed by another.
    pub(super) fn note(&mut self, Chosen { host, priority, .. }: &Chosen, policy: &RetryPolicy) {
        if policy.avoid_tried {
            self.hosts.push(host.address());
        }
        if let Some(every) = policy.other_priorities {
            self.priorities.push(*priority);
            self.due |= (self.priorities.len() as u32).is_multiple_of(every.max(1));
        }
    }

    /// Chooses the endpoint of the next attempt. `again` is the policy of an attempt that is not the first.
    pub(super) fn pick(
        &mut self,
        cluster: &Rc<ClusterState>,
        find: Find<'_>,
        rng: &Rng,
        context: &PickContext<'_>,
        again: Option<&RetryPolicy>,
    ) -> Option<Chosen> {
        let unwanted = again.map_or(&[][..], |policy| &policy.avoid_labels);
        let left = Cell::new(again.map_or(0, |policy| policy.choices));
        let hosts = &self.hosts;
        let tried = |host: &Host| {
            let rejected = left.get() > 0
                && (hosts.contains(&host.address())
                    || unwanted.iter().any(|labels| labels.are_all_of(&host.endpoint().labels)));
            left.set(left.get() - u32::from(rejected));
            rejected
        };
        if std::mem::take(&mut self.due) {
            let bit = |priority: &u32| 1u128.checked_shl(*priority).unwrap_or(0);
            self.passed_over |= self.priorities.iter().map(bit).fold(0, |all, bit| all | bit);
            if !cluster.can_pass_over(find, self.passed_over, rng) {
                // All were tried: from the beginning.
                self.passed_over = 0;
                self.priorities.clear();
            }
        }
        cluster.choose(find, rng, context, self.passed_over, tried)
    }
}
