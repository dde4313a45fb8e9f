//! The policy of a network is replaced while it runs.

use alloc::boxed::Box;
use alloc::vec::Vec;

use capsa_proto::policy::{
    NetworkEvent, NetworkEventKind, PolicyRules, PolicyVerdict, VerdictReason,
};
use capsa_proto::time::Instant;

use super::Net;
use super::limits::NetworkLimits;
use crate::flow_table::FlowId;

impl Net {
    /// Replaces the policy, or sets one where the network had none. Flows that it does not allow are reset
    /// at once, and reported with the reason [`VerdictReason::PolicyChanged`]. Clients of forwards stay
    /// connected. A smaller limit of flows ends none;
    /// one of all bytes ends all flows if as many have passed.
    pub fn set_policy(&mut self, policy: PolicyRules, now: Instant) {
        let before = self.config.policy.as_ref().map(PolicyRules::limits);
        match (&mut self.limits, before) {
            (Some(limits), Some(before)) => limits.replace(before, policy.limits()),
            _ => self.limits = Some(Box::new(NetworkLimits::new(policy.limits()))),
        }
        self.config.flows = policy.limits().flows;
        self.flows.set_capacity(self.config.flows);
        self.config.policy = Some(policy);
        let verdict = PolicyVerdict::without_rule(true, VerdictReason::PolicyChanged);
        self.report(NetworkEvent::new(now, NetworkEventKind::PolicyChanged, verdict));
        let refused = self.flows.ids().filter_map(|id| {
            let mut verdict = self.is_still_allowed(id, now).err()?;
            verdict.reason = VerdictReason::PolicyChanged;
            Some((id, verdict))
        });
        let refused: Vec<(FlowId, PolicyVerdict)> = refused.collect();
        self.refuse_flows(refused, now);
        if self.is_used_up() {
            self.end_flows_at_limit(now);
        }
    }
}
