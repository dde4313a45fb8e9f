//! The embeddable machine: one descriptor, one deadline, one call.
//!
//! A [`Vm`] fits into any event loop. It owns no thread, installs no signal handler and never
//! blocks: it says what to wait for, and does bounded work when called.
//!
//! # The contract
//!
//! 1. Wait until the descriptor ([`AsFd`]) is readable or [`Vm::next_timeout`] has passed. Where the
//!    loop counts in milliseconds, round up: rounded down, it spins through the last one.
//! 2. Call [`Vm::on_ready`]. Calling it for nothing is harmless.
//! 3. Take events with [`Vm::poll_event`] until there are none.
//! 4. Ask [`Vm::next_timeout`] again before waiting: any call may have changed it, and it is zero
//!    when there is more to do. (The descriptor is a poller inside. A loop that watches edges, as
//!    mio and tokio do, is not told again about what a bounded call left undone.)
//!
//! The descriptor is the same for as long as the machine is there, whatever processes and sockets
//! come and go behind it, so it is registered once: for reading, by level or by edge. A copy of it
//! (`try_clone_to_owned`) does as well, where the loop wants to own what it watches. A machine is
//! [`Send`], not [`Sync`]: it may move between threads, between any two calls.
//!
//! ```
//! use std::time::Duration;
//! use capsa::embed::{Ended, VmEvent};
//! use capsa::testing::{self, GuestReply, ScriptedGuest};
//!
//! # fn wait_readable(_: &impl std::os::fd::AsFd, timeout: Option<Duration>) {
//! #     std::thread::sleep(timeout.unwrap_or_default().min(Duration::from_millis(1)));
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A guest that is played, so that this runs anywhere. `Capsa::vm(…)` makes a real one.
//! let guest = ScriptedGuest::new().login("root", None).shell("# ").on("id -u", GuestReply::output("0\n"));
//! let mut vm = testing::vm(guest).build_embedded()?;
//!
//! let reader = vm.add_reader();
//! let login = vm.login(reader, "root", None, Some(Duration::from_secs(60)))?;
//! let (mut command, mut answer) = (None, None);
//! vm.start()?;
//! while !vm.status().is_terminal() {
//!     wait_readable(&vm, vm.next_timeout()); // poll(2), mio, tokio, calloop, …
//!     vm.on_ready()?;
//!     while let Some(event) = vm.poll_event() {
//!         match event {
//!             VmEvent::Ended(wait) if wait == login => {
//!                 command = Some(vm.run_command(reader, "id -u", None, None)?);
//!             }
//!             VmEvent::Ended(wait) if Some(wait) == command => {
//!                 answer = vm.take_ended(wait);
//!                 vm.stop()?;
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//! let Some(Ended::Script(Ok(reply))) = answer else { panic!("{answer:?}") };
//! assert_eq!((reply.output.as_slice(), reply.status), (&b"0\n"[..], Some(0)));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/loop_*.rs` drive a machine by `poll(2)`, mio, tokio, smol, async-io, calloop and
//! io_uring, and two hundred on one thread.
//!
//! # Bounds
//!
//! | one call of | does at most |
//! | --- | --- |
//! | [`Vm::on_ready`] | reads 256 KiB of console output, 64 KiB of control traffic, 64 KiB of events and 64 KiB of each process's standard error, or [less if asked](crate::LinuxVmBuilder::read_budget) of each; writes what the guest and the hypervisor take at once, 256 KiB waiting for the guest; starts each process of the plan, a millisecond or two each |
//! | [`Vm::poll_event`], [`Vm::start`], [`Vm::stop`], [`Vm::kill`] | constant work, no system call but a look at the clock |
//! | [`Vm::next_timeout`] | the same, and a look at each wait that was begun |
//! | [`Vm::write`] | copies what it takes, and writes what the guest takes at once |
//! | [`Vm::take`] | copies what the scrollback holds |
//! | [`Vm::expect`] and its kin | look once at what is unread |
//! | dropping it | kills what runs and waits until it is gone: milliseconds |
//!
//! Events do not add up while nobody takes them: data and room are said once until taken, the others
//! are as many as changes of status, reboots and waits that were begun.
//!
//! # When the contract is broken
//!
//! | who | sees |
//! | --- | --- |
//! | never calls `on_ready` | a status that stays [`VmStatus::Starting`], no process, a `next_timeout` of zero, and in the log, when it is dropped, that nobody called |
//! | stops calling it | a status that stays where it is, and a descriptor that stays readable; the guest waits when what the system holds of its console is full, and nothing of it is lost |
//! | forgets the deadline | stops that stay [`VmStatus::Stopping`] and waits that never time out, while `next_timeout` is zero; the next call catches up and says in the log how late it was, and for what |
//! | forgets step 4 under an edge-triggered loop | the same, with console output left unread |
//! | waits for words without a console, or with a reader that is not there | a wait that ends at once, as on a closed console |
//! | leaves events | a `next_timeout` of zero, so that its loop spins |
//! | watches the descriptor after the machine is dropped | what its loop makes of a closed one; deregister first, or watch a copy |

