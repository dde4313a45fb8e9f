//! A VM in a tokio task, on one thread or many, without a thread of Capsa.
//!
//! `TokioVm` fulfils the contract with `AsyncFd` and tokio's timer; `next_event` can be used in
//! `select!`. Programs that need handles to pass around use `capsa::VmHandle` instead.

mod guest;

use std::io;

use capsa::embed::{TokioVm, Vm, VmEvent};
use tokio::runtime::Builder;

/// Drives the VM until it has ended.
pub(crate) async fn drive(vm: Vm, mut on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    let mut vm = TokioVm::new(vm)?;
    while let Some(event) = vm.next_event().await? {
        on_event(&mut vm, event);
    }
    Ok(vm.into_inner())
}

/// Runs it on this thread.
pub(crate) fn run_on_one(vm: Vm, on_event: impl FnMut(&mut Vm, VmEvent)) -> io::Result<Vm> {
    Builder::new_current_thread().enable_all().build()?.block_on(drive(vm, on_event))
}

/// Runs it in a task that moves between threads.
pub(crate) fn run_on_many(
    vm: Vm,
    on_event: impl FnMut(&mut Vm, VmEvent) + Send + 'static,
) -> io::Result<Vm> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(drive(vm, on_event)).await })?
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for run in [run_on_one, run_on_many] {
        let mut vm = guest::vm()?;
        let handler = guest::event_handler(&mut vm, |line| println!("{line}"))?;
        run(vm, handler)?;
    }
    Ok(())
}
