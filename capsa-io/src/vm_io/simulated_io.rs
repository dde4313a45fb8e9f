//! [`SimulatedIo`]: a simulated guest in place of the processes of a VM.
//!
//! The core is the real one. Its channels end in memory: the control channel at a [`QmpServer`], the
//! console at the simulated guest. A launch starts the guest, a signal ends it, and the commands
//! `system_powerdown`, `stop` and `cont` press its power button, pause and resume it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use capsa_proto::lifecycle::{Cause, Exit};
use capsa_proto::plan::{ConsolePlan, ProcessId, Signal};
use capsa_proto::policy::{NetworkEvent, PolicyRules};
use capsa_proto::sim::{GuestSim, QmpServer, SimAction, SimulatedGuest, event_name};
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::{Channel, Output, VmCore};

use super::{VmIo, log};
use crate::clock::MonotonicClock;
use crate::network::Counters;
use crate::sys::{Poll, ReadyEvents};
use crate::vsock::PortListener;

/// The largest number of actions of the guest in one call.
const MAX_ACTIONS: usize = 64;

/// The largest number of bytes of console output in one call.
const CONSOLE_BUDGET: usize = 256 * 1024;

/// How much output may wait for the console: as much as the buffer of a socket.
const OUTPUT_BUFFER: usize = 208 * 1024;

/// Waits for a stable prompt are at most this long. If the simulated guest is idle until it gets
/// input, nothing can interrupt such a wait, and the clock skips it.
const SETTLE_TIME_MAX: Duration = Duration::from_millis(150);

/// The simulated hypervisor is the only process of its plan.
const HYPERVISOR: ProcessId = ProcessId(0);

/// A simulated guest and its ends of the channels.
#[derive(Debug)]
pub struct SimulatedIo {
    config: SimulatedGuest,
    read_budget: usize,
    guest: Box<dyn GuestSim>,
    server: QmpServer,
    /// Output that the console has not taken yet.
    output: VecDeque<u8>,
    is_on: bool,
    is_paused: bool,
    /// How the guest ended; passed on after its output.
    exit: Option<Exit>,
    /// The bytes of console output that the current call may still pass.
    budget: usize,
    more: bool,
    /// It has no source; a wake makes it readable.
    poll: Poll,
}

impl SimulatedIo {
    /// The I/O of a VM with this guest, which is not started yet. One call reads at most `read_budget`
    /// bytes of output, at least 1.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn new(config: SimulatedGuest, read_budget: usize) -> io::Result<Self> {
        Ok(Self {
            guest: config.simulate(),
            config,
            read_budget: read_budget.max(1),
            server: QmpServer::new(),
            output: VecDeque::new(),
            is_on: false,
            is_paused: false,
            exit: None,
            budget: 0,
            more: false,
            poll: Poll::new()?,
        })
    }

    fn launch(&mut self, core: &mut VmCore, now: Instant) -> Result<(), Cause> {
        if let Some(why) = self.config.start_error() {
            return Err(Cause::new(why));
        }
        self.guest.begin(now);
        self.is_on = true;
        self.more = true;
        if !matches!(core.plan().console, ConsolePlan::None) {
            core.handle_connected(now, Channel::Console);
        }
        core.handle_connected(now, Channel::Control);
        Ok(())
    }

    fn signal(&mut self, signal: Signal) {
        if self.is_on && self.exit.is_none() {
            self.exit = Some(match signal {
                Signal::Term => Exit::with_code(0),
                Signal::Kill => Exit::new(None, Some(9)),
            });
            self.more = true;
        }
    }

    /// Moves bytes both ways and runs the guest's actions, within the budgets. Returns whether there
    /// was input or an action.
    fn run(&mut self, core: &mut VmCore, clock: &MonotonicClock) -> bool {
        let now = clock.now();
        let mut any = self.pass_input(core, now);
        for _ in 0..MAX_ACTIONS {
            if !self.is_on {
                return any;
            }
            self.pass_output(core, now);
            if self.exit.is_some() {
                any |= self.end(core, now);
                return any;
            }
            if self.is_paused || self.output.len() > OUTPUT_BUFFER {
                return any;
            }
            let Some(action) = self.guest.poll_action(now) else { return any };
            any = true;
            match action {
                SimAction::Output(_) if !core.is_open(Channel::Console) => {}
                SimAction::Output(bytes) => self.output.extend(bytes),
                SimAction::Event(event) => {
                    self.server.send_event(event_name(event));
                    core.handle_bytes(now, Channel::Control, &self.server.take_outgoing());
                    // Before the next output: a login must know of a reboot that precedes its prompt.
                    self.act(core, clock);
                }
                SimAction::Exit(exit) => self.exit = Some(exit),
            }
        }
        self.more = true;
        any
    }

    /// Passes commands to the hypervisor's end, and console input to the guest. Returns whether there
    /// was input.
    fn pass_input(&mut self, core: &mut VmCore, now: Instant) -> bool {
        if !self.is_on {
            return false;
        }
        if let Some(commands) = core.outgoing(Channel::Control) {
            self.server.handle_bytes(commands.make_contiguous());
            commands.clear();
        }
        while let Some(command) = self.server.poll_command() {
            match command.execute.as_str() {
                "system_powerdown" => self.guest.handle_power_button(now),
                "stop" => self.is_paused = true,
                "cont" => self.is_paused = false,
                _ => {}
            }
            self.server.accept(&command);
        }
        core.handle_bytes(now, Channel::Control, &self.server.take_outgoing());
        if self.is_paused {
            return false;
        }
        let Some(input) = core.outgoing(Channel::Console) else { return false };
        let any = !input.is_empty();
        self.guest.handle_input(now, input.make_contiguous());
        input.clear();
        core.handle_writable(Channel::Console);
        any
    }

    /// Passes output to the console, within its window and the budget.
    fn pass_output(&mut self, core: &mut VmCore, now: Instant) {
        while !self.output.is_empty() {
            let window = core.window(Channel::Console);
            let (front, _) = self.output.as_slices();
            let n = front.len().min(window).min(self.budget);
            if n == 0 {
                self.more |= window > 0;
                return;
            }
            self.budget -= n;
            core.handle_bytes(now, Channel::Console, &front[..n]);
            self.output.drain(..n);
        }
    }

    /// Passes the end of the guest on, after its output: as much of that as the console takes. Returns
    /// `false` while there is more.
    fn end(&mut self, core: &mut VmCore, now: Instant) -> bool {
        if !self.output.is_empty() && core.window(Channel::Console) > 0 {
            self.more = true;
            return false;
        }
        self.is_on = false;
        if let Some(exit) = self.exit.take() {
            core.handle_bytes(now, Channel::Stderr(HYPERVISOR), exit.stderr_tail.as_bytes());
            core.handle_exited(now, HYPERVISOR, exit);
        }
        true
    }

    /// The rest of the output is what a real system would keep for a slow reader.
    fn release(&mut self, core: &mut VmCore, now: Instant) {
        self.is_on = false;
        let rest = self.output.len().min(core.drain_limit());
        core.handle_rest(&self.output.make_contiguous()[..rest]);
        self.output.clear();
        core.handle_released(now);
    }

    /// If both sides wait and only the console has a short deadline, the clock skips to it.
    fn skip_settle_time(&mut self, core: &VmCore, clock: &mut MonotonicClock) {
        let is_waiting = self.is_on
            && self.exit.is_none()
            && self.output.is_empty()
            && self.guest.poll_timeout().is_none();
        let deadline = core.console().poll_timeout().filter(|_| is_waiting);
        let wait = deadline.map(|deadline| clock.until(deadline)).unwrap_or_default();
        if wait > Duration::ZERO && wait <= SETTLE_TIME_MAX {
            clock.skip(wait);
            self.more = true;
        }
    }
}

