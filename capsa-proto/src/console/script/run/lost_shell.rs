//! [`LostShell`]: finds out whether the shell exited while it ran a command.
//!
//! Then the console shows a prompt: of a new login, or of a shell below the one that exited. But a
//! command can print that text too. So in a silence after a prompt the script types Enter until the
//! prompt was printed again twice; a command without a terminal does not react. What is left of the
//! wrapper may take the first Enter. The echo of Enter
//! is no output of the command.

use super::{RunCommand, RunState};
use crate::console::Scrollback;
use crate::console::fault_check::SILENCE;
use crate::console::script::{CommandScope, hint};
use crate::time::{Deadline, Instant};
use alloc::vec::Vec;
use core::time::Duration;

/// The silence before the second Enter: output that the command prints at intervals is no answer.
const PAUSE: Duration = Duration::from_millis(1500);

/// The echo of Enter.
pub(super) const ECHO: &[u8] = b"\r\n";

/// The most Enters for one command: it may print many prompts.
const PROBES_MAX: u32 = 6;

#[derive(Debug, Clone, Default)]
pub(super) struct LostShell {
    /// The prompt.
    line: Vec<u8>,
    /// How often it was printed again.
    answers: u32,
    /// The last Enter: when, and the end of the output then.
    typed: Option<(Instant, u64)>,
    probes: u32,
    /// Whether the first Enter had no answer.
    is_repeated: bool,
    /// The end of the output at the last check.
    checked: Option<u64>,
}

pub(super) enum ShellProbe {
    Wait,
    Enter,
    Lost,
}

impl LostShell {
    /// The next check if nothing more is printed after `silent_since`.
    pub(super) fn poll_timeout(&self, silent_since: Instant, end: u64) -> Option<Deadline> {
        let pause = if self.answers == 1 { PAUSE } else { SILENCE };
        let is_due = self.probes < PROBES_MAX && self.checked != Some(end);
        let why = "a prompt may show that the shell exited";
        is_due.then_some(Deadline { at: silent_since + pause, why })
    }

    /// Checks the output since `from`.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        log: &Scrollback,
        silent_since: Instant,
        from: u64,
    ) -> ShellProbe {
        match self.poll_timeout(silent_since, log.end()) {
            Some(due) if now >= due.at => {}
            _ => return ShellProbe::Wait,
        }
        let is_answer = self.typed.is_some_and(|(at, _)| silent_since <= at + SILENCE);
        let from = self.typed.map_or(from, |(_, end)| end.max(from));
        let prompt = hint::prompt_line(log, from).filter(|line| !line.is_empty());
        self.answers = match &prompt {
            Some(line) if is_answer && *line == self.line => self.answers + 1,
            _ => 0,
        };
        let Some(prompt) = prompt else {
            let is_echo = self.typed.is_some_and(|(_, end)| log.since(end) == ECHO);
            if is_echo && !self.is_repeated {
                self.is_repeated = true;
                return self.enter(now, log);
            }
            (self.typed, self.checked) = (None, Some(log.end()));
            return ShellProbe::Wait;
        };
        if self.answers == 2 {
            return ShellProbe::Lost;
        }
        if self.answers == 0 {
            (self.line, self.is_repeated) = (prompt, false);
        }
        self.enter(now, log)
    }

    fn enter(&mut self, now: Instant, log: &Scrollback) -> ShellProbe {
        (self.typed, self.checked) = (Some((now, log.end())), Some(log.end()));
        self.probes += 1;
        ShellProbe::Enter
    }

    /// Where the echo of the last Enter is in the output.
    pub(super) fn echo_at(&self) -> Option<u64> {
        self.typed.map(|(_, end)| end)
    }
}

impl RunCommand {
    /// The silence in which a prompt may show that the shell exited. A command on the terminal would
    /// read what is typed.
    fn probe_silence(&self) -> Option<Instant> {
        let may_probe = matches!(self.state, RunState::Output)
            && self.scope != CommandScope::Terminal
            && !self.is_paused;
        self.context.silent_since().filter(|_| may_probe)
    }

    pub(super) fn probe(&mut self, now: Instant, log: &Scrollback) -> ShellProbe {
        match self.probe_silence() {
            Some(silent_since) => self.lost_shell.poll(now, log, silent_since, self.since),
            None => ShellProbe::Wait,
        }
    }

    /// When to probe, if the guest prints nothing more.
    pub(super) fn probe_at(&self) -> Option<Deadline> {
        self.lost_shell.poll_timeout(self.probe_silence()?, self.polled_end)
    }
}
