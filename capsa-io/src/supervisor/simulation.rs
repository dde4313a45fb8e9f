//! Runs a simulated guest instead of a hypervisor.
//!
//! The lifecycle and the console are the real ones. The console's stream is one end of a socket
//! pair; the simulated guest has the other end, watched by the same poller. The lifecycle's actions
//! apply to the simulated guest: a spawn starts it, a signal ends it, and the power-button message
//! presses its button.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::backend::ReplyOutcome;
use capsa_proto::console::ReaderId;
use capsa_proto::lifecycle::{Exit, Input};
use capsa_proto::plan::{ConsolePlan, LaunchPlan, Message, ProcessId, Signal};
use capsa_proto::sim::{GuestSim, SimAction, SimBackend, SimulatedGuest};
use capsa_proto::time::Instant;

use super::{CONSOLE, Options, Supervisor, keys};
use crate::stream::{ByteStream, ReadResult};
use crate::sys::{self, Poll, PollSource};

/// The largest number of actions of the guest in one call.
const MAX_ACTIONS: usize = 64;

/// The largest number of input bytes read in one call.
const INPUT_BUDGET: usize = 256 * 1024;

/// Waits for a stable prompt are at most this long. If the simulated guest is idle until it gets
/// input, nothing can interrupt such a wait, and the clock skips it.
const SETTLE_TIME_MAX: Duration = Duration::from_millis(150);

/// The poller's key of the guest's end of the console. No process of a simulated VM uses it.
const GUEST_END: usize = keys(ProcessId(0)).exit;

/// A simulated guest and its end of the console.
#[derive(Debug)]
pub(super) struct GuestSimulation {
    config: SimulatedGuest,
    guest: Box<dyn GuestSim>,
    stream: Option<PollSource<ByteStream>>,
    outgoing: VecDeque<u8>,
    is_on: bool,
    /// How the guest ended; handled after its output was read.
    exit: Option<Exit>,
    ended_by_signal: bool,
}

impl GuestSimulation {
    fn new(config: SimulatedGuest) -> Self {
        Self {
            guest: config.simulate(),
            config,
            stream: None,
            outgoing: VecDeque::new(),
            is_on: false,
            exit: None,
            ended_by_signal: false,
        }
    }

    /// Starts the guest. Returns the console's end of the socket pair.
    fn begin(&mut self, now: Instant, poll: &Poll) -> io::Result<ByteStream> {
        if let Some(why) = self.config.start_error() {
            return Err(io::Error::other(why));
        }
        let (theirs, ours) = sys::socket_pair()?;
        theirs.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        self.stream = Some(poll.add(ByteStream::Socket(ours), GUEST_END)?);
        self.guest.begin(now);
        self.is_on = true;
        Ok(ByteStream::Socket(theirs))
    }

    /// Reads input for the guest. Returns whether there was any.
    fn read_input(&mut self, now: Instant) -> bool {
        let mut chunk = [0; 8192];
        let mut left = INPUT_BUDGET;
        while let Some(stream) = &mut self.stream
            && left > 0
            && let ReadResult::Bytes(n) = stream.io().read(&mut chunk)
        {
            left = left.saturating_sub(n);
            self.guest.handle_input(now, &chunk[..n]);
        }
        left < INPUT_BUDGET
    }

    /// Writes queued output. Returns `false` when the console does not accept all of it now.
    fn flush(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            self.outgoing.clear();
            return true;
        };
        stream.io().write_from(&mut self.outgoing);
        let all = self.outgoing.is_empty();
        if stream.set_interest(true, !all).is_err() {
            self.stream = None;
        }
        all
    }

    /// The guest does nothing until it gets input.
    fn is_waiting(&self) -> bool {
        self.is_on
            && self.exit.is_none()
            && self.outgoing.is_empty()
            && self.guest.poll_timeout().is_none()
    }
}