impl VmIo for SimulatedIo {
    fn on_ready(&mut self, core: &mut VmCore, clock: &mut MonotonicClock) -> io::Result<()> {
        let mut ready = ReadyEvents::take();
        let waited = self.poll.wait(Some(Duration::ZERO), &mut ready);
        ready.keep();
        waited?;
        self.more = false;
        self.budget = self.read_budget.min(CONSOLE_BUDGET);
        self.run(core, clock);
        // Output may have led to new input. Pass it before checking whether both sides are idle.
        if !self.run(core, clock) {
            self.skip_settle_time(core, clock);
        }
        core.handle_timeout(clock.now());
        self.act(core, clock);
        Ok(())
    }

    fn act(&mut self, core: &mut VmCore, clock: &MonotonicClock) {
        if self.check_process().is_err() {
            return;
        }
        while let Some(output) = core.poll_output(clock.now()) {
            let now = clock.now();
            match output {
                Output::Launch(id) => {
                    if let Err(cause) = self.launch(core, now) {
                        core.handle_launch_failed(now, id, cause);
                    }
                }
                Output::Signal(_, signal) => self.signal(signal),
                Output::Log(record) => log::write(&record),
                Output::Release => self.release(core, now),
                // The channels are connected since the launch.
                Output::Connect(_) | Output::CheckSocket(_) => {}
            }
        }
        self.sync(core, clock.now());
    }

    fn sync(&mut self, core: &mut VmCore, _: Instant) {
        let console = (!self.is_paused).then_some(Channel::Console);
        let has_input = [Channel::Control]
            .into_iter()
            .chain(console)
            .any(|channel| core.outgoing(channel).is_some_and(|queue| !queue.is_empty()));
        let takes_output = !self.output.is_empty() && core.window(Channel::Console) > 0;
        let wants_write = !self.is_paused && core.wants_write(Channel::Console);
        let has_work = has_input || takes_output || wants_write;
        if self.is_on && has_work && !self.more {
            self.more = true;
            // Makes the descriptor readable, as a socket of a real VM would.
            if let Err(error) = self.poll.wake() {
                tracing::warn!("cannot wake the loop of a simulated VM: {error}");
            }
        }
    }

    fn has_work(&self) -> bool {
        self.more
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        // While the console accepts no more output, the guest waits for it.
        let waits = self.is_paused || self.output.len() > OUTPUT_BUFFER;
        let runs = self.is_on && self.exit.is_none() && !waits;
        if runs { self.guest.poll_timeout() } else { None }
    }

    fn check_process(&self) -> io::Result<()> {
        self.poll.check_process()
    }

    fn hypervisor_pid(&self) -> Option<u32> {
        None
    }

    fn nonce(&self, offset: u64) -> Option<u64> {
        self.guest.nonce(offset)
    }

    fn vsock_listen(&mut self, _: u32) -> io::Result<Option<PortListener>> {
        Ok(None)
    }

    fn service_listen(&mut self, _: usize) -> io::Result<Option<PortListener>> {
        Ok(None)
    }

    fn network_counters(&self) -> Counters {
        Counters::default()
    }

    fn set_network_link(&mut self, _: bool) {}

    fn set_network_policy(&mut self, _: PolicyRules, _: Instant) {}

    fn take_network_events(&mut self) -> Vec<NetworkEvent> {
        Vec::new()
    }

    fn remove_files(&mut self) {}
}

impl AsFd for SimulatedIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

#[cfg(test)]
mod tests;
