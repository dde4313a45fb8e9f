//! A VM in a loop of `poll(2)` only: no runtime, no reactor, no thread.
//!
//! This implements the contract of `capsa::embed` and nothing else. `rustix` provides the system
//! call.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use capsa::embed::{Vm, VmEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Drives the VM until it has ended.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    while !vm.status().is_terminal() {
        wait_readable(&vm, vm.next_timeout())?;
        vm.on_ready()?;
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
        }
    }
    Ok(vm)
}

fn wait_readable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    // A timeout that does not fit is centuries long: wait without a limit.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
        // Interrupted by a signal: a spurious call of `on_ready` is harmless.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut vm = guest::vm()?;
    let handler = guest::event_handler(&mut vm, |line| println!("{line}"))?;
    run(vm, handler)?;
    Ok(())
}