impl Supervisor {
    /// Creates a VM with a simulated guest; its plan comes from [`capsa_proto::sim::plan`]. It has no
    /// run directory.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn simulated(
        plan: LaunchPlan,
        config: SimulatedGuest,
        options: Options,
    ) -> io::Result<Self> {
        let backend = Arc::new(SimBackend::default());
        let mut supervisor = Self::with(plan, None, backend, options)?;
        supervisor.simulation = Some(GuestSimulation::new(config));
        Ok(supervisor)
    }

    /// The nonce that this reader's next command must use when a replayed recording contains its
    /// result.
    pub fn nonce(&self, reader: ReaderId) -> Option<u64> {
        self.simulation.as_ref()?.guest.nonce(self.console.offset(reader))
    }

    /// Starts the simulated guest instead of a process. `None` if there is none.
    pub(super) fn start_simulation(&mut self) -> Option<io::Result<()>> {
        let now = self.clock.now();
        let simulation = self.simulation.as_mut()?;
        // The next call runs its first actions.
        self.more = true;
        let begun = simulation.begin(now, &self.poll).and_then(|stream| match self.plan.console {
            ConsolePlan::None => {
                simulation.stream = None;
                Ok(())
            }
            _ => self.console_stream.attach(&mut self.console, stream, &self.poll, CONSOLE),
        });
        Some(begun)
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.simulation.is_some()
    }

    /// Passes a control message to the simulated guest. `false` if there is none.
    pub(super) fn send_to_simulation(&mut self, message: &Message) -> bool {
        let now = self.clock.now();
        let Some(simulation) = &mut self.simulation else { return false };
        if self.plan.power_button.as_ref() == Some(message) {
            simulation.guest.handle_power_button(now);
        }
        self.more = true;
        self.input(Input::Replied(ReplyOutcome::Done));
        true
    }

    /// Passes a signal to the simulated guest. `false` if there is none.
    pub(super) fn signal_simulation(&mut self, signal: Signal) -> bool {
        let Some(simulation) = &mut self.simulation else { return false };
        if simulation.is_on && simulation.exit.is_none() {
            simulation.exit = Some(match signal {
                Signal::Term => Exit::with_code(0),
                Signal::Kill => Exit { code: None, signal: Some(9), stderr_tail: String::new() },
            });
            simulation.ended_by_signal = true;
            self.more = true;
        }
        true
    }

    pub(super) fn simulation_timeout(&self) -> Option<capsa_proto::time::Deadline> {
        let simulation = self
            .simulation
            .as_ref()
            .filter(|simulation| simulation.is_on && simulation.exit.is_none())?;
        // While the console accepts no more output, the poller reports when it does.
        if simulation.outgoing.is_empty() { simulation.guest.poll_timeout() } else { None }
    }

    /// Runs the guest, with bounded work.
    pub(super) fn run_simulation(&mut self) {
        if !self.is_simulated() {
            return;
        }
        self.run_actions();
        self.console_ready();
        // Deliver new input to the guest before checking whether both sides are idle.
        if !self.run_actions() {
            self.skip_settle_time();
        }
    }

    /// Runs the guest's actions. Returns whether there was input or an action.
    fn run_actions(&mut self) -> bool {
        let now = self.clock.now();
        let Some(simulation) = self.simulation.as_mut().filter(|simulation| simulation.is_on)
        else {
            return false;
        };
        let mut any = simulation.read_input(now);
        for _ in 0..MAX_ACTIONS {
            let Some(simulation) = self.simulation.as_mut().filter(|simulation| simulation.is_on)
            else {
                return any;
            };
            if simulation.ended_by_signal {
                self.end_simulation();
                return true;
            }
            if !simulation.flush() {
                return any;
            }
            if simulation.exit.is_some() {
                self.end_simulation();
                return true;
            }
            let Some(action) = simulation.guest.poll_action(now) else { return any };
            any = true;
            match action {
                SimAction::Output(bytes) => simulation.outgoing.extend(bytes),
                SimAction::Event(event) => {
                    self.guest_event(Some(event));
                    self.act();
                }
                SimAction::Exit(exit) => simulation.exit = Some(exit),
            }
        }
        self.more = true;
        any
    }

    /// Handles the end of the guest. As with a hypervisor's exit, its output is read first; while
    /// there is more, the exit is delayed to the next call.
    fn end_simulation(&mut self) {
        self.console_ready();
        if self.must_delay_exit() {
            return;
        }
        let Some(simulation) = &mut self.simulation else { return };
        simulation.is_on = false;
        simulation.stream = None;
        let id = self.plan.hypervisor();
        if let Some(exit) = simulation.exit.take() {
            tracing::info!(%exit, "the simulated guest ended");
            self.input(Input::Exited(id, exit));
        }
    }

    fn skip_settle_time(&mut self) {
        if !self.simulation.as_ref().is_some_and(GuestSimulation::is_waiting) {
            return;
        }
        let Some(deadline) = self.console.poll_timeout() else { return };
        let wait = self.clock.until(deadline);
        if wait > Duration::ZERO && wait <= SETTLE_TIME_MAX {
            self.clock.skip(wait);
            self.more = true;
        }
    }
}
