//! Two hundred VMs on one thread.
//!
//! One `poll(2)` waits for all of them, until the nearest deadline. Only VMs that are readable or
//! due are called, so idle VMs cost nothing.

mod guest;

use std::io;
use std::time::{Duration, Instant};

use capsa::embed::{Vm, VmEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A VM and its event handler.
pub(crate) type Member = (Vm, Box<dyn FnMut(&mut Vm, VmEvent) + Send>);

/// Drives all VMs until the last one has ended.
pub(crate) fn run(members: &mut [Member]) -> io::Result<()> {
    while members.iter().any(|(vm, _)| !vm.status().is_terminal()) {
        for member in wait(members)? {
            let (vm, on_event) = &mut members[member];
            vm.on_ready()?;
            while let Some(event) = vm.poll_event() {
                on_event(vm, event);
            }
        }
    }
    Ok(())
}

/// Waits; returns the indices of the VMs that are readable or due.
fn wait(members: &[Member]) -> io::Result<Vec<usize>> {
    let now = Instant::now();
    let due: Vec<Option<Duration>> = members.iter().map(|(vm, _)| vm.next_timeout()).collect();
    let nearest = due.iter().flatten().min();
    let timeout = nearest.and_then(|nearest| Timespec::try_from(*nearest).ok());
    let mut fds: Vec<_> = members.iter().map(|(vm, _)| PollFd::new(vm, PollFlags::IN)).collect();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let slept = now.elapsed();
    let is_called = |n: &usize| {
        !fds[*n].revents().is_empty() || due[*n].is_some_and(|timeout| timeout <= slept)
    };
    Ok((0..members.len()).filter(is_called).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut members: Vec<Member> = Vec::new();
    for n in 0..200 {
        let mut vm = guest::vm()?;
        let log = move |line| println!("{n:3} {line}");
        let handler = guest::event_handler(&mut vm, log)?;
        members.push((vm, Box::new(handler)));
    }
    run(&mut members)?;
    Ok(())
}
