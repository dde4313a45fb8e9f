//! [`ScriptedSim`]: the state machine of a running [`ScriptedGuest`].

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::line_discipline::LineDiscipline;
use super::scripted::{GuestEnd, GuestReply, GuestStep, ScriptedGuest};
use super::shell_input::{ShellLine, ShellReader};
use super::{GuestSim, SimAction};
use crate::backend::GuestEvent;
use crate::console::CommandScope;
use crate::lifecycle::Exit;
use crate::time::{Deadline, Instant};

/// Ctrl-D at the shell prompt.
const LOGOUT: &str = "\u{4}";

#[derive(Debug)]
pub(super) struct ScriptedSim {
    guest: Arc<ScriptedGuest>,
    /// The index of the next step.
    step: usize,
    state: SimState,
    pending: VecDeque<Pending>,
    /// When a pause ends.
    due: Option<Instant>,
    input: LineDiscipline,
    shell: ShellReader,
    /// The power button was pressed; further presses have no effect.
    powering_off: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum SimState {
    RunningSteps,
    ExpectingLine(String),
    AskingName,
    AskingPassword {
        right_name: bool,
    },
    /// At the shell prompt or, without a shell, replying to lines.
    Serving,
    /// The wrapper of the command with this nonce reads the console.
    InCommand(u64),
    Hung,
    Ended,
}

/// What the guest does next.
#[derive(Debug)]
enum Pending {
    Print(Vec<u8>),
    Pause(Duration),
    End(GuestEnd),
}

impl ScriptedSim {
    pub(super) fn new(guest: Arc<ScriptedGuest>) -> Self {
        Self {
            guest,
            step: 0,
            state: SimState::RunningSteps,
            pending: VecDeque::new(),
            due: None,
            input: LineDiscipline::default(),
            shell: ShellReader::default(),
            powering_off: false,
        }
    }

    /// Runs the next step or handles the next line of input. Returns `false` if the guest needs more
    /// input.
    fn advance(&mut self) -> bool {
        if self.state == SimState::RunningSteps {
            self.run_step();
            return true;
        }
        let Some(line) = self.input.next() else { return false };
        match &self.state {
            SimState::ExpectingLine(expected) => {
                let is_expected = line == *expected;
                self.print(format!("{line}\r\n"));
                if is_expected {
                    self.state = SimState::RunningSteps;
                }
            }
            SimState::AskingName => self.take_name(&line),
            SimState::AskingPassword { right_name } => {
                let right = *right_name && self.credentials().1.as_deref() == Some(&line);
                self.print("\r\n");
                self.finish_login(right);
            }
            SimState::Serving => self.serve(&line),
            SimState::InCommand(nonce) => {
                let ok = ShellLine::Request { nonce: *nonce, request: "ok".into() };
                self.print(format!("{line}\r\n"));
                if self.shell.read(&line) == ok {
                    self.state = SimState::Serving;
                    self.prompt();
                }
            }
            SimState::RunningSteps | SimState::Hung | SimState::Ended => return false,
        }
        true
    }

    fn run_step(&mut self) {
        let guest = Arc::clone(&self.guest);
        let step = guest.steps.get(self.step);
        match step {
            Some(GuestStep::Print(text)) => self.print(text),
            Some(GuestStep::Pause(pause)) => self.pending.push_back(Pending::Pause(*pause)),
            Some(GuestStep::ExpectLine(line)) => {
                self.state = SimState::ExpectingLine(line.clone());
            }
            Some(GuestStep::Login { .. }) => {
                self.state = SimState::AskingName;
                self.print("login: ");
            }
            Some(GuestStep::End(end)) => self.pending.push_back(Pending::End(end.clone())),
            None => {
                self.state = SimState::Serving;
                self.prompt();
            }
        }
        self.step += usize::from(step.is_some());
    }

    /// The name and password of the current login, which is the step before the next.
    fn credentials(&self) -> (String, Option<String>) {
        match self.step.checked_sub(1).and_then(|at| self.guest.steps.get(at)) {
            Some(GuestStep::Login { name, password }) => (name.clone(), password.clone()),
            _ => (String::new(), None),
        }
    }

    fn take_name(&mut self, line: &str) {
        let (name, password) = self.credentials();
        self.print(format!("{line}\r\n"));
        match (line, password) {
            ("", _) => self.print("login: "),
            (line, Some(_)) => {
                self.state = SimState::AskingPassword { right_name: line == name };
                self.print("Password: ");
            }
            (line, None) => self.finish_login(line == name),
        }
    }

    fn finish_login(&mut self, right: bool) {
        if right {
            self.state = SimState::RunningSteps;
        } else {
            self.state = SimState::AskingName;
            self.print("\r\nLogin incorrect\r\nlogin: ");
        }
    }

    /// Handles a line at the shell or, without a shell, any line.
    fn serve(&mut self, line: &str) {
        let has_shell = self.guest.shell.is_some();
        if has_shell && line == LOGOUT {
            self.print("\r\n");
            return self.prompt();
        }
        if has_shell {
            self.print(format!("{line}\r\n"));
        }
        match if has_shell { self.shell.read(line) } else { ShellLine::Plain(line.into()) } {
            ShellLine::Plain(command) => {
                let Some(reply) = self.guest.reply_to(&command) else { return };
                self.reply(reply);
            }
            ShellLine::Part { nonce } => self.print(format!("capsa:more:{nonce:016x}\r\n")),
            ShellLine::Request { .. } => {}
            ShellLine::Run { command, nonce, scope } => {
                let has_listener = scope != CommandScope::Shell;
                if has_listener {
                    self.state = SimState::InCommand(nonce);
                }
                self.print(format!("capsa:begin:{nonce:016x}\r\n"));
                let Some(reply) = self.guest.reply_to(&command) else { return };
                let status = reply.status;
                self.reply(reply);
                let begin = if scope == CommandScope::Terminal { "\x18" } else { "" };
                self.print(format!("{begin}capsa:end:{nonce:016x}:{status};\r\n"));
                if has_listener {
                    return;
                }
            }
        }
        self.prompt();
    }

