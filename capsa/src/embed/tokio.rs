//! [`TokioVm`]: an [`embed::Vm`](Vm) in a tokio task (feature `tokio`).
//!
//! It fulfils the contract of [`embed`](super) with tokio's own reactor and timer, without a thread
//! or reactor of Capsa. [`VmHandle`](crate::VmHandle) works under tokio too, with one driver
//! thread.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ::tokio::io::unix::AsyncFd;
use ::tokio::{task, time};

use super::{Vm, VmEvent};

/// A VM that tokio's reactor watches. It derefs to [`Vm`].
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use capsa::embed::{TokioVm, VmEvent};
/// use capsa::{Capsa, LinuxBootConfig};
///
/// let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
/// let mut vm = TokioVm::new(Capsa::vm(config).console_enabled().build_embedded()?)?;
/// let reader = vm.add_reader();
/// vm.start()?;
/// while let Some(event) = vm.next_event().await? {
///     if event == VmEvent::ConsoleData {
///         print!("{}", String::from_utf8_lossy(&vm.take(reader)));
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// The VM makes progress only while [`next_event`](Self::next_event) is awaited: a task that does
/// other work for long delays the guest. Dropping it drops the [`Vm`], which kills its processes
/// and waits some milliseconds for them.
#[derive(Debug)]
pub struct TokioVm {
    /// A duplicate of the VM's descriptor, which stays registered whatever happens to `vm`.
    descriptor: AsyncFd<OwnedFd>,
    vm: Vm,
}

impl TokioVm {
    /// Registers the VM with the reactor of the current runtime.
    ///
    /// # Errors
    ///
    /// When no descriptor is left, or the reactor rejects the registration. The VM is dropped then.
    ///
    /// # Panics
    ///
    /// Outside a runtime, or in a runtime without I/O, as tokio's own types do.
    // Deprecated in tokio 1.54 in favour of an unsafe function, which requires that the descriptor
    // is not closed or replaced while it is registered. This type owns the descriptor and lends it
    // to no other code.
    #[allow(deprecated)]
    pub fn new(vm: Vm) -> io::Result<Self> {
        Ok(Self { descriptor: AsyncFd::new(vm.as_fd().try_clone_to_owned()?)?, vm })
    }

    /// The next event. `None` when the VM has ended and all events were returned.
    ///
    /// Dropping the future loses nothing, so it can be used in `select!`.
    ///
    /// # Errors
    ///
    /// When the poller fails, or the runtime shuts down.
    ///
    /// # Panics
    ///
    /// In a runtime without a timer.
    pub async fn next_event(&mut self) -> io::Result<Option<VmEvent>> {
        loop {
            if let Some(event) = self.poll_event() {
                return Ok(Some(event));
            }
            match self.next_timeout() {
                None if self.status().is_terminal() => return Ok(None),
                // A busy VM yields to other tasks.
                Some(Duration::ZERO) => task::yield_now().await,
                None => self.descriptor.readable().await?.clear_ready(),
                Some(timeout) => match time::timeout(timeout, self.descriptor.readable()).await {
                    // Clear the readiness before the work, so that events during the work are
                    // reported again.
                    Ok(readable) => readable?.clear_ready(),
                    Err(_deadline) => {}
                },
            }
            self.on_ready()?;
        }
    }

    /// Returns the VM, for another event loop.
    pub fn into_inner(self) -> Vm {
        self.vm
    }
}

impl Deref for TokioVm {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl DerefMut for TokioVm {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }
}
