//! [`ConsoleLog`]: copies the guest's output to a file, on a thread of its own.
//!
//! The driver thread cannot do this: a write to a file can block, and the driver serves all VMs.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread::JoinHandle;

use futures_lite::AsyncReadExt;
use futures_lite::future::block_on;

use super::ConsoleReader;
use crate::Result;

impl ConsoleReader {
    /// Writes all unread and all further output of this reader to a file. An existing file is
    /// overwritten.
    ///
    /// A thread copies the output until the console closes; it does not keep the VM alive. If the
    /// console was opened before the start, the file contains the output from the first byte. If
    /// the disk is slower than the guest, output that exceeds the scrollback is lost, or the guest
    /// is paused ([`Overflow`](crate::console::Overflow)). If a write fails, for example on a **full disk**,
    /// the log ends, the guest continues, a warning is logged, and [`ConsoleLog::finish`] returns
    /// the error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the file or the thread cannot be created.
    pub fn log_to(self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        let path = path.as_ref().to_owned();
        let mut file = File::create(&path)?;
        let reader = self.named(&format!("log to {}", path.display()));
        let log = move || {
            let written = copy(reader, &mut file);
            if let Err(error) = &written {
                tracing::warn!("console log {} ended early: {error}", path.display());
            }
            written
        };
        let thread = std::thread::Builder::new().name("capsa-log".into()).spawn(log)?;
        Ok(ConsoleLog { thread })
    }
}

/// A console log in progress. Dropping it does not stop the log.
#[derive(Debug)]
pub struct ConsoleLog {
    thread: JoinHandle<io::Result<Logged>>,
}

/// The size of a finished log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Logged {
    /// Bytes written to the file.
    pub written: u64,
    /// Bytes missing from the file: the console dropped them because the disk was too slow.
    pub lost: u64,
}

impl ConsoleLog {
    /// Waits until the console has closed and all output is written. Blocks the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) with the error that ended the log early.
    pub fn finish(self) -> Result<Logged> {
        let written = self.thread.join();
        Ok(written
            .unwrap_or_else(|_| Err(io::Error::other("the thread of the console log panicked")))?)
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
