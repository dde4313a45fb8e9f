//! A VM in a smol task, or on async-io alone without an executor.
//!
//! Both use the same reactor. It watches a duplicate of the descriptor, because async-io gives only
//! shared access to values that it owns.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use async_io::{Async, Timer};
use capsa::embed::{Vm, VmEvent};
use futures_lite::future;

/// Drives the VM until it has ended.
pub(crate) async fn drive(
    mut vm: Vm,
    mut on_event: impl FnMut(&mut Vm, VmEvent),
) -> io::Result<Vm> {
    let descriptor = Async::new_nonblocking(vm.as_fd().try_clone_to_owned()?)?;
    while !vm.status().is_terminal() {
        let deadline = passed(vm.next_timeout());
        future::or(descriptor.readable(), deadline).await?;
        vm.on_ready()?;
        while let Some(event) = vm.poll_event() {
            on_event(&mut vm, event);
        }
    }
    Ok(vm)
}

async fn passed(timeout: Option<Duration>) -> io::Result<()> {
    match timeout {
        // A busy VM yields to other tasks.
        Some(Duration::ZERO) => future::yield_now().await,
        Some(timeout) => drop(Timer::after(timeout).await),
        None => future::pending().await,
    }
    Ok(())
}

/// Runs it in a task of smol's global executor.
pub(crate) fn run_on_smol(
    vm: Vm,
    on_event: impl FnMut(&mut Vm, VmEvent) + Send + 'static,
) -> io::Result<Vm> {
    smol::block_on(smol::spawn(drive(vm, on_event)))
}

/// Runs it on this thread, without an executor.
pub(crate) fn run_on_async_io(vm: Vm, on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    async_io::block_on(drive(vm, on_event))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for run in [run_on_smol, run_on_async_io] {
        let mut vm = guest::vm()?;
        let handler = guest::event_handler(&mut vm, |line| println!("{line}"))?;
        run(vm, handler)?;
    }
    Ok(())
}