#[cfg(feature = "mio")]
mod mio;
#[cfg(feature = "tokio")]
mod tokio;

use std::io;
#[cfg(feature = "async")]
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use capsa_io::console::WaitKind;
use capsa_io::supervisor::{Options, Supervisor};
#[cfg(feature = "async")]
use capsa_proto::console::CommandOutput;
use capsa_proto::console::{Expect, Login, Matcher, Pattern, RunCommand, ScriptError, Silence};
use capsa_proto::lifecycle::{DEFAULT_GRACE, StopReport, VmStatus};
use capsa_proto::plan::LaunchPlan;
use capsa_proto::spec::{GuestOs, ResourceConfig};
use capsa_proto::time::Instant;

use crate::backends::{Planned, Rejection};
#[cfg(feature = "async")]
use crate::console::Match;
#[cfg(feature = "async")]
use crate::error::{hint, lossy};
use crate::{Error, Result};

pub use capsa_io::console::{Ended, ReaderId, WaitId};
pub use capsa_io::supervisor::VmEvent;
pub use capsa_io::vsock::{Connecting as VsockConnecting, PortListener as VsockPortListener};
pub use capsa_proto::console::{Outcome, Scrollback};

#[cfg(feature = "tokio")]
pub use tokio::TokioVm;

/// A machine for a loop of your own. Dropping it kills what runs and waits until it is gone.
#[derive(Debug)]
pub struct Vm {
    supervisor: Supervisor,
    resources: ResourceConfig,
    rejected: Vec<Rejection>,
}

impl Vm {
    pub(crate) fn new(
        planned: Planned,
        options: Options,
        resources: ResourceConfig,
    ) -> io::Result<Self> {
        let Planned { backend, plan, rejected, simulated } = planned;
        let supervisor = match simulated {
            None => Supervisor::new(plan, backend, options)?,
            Some(simulated) => Supervisor::simulated(plan, simulated, options)?,
        };
        Ok(Self { supervisor, resources, rejected })
    }

    /// Wants the machine to run. The programs are started by the next [`Vm::on_ready`].
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when it was started before, whatever became of it.
    pub fn start(&mut self) -> Result<()> {
        Ok(self.supervisor.start()?)
    }

