//! How requests to pause or resume a guest end, for their waiters.

use std::task::Waker;

use capsa_proto::lifecycle::VmStatus;

use super::SharedState;
use crate::embed::PauseRequest;

/// How the requests of one kind to pause or resume a guest ended so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct PauseOutcomes {
    /// How often the VM reached the requested status.
    pub(crate) reached: u64,
    /// How often the hypervisor rejected the request.
    pub(crate) rejected: u64,
    /// Why, the last time.
    pub(crate) reason: String,
    /// A future may wait for the reply to such a request.
    pub(crate) is_awaited: bool,
}

impl SharedState {
    pub(super) fn note_pause(&mut self, status: &VmStatus) {
        match status {
            VmStatus::Running => self.pauses[PauseRequest::Resume as usize].reached += 1,
            VmStatus::Paused => self.pauses[PauseRequest::Pause as usize].reached += 1,
            _ => {}
        }
    }

    /// A reply after which the status is the same has no event.
    pub(super) fn note_pause_replies(&mut self, wake: &mut Vec<Waker>) {
        if !self.vm.is_pausing() && self.pauses.iter().any(|kind| kind.is_awaited) {
            self.pauses.iter_mut().for_each(|kind| kind.is_awaited = false);
            self.wakers.take_status(wake);
        }
    }

    pub(super) fn note_rejected_pause(
        &mut self,
        request: PauseRequest,
        reason: String,
        wake: &mut Vec<Waker>,
    ) {
        self.wakers.take_status(wake);
        let outcomes = &mut self.pauses[request as usize];
        (outcomes.rejected, outcomes.reason) = (outcomes.rejected + 1, reason);
    }
}
