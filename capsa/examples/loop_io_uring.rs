//! A machine on io_uring: its descriptor is polled by an operation of the ring.
//!
//! A poll-add ends when the descriptor is readable. It is pushed anew after the work, and looks at
//! the level first: nothing falls between two of them. The deadline is how long the ring is waited
//! for. `compio-driver` is io_uring with calls that are safe, and kqueue on macOS.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use capsa::embed::{Vm, VmEvent};
use compio_driver::op::{Interest, PollOnce};
use compio_driver::{Proactor, PushEntry};

/// Drives the machine until it is over.
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
        // Where it is still pending, it was the deadline that passed.
        if let PushEntry::Ready(result) = polling {
            result.0?;
            polling = ring.push(readable());
        }
    }
    Ok(vm)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut vm = guest::machine()?;
    let conversation = guest::conversation(&mut vm, |line| println!("{line}"))?;
    run(vm, conversation)?;
    Ok(())
}
