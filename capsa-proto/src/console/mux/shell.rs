//! The guest's shell: one command at a time uses it, and one that was given up is ended first.

use alloc::boxed::Box;

use super::ConsoleMux;
use crate::console::wait::{WaitId, WaitKind};
use crate::console::{Cursor, Script, ScriptAction, ShellUse};
use crate::time::Instant;

/// The script that ends a command, and its place.
pub(super) struct AbandonedCommand {
    pub(super) script: Box<dyn Script + Send>,
    pub(super) cursor: Cursor,
}

impl ConsoleMux {
    /// Whether the output of a command is read, or the command is being ended.
    pub(super) fn reads_command(&self) -> bool {
        let mut open = self.waits.values().filter(|wait| wait.ended.is_none());
        self.abandoned.is_some()
            || open.any(|wait| match &wait.kind {
                WaitKind::Script(script) => script.shell_use() == ShellUse::Busy,
                WaitKind::Expect(_) => false,
            })
    }

    /// The use of the shell by other scripts than this one.
    pub(super) fn shell_use(&self, id: WaitId) -> ShellUse {
        let waits = self.waits.iter().filter(|(other, wait)| **other != id && wait.ended.is_none());
        let scripts = waits.filter_map(|(_, wait)| match &wait.kind {
            WaitKind::Script(script) => Some(script),
            WaitKind::Expect(_) => None,
        });
        let abandoned = self.abandoned.iter().map(|command| &command.script);
        let mut uses = abandoned.chain(scripts).map(|script| script.shell_use());
        match uses.find(|shell| *shell != ShellUse::Free) {
            // Its end may be in the output that waits.
            Some(ShellUse::Stuck(_)) if self.is_paused() => ShellUse::Busy,
            shell => shell.unwrap_or(ShellUse::Free),
        }
    }

    /// Polls the script that ends a command that was given up. A paused guest has more to print.
    pub(super) fn poll_abandoned(&mut self, now: Instant) {
        let is_paused = self.is_paused();
        let Some(AbandonedCommand { script, cursor }) = &mut self.abandoned else { return };
        if is_paused {
            return;
        }
        loop {
            match script.poll_output(now, &self.scrollback, cursor, self.closed) {
                ScriptAction::Write(bytes) => {
                    let (at, kind) = (self.scrollback.end(), script.input_kind());
                    self.input_logs.written(now, at, kind, &bytes);
                    self.outgoing.extend(&bytes);
                }
                ScriptAction::Wait => return,
                ScriptAction::Done(_) => break,
            }
        }
        self.abandoned = None;
    }
}
