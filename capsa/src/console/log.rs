//! [`ConsoleLog`]: what a guest says, into a file, by a thread of its own.
//!
//! A thread rather than the driver, because a file can block for as long as its disk likes, and
//! the driver drives every machine.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread::JoinHandle;

use futures_lite::AsyncReadExt;
use futures_lite::future::block_on;

use super::ConsoleReader;
use crate::Result;

impl ConsoleReader {
    /// Writes all that this reader would read, now and from now on, into a file, which is made anew.
    ///
    /// A thread of its own does it, and ends with the console; it does not keep the machine alive.
    /// With a reader of a console that was asked for before the start, the file has everything from
    /// the first byte. A disk that is slower than the guest loses what the console does not keep, or
    /// holds the guest back ([`Overflow`](crate::Overflow)). When writing fails, as on a **full
    /// disk**, the log ends there, the guest goes on, and [`ConsoleLog::finish`] has the error; a
    /// warning is logged.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the file or the thread cannot be made.
    pub fn log_to(self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        let path = path.as_ref().to_owned();
        let mut file = File::create(&path)?;
        let log = move || {
            let written = copy(self, &mut file);
            if let Err(error) = &written {
                tracing::warn!("the console's log {} ends: {error}", path.display());
            }
            written
        };
        let thread = std::thread::Builder::new().name("capsa-log".into()).spawn(log)?;
        Ok(ConsoleLog { thread })
    }
}

/// A log that is being written. Dropping this lets it go on.
#[derive(Debug)]
pub struct ConsoleLog {
    thread: JoinHandle<io::Result<Logged>>,
}

/// What a log came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Logged {
    /// Bytes in the file.
    pub written: u64,
    /// Bytes that are not, because the disk was too slow: the console had dropped them.
    pub lost: u64,
}

impl ConsoleLog {
    /// Waits until the console has closed and all of it is written, blocking this thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) with what ended the log before that.
    pub fn finish(self) -> Result<Logged> {
        let written = self.thread.join();
        Ok(written.unwrap_or_else(|_| Err(io::Error::other("the log's thread panicked")))?)
    }
}

fn copy(mut reader: ConsoleReader, file: &mut File) -> io::Result<Logged> {
    let mut chunk = vec![0; 64 * 1024];
    let mut written = 0;
    loop {
        let n = block_on(reader.read(&mut chunk))?;
        if n == 0 {
            return Ok(Logged { written, lost: reader.lost() });
        }
        file.write_all(&chunk[..n])?;
        written += n as u64;
    }
}
