//! Two hundred machines on one thread.
//!
//! One `poll(2)` waits for all of them, until the nearest deadline. Only machines that are readable or
//! due are called, so that those that are idle cost nothing.

mod guest;

use std::io;
use std::time::{Duration, Instant};

use capsa::embed::{Vm, VmEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A machine, and what is to be done at its events.
pub(crate) type Member = (Vm, Box<dyn FnMut(&mut Vm, VmEvent) + Send>);

/// Drives all until the last is over.
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

/// Waits, and says which are readable or due.
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
        let mut vm = guest::machine()?;
        let say = move |line| println!("{n:3} {line}");
        let conversation = guest::conversation(&mut vm, say)?;
        members.push((vm, Box::new(conversation)));
    }
    run(&mut members)?;
    Ok(())
}
