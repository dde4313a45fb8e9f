//! [`Trace`]: the last steps of a schedule, for the message of a failure, and a digest of all of them.

use alloc::collections::VecDeque;
use core::fmt;
use core::hash::{Hash, Hasher};

use crate::backend::GuestEvent;
use crate::lifecycle::Phase;
use crate::plan::{ProcessId, Signal};
use crate::time::Instant;
use crate::vm::Channel;

/// How many of the last steps a failure shows.
const SHOWN: usize = 40;

/// One step of a schedule.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) enum Step {
    // What the driver did.
    Launched(ProcessId),
    LaunchFailed(ProcessId),
    SocketChecked(ProcessId, bool),
    Connected(Channel),
    Refused(Channel),
    Read(Channel, usize),
    Wrote(Channel, usize),
    Closed(Channel),
    Lost(Channel),
    Signalled(ProcessId, Signal),
    Reaped(ProcessId, Option<i32>),
    TimedOut,
    Released,
    Phase(Phase),
    // What the processes and the guest did.
    Died(ProcessId, Option<i32>),
    Answered(bool),
    SentGarbage(Channel),
    SentEvent(EventCode),
    Printed(usize),
    // What the owner did.
    Started,
    Stopped(u64),
    Killed,
    PauseRequested(bool),
    ReaderAdded(usize),
    ReaderRemoved(usize),
    ReaderRead(usize, usize),
    WaitBegun(usize, usize),
    WaitEnded(usize),
    WaitCancelled(usize),
    Streamed(usize, usize),
    Typed(usize),
}

/// A guest event that can be hashed.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct EventCode(u8);

impl From<GuestEvent> for EventCode {
    fn from(event: GuestEvent) -> Self {
        Self(event as u8)
    }
}

/// Where a schedule came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum ScheduleSource {
    Bytes,
    Seed(u64),
}

/// What happened in a schedule.
#[derive(Debug)]
pub struct Trace {
    source: ScheduleSource,
    last: VecDeque<(Instant, Step)>,
    steps: u64,
    digest: Digest,
}

impl Trace {
    /// The trace of the schedule of this seed, before its first step.
    pub const fn of_seed(seed: u64) -> Self {
        Self::new(ScheduleSource::Seed(seed))
    }

    pub(super) const fn new(source: ScheduleSource) -> Self {
        Self { source, last: VecDeque::new(), steps: 0, digest: Digest(0xcbf2_9ce4_8422_2325) }
    }

    /// A number that differs between two schedules that did not take the same steps at the same times.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// How many steps were taken.
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn add(&mut self, now: Instant, step: Step) {
        self.steps += 1;
        (now, step).hash(&mut self.digest);
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back((now, step));
    }

    /// Fails the schedule.
    #[track_caller]
    pub(super) fn fail(&self, law: fmt::Arguments<'_>) -> ! {
        panic!("law broken: {law}\n{self}")
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            ScheduleSource::Bytes => writeln!(f, "schedule: the bytes of the fuzzer")?,
            ScheduleSource::Seed(seed) => writeln!(
                f,
                "schedule: seed {seed} (cargo xtask simulate --schedules 1 --seed {seed})"
            )?,
        }
        write!(f, "the last {} of {} steps:", self.last.len(), self.steps)?;
        for (at, step) in &self.last {
            let micros = at.as_micros();
            write!(f, "\n  {:>6}.{:06} s  {step:?}", micros / 1_000_000, micros % 1_000_000)?;
        }
        Ok(())
    }
}

/// FNV-1a, as a hasher and as a sink for text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digest(u64);

impl Digest {
    pub(super) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}
