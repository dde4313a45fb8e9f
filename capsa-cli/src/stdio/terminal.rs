//! Makes the terminal at standard input raw, and restores its modes on every exit, panics included.
//!
//! The modes are changed only while this program is in the terminal's foreground. In the background
//! they belong to another program, and the kernel would stop this one (SIGTTOU).

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};

/// The modes to restore while the terminal is raw, for the panic hook.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal. Dropping it restores the modes.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    original: Termios,
}

impl RawTerminal {
    /// Makes standard input raw if it is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin).unwrap_or(false) {
            return Ok(None);
        }
        restore_before_panic_message();
        let terminal = Self { original: tcgetattr(&stdin)? };
        terminal.resume()?;
        Ok(Some(terminal))
    }

    /// Whether this program is in the terminal's foreground.
    pub(crate) fn is_foreground(&self) -> bool {
        is_foreground()
    }

    /// Restores the modes until [`RawTerminal::resume`].
    pub(crate) fn suspend(&self) {
        restore();
    }

    /// Makes the terminal raw again. Does nothing in the background.
    pub(crate) fn resume(&self) -> io::Result<()> {
        if !self.is_foreground() {
            return Ok(());
        }
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.original.clone());
        let mut raw = self.original.clone();
        cfmakeraw(&mut raw);
        Ok(set(&raw)?)
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
