//! [`SimWait`]: the waits of the owner, and the laws of their ends.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::setup::{COMMANDS, OTHER_COMMANDS, flood};
use super::trace::Step;
use super::world::{Simulation, law};
use crate::console::{
    CommandOutput, Ended, Expect, Login, Matcher, Outcome, RunCommand, Silence, WaitId, WaitKind,
};
use crate::time::Instant;

/// The patterns of a schedule's waits.
const PATTERNS: [&str; 8] =
    ["login: ", "# ", "Linux version", "Password: ", "never printed", "\r\n", "line 39", "ok"];

/// How far a wait is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitState {
    Open,
    /// Its event was taken, its result was not.
    Ended,
    Taken,
    Cancelled,
    /// With its reader.
    Removed,
}

/// A wait that the owner began.
#[derive(Debug)]
pub(super) struct SimWait {
    pub(super) id: WaitId,
    reader: usize,
    pub(super) state: WaitState,
    began: u64,
    deadline: Option<Instant>,
    kind: SimWaitKind,
    is_streamed: bool,
    streamed: Vec<u8>,
    /// The noise of the guest at the begin.
    noise: u32,
    /// Its event was taken.
    is_reported: bool,
    pub(super) result: Option<Ended>,
}

#[derive(Debug)]
enum SimWaitKind {
    Expect(Vec<&'static str>),
    Silence,
    Login,
    Command(&'static str),
}

impl Simulation<'_> {
    pub(super) fn begin_wait(&mut self) {
        if !self.may_begin() {
            return;
        }
        if self.owner.readers.iter().flatten().next().is_none() {
            return self.act_as_owner();
        }
        let Some((reader, id)) = self.some_idle_reader() else { return };
        let timeout = self.choose.one_of(&[None, Some(30_000), Some(2000), Some(100), Some(0)]);
        let timeout = timeout.map(Duration::from_millis);
        let is_streamed = self.choose.below(3) == 0;
        let kind = match self.choose.below(8) {
            0..=2 => {
                let mut patterns = Vec::new();
                for _ in 0..=self.choose.below(2) {
                    patterns.push(self.choose.one_of(&PATTERNS));
                }
                SimWaitKind::Expect(patterns)
            }
            3 => SimWaitKind::Silence,
            4 | 5 => SimWaitKind::Login,
            _ if self.choose.below(2) == 0 => {
                SimWaitKind::Command(COMMANDS[self.choose.below(COMMANDS.len())].0)
            }
            _ => SimWaitKind::Command(self.choose.one_of(&OTHER_COMMANDS)),
        };
        let is_streamed = is_streamed && matches!(kind, SimWaitKind::Command(_));
        let wait = self.make_wait(&kind, timeout, is_streamed);
        let n = self.owner.waits.len();
        let began = self.core.console().offset(id);
        self.add_step(Step::WaitBegun(n, reader));
        let now = self.now;
        let id = self.core.with_console(|console, events| console.begin(now, id, wait, events));
        self.owner.waits.push(SimWait {
            id,
            reader,
            state: WaitState::Open,
            began,
            deadline: timeout.map(|timeout| now + timeout),
            kind,
            is_streamed,
            streamed: Vec::new(),
            noise: self.noise,
            is_reported: false,
            result: None,
        });
        if let Some(reader) = &mut self.owner.readers[reader] {
            reader.wait = Some(n);
        }
    }

    fn make_wait(
        &mut self,
        kind: &SimWaitKind,
        timeout: Option<Duration>,
        is_streamed: bool,
    ) -> WaitKind {
        let now = self.now;
        match kind {
            SimWaitKind::Expect(patterns) => {
                WaitKind::Expect(Box::new(Expect::new(Matcher::new(patterns), now, timeout)))
            }
            SimWaitKind::Silence => {
                let quiet = self.choose.one_of(&[0, 50, 400, 5000]);
                let quiet = Duration::from_millis(quiet);
                WaitKind::Script(Box::new(Silence::new(quiet, now, timeout)))
            }
            SimWaitKind::Login => {
                let password = self.choose.one_of(&[None, Some("pw"), Some("pw"), Some("wrong")]);
                let login = Login::new("root", password, now, timeout);
                WaitKind::Script(Box::new(login.expect("it can be typed")))
            }
            SimWaitKind::Command(command) => {
                self.owner.nonce += 1;
                let prompt = self.choose.one_of(&[None, Some("# ")]);
                let nonce = self.owner.nonce;
                let run = RunCommand::new(command, prompt, nonce, now, timeout);
                let run = run.expect("it can be typed");
                let limit = self.choose.one_of(&[usize::MAX, usize::MAX, 3]);
                let run = if is_streamed { run.streamed() } else { run.output_limit(limit) };
                WaitKind::Script(Box::new(run))
            }
        }
    }

    /// A wait whose state is one of these.
    fn some_wait(&mut self, states: &[WaitState]) -> Option<usize> {
        let waits = self.owner.waits.iter().enumerate();
        let found: Vec<usize> =
            waits.filter(|(_, wait)| states.contains(&wait.state)).map(|(n, _)| n).collect();
        if found.is_empty() {
            return None;
        }
        Some(found[self.choose.below(found.len())])
    }

    pub(super) fn cancel_wait(&mut self) {
        let states = [WaitState::Open, WaitState::Ended, WaitState::Taken];
        let Some(n) = self.some_wait(&states) else { return };
        let (id, now) = (self.owner.waits[n].id, self.now);
        self.add_step(Step::WaitCancelled(n));
        let was_taken = self.owner.waits[n].state == WaitState::Taken;
        let before = self.owner.waits[n].reader;
        let before = self.owner.readers[before].as_ref().map(|r| self.core.console().offset(r.id));
        self.core.with_console(|console, _| console.cancel(now, id));
        let wait = &self.owner.waits[n];
        if let Some(reader) = &self.owner.readers[wait.reader] {
            let at = self.core.console().offset(reader.id);
            if was_taken {
                law!(self, Some(at) == before, "the cancel of an unknown wait moved a reader");
                return;
            }
            // What was streamed was handed out.
            let range = if wait.streamed.is_empty() {
                wait.began..=wait.began
            } else {
                wait.began..=before.unwrap_or(at)
            };
            law!(self, range.contains(&at), "a cancelled wait leaves its reader at {at}: {wait:?}");
        }
        self.owner.waits[n].state = WaitState::Cancelled;
        self.owner.cancelled += 1;
        self.release_reader(n);
    }

    /// The reader of a wait that is over can be used again.
    fn release_reader(&mut self, n: usize) {
        let place = self.owner.waits[n].reader;
        let console = self.core.console();
        if let Some(reader) = &mut self.owner.readers[place] {
            reader.wait = None;
            reader.scripted = console.scrollback().end();
            (reader.at, reader.lost) = (console.offset(reader.id), console.lost(reader.id));
        }
    }

    pub(super) fn take_streamed(&mut self) {
        let Some(n) = self.some_wait(&[WaitState::Open, WaitState::Ended]) else { return };
        if !self.owner.waits[n].is_streamed {
            return;
        }
        let (id, now) = (self.owner.waits[n].id, self.now);
        let bytes = self.core.with_console(|console, events| console.take_output(now, id, events));
        self.add_step(Step::Streamed(n, bytes.len()));
        self.owner.waits[n].streamed.extend(bytes);
    }

    /// The owner has taken the event of a wait that ended.
    pub(super) fn handle_ended(&mut self, id: WaitId) {
        let Some(n) = self.owner.waits.iter().position(|wait| wait.id == id) else {
            self.trace.fail(format_args!("{id:?} ended, which was not begun"));
        };
        let wait = &mut self.owner.waits[n];
        let (state, was_reported) = (wait.state, wait.is_reported);
        wait.is_reported = true;
        law!(self, !was_reported, "wait {n} ended twice");
        if state != WaitState::Open {
            return;
        }
        self.owner.waits[n].state = WaitState::Ended;
        if self.choose.below(8) > 0 || self.laws.released {
            self.take_ended(n);
        }
    }

    fn take_ended(&mut self, n: usize) {
        let (id, now) = (self.owner.waits[n].id, self.now);
        if self.owner.waits[n].is_streamed {
            let rest =
                self.core.with_console(|console, events| console.take_output(now, id, events));
            self.owner.waits[n].streamed.extend(rest);
        }
        let result = self.core.with_console(|console, _| console.take_ended(id));
        let Some(result) = result else {
            self.trace.fail(format_args!("wait {n} has ended, and has no result"));
        };
        let again = self.core.with_console(|console, _| console.take_ended(id));
        law!(self, again.is_none(), "wait {n} has two results");
        self.add_step(Step::WaitEnded(n));
        self.owner.waits[n].state = WaitState::Taken;
        self.check_result(n, &result);
        self.release_reader(n);
        if self.owner.keeps_results {
            self.owner.waits[n].result = Some(result);
        }
    }

    fn check_result(&mut self, n: usize, result: &Ended) {
        let wait = &self.owner.waits[n];
        let place = wait.reader;
        let is_met = match result {
            Ended::Expect(Outcome::Matched { pattern, output, truncated, .. }) => {
                let SimWaitKind::Expect(patterns) = &wait.kind else {
                    self.trace.fail(format_args!("a script matched a pattern"));
                };
                let ends = output.ends_with(patterns[*pattern].as_bytes());
                law!(self, ends, "a match of {:?} ends otherwise", patterns[*pattern]);
                let (lost, output) = (!*truncated, output.clone());
                let began = wait.began;
                self.check_read(place, &output);
                let reader = self.owner.readers[place].as_ref();
                let missed = reader.map_or(0, |r| r.at - began - output.len() as u64);
                law!(self, lost == (missed == 0), "{missed} bytes are missed, truncated {lost}");
                true
            }
            Ended::Script(Ok(reply)) => {
                if matches!(wait.kind, SimWaitKind::Silence) {
                    let output = reply.output.clone();
                    self.check_read(place, &output);
                } else {
                    self.check_script(n, reply);
                }
                true
            }
            Ended::Expect(_) | Ended::Script(Err(_)) => {
                let reader = self.owner.readers[place].as_ref();
                let at = reader.map(|reader| self.core.console().offset(reader.id));
                let is_unread = at.is_none_or(|at| at == wait.began) || wait.is_streamed;
                law!(self, is_unread, "{wait:?} consumed up to {at:?}, and failed: {result:?}");
                false
            }
        };
        if is_met {
            self.owner.met += 1;
        } else {
            self.owner.failed += 1;
        }
    }

    /// The output of a command is what the guest's shell printed.
    fn check_script(&self, n: usize, reply: &CommandOutput) {
        let wait = &self.owner.waits[n];
        let SimWaitKind::Command(command) = wait.kind else { return };
        let has_dropped = self.core.console().scrollback().dropped() > 0;
        if self.noise > wait.noise || reply.truncated || has_dropped {
            return;
        }
        let known = COMMANDS.iter().find(|(name, ..)| *name == command);
        let (expected, status) = match known {
            Some((_, output, status)) => (String::from(*output), *status),
            None if command == "flood" => (flood(), 0),
            None if command == "slow" => (String::from("slow\n"), 0),
            None => return,
        };
        let mut output = wait.streamed.clone();
        output.extend_from_slice(&reply.output);
        let text = String::from_utf8_lossy(&output);
        law!(self, text == expected, "the command {command} printed {text:?}");
        law!(self, reply.status == Some(status), "{command} has the status {:?}", reply.status);
    }

    /// No wait is open beyond its deadline, and the core will be called by then.
    pub(super) fn check_deadlines(&mut self) {
        if self.core.has_events() {
            return;
        }
        let open = self.owner.waits.iter().filter(|wait| wait.state == WaitState::Open);
        let Some(deadline) = open.filter_map(|wait| wait.deadline).min() else { return };
        law!(self, deadline > self.now, "a wait is open beyond its deadline");
        let next = self.core.poll_timeout();
        law!(
            self,
            next.is_some_and(|next| next.at <= deadline),
            "the next deadline is {next:?}, after that of a wait"
        );
    }
}
