//! Prints to standard output and standard error. A closed reader is no error.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::failure::{CliError, OK, OUTPUT};
use crate::stdio::output::PIPE_BUF;
use crate::stdio::poll_set::PollSet;

/// How long standard error may accept nothing before a message is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints a text. Returns the exit code of a command that only prints.
pub(crate) fn print(text: &str) -> Result<u8, CliError> {
    write(text.as_bytes())
}

fn write(bytes: &[u8]) -> Result<u8, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::new(OUTPUT, format!("cannot write to standard output: {error}"))
                .hint("free disk space, or redirect standard output elsewhere"))
        }
        _ => Ok(OK),
    }
}

/// Prints a text, until standard output accepts nothing for `stall`; `None` for any time. Returns whether
/// all is written, or has no reader.
pub(crate) fn print_within(text: &str, stall: Option<Duration>) -> Result<bool, CliError> {
    let Some(stall) = stall else { return print(text).map(|_| true) };
    let stdout = io::stdout();
    for part in text.as_bytes().chunks(PIPE_BUF) {
        let mut poll_set = PollSet::new();
        poll_set.writable((), stdout.as_fd());
        if poll_set.wait(Some(stall)).is_ok_and(|ready| ready.is_empty()) {
            return Ok(false);
        }
        write(part)?;
    }
    Ok(true)
}

/// Prints a message on standard error. The message is lost if it cannot be written: a stalled
/// reader delays the first message by [`STALL_TIMEOUT`], and later ones not at all.
pub(crate) fn print_message(text: &str) {
    static IS_STALLED: AtomicBool = AtomicBool::new(false);
    let mut stderr = io::stderr().lock();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let mut poll_set = PollSet::new();
        poll_set.writable((), stderr.as_fd());
        let is_stalled = IS_STALLED.load(Ordering::Relaxed);
        let patience = if is_stalled { Duration::ZERO } else { STALL_TIMEOUT };
        let is_writable = poll_set.wait(Some(patience)).is_ok_and(|ready| !ready.is_empty());
        IS_STALLED.store(!is_writable, Ordering::Relaxed);
        if !is_writable {
            return;
        }
        match stderr.write(&rest[..rest.len().min(PIPE_BUF)]) {
            Ok(n @ 1..) => rest = &rest[n..],
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Ok(_) | Err(_) => return,
        }
    }
}
