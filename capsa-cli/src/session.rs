//! Runs a machine with its console on standard input and output, in one thread.
//!
//! 1. Wait with poll(2) for the machine, a signal, standard input and standard output, each only
//!    while it is wanted. (Files and `/dev/null` cannot be watched by epoll; poll takes them.)
//! 2. Move bytes. Standard input is read when the machine has taken what was read before; the
//!    machine's console is taken when standard output has taken what was taken before, and the
//!    guest waits rather than lose a byte.
//! 3. End when the machine has ended and its last byte was written.
//!
//! The rule: nothing here blocks but the one poll.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use capsa::embed::{ReaderId, Vm};
use capsa::{EndedBy, StopReport, StopStep, VmStatus};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::unistd::read;

use crate::escape::{Escape, Order};
use crate::failure::{self, Failure, START};
use crate::output::Output;
use crate::signals::{Signals, Wish};
use crate::terminal::RawTerminal;

/// Bytes read from standard input at once.
const CHUNK: usize = 4096;

/// Signals that come together are one wish: timeout(1) sends its signal to the program, and then to
/// the program's whole group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// How long a reader of the last bytes may take for the next of them when there is no time.
const LAST_CHANCE: Duration = Duration::from_millis(100);

/// Starts the machine, carries its console where `stdio` says so, and gives the exit code when it
/// has ended.
pub(crate) fn run(vm: Vm, stdio: bool) -> Result<u8, Failure> {
    let broken =
        |error: io::Error| Failure::new(START, format!("cannot start the machine: {error}"));
    let mut session = Session::new(vm, stdio).map_err(broken)?;
    session.vm.start().map_err(|error| broken(io::Error::other(error)))?;
    let driven = session.drive();
    // The terminal is given back before the last words.
    let Session { vm, console, signal, .. } = session;
    let ends_line = match console {
        Some(console) => console.output.is_mid_line() && io::stdout().is_terminal(),
        None => false,
    };
    driven.map_err(|error| {
        Failure::new(failure::HYPERVISOR, format!("cannot go on with the machine: {error}"))
    })?;
    if ends_line && io::stderr().is_terminal() {
        say("");
    }
    let signal = signal.map(|(signal, _)| signal);
    let Some(report) = vm.stop_report() else { return Ok(failure::HYPERVISOR) };
    let code = exit_code(&report, signal);
    if !stdio && ![failure::OK, failure::TIME_LIMIT].contains(&code) && signal.is_none() {
        say_tail(&String::from_utf8_lossy(vm.scrollback().tail(4096)));
    }
    say(&failure::harmless(&last_words(&report)));
    Ok(code)
}

struct Session {
    vm: Vm,
    signals: Signals,
    console: Option<Console>,
    /// The signal that made it end, and when it came.
    signal: Option<(u8, Instant)>,
    /// Signals made it cut the power: whoever sent them does not wait for a slow reader either.
    hurry: bool,
}

/// Standard input and output, and what is on its way between them and the guest.
struct Console {
    reader: ReaderId,
    output: Output,
    /// Given back when dropped.
    terminal: Option<RawTerminal>,
    escape: Escape,
    input_open: bool,
    /// Read, and not yet taken by the machine.
    for_guest: Vec<u8>,
}

/// What poll(2) said.
#[derive(Default)]
struct Readiness {
    input: bool,
    output: bool,
}

impl Session {
    fn new(mut vm: Vm, stdio: bool) -> io::Result<Self> {
        // Before the terminal is raw, so that no signal can end this program while it is.
        let signals = Signals::install()?;
        let console = match stdio {
            true => Some(Console::new(vm.add_reader())?),
            false => None,
        };
        Ok(Self { vm, signals, console, signal: None, hurry: false })
    }

    fn drive(&mut self) -> io::Result<()> {
        loop {
            let over = self.vm.status().is_terminal();
            if let Some(console) = &mut self.console {
                console.refill(&mut self.vm);
            }
            if over && self.console.as_ref().is_none_or(|console| console.output.is_empty()) {
                return Ok(());
            }
            let ready = self.wait(over)?;
            for wish in self.signals.take() {
                self.grant(wish);
                self.hurry |= over && self.signal.is_some();
            }
            if over && self.hurry && !ready.output {
                return Ok(());
            }
            if let Some(console) = &mut self.console {
                if ready.output {
                    console.output.on_writable();
                }
                if ready.input {
                    console.read_input(&mut self.vm);
                }
            }
            if !over {
                self.vm.on_ready()?;
                while self.vm.poll_event().is_some() {}
            }
        }
    }

