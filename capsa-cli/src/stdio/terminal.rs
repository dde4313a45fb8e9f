//! Makes the terminal at standard input raw, and restores its modes on every exit, panics included.
//!
//! The modes are changed only while this program is in the terminal's foreground. In the background
//! they belong to another program, and the kernel would stop this one (SIGTTOU). A shell's `fg` sends
//! SIGCONT only to a stopped job: a loop calls [`RawTerminal::follow_foreground`] in each round, and
//! waits no longer than [`RawTerminal::next_check`].
//!
//! A read in the background would stop this program (SIGTTIN). A shell that runs `fg` in that moment sends
//! no SIGCONT, because it takes the job for a running one. So the signal is blocked, and such a read
//! returns EIO.

use std::io;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};

/// How often a program in the background checks whether it is in the foreground.
const FOREGROUND_CHECK: Duration = Duration::from_millis(200);

/// The modes to restore while the terminal is raw, for the panic hook.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal. Dropping it restores the modes.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    original: Termios,
    /// Whether this program was in the foreground at the last check.
    was_foreground: bool,
}

impl RawTerminal {
    /// Makes standard input raw if it is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin).unwrap_or(false) {
            return Ok(None);
        }
        restore_before_panic_message();
        SigSet::from(Signal::SIGTTIN).thread_block()?;
        let mut terminal = Self { original: tcgetattr(&stdin)?, was_foreground: is_foreground() };
        terminal.resume()?;
        Ok(Some(terminal))
    }

    /// Whether this program is in the terminal's foreground.
    pub(crate) fn is_foreground(&self) -> bool {
        is_foreground()
    }

    /// Makes the terminal raw if this program has come to the foreground.
    pub(crate) fn follow_foreground(&mut self) {
        if self.was_foreground {
            self.was_foreground = is_foreground();
        } else {
            // If the terminal is closed, reading standard input returns the error.
            let _ = self.resume();
        }
    }

    /// When to call [`RawTerminal::follow_foreground`] again, besides in each round.
    pub(crate) fn next_check(&self) -> Option<Duration> {
        (!self.was_foreground).then_some(FOREGROUND_CHECK)
    }

    /// Restores the modes until [`RawTerminal::resume`].
    pub(crate) fn suspend(&self) {
        restore();
    }

    /// Makes the terminal raw again. Does nothing in the background.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        // The shell may move this program to the foreground at any time: what this check sees counts.
        self.was_foreground = is_foreground();
        if !self.was_foreground {
            return Ok(());
        }
        // The modes may be the shell's: in the background, those of its line editor.
        let current = tcgetattr(io::stdin())?;
        if current != raw(&self.original) {
            self.original = current;
        }
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.original.clone());
        Ok(set(&raw(&self.original))?)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.suspend();
    }
}

/// A terminal that is not the controlling one has no foreground group, so any process may use it.
fn is_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

fn raw(modes: &Termios) -> Termios {
    let mut raw = modes.clone();
    cfmakeraw(&mut raw);
    raw
}

fn restore() {
    // `try_lock`, because a panic may happen while the lock is held.
    let Ok(mut original) = ORIGINAL.try_lock() else { return };
    if let Some(modes) = original.take()
        && is_foreground()
    {
        // The terminal may be closed, in which case there is nothing to restore.
        let _ = set(&modes);
    }
}

fn set(modes: &Termios) -> nix::Result<()> {
    loop {
        match tcsetattr(io::stdin(), SetArg::TCSANOW, modes) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

fn restore_before_panic_message() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print_message = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            print_message(panic);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::process::{Command, Stdio};

    /// Set for the process that panics.
    const PANICS: &str = "CAPSA_TEST_PANICS";

    /// The child process of `panic_restores_terminal`; does nothing on its own.
    #[test]
    fn panics_while_raw() {
        if std::env::var_os(PANICS).is_none() {
            return;
        }
        let terminal = RawTerminal::enter().unwrap().expect("standard input is a terminal");
        assert!(ORIGINAL.lock().unwrap().is_some(), "the terminal is not raw");
        // Without the drop, so that only the panic hook can restore the terminal.
        std::mem::forget(terminal);
        panic!("on purpose");
    }

    #[test]
    fn panic_restores_terminal() {
        let pty = match openpty(None, None) {
            Ok(pty) => pty,
            Err(error) => return capsa_testkit::skip(error),
        };
        let before = tcgetattr(&pty.slave).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stdio::terminal::tests::panics_while_raw", "--nocapture"])
            .env(PANICS, "1")
            .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("on purpose"), "{stderr}");
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    }
}
