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

use capsa_proto::backend::Verdict;
use capsa_proto::lifecycle::{Exit, Input};
use capsa_proto::plan::{ConsolePlan, LaunchPlan, Message, ProcessId, Signal};
use capsa_proto::sim::{GuestSim, SimAction, SimBackend, SimulatedGuest};
use capsa_proto::time::Instant;

use super::{CONSOLE, Options, Supervisor, keys};
use crate::console::ReaderId;
use crate::stream::{Got, Stream};
use crate::sys::{self, Poll, Source};

/// Deeds done in one call, at most.
const DEEDS: usize = 64;

/// Bytes typed that are taken in one call, at most.
const INPUT_BUDGET: usize = 256 * 1024;

/// Somebody who waits whether a prompt stays waits no longer than this. A guest that is played, and
/// does nothing before something is typed, will not break it: the clock is put forward instead.
const SETTLES_WITHIN: Duration = Duration::from_millis(150);

/// The key of the play's end of the console: no process of a machine that is played has it.
const PLAYER: usize = keys(ProcessId(0)).exit;

/// A play and its end of the console.
#[derive(Debug)]
pub(super) struct Player {
    part: SimulatedGuest,
    play: Box<dyn GuestSim>,
    stream: Option<Source<Stream>>,
    outgoing: VecDeque<u8>,
    on: bool,
    /// It ends once it has been heard out.
    exit: Option<Exit>,
    ended_by_signal: bool,
}

impl Player {
    fn new(part: SimulatedGuest) -> Self {
        Self {
            play: part.simulate(),
            part,
            stream: None,
            outgoing: VecDeque::new(),
            on: false,
            exit: None,
            ended_by_signal: false,
        }
    }

    /// The power is on. Gives the console's end of the pair.
    fn begin(&mut self, now: Instant, poll: &Poll) -> io::Result<Stream> {
        if let Some(why) = self.part.start_error() {
            return Err(io::Error::other(why));
        }
        let (theirs, ours) = sys::socket_pair()?;
        theirs.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        self.stream = Some(poll.add(Stream::Socket(ours), PLAYER)?);
        self.play.begin(now);
        self.on = true;
        Ok(Stream::Socket(theirs))
    }

    /// Takes what was typed. `true` when there was something.
    fn hear(&mut self, now: Instant) -> bool {
        let mut chunk = [0; 8192];
        let mut left = INPUT_BUDGET;
        while let Some(stream) = &mut self.stream
            && left > 0
            && let Got::Bytes(n) = stream.io().read(&mut chunk)
        {
            left = left.saturating_sub(n);
            self.play.handle_input(now, &chunk[..n]);
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
        self.on
            && self.exit.is_none()
            && self.outgoing.is_empty()
            && self.play.poll_timeout().is_none()
    }
}

impl Supervisor {
    /// A machine that is played: its plan comes from [`capsa_proto::sim::plan`].
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn played(plan: LaunchPlan, part: SimulatedGuest, options: Options) -> io::Result<Self> {
        let mut supervisor = Self::new(plan, Arc::new(SimBackend::default()), options)?;
        supervisor.player = Some(Player::new(part));
        Ok(supervisor)
    }

    /// The number by which this reader's next command has to go, where a recording is played that
    /// has the answer to it already.
    pub fn nonce(&self, reader: ReaderId) -> Option<u64> {
        self.player.as_ref()?.play.nonce(self.console.offset(reader))
    }

    /// What a spawn is to a play.
    pub(super) fn begin_play(&mut self) -> Option<io::Result<()>> {
        let now = self.clock.now();
        let player = self.player.as_mut()?;
        // What it does first, it does when it is called next.
        self.more = true;
        let begun = player.begin(now, &self.poll).and_then(|stream| match self.plan.console {
            ConsolePlan::None => {
                player.stream = None;
                Ok(())
            }
            _ => self.console.attach(stream, &self.poll, CONSOLE),
        });
        Some(begun)
    }

    pub(super) fn is_played(&self) -> bool {
        self.player.is_some()
    }

    /// What a message to a hypervisor is to a play. `false` where there is none.
    pub(super) fn message_to_play(&mut self, message: &Message) -> bool {
        let now = self.clock.now();
        let Some(player) = &mut self.player else { return false };
        if self.plan.power_button.as_ref() == Some(message) {
            player.play.handle_power_button(now);
        }
        self.more = true;
        self.tell(Input::Replied(Verdict::Done));
        true
    }

    /// What a signal to a hypervisor is to a play. `false` where there is none.
    pub(super) fn signal_to_play(&mut self, signal: Signal) -> bool {
        let Some(player) = &mut self.player else { return false };
        if player.on && player.exit.is_none() {
            player.exit = Some(match signal {
                Signal::Term => Exit::with_code(0),
                Signal::Kill => Exit { code: None, signal: Some(9), stderr_tail: String::new() },
            });
            player.ended_by_signal = true;
            self.more = true;
        }
        true
    }

    pub(super) fn play_timeout(&self) -> Option<capsa_proto::time::Deadline> {
        let player = self.player.as_ref().filter(|player| player.on && player.exit.is_none())?;
        // Where the console does not take more, the poller says when it does.
        if player.outgoing.is_empty() { player.play.poll_timeout() } else { None }
    }

    /// Plays on, with bounded work.
    pub(super) fn play_on(&mut self) {
        if !self.is_played() {
            return;
        }
        self.do_deeds();
        self.console_ready();
        // What a conversation has just typed is heard before it is judged whether all wait.
        if !self.do_deeds() {
            self.skip_settling();
        }
    }

    /// `true` when something was heard or done.
    fn do_deeds(&mut self) -> bool {
        let now = self.clock.now();
        let Some(player) = self.player.as_mut().filter(|player| player.on) else { return false };
        let mut any = player.hear(now);
        for _ in 0..DEEDS {
            let Some(player) = self.player.as_mut().filter(|player| player.on) else { return any };
            if player.ended_by_signal {
                self.end_play();
                return true;
            }
            if !player.flush() {
                return any;
            }
            if player.exit.is_some() {
                self.end_play();
                return true;
            }
            let Some(deed) = player.play.poll_action(now) else { return any };
            any = true;
            match deed {
                SimAction::Output(bytes) => player.outgoing.extend(bytes),
                SimAction::Event(event) => {
                    self.guest_event(Some(event));
                    self.act();
                }
                SimAction::Exit(exit) => player.exit = Some(exit),
            }
        }
        self.more = true;
        any
    }

    /// As with a hypervisor's exit, its last words come first. While there is more of them the exit
    /// waits for the next call.
    fn end_play(&mut self) {
        self.console_ready();
        if self.more_last_words() {
            return;
        }
        let Some(player) = &mut self.player else { return };
        player.on = false;
        player.stream = None;
        let id = self.plan.hypervisor();
        if let Some(exit) = player.exit.take() {
            tracing::info!(%exit, "the fake guest ended");
            self.tell(Input::Exited(id, exit));
        }
    }

    fn skip_settling(&mut self) {
        if !self.player.as_ref().is_some_and(Player::is_waiting) {
            return;
        }
        let Some(deadline) = self.console.poll_timeout() else { return };
        let wait = self.clock.until(deadline);
        if wait > Duration::ZERO && wait <= SETTLES_WITHIN {
            self.clock.skip(wait);
            self.more = true;
        }
    }
}