    fn wait(&self, over: bool) -> io::Result<Readiness> {
        let stdin = io::stdin();
        let mut ready = Readiness::default();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let (mut input, mut output) = (None, None);
        if !over {
            fds.push(PollFd::new(self.vm.as_fd(), PollFlags::POLLIN));
        }
        if let Some(console) = &self.console {
            if !over && console.wants_input() {
                input = Some(fds.len());
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            if !console.output.is_empty() {
                output = Some(fds.len());
                fds.push(PollFd::new(console.output.as_fd(), PollFlags::POLLOUT));
            }
        }
        let timeout = match over {
            false => self.vm.next_timeout(),
            true => self.hurry.then_some(LAST_CHANCE),
        };
        match poll(&mut fds, poll_timeout(timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let said = |at: Option<usize>| {
            // An error or a hang-up as well: the read or write will say which.
            at.and_then(|at| fds[at].revents()).is_some_and(|events| !events.is_empty())
        };
        ready.input = said(input);
        ready.output = said(output);
        Ok(ready)
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::End(signal) => match self.signal {
                None => {
                    self.signal = Some((signal, Instant::now()));
                    give(&mut self.vm, Order::Stop);
                }
                Some((_, first)) if first.elapsed() < ONE_WISH => {}
                Some(_) => self.kill(),
            },
            Wish::Kill(signal) => {
                self.signal.get_or_insert((signal, Instant::now()));
                self.kill();
            }
            Wish::Suspend => {
                let terminal = self.console.as_ref().and_then(|console| console.terminal.as_ref());
                if let Some(terminal) = terminal {
                    terminal.suspend();
                }
                // SIGCONT ends this call, and comes as a wish of its own.
                let _ = raise(Signal::SIGSTOP);
            }
            Wish::Resume => {
                if let Some(Console { terminal: Some(terminal), .. }) = &self.console {
                    // Where the terminal is gone, standard input will tell.
                    let _ = terminal.resume();
                }
            }
        }
    }

    fn kill(&mut self) {
        self.hurry = true;
        give(&mut self.vm, Order::Kill);
    }
}

/// Only a machine that was never started refuses, and this one was.
fn give(vm: &mut Vm, order: Order) {
    let _ = match order {
        Order::Stop => vm.stop(),
        Order::Kill => vm.kill(),
    };
}

impl Console {
    fn new(reader: ReaderId) -> io::Result<Self> {
        let output = Output::new()?;
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            say("capsa: Ctrl-] q asks the guest to power off, Ctrl-] k cuts its power");
        }
        Ok(Self {
            reader,
            output,
            terminal: RawTerminal::enter()?,
            escape: Escape::default(),
            input_open: true,
            for_guest: Vec::new(),
        })
    }

    fn wants_input(&self) -> bool {
        self.input_open
            && self.for_guest.is_empty()
            && self.terminal.as_ref().is_none_or(RawTerminal::is_foreground)
    }

    /// Hands on what waits, both ways.
    fn refill(&mut self, vm: &mut Vm) {
        if self.output.is_empty() {
            self.output.put(vm.take(self.reader));
        }
        self.write_to_guest(vm);
    }

    fn read_input(&mut self, vm: &mut Vm) {
        let mut chunk = [0; CHUNK];
        let typed = match read(io::stdin(), &mut chunk) {
            Ok(n @ 1..) => &chunk[..n],
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            // The end, a terminal that is gone, a directory: no more input.
            Ok(0) | Err(_) => {
                self.input_open = false;
                return;
            }
        };
        if self.terminal.is_none() {
            self.for_guest.extend_from_slice(typed);
        } else {
            let (bytes, orders) = self.escape.split(typed);
            self.for_guest.extend(bytes);
            orders.into_iter().for_each(|order| give(vm, order));
        }
        self.write_to_guest(vm);
    }

    fn write_to_guest(&mut self, vm: &mut Vm) {
        if self.for_guest.is_empty() {
            return;
        }
        match vm.write(&self.for_guest) {
            Ok(taken) => drop(self.for_guest.drain(..taken)),
            Err(error) => {
                debug_assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                self.for_guest.clear();
                self.input_open = false;
            }
        }
    }
}

/// Rounded up: a poll that returns before the deadline would only be repeated.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// The exit code for an end that may have had a signal as its reason.
fn exit_code(report: &StopReport, signal: Option<u8>) -> u8 {
    match (&report.ended_by, signal) {
        _ if report.steps.contains(&StopStep::GaveUp) => failure::HYPERVISOR,
        (EndedBy::HelperLost { .. } | EndedBy::HypervisorLost { .. }, _) => failure::HYPERVISOR,
        (EndedBy::StartFailed { .. }, None) => failure::START,
        (EndedBy::GuestPanic, None) => failure::PANIC,
        (_, Some(signal)) => failure::SIGNAL + signal,
        _ if report.time_limit => failure::TIME_LIMIT,
        (EndedBy::GuestPowerOff | EndedBy::GuestReboot, None) => failure::OK,
        (EndedBy::Owner, None) => failure::POWER_CUT,
        _ => failure::HYPERVISOR,
    }
}

fn last_words(report: &StopReport) -> String {
    match &report.ended_by {
        EndedBy::StartFailed { .. } => format!("capsa: {report}"),
        _ if matches!(report.status(), VmStatus::Failed { .. }) => {
            format!("capsa: failed: {report}")
        }
        _ => format!("capsa: stopped: {report}"),
    }
}

/// A line on standard error. Where nobody reads it there is nothing to be done.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The last of a console that nobody saw.
fn say_tail(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let last = &lines[lines.len().saturating_sub(20)..];
    if !last.is_empty() {
        say("capsa: the console last said:");
    }
    for line in last {
        let shown: String = line.chars().filter(|c| !c.is_control()).collect();
        say(&format!("  | {shown}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ended_by: EndedBy) -> StopReport {
        StopReport { ended_by, time_limit: false, steps: Vec::new(), exit: None }
    }

    #[test]
    fn exit_codes() {
        let limited = |by| StopReport { time_limit: true, ..report(by) };
        let lost = || EndedBy::HypervisorLost { what: "it crashed".into() };
        let not_started = || EndedBy::StartFailed { why: "no".into() };
        for (report, signal, want) in [
            (report(EndedBy::GuestPowerOff), None, 0),
            (report(EndedBy::GuestReboot), None, 0),
            (report(EndedBy::GuestPowerOff), Some(15), 143),
            (report(EndedBy::Owner), Some(2), 130),
            (report(EndedBy::Owner), Some(1), 129),
            (report(EndedBy::Owner), None, 137),
            (report(not_started()), None, 5),
            (limited(EndedBy::GuestPowerOff), None, 6),
            (limited(EndedBy::TimeLimit), None, 6),
            (limited(EndedBy::TimeLimit), Some(15), 143),
            (report(EndedBy::GuestPanic), None, 7),
            (report(lost()), None, 8),
            (report(lost()), Some(15), 8),
        ] {
            assert_eq!(exit_code(&report, signal), want, "{report:?} {signal:?}");
        }
    }

    #[test]
    fn last_words_say_what_happened_in_one_line() {
        let lost = EndedBy::HypervisorLost { what: "qemu exited with status 1".into() };
        for (by, want) in [
            (EndedBy::GuestPowerOff, "capsa: stopped: guest powered off"),
            (lost, "capsa: failed: qemu exited with status 1"),
            (EndedBy::StartFailed { why: "no qemu".into() }, "capsa: start failed: no qemu"),
        ] {
            assert_eq!(last_words(&report(by)), want);
        }
    }

    #[test]
    fn a_timeout_is_rounded_up_and_may_be_huge() {
        for (timeout, want) in [
            (None, PollTimeout::NONE),
            (Some(Duration::ZERO), PollTimeout::ZERO),
            (Some(Duration::from_nanos(1)), PollTimeout::from(1u8)),
            (Some(Duration::MAX), PollTimeout::MAX),
        ] {
            assert_eq!(poll_timeout(timeout), want);
        }
    }
}
