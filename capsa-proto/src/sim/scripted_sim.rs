//! [`ScriptedSim`]: a [`ScriptedGuest`] that is on.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::line_discipline::LineDiscipline;
use super::scripted::{Act, Finish, GuestReply, ScriptedGuest};
use super::shell_input::{ShellLine, ShellReader};
use super::{GuestSim, SimAction};
use crate::backend::GuestEvent;
use crate::lifecycle::Exit;
use crate::time::{Deadline, Instant};

/// Ctrl-D at the shell's prompt.
const LOGOUT: &str = "\u{4}";

#[derive(Debug)]
pub(super) struct ScriptedSim {
    guest: Arc<ScriptedGuest>,
    /// The next of its acts.
    act: usize,
    state: State,
    /// What is under way.
    doing: VecDeque<Doing>,
    due: Option<Instant>,
    typed: LineDiscipline,
    gathered: ShellReader,
    /// The power button was heard. It is pressed again and again.
    leaving: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Acting,
    Hearing(String),
    AskingName,
    AskingPassword { right_name: bool },
    Listening,
    Hung,
    Over,
}

#[derive(Debug)]
enum Doing {
    Say(Vec<u8>),
    Pause(Duration),
    Finish(Finish),
}

impl ScriptedSim {
    pub(super) fn new(guest: Arc<ScriptedGuest>) -> Self {
        Self {
            guest,
            act: 0,
            state: State::Acting,
            doing: VecDeque::new(),
            due: None,
            typed: LineDiscipline::default(),
            gathered: ShellReader::default(),
            leaving: false,
        }
    }

    /// Puts what comes next into `doing`. `false` when that needs something to be typed.
    fn go_on(&mut self) -> bool {
        if self.state == State::Acting {
            self.next_act();
            return true;
        }
        let Some(line) = self.typed.next() else { return false };
        match &self.state {
            State::Hearing(wanted) => {
                let heard = line == *wanted;
                self.say(format!("{line}\r\n"));
                if heard {
                    self.state = State::Acting;
                }
            }
            State::AskingName => self.take_name(&line),
            State::AskingPassword { right_name } => {
                let right = *right_name && self.credentials().1.as_deref() == Some(&line);
                self.say("\r\n");
                self.judge(right);
            }
            State::Listening => self.listen(&line),
            State::Acting | State::Hung | State::Over => return false,
        }
        true
    }

    fn next_act(&mut self) {
        let guest = Arc::clone(&self.guest);
        let act = guest.acts.get(self.act);
        match act {
            Some(Act::Say(text)) => self.say(text),
            Some(Act::Pause(pause)) => self.doing.push_back(Doing::Pause(*pause)),
            Some(Act::Hear(line)) => self.state = State::Hearing(line.clone()),
            Some(Act::Login { .. }) => {
                self.state = State::AskingName;
                self.say("login: ");
            }
            Some(Act::Finish(finish)) => self.doing.push_back(Doing::Finish(finish.clone())),
            None => {
                self.state = State::Listening;
                self.prompt();
            }
        }
        self.act += usize::from(act.is_some());
    }

    /// The name and password of the login under way, which is the act before the next.
    fn credentials(&self) -> (String, Option<String>) {
        match self.act.checked_sub(1).and_then(|at| self.guest.acts.get(at)) {
            Some(Act::Login { name, password }) => (name.clone(), password.clone()),
            _ => (String::new(), None),
        }
    }

    fn take_name(&mut self, line: &str) {
        let (name, password) = self.credentials();
        self.say(format!("{line}\r\n"));
        match (line, password) {
            ("", _) => self.say("login: "),
            (line, Some(_)) => {
                self.state = State::AskingPassword { right_name: line == name };
                self.say("Password: ");
            }
            (line, None) => self.judge(line == name),
        }
    }

    fn judge(&mut self, right: bool) {
        if right {
            self.state = State::Acting;
        } else {
            self.state = State::AskingName;
            self.say("\r\nLogin incorrect\r\nlogin: ");
        }
    }

    fn listen(&mut self, line: &str) {
        let has_shell = self.guest.shell.is_some();
        if has_shell && line == LOGOUT {
            self.say("\r\n");
            return self.prompt();
        }
        if has_shell {
            self.say(format!("{line}\r\n"));
        }
        match if has_shell { self.gathered.read(line) } else { ShellLine::Plain(line.into()) } {
            ShellLine::Plain(command) => {
                let Some(answer) = self.guest.answer(&command) else { return };
                self.answer(answer);
            }
            ShellLine::SimulatedGuest { nonce } => self.say(format!("capsa:more:{nonce:016x}\r\n")),
            ShellLine::Run { command, nonce } => {
                self.say(format!("capsa:begin:{nonce:016x}\r\n"));
                let Some(answer) = self.guest.answer(&command) else { return };
                let status = answer.status;
                self.answer(answer);
                self.say(format!("capsa:end:{nonce:016x}:{status};\r\n"));
            }
        }
        self.prompt();
    }

