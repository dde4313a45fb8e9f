//! [`SerialPort`]: the serial port beside a virtio console, which the guest's kernel writes to.
//!
//! Its output is kept for errors, and guest faults and crashes are recognised in it. No reader sees it.
//! It explains a virtio console without output: the guest has not opened it, or its kernel panicked.

use super::fault_check::{CrashCheck, FaultCheck};
use super::{ConsoleCrash, FaultReport, NearMatch, Scrollback, Stripper};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// How much of the output is kept: 64 KiB.
const CAPACITY: usize = 64 << 10;

/// How long after the start of the guest its virtio console may stay closed: 2 minutes. A slow guest in
/// emulation loads the driver within 20 s.
pub const OPEN_LIMIT: Duration = Duration::from_secs(120);

/// The output of the serial port, and the state of the virtio console.
#[derive(Debug)]
pub(super) struct SerialPort {
    log: Scrollback,
    crash_check: CrashCheck,
    faults: FaultCheck,
    /// A kernel panic that is confirmed.
    panic: Option<FaultReport>,
    is_opened: bool,
    /// When the guest must have opened the virtio console.
    open_by: Option<Instant>,
}

impl SerialPort {
    pub(super) fn new() -> Self {
        let log = Scrollback::new(CAPACITY);
        let faults = FaultCheck::for_panic(&log, 0);
        let crash_check = CrashCheck::default();
        Self { log, crash_check, faults, panic: None, is_opened: false, open_by: None }
    }

    /// The guest was started.
    pub(super) fn handle_started(&mut self, now: Instant) {
        self.open_by = Some(now + OPEN_LIMIT);
    }

    /// The guest has opened the virtio console.
    pub(super) fn handle_opened(&mut self) {
        self.is_opened = true;
    }

    /// Takes output of the port. The result is that of [`CrashCheck::observe`].
    pub(super) fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Option<bool> {
        self.log.push(bytes);
        self.faults.observe(now, &self.log);
        self.panic = None;
        self.crash_check.observe(now, &self.log)
    }

    /// The guest has printed something on the virtio console, so it is opened, and no panic is the last
    /// message.
    pub(super) fn handle_console_output(&mut self) {
        self.is_opened = true;
        self.panic = None;
        self.faults.restart_silence();
    }

    /// When [`poll`](Self::poll) may have a result, or a wait ends.
    pub(super) fn poll_timeout(&self, has_waits: bool) -> Option<Deadline> {
        // Without a wait nothing has to be notified.
        let open = self.open_by.filter(|_| has_waits && !self.is_opened);
        let why = "the guest has not opened its virtio console";
        let open = open.map(|at| Deadline { at, why });
        let panic = self.faults.confirmed_at().filter(|_| self.may_have_panicked());
        [open, panic, self.crash_check.poll_timeout(false)]
            .into_iter()
            .fold(None, Deadline::earliest)
    }

    /// Time has passed. Gives the crash that the kernel's last lines show, once.
    pub(super) fn poll(&mut self, now: Instant) -> Option<ConsoleCrash> {
        if self.may_have_panicked() {
            self.panic = self.faults.confirmed(now, &self.log);
        }
        self.crash_check.poll_crash(now, &self.log, false)
    }

    /// Whether no output is to be expected on the virtio console.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        self.panic.is_some() || (!self.is_opened && self.open_by.is_some_and(|at| at <= now))
    }

    /// Why there is no output on the virtio console, for the error of a wait.
    pub(super) fn explanation(&self) -> (Option<FaultReport>, Option<NearMatch>) {
        let near_match = (!self.is_opened).then(|| NearMatch::LastLine {
            line: self.last_line(),
            explanation: "the serial port has no more, and the guest has not opened its virtio \
                          console: it needs the driver virtio_console, in the kernel or the initrd",
        });
        (self.panic.clone(), near_match)
    }

    /// Whether the text of a whole panic was printed that is not confirmed yet.
    fn may_have_panicked(&self) -> bool {
        self.panic.is_none() && self.faults.panic_is_complete()
    }

    fn last_line(&self) -> String {
        let mut text = Vec::new();
        Stripper::default().strip(self.log.tail(512), &mut text);
        let text = String::from_utf8_lossy(&text);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().into()
    }
}
