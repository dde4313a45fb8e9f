//! What machines cost the program that has them while nothing happens: threads, descriptors, memory,
//! and how often it wakes up.
//!
//! All of it is the kernel's word on this process, from `/proc`. What the hypervisors cost is not in
//! it. A process measures itself once: memory that one measurement has freed is what the next one
//! gets.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use capsa::embed::{Vm, VmEvent};
use capsa::{Accelerator, Capsa, LinuxBootConfig, LinuxVmBuilder, VmHandle, VmStatus};
use futures_lite::future::block_on;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::vm::PATIENCE;

/// What idle machines cost, beside their scrollbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// How many machines there were.
    pub machines: usize,
    /// Threads of Capsa's in this process.
    pub threads: usize,
    /// Descriptors that are open because of them.
    pub descriptors: usize,
    /// Bytes of memory of this process' own, without what the guests said.
    pub bytes: usize,
    /// How often a thread of this process woke up.
    pub wakeups: u64,
}

/// What a process has of each, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Threads whose name begins with `capsa`. In a program of that name, all that have no other.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Bytes of memory of its own.
    pub bytes: usize,
}

impl Usage {
    /// What a process has, by its directory in `/proc`.
    ///
    /// # Errors
    ///
    /// When there is none, or the process is somebody else's.
    pub fn of(process: &Path) -> io::Result<Self> {
        let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        let threads = fs::read_dir(process.join("task"))?.flatten().flat_map(|task| name(&task));
        Ok(Self {
            threads: threads.filter(|name| name.starts_with("capsa")).count(),
            descriptors: fs::read_dir(process.join("fd"))?.count(),
            bytes: 1024 * number(&process.join("smaps_rollup"), "Anonymous:")? as usize,
        })
    }

    fn now() -> io::Result<Self> {
        Self::of(Path::new("/proc/self"))
    }

    fn since(&self, before: &Self, machines: usize, said: usize, wakeups: u64) -> Cost {
        Cost {
            machines,
            threads: self.threads,
            descriptors: self.descriptors - before.descriptors,
            bytes: self.bytes.saturating_sub(before.bytes + said),
            wakeups,
        }
    }
}

/// The number behind `name` in a file of `/proc`.
fn number(file: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("no {name} in {}", file.display())))
}

/// How often the threads of this process have gone to sleep, which is how often they woke up.
fn sleeps() -> io::Result<u64> {
    let tasks = fs::read_dir("/proc/self/task")?;
    tasks.map(|task| number(&task?.path().join("status"), "voluntary_ctxt_switches:")).sum()
}

/// A machine on the hypervisor that does as it is told, which boots, says a word, and is idle.
pub fn machine(fake_qemu: &Path, kernel: &Path) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .program("qemu", fake_qemu)
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_enabled()
        .cmdline_override("up console=ready serve")
}

/// What `machines` of these cost behind [`VmHandle`]s with a console each, over `time`.
///
/// # Errors
///
/// When a machine does not start, or there is no `/proc`.
pub fn handles(
    machines: usize,
    time: Duration,
    machine: impl Fn() -> LinuxVmBuilder,
) -> Result<Cost, Box<dyn std::error::Error>> {
    // What the first one brings is not counted for each: the thread, the watchdog, what is kept of
    // the host.
    let first = block_on(machine().build())?;
    block_on(first.start())?;
    let alone = Usage::now()?;
    let mut running = Vec::new();
    for _ in 0..machines {
        let vm: VmHandle = block_on(machine().build())?;
        block_on(vm.start())?;
        let mut console = block_on(vm.console())?;
        block_on(console.wait_for_timeout("ready", PATIENCE))?;
        running.push((vm, console));
    }
    let before = settled()?;
    std::thread::sleep(time);
    // This thread has slept once.
    let wakeups = sleeps()? - before - 1;
    Ok(Usage::now()?.since(&alone, machines, machines * "ready".len(), wakeups))
}

/// What `machines` of these cost as [`Vm`]s in one `poll(2)` loop, over `time`.
///
/// # Errors
///
/// As [`handles`].
pub fn embedded(
    machines: usize,
    time: Duration,
    machine: impl Fn() -> LinuxVmBuilder,
) -> Result<Cost, Box<dyn std::error::Error>> {
    let mut first = [machine().build_embedded()?];
    first[0].start()?;
    drive(&mut first, Instant::now() + PATIENCE, |vms| vms[0].status() == VmStatus::Running)?;
    let alone = Usage::now()?;
    let mut vms: Vec<Vm> = Vec::new();
    for _ in 0..machines {
        let mut vm = machine().build_embedded()?;
        vm.add_reader();
        vm.start()?;
        vms.push(vm);
    }
    let up = |vm: &Vm| vm.status() == VmStatus::Running && vm.scrollback().end() == 5;
    drive(&mut vms, Instant::now() + PATIENCE, |vms| vms.iter().all(up))?;
    if !vms.iter().all(up) {
        return Err("the machines do not come up".into());
    }
    let before = settled()?;
    drive(&mut vms, Instant::now() + time, |_| false)?;
    let wakeups = sleeps()? - before - 1;
    Ok(Usage::now()?.since(&alone, machines, machines * "ready".len(), wakeups))
}

/// The count of [`sleeps`], when it has stood still for a moment: what was begun is over.
fn settled() -> io::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = sleeps()?;
        std::thread::sleep(Duration::from_millis(300));
        if sleeps()? == before + 1 || Instant::now() > deadline {
            return sleeps();
        }
    }
}

/// One loop over all of them.
fn drive(
    vms: &mut [Vm],
    until: Instant,
    mut done: impl FnMut(&mut [Vm]) -> bool,
) -> Result<(), Box<dyn std::error::Error>> {
    while !done(vms) {
        let Some(left) = until.checked_duration_since(Instant::now()) else { return Ok(()) };
        let nearest = vms.iter().filter_map(Vm::next_timeout).min().unwrap_or(left).min(left);
        let timeout = PollTimeout::try_from(nearest + Duration::from_micros(999))?;
        let mut fds: Vec<_> =
            vms.iter().map(|vm| PollFd::new(vm.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, timeout)?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        for (vm, ready) in vms.iter_mut().zip(ready) {
            if ready || vm.next_timeout().is_some_and(|left| left.is_zero()) {
                vm.on_ready()?;
                while let Some(event) = vm.poll_event() {
                    if matches!(event, VmEvent::Status(VmStatus::Failed { .. })) {
                        return Err(format!("{event:?}").into());
                    }
                }
            }
        }
    }
    Ok(())
}
