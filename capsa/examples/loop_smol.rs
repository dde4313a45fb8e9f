//! A machine in a task of smol's, or on async-io alone without an executor.
//!
//! Both are the same reactor. It watches a copy of the descriptor, so that the machine stays ours to
//! change: what async-io owns it lends out unchanged only.

mod guest;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use async_io::{Async, Timer};
use capsa::embed::{Vm, VmEvent};
use futures_lite::future;

/// Drives the machine until it is over.
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
        // A machine that always has more to do gives other tasks their turn.
        Some(Duration::ZERO) => future::yield_now().await,
        Some(timeout) => drop(Timer::after(timeout).await),
        None => future::pending().await,
    }
    Ok(())
}

/// The same in a task of smol's global executor.
pub(crate) fn run_on_smol(
    vm: Vm,
    on_event: impl FnMut(&mut Vm, VmEvent) + Send + 'static,
) -> io::Result<Vm> {
    smol::block_on(smol::spawn(drive(vm, on_event)))
}

/// The same on this thread, without an executor.
pub(crate) fn run_on_async_io(vm: Vm, on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    async_io::block_on(drive(vm, on_event))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for run in [run_on_smol, run_on_async_io] {
        let mut vm = guest::machine()?;
        let conversation = guest::conversation(&mut vm, |line| println!("{line}"))?;
        run(vm, conversation)?;
    }
    Ok(())
}
