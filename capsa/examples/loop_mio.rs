//! A VM as an event source of mio, next to other sources of the registry.
//!
//! mio is edge-triggered: it reports once that the descriptor *became* readable. Step 4 of the
//! contract prevents a hang: after a call that left work undone, `next_timeout` is zero.

mod guest;

use std::io;

use capsa::embed::{Vm, VmEvent};
use mio::{Events, Interest, Poll, Token};

const VM: Token = Token(0);

/// Drives the VM until it has ended.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    poll.registry().register(&mut vm, VM, Interest::READABLE)?;
    while !vm.status().is_terminal() {
        match poll.poll(&mut events, vm.next_timeout()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            // A program with other sources checks here which of them is ready. The VM may not be
            // among them: its deadline may have passed.
            _ => vm.on_ready()?,
        }
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
        }
    }
    poll.registry().deregister(&mut vm)?;
    Ok(vm)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut vm = guest::vm()?;
    let handler = guest::event_handler(&mut vm, |line| println!("{line}"))?;
    run(vm, handler)?;
    Ok(())
}
