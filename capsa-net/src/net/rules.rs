//! The policy of a network while it runs.

use capsa_proto::policy::{
    NetworkEvent, NetworkEventKind, PolicyRules, PolicyVerdict, VerdictReason,
};
use capsa_proto::time::Instant;

use super::Net;

impl Net {
    /// Replaces the policy, or sets one where the network had none. Flows that it does not allow are reset,
    /// and reported with the reason [`VerdictReason::PolicyChanged`].
    pub fn set_policy(&mut self, policy: PolicyRules, now: Instant) {
        self.config.policy = Some(policy);
        let verdict = PolicyVerdict::without_rule(true, VerdictReason::PolicyChanged);
        self.report(NetworkEvent::new(now, NetworkEventKind::PolicyChanged, verdict));
    }
}