    fn reply(&mut self, reply: GuestReply) {
        if reply.delay > Duration::ZERO {
            self.pending.push_back(Pending::Pause(reply.delay));
        }
        match self.guest.shell {
            Some(_) => self.print(with_terminal_line_ends(&reply.output)),
            None => self.print(&reply.output),
        }
        if reply.run_time > Duration::ZERO {
            self.pending.push_back(Pending::Pause(reply.run_time));
        }
        self.pending.extend(reply.end.map(Pending::End));
    }

    fn prompt(&mut self) {
        if let Some(prompt) = self.guest.shell.clone() {
            self.print(prompt);
        }
    }

    fn print(&mut self, text: impl AsRef<[u8]>) {
        if !text.as_ref().is_empty() {
            self.pending.push_back(Pending::Print(text.as_ref().to_vec()));
        }
    }

    /// A signal ends the command that runs.
    fn handle_requests(&mut self, nonce: u64) {
        let runs = |sim: &Self| {
            let is_pause = |pending: &Pending| matches!(pending, Pending::Pause(_));
            sim.due.is_some() || sim.pending.iter().any(is_pause)
        };
        while runs(self)
            && let Some(line) = self.input.next()
        {
            if matches!(self.shell.read(&line), ShellLine::Request { nonce: n, .. } if n == nonce) {
                self.pending.clear();
                self.due = None;
                self.print(format!("{line}\r\n"));
                self.print(format!("capsa:end:{nonce:016x}:130;\r\n"));
            }
        }
    }

    fn exit(&mut self, exit: Exit) -> SimAction {
        self.state = SimState::Ended;
        SimAction::Exit(exit)
    }

    /// The first action of an end; further actions are queued.
    fn end(&mut self, end: GuestEnd) -> Option<SimAction> {
        self.pending.clear();
        match end {
            GuestEnd::PowerOff => {
                self.pending.push_back(Pending::End(GuestEnd::Exit(0)));
                Some(SimAction::Event(GuestEvent::PoweredOff))
            }
            GuestEnd::Reboot => {
                // If the reboot policy restarts the VM, the guest boots again.
                *self = Self::new(Arc::clone(&self.guest));
                Some(SimAction::Event(GuestEvent::Reset))
            }
            GuestEnd::Panic(message) if message.is_empty() => {
                self.state = SimState::Hung;
                Some(SimAction::Event(GuestEvent::Panicked))
            }
            GuestEnd::Panic(message) => {
                // The text comes before the event, which the empty message stands for.
                self.pending.push_back(Pending::End(GuestEnd::Panic(String::new())));
                let text = format!("\r\nKernel panic - not syncing: {message}\r\n");
                Some(SimAction::Output(text.into_bytes()))
            }
            GuestEnd::Exit(status) => Some(self.exit(Exit::with_code(status))),
            GuestEnd::Killed(signal) => {
                let exit = Exit::new(None, Some(signal));
                Some(self.exit(exit))
            }
            GuestEnd::Hang => {
                self.state = SimState::Hung;
                None
            }
        }
    }
}

impl GuestSim for ScriptedSim {
    fn begin(&mut self, _: Instant) {}

    fn handle_input(&mut self, _: Instant, bytes: &[u8]) {
        if self.powering_off || matches!(self.state, SimState::Hung | SimState::Ended) {
            return;
        }
        self.input.push(bytes);
        if let SimState::InCommand(nonce) = self.state {
            return self.handle_requests(nonce);
        }
        // Ctrl-C ends a running command. In other states it has no effect.
        if self.input.take_interrupt()
            && self.state == SimState::Serving
            && self.guest.shell.is_some()
        {
            self.pending.clear();
            self.due = None;
            self.print("^C\r\n");
            self.prompt();
        }
    }

    fn handle_power_button(&mut self, _: Instant) {
        let ignored = self.guest.ignores_power_button
            || matches!(self.state, SimState::Hung | SimState::Ended);
        if ignored || self.powering_off {
            return;
        }
        self.powering_off = true;
        self.pending.clear();
        self.due = None;
        self.pending.push_back(Pending::Pause(self.guest.power_off_delay));
        self.pending.push_back(Pending::End(GuestEnd::PowerOff));
    }

    fn poll_action(&mut self, now: Instant) -> Option<SimAction> {
        while !matches!(self.state, SimState::Hung | SimState::Ended) {
            if self.due.is_some_and(|due| now < due) {
                return None;
            }
            self.due = None;
            match self.pending.pop_front() {
                Some(Pending::Print(bytes)) => return Some(SimAction::Output(bytes)),
                Some(Pending::Pause(pause)) => self.due = Some(now + pause),
                Some(Pending::End(end)) => {
                    if let Some(action) = self.end(end) {
                        return Some(action);
                    }
                }
                None if self.advance() => {}
                None => return None,
            }
        }
        None
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.due.map(|at| Deadline { at, why: "the scripted guest continues" })
    }
}

/// Replaces each `\n` by `\r\n`, as a terminal does.
fn with_terminal_line_ends(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text {
        if byte == b'\n' {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out
}
