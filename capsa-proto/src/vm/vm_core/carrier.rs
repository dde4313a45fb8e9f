//! The carrier of the guest's network card.
//!
//! Frames are stopped by the network stack of the owner. This module sends the messages that let the guest
//! see the change, if the hypervisor has them. At most one of them has no reply, so requests that follow
//! each other quickly need no memory, and the last one decides.

use super::VmCore;
use crate::lifecycle::Phase;
use crate::plan::Message;
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Carrier {
    is_up: bool,
    was_sent_up: bool,
    is_pending: bool,
}

impl Default for Carrier {
    /// A card starts with its carrier up.
    fn default() -> Self {
        Self { is_up: true, was_sent_up: true, is_pending: false }
    }
}

impl VmCore {
    /// Requests that the carrier of the guest's card goes down or up. Before the guest runs, the message
    /// waits until it does. Without effect if the plan has no [`CarrierPlan`](crate::plan::CarrierPlan),
    /// or if the hypervisor rejects the message.
    pub fn set_carrier(&mut self, now: Instant, is_up: bool) {
        self.carrier.is_up = is_up;
        self.send_carrier(now);
    }

    pub(super) fn send_carrier(&mut self, now: Instant) {
        let Carrier { is_up, was_sent_up, is_pending } = self.carrier;
        let runs =
            matches!(self.phase(), Phase::Running | Phase::Paused | Phase::ShutdownRequested);
        let plan = self.plan.network.as_ref().and_then(|network| network.carrier.as_ref());
        if let Some(plan) = plan
            && runs
            && !is_pending
            && is_up != was_sent_up
        {
            let message = if is_up { &plan.up } else { &plan.down }.clone();
            self.carrier = Carrier { is_up, was_sent_up: is_up, is_pending: true };
            self.send(now, message);
        }
    }

    pub(super) fn handle_carrier_reply(&mut self, now: Instant, message: &Message) {
        let plan = self.plan.network.as_ref().and_then(|network| network.carrier.as_ref());
        if plan.is_some_and(|plan| [&plan.up, &plan.down].contains(&message)) {
            self.carrier.is_pending = false;
            self.send_carrier(now);
        }
    }
}
