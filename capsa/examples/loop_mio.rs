//! A machine as a source of mio's, beside whatever else its registry holds.
//!
//! mio reports edges: that the descriptor *became* readable, once. Step four of the contract is what
//! keeps this from hanging: after a call that left something undone, `next_timeout` is zero.

mod guest;

use std::io;

use capsa::embed::{Vm, VmEvent};
use mio::{Events, Interest, Poll, Token};

const MACHINE: Token = Token(0);

/// Drives the machine until it is over.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    poll.registry().register(&mut vm, MACHINE, Interest::READABLE)?;
    while !vm.status().is_terminal() {
        match poll.poll(&mut events, vm.next_timeout()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            // A program with other sources looks here which of them it was. The machine need not
            // be among them: its deadline may have passed.
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
    let mut vm = guest::machine()?;
    let conversation = guest::conversation(&mut vm, |line| println!("{line}"))?;
    run(vm, conversation)?;
    Ok(())
}