    /// Asks the guest to power off. After 30 seconds its power is cut.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it was never started. Stopping what has ended is no error.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_with_timeout(DEFAULT_GRACE)
    }

    /// Asks the guest to power off, and cuts its power after `grace_period`.
    ///
    /// A machine that is still starting is killed. A second call may shorten the grace, never
    /// lengthen it.
    ///
    /// # Errors
    ///
    /// As [`Vm::stop`].
    pub fn stop_with_timeout(&mut self, grace_period: Duration) -> Result<()> {
        Ok(self.supervisor.stop(grace_period)?)
    }

    /// Kills the machine. The guest is not told.
    ///
    /// # Errors
    ///
    /// As [`Vm::stop`].
    pub fn kill(&mut self) -> Result<()> {
        Ok(self.supervisor.kill()?)
    }

    /// Its status.
    pub fn status(&self) -> VmStatus {
        self.supervisor.status().clone()
    }

    /// How it ended, once it has.
    pub fn stop_report(&self) -> Option<StopReport> {
        self.supervisor.report()
    }

    /// What it is started from.
    pub fn launch_plan(&self) -> &LaunchPlan {
        self.supervisor.plan()
    }

    /// The backends that were passed over for this machine, each with every reason.
    pub fn rejected_backends(&self) -> &[Rejection] {
        &self.rejected
    }

    /// The guest's operating system.
    pub fn guest_os(&self) -> GuestOs {
        GuestOs::Linux
    }

    /// CPUs and memory.
    pub fn resources(&self) -> &ResourceConfig {
        &self.resources
    }

    /// The hypervisor's process id, while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.supervisor.hypervisor_pid()
    }

    /// How long to wait for the descriptor at most. `None`: only the descriptor matters. Zero: call
    /// [`Vm::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.supervisor.next_timeout()
    }

    /// Does what there is to do, with bounded work.
    ///
    /// # Errors
    ///
    /// In a forked copy of the program that made it, and when the poller itself fails, which is a broken
    /// process. Everything else shows in the status.
    pub fn on_ready(&mut self) -> io::Result<()> {
        self.supervisor.on_ready()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.supervisor.poll_event()
    }

    /// Everything the guest said that is still kept.
    pub fn scrollback(&self) -> &Scrollback {
        self.supervisor.console().scrollback()
    }

    /// A new reader of the console, at the oldest byte that is kept. Each reader sees everything.
    pub fn add_reader(&mut self) -> ReaderId {
        self.supervisor.console_mut().add_reader()
    }

    /// Takes a reader away, and its conversations with it.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.supervisor.console_mut().remove_reader(reader);
    }

    /// Takes what there is to read. Empty when nothing is.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        self.supervisor.console_mut().take(reader)
    }

    /// Queues bytes for the guest and says how many were taken: fewer than given when 256 KiB wait
    /// already. [`VmEvent::ConsoleWritable`] says when there is room again.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the console is closed, or the machine was built without one.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.supervisor.console_mut().write(bytes)
    }

    /// Begins to wait for one of `patterns`; the earliest end wins, ties go to the first listed.
    /// [`VmEvent::Ended`] says when the wait is over, [`Vm::take_ended`] how.
    ///
    /// It is over at once, as on a console that is [closed](Outcome::Closed), where the machine was
    /// built without one and where `reader` was taken away or is not of this machine.
    pub fn expect(
        &mut self,
        reader: ReaderId,
        patterns: &[&str],
        timeout: Option<Duration>,
    ) -> WaitId {
        self.expect_patterns(reader, patterns.iter().map(Pattern::literal), timeout)
    }

    /// As [`Vm::expect`], for patterns that need not be literals.
    pub fn expect_patterns(
        &mut self,
        reader: ReaderId,
        patterns: impl IntoIterator<Item = Pattern>,
        timeout: Option<Duration>,
    ) -> WaitId {
        let matcher = Matcher::of(patterns);
        self.supervisor
            .begin(reader, |now| WaitKind::Expect(Box::new(Expect::new(matcher, now, timeout))))
    }

    /// Begins to wait until the guest has said nothing for as long as `quiet`. The reply has all
    /// that was unread.
    pub fn expect_silence(
        &mut self,
        reader: ReaderId,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> WaitId {
        self.supervisor
            .begin(reader, |now| WaitKind::Script(Box::new(Silence::new(quiet, now, timeout))))
    }

    /// Begins to log in on the console.
    ///
    /// # Errors
    ///
    /// When the name or the password cannot be typed.
    pub fn login(
        &mut self,
        reader: ReaderId,
        username: &str,
        password: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.script(reader, |now| {
            Ok(WaitKind::Script(Box::new(Login::new(username, password, now, timeout)?)))
        })
    }

    /// Begins to run a shell command. With a `prompt`, it is over when that has come back.
    ///
    /// # Errors
    ///
    /// When the command is too long or cannot be typed.
    pub fn run_command(
        &mut self,
        reader: ReaderId,
        command: &str,
        prompt: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| {
            let script = RunCommand::new(command, prompt, nonce, now, timeout)?;
            Ok(WaitKind::Script(Box::new(script)))
        })
    }

    /// As [`Vm::run_command`] without a prompt, for a command whose output is wanted while it runs,
    /// or is long: call [`Vm::take_output`] at each [`VmEvent::ConsoleData`], and once more at the end.
    ///
    /// The reply has what was not taken by then. Where nothing is taken, a console that
    /// [pauses](crate::Overflow::Pause) makes the command wait after 64 KiB; of any other 16 MiB are
    /// kept, then it drops what is too old and says so in the reply.
    ///
    /// # Errors
    ///
    /// As [`Vm::run_command`].
    pub fn stream_command(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| {
            let script = RunCommand::new(command, None, nonce, now, timeout)?.streamed();
            Ok(WaitKind::Script(Box::new(script)))
        })
    }

    /// Takes what a [streamed](Vm::stream_command) command has printed since this was called last. A
    /// command that failed has all that came, until [`Vm::take_ended`].
    pub fn take_output(&mut self, wait: WaitId) -> Vec<u8> {
        self.supervisor.take_output(wait)
    }

    /// Begins to connect to a vsock port of the guest. Wait until the result is readable, call
    /// [`VsockConnecting::proceed`] until it says that the connection is made, and take the stream.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the machine
    /// does not run; [`Error::Io`] when the device cannot be reached.
    pub fn vsock_connect(&self, port: u32) -> Result<VsockConnecting> {
        let vsock = self.launch_plan().vsock.as_ref().ok_or(Error::VsockNotEnabled)?;
        let route = vsock.to_guest(port).ok_or(Error::VsockPortNotNamed { port })?;
        if *self.supervisor.status() != VmStatus::Running {
            return Err(Error::NotRunning);
        }
        Ok(VsockConnecting::begin(route, port)?)
    }

    /// Listens to the guest's connections to this vsock port of the host. It may come before the
    /// start, so that the guest finds the listener whenever it comes up.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the machine
    /// has ended; [`Error::Io`] with `AddrInUse` when there is a listener already.
    pub fn vsock_listen(&mut self, port: u32) -> Result<VsockPortListener> {
        let vsock = self.launch_plan().vsock.as_ref().ok_or(Error::VsockNotEnabled)?;
        vsock.listener(port).ok_or(Error::VsockPortNotNamed { port })?;
        self.supervisor.vsock_listen(port)?.ok_or(Error::NotRunning)
    }

    /// How a conversation ended. `None` while it goes on, and after it was taken.
    pub fn take_ended(&mut self, wait: WaitId) -> Option<Ended> {
        self.supervisor.take_ended(wait)
    }

    /// Gives a conversation up. What it read and did not hand out is unread again. A command that
    /// runs is interrupted.
    pub fn cancel(&mut self, wait: WaitId) {
        self.supervisor.console_mut().cancel(wait);
    }

    /// Nobody wants it any more. A machine that was never started ends too, so that whoever waits on
    /// its console is told and its driver lets go of it; nothing is spawned for that.
    #[cfg(feature = "async")]
    pub(crate) fn abandon(&mut self) {
        if *self.supervisor.status() == VmStatus::Created {
            let _ = self.supervisor.start();
            let _ = self.supervisor.kill();
        }
        self.supervisor.abandon();
    }

    #[cfg(feature = "async")]
    pub(crate) fn supervisor(&mut self) -> &mut Supervisor {
        &mut self.supervisor
    }

    /// What tells a command's marks from another's.
    fn nonce(&mut self, reader: ReaderId) -> u64 {
        self.supervisor.nonce(reader).unwrap_or_else(capsa_io::random::number)
    }

    fn script(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> std::result::Result<WaitKind, ScriptError>,
    ) -> Result<WaitId> {
        self.supervisor.try_begin(reader, make).map_err(Error::from)
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }
}

