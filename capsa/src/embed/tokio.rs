//! [`TokioVm`]: an [`embed::Vm`](Vm) in a task of tokio's, behind the feature `tokio`.
//!
//! It keeps the contract of [`embed`](super) with tokio's own reactor and timer, so that neither a
//! thread nor a reactor of ours is there. [`VmHandle`](crate::VmHandle) works under tokio too, with
//! its one thread; this is for programs that want none.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ::tokio::io::unix::AsyncFd;
use ::tokio::{task, time};

use super::{Vm, VmEvent};

/// A machine that tokio's reactor watches. Everything else is [`Vm`]'s, which it derefs to.
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
/// Nothing happens while nobody awaits [`next_event`](Self::next_event): a task that does something
/// else for long holds its guest up. Dropping it drops the [`Vm`], which kills what runs and waits
/// milliseconds until it is gone.
#[derive(Debug)]
pub struct TokioVm {
    /// A copy of the machine's, so that whatever becomes of `vm` this one stays registered.
    descriptor: AsyncFd<OwnedFd>,
    vm: Vm,
}

impl TokioVm {
    /// Has the runtime that this is called in watch the machine.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left, or the runtime's reactor takes no more. The machine is gone
    /// then.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, and in one without I/O, as tokio's own sources do.
    // Deprecated in tokio 1.54 for an unsafe one, which asks that the descriptor is not closed or
    // exchanged while it is registered. This one is ours alone, and lent to nobody.
    #[allow(deprecated)]
    pub fn new(vm: Vm) -> io::Result<Self> {
        Ok(Self { descriptor: AsyncFd::new(vm.as_fd().try_clone_to_owned()?)?, vm })
    }

    /// The next event. `None`: the machine is over, and all was said.
    ///
    /// Dropping the future loses nothing, so it may stand in a `select!`.
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
                // A machine that always has more to do gives other tasks their turn.
                Some(Duration::ZERO) => task::yield_now().await,
                None => self.descriptor.readable().await?.clear_ready(),
                Some(timeout) => match time::timeout(timeout, self.descriptor.readable()).await {
                    // What was reported is forgotten before the work, so that what comes during
                    // the work is reported anew.
                    Ok(readable) => readable?.clear_ready(),
                    Err(_deadline) => {}
                },
            }
            self.on_ready()?;
        }
    }

    /// The machine, for another loop.
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
