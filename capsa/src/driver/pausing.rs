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
}

impl SharedState {
    pub(super) fn note_pause(&mut self, status: &VmStatus) {
        self.has_run |= *status == VmStatus::Running;
        match status {
            VmStatus::Running => self.pauses[PauseRequest::Resume as usize].reached += 1,
            VmStatus::Paused => self.pauses[PauseRequest::Pause as usize].reached += 1,
            _ => {}
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