/// The number of the same descriptor, for loops that want one. It stays the same for as long as the
/// machine is there.
impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// The result of a wait for patterns, as the async face gives it. `report` is how the machine ended,
/// as far as it has.
#[cfg(feature = "async")]
pub(crate) fn match_result(
    ended: Ended,
    patterns: &[Pattern],
    report: Option<StopReport>,
) -> Result<Match> {
    let all = || patterns.iter().map(Pattern::to_string).collect::<Vec<_>>().join(", ");
    let expected = || match patterns {
        [one] => one.to_string(),
        _ => format!("one of [{}]", all()),
    };
    match ended {
        Ended::Expect(Outcome::Matched { pattern, output, truncated, groups }) => {
            let text = |group: Range<usize>| lossy(&output[group]);
            let groups = groups.into_iter().map(|group| group.map(text)).collect();
            Ok(Match { pattern, groups, output: lossy(&output), truncated })
        }
        Ended::Expect(Outcome::TimedOut { tail, waited, fault, near_match }) => {
            Err(Error::Timeout {
                expected: expected(),
                waited,
                tail: lossy(&tail),
                hint: hint(fault, near_match),
            })
        }
        Ended::Expect(Outcome::Closed { tail, waited, fault, near_match }) => {
            Err(Error::PatternNotFound {
                pattern: expected(),
                waited,
                ended: report.map(Box::new),
                tail: lossy(&tail),
                hint: hint(fault, near_match),
            })
        }
        Ended::Expect(Outcome::Panicked { tail, line, .. }) => {
            Err(Error::KernelPanic { expected: expected(), line, tail: lossy(&tail) })
        }
        Ended::Script(_) => unreachable!("a wait for patterns is no script"),
    }
}

/// The result of a script, as the async face gives it.
#[cfg(feature = "async")]
pub(crate) fn script_result(ended: Ended, report: Option<StopReport>) -> Result<CommandOutput> {
    let Ended::Script(result) = ended else { unreachable!("a script is no wait for patterns") };
    result.map_err(|error| match Error::from(error) {
        Error::PatternNotFound { pattern, waited, tail, hint, .. } => {
            Error::PatternNotFound { pattern, waited, ended: report.map(Box::new), tail, hint }
        }
        error => error,
    })
}
