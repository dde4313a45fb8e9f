//! Prints to standard output. That nobody reads it is no error.

use std::io::{self, ErrorKind, Write};

use crate::failure::{Failure, OK, OUTPUT};

/// Prints a text, and gives the exit code of a command that did nothing else.
pub(crate) fn print(text: &str) -> Result<u8, Failure> {
    print_bytes(text.as_bytes())
}

/// The same with bytes that need not be text.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(OUTPUT, format!("cannot write to standard output: {error}"))
                .hint("make room there, or send it elsewhere"))
        }
        _ => Ok(OK),
    }
}
