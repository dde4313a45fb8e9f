//! The terminal at standard input: raw while the guest has it, as it was on every way out.
//!
//! A terminal is touched only while this program is in its foreground: in the background it is
//! another's, and the system would stop this program for trying.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};

/// The modes to go back to, while the terminal is raw. A panic's message finds them here.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// A terminal that is the guest's. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    original: Termios,
}

impl RawTerminal {
    /// Makes standard input raw, where it is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin).unwrap_or(false) {
            return Ok(None);
        }
        restore_before_a_panic_speaks();
        let terminal = Self { original: tcgetattr(&stdin)? };
        terminal.resume()?;
        Ok(Some(terminal))
    }

    /// Whether what is typed is for this program.
    pub(crate) fn is_foreground(&self) -> bool {
        is_foreground()
    }

    /// Gives the terminal back for a while.
    pub(crate) fn suspend(&self) {
        restore();
    }

    /// Takes it again. In the background it waits for the next call.
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

/// A terminal that is not the controlling one has no foreground, and whoever has it may use it.
fn is_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

fn restore() {
    // Not a lock to wait for: a panic may come while it is held.
    let Ok(mut original) = ORIGINAL.try_lock() else { return };
    if let Some(modes) = original.take()
        && is_foreground()
    {
        // The terminal may be gone, which is a good reason to leave too.
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

fn restore_before_a_panic_speaks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let speak = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            speak(panic);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::process::{Command, Stdio};

    /// Set for the process that is to panic.
    const PANICS: &str = "CAPSA_TEST_PANICS";

    /// Not a test by itself: the other one runs it in a process of its own, on a terminal.
    #[test]
    fn panics_while_raw() {
        if std::env::var_os(PANICS).is_none() {
            return;
        }
        let terminal = RawTerminal::enter().unwrap().expect("standard input is a terminal");
        assert!(ORIGINAL.lock().unwrap().is_some(), "it is not raw");
        // Nothing is dropped on the way out: the panic's message has to find the terminal restored.
        std::mem::forget(terminal);
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
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
