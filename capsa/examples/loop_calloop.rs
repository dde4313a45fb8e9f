//! A machine in calloop, the loop of Wayland compositors.
//!
//! The descriptor is a source that reports levels; the deadline is how long a dispatch may take. A
//! program that calls `EventLoop::run` does the same in the callback that comes after each round.

mod guest;

use std::io;
use std::os::fd::AsFd;

use calloop::generic::Generic;
use calloop::{EventLoop, Interest, Mode, PostAction};
use capsa::embed::{Vm, VmEvent};

/// Drives the machine until it is over.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut event_loop: EventLoop<'_, Vm> = EventLoop::try_new()?;
    let descriptor = vm.as_fd().try_clone_to_owned()?;
    let source = Generic::new(descriptor, Interest::READ, Mode::Level);
    let on_readable = |_, _: &mut _, vm: &mut Vm| vm.on_ready().map(|()| PostAction::Continue);
    event_loop.handle().insert_source(source, on_readable).map_err(calloop::Error::from)?;
    while !vm.status().is_terminal() {
        event_loop.dispatch(vm.next_timeout(), &mut vm)?;
        // For the deadline. After a descriptor that was readable it is once too often, which does no
        // harm.
        vm.on_ready()?;
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
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
