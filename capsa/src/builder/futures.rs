//! The builds that return futures.

use super::{LinuxVmBuilder, Result, embed};
use std::sync::Arc;

use crate::driver::{self, Driver, Shared};
use crate::handle::VmHandle;

impl LinuxVmBuilder {
    /// Checks the description and plans the VM. Nothing is started before [`VmHandle::start`].
    ///
    /// A thread of its own does what blocks, so the executor is not blocked:
    /// [`build_embedded`](Self::build_embedded) lists it. Dropping the future discards the VM.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    #[cfg_attr(docsrs, doc(cfg(feature = "async")))]
    pub async fn build(self) -> Result<VmHandle> {
        let (vm, outputs) = self.prepared().await?;
        let shared = driver::on_thread(vm)?;
        outputs.begin(&shared)?;
        Ok(VmHandle::new(shared))
    }

    /// Like [`build`](Self::build), without Capsa's driver thread. The returned [`Driver`] is a
    /// future; the VM makes progress only while it is polled (spawned on an executor, or
    /// joined). It waits through async-io, whose own thread is started if it does not run yet.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    #[cfg_attr(docsrs, doc(cfg(feature = "async")))]
    pub async fn build_driven(self) -> Result<(VmHandle, Driver)> {
        let (vm, outputs) = self.prepared().await?;
        let (shared, driver) = driver::by_future(vm)?;
        outputs.begin(&shared)?;
        Ok((VmHandle::new(shared), driver))
    }

    async fn prepared(self) -> Result<(embed::Vm, Outputs)> {
        driver::unblock("capsa-probe", move || {
            #[cfg(feature = "recording")]
            let recording = self.recording.clone();
            let vm = self.embedded(Vec::new())?;
            let outputs = Outputs {
                #[cfg(feature = "recording")]
                recorder: recording.map(|recording| recording.create()).transpose()?,
            };
            Ok((vm, outputs))
        })
        .await?
    }
}

/// What is written while the VM runs, from its first byte on.
struct Outputs {
    #[cfg(feature = "recording")]
    recorder: Option<crate::recording::Recorder>,
}

impl Outputs {
    fn begin(self, shared: &Arc<Shared>) -> Result<()> {
        let _ = shared;
        #[cfg(feature = "recording")]
        self.recorder.map(|recorder| recorder.begin(shared)).transpose()?;
        Ok(())
    }
}
