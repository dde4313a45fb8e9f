//! Pausing and resuming the guest.

use super::VmCore;
use crate::lifecycle::{Input, InvalidState};
use crate::time::Instant;

impl VmCore {
    /// Requests that the guest is paused. [`VmEvent::Status`](super::VmEvent) reports it, or
    /// [`VmEvent::PauseRejected`](super::VmEvent).
    ///
    /// # Errors
    ///
    /// When the VM does not run.
    pub fn pause(&mut self, now: Instant) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(now, Input::Pause)
    }

    /// Requests that the guest is resumed, as [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// When the VM does not run.
    pub fn resume(&mut self, now: Instant) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(now, Input::Resume)
    }

    /// Whether a request to pause or resume has no reply yet.
    pub fn is_pausing(&self) -> bool {
        self.lifecycle.is_pausing()
    }
}