    fn answer(&mut self, answer: GuestReply) {
        if answer.after > Duration::ZERO {
            self.doing.push_back(Doing::Pause(answer.after));
        }
        match self.guest.shell {
            Some(_) => self.say(as_a_terminal(&answer.said)),
            None => self.say(&answer.said),
        }
        if answer.lasting > Duration::ZERO {
            self.doing.push_back(Doing::Pause(answer.lasting));
        }
        self.doing.extend(answer.finish.map(Doing::Finish));
    }

    fn prompt(&mut self) {
        if let Some(prompt) = self.guest.shell.clone() {
            self.say(prompt);
        }
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        if !text.as_ref().is_empty() {
            self.doing.push_back(Doing::Say(text.as_ref().to_vec()));
        }
    }

    fn exit(&mut self, exit: Exit) -> SimAction {
        self.state = State::Over;
        SimAction::Exit(exit)
    }

    /// What an end consists of. What is left of it comes next.
    fn finish(&mut self, finish: Finish) -> Option<SimAction> {
        self.doing.clear();
        match finish {
            Finish::PowerOff => {
                self.doing.push_back(Doing::Finish(Finish::Exit(0)));
                Some(SimAction::Event(GuestEvent::PoweredOff))
            }
            Finish::Reboot => {
                // Whoever lets it reboot sees it all once more.
                *self = Self::new(Arc::clone(&self.guest));
                Some(SimAction::Event(GuestEvent::Reset))
            }
            Finish::Panic(why) if why.is_empty() => {
                self.state = State::Hung;
                Some(SimAction::Event(GuestEvent::Panicked))
            }
            Finish::Panic(why) => {
                // Said first; what is left has no words.
                self.doing.push_back(Doing::Finish(Finish::Panic(String::new())));
                let text = format!("\r\nKernel panic - not syncing: {why}\r\n");
                Some(SimAction::Output(text.into_bytes()))
            }
            Finish::Exit(status) => Some(self.exit(Exit::with_code(status))),
            Finish::Killed(signal) => {
                let exit = Exit { code: None, signal: Some(signal), stderr_tail: String::new() };
                Some(self.exit(exit))
            }
            Finish::Hang => {
                self.state = State::Hung;
                None
            }
        }
    }
}

impl GuestSim for ScriptedSim {
    fn begin(&mut self, _: Instant) {}

    fn handle_input(&mut self, _: Instant, bytes: &[u8]) {
        if self.leaving || matches!(self.state, State::Hung | State::Over) {
            return;
        }
        self.typed.push(bytes);
        // A command that ran is not running any more; anything else goes its way.
        if self.typed.interrupted() && self.state == State::Listening && self.guest.shell.is_some()
        {
            self.doing.clear();
            self.due = None;
            self.say("^C\r\n");
            self.prompt();
        }
    }

    fn handle_power_button(&mut self, _: Instant) {
        let deaf = self.guest.deaf || matches!(self.state, State::Hung | State::Over);
        if deaf || self.leaving {
            return;
        }
        self.leaving = true;
        self.doing.clear();
        self.due = None;
        self.doing.push_back(Doing::Pause(self.guest.off_after));
        self.doing.push_back(Doing::Finish(Finish::PowerOff));
    }

    fn poll_action(&mut self, now: Instant) -> Option<SimAction> {
        while !matches!(self.state, State::Hung | State::Over) {
            if self.due.is_some_and(|due| now < due) {
                return None;
            }
            self.due = None;
            match self.doing.pop_front() {
                Some(Doing::Say(bytes)) => return Some(SimAction::Output(bytes)),
                Some(Doing::Pause(pause)) => self.due = Some(now + pause),
                Some(Doing::Finish(finish)) => {
                    if let Some(deed) = self.finish(finish) {
                        return Some(deed);
                    }
                }
                None if self.go_on() => {}
                None => return None,
            }
        }
        None
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.due.map(|at| Deadline { at, why: "the fake guest goes on" })
    }
}

/// With the line ends that a terminal makes.
fn as_a_terminal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text {
        if byte == b'\n' {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out
}
