//! A machine in a loop of nothing but `poll(2)`: no runtime, no reactor, no thread.
//!
//! This is the contract of `capsa::embed` and nothing else. `rustix` is here for the call itself.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use capsa::embed::{Vm, VmEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Drives the machine until it is over.
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
    // Centuries are as good as for ever.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
        // A signal of the program's own: to be called for nothing does no harm.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut vm = guest::machine()?;
    let conversation = guest::conversation(&mut vm, |line| println!("{line}"))?;
    run(vm, conversation)?;
    Ok(())
}
