//! A VM in calloop, the event loop of Wayland compositors.
//!
//! The descriptor is a level-triggered source; the deadline limits each dispatch. A program that
//! calls `EventLoop::run` does the same in the callback that runs after each dispatch.

mod guest;

use std::io;
use std::os::fd::AsFd;

use calloop::generic::Generic;
use calloop::{EventLoop, Interest, Mode, PostAction};
use capsa::embed::{Vm, VmEvent};

/// Drives the VM until it has ended.
pub(crate) fn run(mut vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut event_loop: EventLoop<'_, Vm> = EventLoop::try_new()?;
    let descriptor = vm.as_fd().try_clone_to_owned()?;
    let source = Generic::new(descriptor, Interest::READ, Mode::Level);
    let on_readable = |_, _: &mut _, vm: &mut Vm| vm.on_ready().map(|()| PostAction::Continue);
    event_loop.handle().insert_source(source, on_readable).map_err(calloop::Error::from)?;
    while !vm.status().is_terminal() {
        event_loop.dispatch(vm.next_timeout(), &mut vm)?;
        // For the deadline. After a readable descriptor this is one call more than needed, which is
        // harmless.
        vm.on_ready()?;
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
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
