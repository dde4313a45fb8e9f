//! Pausing and resuming the guest, and the disk errors that may pause it.

use capsa_proto::backend::DiskError;

use super::Vm;
use crate::Result;

impl Vm {
    /// Requests that the guest is paused: its vCPUs stop. [`VmEvent::Status`](super::VmEvent::Status)
    /// reports the status [`Paused`](crate::VmStatus::Paused), or
    /// [`VmEvent::PauseRejected`](super::VmEvent::PauseRejected) a failure, after 30 seconds at the latest.
    /// Pausing a paused guest has no effect.
    ///
    /// Deadlines of waits, and the time limit of the VM, go on. A [stop](Self::stop) resumes the guest first,
    /// because a paused guest cannot power off; a [kill](Self::kill) does not.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`](crate::Error::NotRunning) when the VM neither runs nor is paused.
    pub fn pause(&mut self) -> Result<()> {
        Ok(self.core.pause(self.clock.now())?)
    }

    /// Requests that the guest is resumed, as [`Vm::pause`]. After a disk error the failed operation is
    /// repeated.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::pause`].
    pub fn resume(&mut self) -> Result<()> {
        Ok(self.core.resume(self.clock.now())?)
    }

    /// Whether a request to pause or resume has no reply yet.
    pub fn is_pausing(&self) -> bool {
        self.core.is_pausing()
    }

    /// The last error of each disk and operation, of those that the hypervisor has reported.
    pub fn disk_errors(&self) -> Vec<DiskError> {
        self.core.disk_errors().iter().cloned().collect()
    }
}
