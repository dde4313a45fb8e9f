//! The waits of a [`Vm`]: patterns, silence, logins and commands. Each begins here and ends with
//! [`VmEvent::Ended`](super::VmEvent::Ended); [`Vm::take_ended`] returns its result.
//!
//! A wait begins on a VM that was started; a login or a command, on one that runs.

use std::time::Duration;

use capsa_proto::console::{
    CommandScope, Expect, Login, Matcher, Pattern, ReaderId, RunCommand, Script, ScriptError,
    Silence, WaitId, WaitKind,
};
use capsa_proto::lifecycle::VmStatus;
use capsa_proto::time::Instant;

use super::Vm;
use crate::{Error, Result};

impl Vm {
    /// Begins to wait for one of `patterns`. The match with the earliest end wins; ties go to the
    /// pattern listed first. [`VmEvent::Ended`](super::VmEvent::Ended) reports the end of the wait, [`Vm::take_ended`]
    /// returns its result.
    ///
    /// The wait ends at once, as on a [closed](super::Outcome::Closed) console, when the VM has ended and
    /// the unread output has no match, when the VM was built without a console, or when `reader` was
    /// removed or belongs to another VM.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was not started; [`Error::NoPatterns`] when `patterns` is
    /// empty.
    pub fn wait_for_any(
        &mut self,
        reader: ReaderId,
        patterns: &[&str],
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.wait_for_any_pattern(reader, patterns.iter().map(Pattern::literal), timeout)
    }

    /// Like [`Vm::wait_for_any`], for patterns of any kind, such as regular expressions.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::wait_for_any`].
    pub fn wait_for_any_pattern(
        &mut self,
        reader: ReaderId,
        patterns: impl IntoIterator<Item = Pattern>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.check_started()?;
        let matcher = Matcher::of(patterns);
        if matcher.patterns().is_empty() {
            return Err(Error::NoPatterns);
        }
        Ok(self.begin(reader, |now| WaitKind::Expect(Box::new(Expect::new(matcher, now, timeout)))))
    }

    /// Begins to wait until the guest has printed nothing for `quiet`. The result holds all unread
    /// output.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was not started.
    pub fn wait_for_silence(
        &mut self,
        reader: ReaderId,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.check_started()?;
        Ok(self.begin(reader, |now| WaitKind::Script(Box::new(Silence::new(quiet, now, timeout)))))
    }

    /// Begins to log in on the console.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was not started or has ended; [`Error::Script`] when the
    /// username or the password contains characters that cannot be typed.
    pub fn login(
        &mut self,
        reader: ReaderId,
        username: &str,
        password: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.script(reader, |now| Login::new(username, password, now, timeout))
    }

    /// Begins to run a shell command.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was not started or has ended; [`Error::Script`] when the
    /// command is longer than 64 KiB after escaping, or has a NUL byte.
    pub fn run(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.command(reader, command, timeout, |script| script)
    }

    /// Like [`Vm::run`], in the login shell itself: `cd` and variables last, and `exit` ends the shell. The
    /// shell has to be like dash, bash or busybox ash. A command that is given up gets Ctrl-C only.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run`].
    pub fn run_in_login_shell(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.command(reader, command, timeout, |script| script.scope(CommandScope::Shell))
    }

    /// Like [`Vm::run`]; the wait ends when the `prompt` has appeared again.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run`].
    pub fn run_command(
        &mut self,
        reader: ReaderId,
        command: &str,
        prompt: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| RunCommand::new(command, Some(prompt), nonce, now, timeout))
    }

    /// Begins to mount the shares that the guest has not mounted, as `VmConsole::mount_shares`: the result
    /// is that of a command, whose status is not 0 if the guest cannot mount one. `None` if the VM has no
    /// shares.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run`].
    pub fn mount_shares(
        &mut self,
        reader: ReaderId,
        timeout: Option<Duration>,
    ) -> Result<Option<WaitId>> {
        let command = self.launch_plan().parts().mount_shares_command();
        command.map(|command| self.run(reader, &command, timeout)).transpose()
    }

    /// Like [`Vm::run`], for a command whose output is read while it runs
    /// or is large. Call [`Vm::take_output`] at each [`VmEvent::ConsoleData`](super::VmEvent::ConsoleData), and once more at the
    /// end.
    ///
    /// The result holds the output that was not taken. If no output is taken, a console that
    /// [pauses](crate::console::Overflow::Pause) blocks the command after 64 KiB; otherwise 16 MiB are kept,
    /// older output is dropped, and the result is marked as truncated.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run`].
    pub fn spawn(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.command(reader, command, timeout, RunCommand::streamed)
    }

    /// Like [`Vm::spawn`], for a pager, an editor or a shell: the command has the guest's terminal. It reads
    /// what is [written](Vm::write) to the console once it has printed something; before that, the shell
    /// would. Its output is not changed. The terminal's size is what `stty rows ROWS cols COLUMNS` sets in
    /// the guest. A command that is given up gets Ctrl-C only.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run`].
    pub fn spawn_on_terminal(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let on_terminal = |script: RunCommand| script.scope(CommandScope::Terminal).streamed();
        self.command(reader, command, timeout, on_terminal)
    }

    /// Takes the output that a [spawned](Vm::spawn) command has printed since the last
    /// call. The output of a failed command stays available until [`Vm::take_ended`].
    pub fn take_output(&mut self, wait: WaitId) -> Vec<u8> {
        self.with_console(|console, now, events| console.take_output(now, wait, events))
    }

    /// A number that distinguishes the begin and end marks of one command from those of another.
    fn nonce(&mut self, reader: ReaderId) -> u64 {
        let offset = self.core.console().offset(reader);
        self.io.nonce(offset).unwrap_or_else(capsa_io::random::number)
    }

    fn command(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
        adapt: impl FnOnce(RunCommand) -> RunCommand,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| Ok(adapt(RunCommand::new(command, None, nonce, now, timeout)?)))
    }

    fn script<S: Script + Send + 'static>(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> std::result::Result<S, ScriptError>,
    ) -> Result<WaitId> {
        self.check_running()?;
        let script = Box::new(make(self.clock.now())?);
        Ok(self.begin(reader, |_| WaitKind::Script(script)))
    }

    /// Returns an error before the start.
    fn check_started(&self) -> Result<()> {
        if *self.core.status() == VmStatus::Created { Err(Error::NotRunning) } else { Ok(()) }
    }

    /// Returns an error before the start and after the end: input cannot reach a guest.
    pub(super) fn check_running(&self) -> Result<()> {
        if self.core.status().is_alive() { Ok(()) } else { Err(Error::NotRunning) }
    }

    fn begin(&mut self, reader: ReaderId, make: impl FnOnce(Instant) -> WaitKind) -> WaitId {
        self.with_console(|console, now, events| console.begin(now, reader, make(now), events))
    }
}
