//! The cost of idle VMs for the program that owns them: threads, descriptors, memory and wake-ups.
//!
//! The numbers are those of this process in `/proc`, without the hypervisors. A process measures once:
//! a second measurement would reuse memory that the first one has freed.

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

/// The cost of idle VMs, without their scrollbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleCost {
    /// The number of VMs.
    pub vms: usize,
    /// Threads that Capsa started.
    pub threads: usize,
    /// Descriptors that the VMs keep open.
    pub descriptors: usize,
    /// Private memory in bytes, without console output.
    pub bytes: usize,
    /// How often the threads of this process woke up.
    pub wakeups: u64,
}

/// The resources of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Threads whose name begins with `capsa`. Threads without a name have the name of the program.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Private memory in bytes.
    pub bytes: usize,
}

impl Usage {
    /// The resources of the process with this directory in `/proc`.
    ///
    /// # Errors
    ///
    /// When the directory does not exist or is not readable.
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

    fn since(&self, before: &Self, vms: usize, output: usize, wakeups: u64) -> IdleCost {
        IdleCost {
            vms,
            threads: self.threads,
            descriptors: self.descriptors - before.descriptors,
            bytes: self.bytes.saturating_sub(before.bytes + output),
            wakeups,
        }
    }
}

/// The number after `name` in a file of `/proc`.
fn number(file: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("no {name} in {}", file.display())))
}

/// The number of times that the threads of this process went to sleep, which is also the number of
/// wake-ups.
fn sleeps() -> io::Result<u64> {
    let tasks = fs::read_dir("/proc/self/task")?;
    tasks.map(|task| number(&task?.path().join("status"), "voluntary_ctxt_switches:")).sum()
}

/// A builder of a VM on the fake QEMU, which prints `ready` and is idle.
pub fn vm(fake_qemu: &Path, kernel: &Path) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .program("qemu", fake_qemu)
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_enabled()
        .cmdline_override("up console=ready serve")
}

/// The cost of `count` VMs with a [`VmHandle`] and a console each, over `time`.
///
/// # Errors
///
/// When a VM does not start, or without `/proc`.
pub fn handles(
    count: usize,
    time: Duration,
    build: impl Fn() -> LinuxVmBuilder,
) -> Result<IdleCost, Box<dyn std::error::Error>> {
    // The first VM also creates the shared resources, which the cost of one VM does not include: the
    // driver thread, the watchdog and the cached host facts.
    let first = block_on(build().build())?;
    block_on(first.start())?;
    let first_vm = Usage::now()?;
    let mut running = Vec::new();
    for _ in 0..count {
        let vm: VmHandle = block_on(build().build())?;
        block_on(vm.start())?;
        let mut console = block_on(vm.console())?;
        block_on(console.wait_for_timeout("ready", PATIENCE))?;
        running.push((vm, console));
    }
    let before = settled_sleeps()?;
    std::thread::sleep(time);
    // This thread itself has slept once.
    let wakeups = sleeps()? - before - 1;
    Ok(Usage::now()?.since(&first_vm, count, count * "ready".len(), wakeups))
}

/// The cost of `count` VMs as [`Vm`]s in one `poll(2)` loop, over `time`.
///
/// # Errors
///
/// As [`handles`].
pub fn embedded(
    count: usize,
    time: Duration,
    build: impl Fn() -> LinuxVmBuilder,
) -> Result<IdleCost, Box<dyn std::error::Error>> {
    let mut first = [build().build_embedded()?];
    first[0].start()?;
    drive(&mut first, Instant::now() + PATIENCE, |vms| vms[0].status() == VmStatus::Running)?;
    let first_vm = Usage::now()?;
    let mut vms: Vec<Vm> = Vec::new();
    for _ in 0..count {
        let mut vm = build().build_embedded()?;
        vm.add_reader();
        vm.start()?;
        vms.push(vm);
    }
    let up = |vm: &Vm| vm.status() == VmStatus::Running && vm.scrollback().end() == 5;
    drive(&mut vms, Instant::now() + PATIENCE, |vms| vms.iter().all(up))?;
    if !vms.iter().all(up) {
        return Err("the VMs do not start".into());
    }
    let before = settled_sleeps()?;
    drive(&mut vms, Instant::now() + time, |_| false)?;
    let wakeups = sleeps()? - before - 1;
    Ok(Usage::now()?.since(&first_vm, count, count * "ready".len(), wakeups))
}

/// Waits until the count of [`sleeps`] stays constant, and returns it.
fn settled_sleeps() -> io::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = sleeps()?;
        std::thread::sleep(Duration::from_millis(300));
        if sleeps()? == before + 1 || Instant::now() > deadline {
            return sleeps();
        }
    }
}

/// Runs all VMs in one loop until `done` or `until`.
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
