//! Prints to standard output. A closed reader is no error.

use std::io::{self, ErrorKind, Write};

use crate::failure::{CliError, OK, OUTPUT};

/// Prints a text. Returns the exit code of a command that only prints.
pub(crate) fn print(text: &str) -> Result<u8, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::new(OUTPUT, format!("cannot write to standard output: {error}"))
                .hint("free disk space, or redirect standard output elsewhere"))
        }
        _ => Ok(OK),
    }
}
