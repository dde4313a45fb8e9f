//! A guest that is played in the hypervisor's place.
//!
//! The lifecycle machine and the console are those of any machine. The console's stream is one end
//! of a socket pair; the play has the other, which the same poller watches. What the lifecycle
//! machine would do to a process is done to the play: a spawn begins it, a signal ends it, the message
//! that asks a guest to power off presses its button.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::backend::ReplyOutcome;
use capsa_proto::lifecycle::{Exit, Input};
use capsa_proto::plan::{ConsolePlan, LaunchPlan, Message, ProcessId, Signal};
use capsa_proto::sim::{GuestSim, SimAction, SimBackend, SimulatedGuest};
use capsa_proto::time::Instant;

use super::{CONSOLE, Options, Supervisor, keys};
use crate::console::ReaderId;
use crate::stream::{ByteStream, ReadResult};
use crate::sys::{self, Poll, PollSource};

/// Deeds done in one call, at most.
const MAX_ACTIONS: usize = 64;

/// Bytes typed that are taken in one call, at most.
const INPUT_BUDGET: usize = 256 * 1024;

/// Somebody who waits whether a prompt stays waits no longer than this. A guest that is played, and
/// does nothing before something is typed, will not break it: the clock is put forward instead.
const SETTLE_TIME_MAX: Duration = Duration::from_millis(150);

/// The key of the play's end of the console: no process of a machine that is played has it.
const GUEST_END: usize = keys(ProcessId(0)).exit;

/// A play and its end of the console.
#[derive(Debug)]
pub(super) struct GuestSimulation {
    config: SimulatedGuest,
    guest: Box<dyn GuestSim>,
    stream: Option<PollSource<ByteStream>>,
    outgoing: VecDeque<u8>,
    is_on: bool,
    /// It ends once it has been heard out.
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

    /// The power is on. Gives the console's end of the pair.
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

    /// Takes what was typed. `true` when there was something.
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

    /// Says what waits to be said. `false` when the console does not take all of it now.
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

    /// Nothing will be said before something is typed.
    fn is_waiting(&self) -> bool {
        self.is_on
            && self.exit.is_none()
            && self.outgoing.is_empty()
            && self.guest.poll_timeout().is_none()
    }
}

impl Supervisor {
    /// A machine that is played: its plan comes from [`capsa_proto::sim::plan`].
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn simulated(
        plan: LaunchPlan,
        config: SimulatedGuest,
        options: Options,
    ) -> io::Result<Self> {
        let mut supervisor = Self::new(plan, Arc::new(SimBackend::default()), options)?;
        supervisor.simulation = Some(GuestSimulation::new(config));
        Ok(supervisor)
    }

    /// The number by which this reader's next command has to go, where a recording is played that
    /// has the answer to it already.
    pub fn nonce(&self, reader: ReaderId) -> Option<u64> {
        self.simulation.as_ref()?.guest.nonce(self.console.offset(reader))
    }

    /// What a spawn is to a play.
    pub(super) fn start_simulation(&mut self) -> Option<io::Result<()>> {
        let now = self.clock.now();
        let simulation = self.simulation.as_mut()?;
        // What it does first, it does when it is called next.
        self.more = true;
        let begun = simulation.begin(now, &self.poll).and_then(|stream| match self.plan.console {
            ConsolePlan::None => {
                simulation.stream = None;
                Ok(())
            }
            _ => self.console.attach(stream, &self.poll, CONSOLE),
        });
        Some(begun)
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.simulation.is_some()
    }

    /// What a message to a hypervisor is to a play. `false` where there is none.
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

    /// What a signal to a hypervisor is to a play. `false` where there is none.
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
        // Where the console does not take more, the poller says when it does.
        if simulation.outgoing.is_empty() { simulation.guest.poll_timeout() } else { None }
    }

    /// Plays on, with bounded work.
    pub(super) fn run_simulation(&mut self) {
        if !self.is_simulated() {
            return;
        }
        self.run_actions();
        self.console_ready();
        // What a conversation has just typed is heard before it is judged whether all wait.
        if !self.run_actions() {
            self.skip_settle_time();
        }
    }

    /// `true` when something was heard or done.
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

    /// As with a hypervisor's exit, its last words come first. While there is more of them the exit
    /// waits for the next call.
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
            tracing::info!(%exit, "the fake guest ended");
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
