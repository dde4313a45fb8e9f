//! A VM on io_uring: an operation of the ring polls its descriptor.
//!
//! A poll-add operation completes when the descriptor is readable. It is submitted again after the
//! work, and completes at once if the descriptor is readable then, so no readiness is lost. The
//! deadline limits the wait for the ring. `compio-driver` provides safe calls for io_uring, and for
//! kqueue on macOS.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use capsa::embed::{Vm, VmEvent};
use compio_driver::op::{Interest, PollOnce};
use compio_driver::{Proactor, PushEntry};

/// Drives the VM until it has ended.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut ring = Proactor::new()?;
    let descriptor = Arc::new(vm.as_fd().try_clone_to_owned()?);
    let readable = || PollOnce::new(Arc::clone(&descriptor), Interest::Readable);
    let mut polling = ring.push(readable());
    while !vm.status().is_terminal() {
        if let PushEntry::Pending(key) = polling {
            match ring.poll(vm.next_timeout()) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
                _ => polling = ring.pop(key),
            }
        }
        vm.on_ready()?;
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
        }
        // If the operation is still pending, the deadline has passed.
        if let PushEntry::Ready(result) = polling {
            result.0?;
            polling = ring.push(readable());
        }
    }
    Ok(vm)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut vm = guest::vm()?;
    let handler = guest::event_handler(&mut vm, |line| println!("{line}"))?;
    run(vm, handler)?;
    Ok(())
}
