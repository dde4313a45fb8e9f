//! VMs for tests, built through the public API.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use capsa::{Accelerator, Capsa, DiskImage, LinuxBootConfig, LinuxVmBuilder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use capsa_fixtures::guest::{self, DebianGuest, LinuxGuest, Variant};
use capsa_fixtures::nano::Nano;
use capsa_fixtures::{host, skip};

/// The time limit of a wait in a test. The steps usually take 100 ms, but a CI host may be loaded.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The nano guest in a temporary directory, for QEMU in emulation.
#[derive(Debug)]
pub struct NanoGuest {
    dir: TempDir,
    kernel: PathBuf,
}

impl NanoGuest {
    /// The guest; `None`, and the test counts as skipped, where no QEMU is installed.
    ///
    /// # Panics
    ///
    /// When the guest cannot be written.
    pub fn new() -> Option<Self> {
        Self::with(Nano::default())
    }

    /// A guest that ignores the power button.
    ///
    /// # Panics
    ///
    /// When the guest cannot be written.
    pub fn without_power_button() -> Option<Self> {
        Self::with(Nano { power_button: false })
    }

    fn with(nano: Nano) -> Option<Self> {
        if host::find_program("qemu-system-x86_64").is_none() {
            skip("qemu-system-x86_64 is not installed");
            return None;
        }
        Some(Self::for_any(nano))
    }

    /// A guest for any hypervisor. Never skips.
    ///
    /// # Panics
    ///
    /// When the guest cannot be written.
    pub fn for_any(nano: Nano) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kernel = nano.write_to(dir.path()).expect("the nano guest can be written");
        Self { dir, kernel }
    }

    /// The path of the kernel image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The temporary directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A builder of a VM with the guest: 32 MiB, a console, no network.
    pub fn builder(&self) -> LinuxVmBuilder {
        Capsa::vm(LinuxBootConfig::new(&self.kernel))
            .backend("qemu")
            .accelerator(Accelerator::Emulation)
            .memory_mb(32)
            .no_network()
            .console_enabled()
    }
}

/// The real Linux guest; `None`, and the test counts as skipped, where it cannot be built or no QEMU
/// is installed.
pub fn linux_guest() -> Option<LinuxGuest> {
    if host::find_program("qemu-system-x86_64").is_none() {
        skip("qemu-system-x86_64 is not installed");
        return None;
    }
    guest::linux(Variant::Cloud).map_err(skip).ok()
}

/// A builder of a VM with Linux: 256 MiB, a console, no network, few kernel messages.
pub fn linux(guest: &LinuxGuest) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new(&guest.kernel).initrd(&guest.initrd))
        .backend("qemu")
        .memory_mb(256)
        .no_network()
        .console_enabled()
        .cmdline_args(["quiet", "mitigations=off"])
}

/// A builder of a VM with Debian, on an ephemeral disk: two vCPUs, 512 MiB, a console, no network.
pub fn debian(guest: &DebianGuest) -> LinuxVmBuilder {
    let disk = DiskImage::new(&guest.disk).ephemeral();
    Capsa::vm(LinuxBootConfig::new(&guest.kernel).initrd(&guest.initrd).disk(disk))
        .backend("qemu")
        .cpus(2)
        .memory_mb(512)
        .no_network()
        .console_enabled()
        // It has no fstab that would make the root file system writable.
        .cmdline_args(["rw", "quiet", "mitigations=off"])
}

/// Waits until `done` returns true. `what` is in the message of the failure.
///
/// # Panics
///
/// When it takes too long.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Makes a call that blocks, and returns its result; fails with `what` when it does not return.
///
/// # Panics
///
/// When the call panics or takes too long.
pub fn in_time<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let calling = std::thread::spawn(call);
    eventually(what, || calling.is_finished());
    calling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits with `poll(2)` until the descriptor is readable or the timeout expires.
///
/// # Panics
///
/// When poll fails.
pub fn poll_fd(fd: &impl AsFd, timeout: Option<Duration>) {
    let timeout = match timeout {
        // Rounded up: a loop that wakes too early spins.
        Some(timeout) => PollTimeout::try_from(timeout + Duration::from_micros(999)),
        None => Ok(PollTimeout::NONE),
    };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)).expect("poll");
}
