//! The event pipe: some hypervisors write events to it, as a sequence of JSON objects.
//!
//! It is a named pipe that is open before the hypervisor starts, so that no event is missed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use capsa_proto::codec::json_stream::{JsonStream, JsonStreamError};
use capsa_proto::path::HostPath;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::sys::{Poll, PollSource};

/// The largest number of bytes read in one `on_ready` call of a VM.
pub(crate) const READ_BUDGET: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct EventPipe {
    pipe: Option<PollSource<File>>,
    decoder: JsonStream,
}

impl EventPipe {
    pub(crate) fn make(path: &HostPath, poll: &Poll, key: usize) -> io::Result<Self> {
        mkfifo(path.as_str(), Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Opened for writing too: a pipe without a writer is permanently at its end, and the poller
        // would report it again and again.
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path.as_str())?;
        Ok(Self { pipe: Some(poll.add(pipe, key)?), decoder: JsonStream::new() })
    }

    /// Reads at most `budget` bytes and adds the parsed objects. Returns `true` when there may be
    /// more.
    ///
    /// # Errors
    ///
    /// When the bytes are not valid JSON; the rest of the stream cannot be parsed then.
    pub(crate) fn on_ready(
        &mut self,
        budget: &mut usize,
        values: &mut Vec<Value>,
    ) -> Result<bool, JsonStreamError> {
        let mut chunk = [0; 8192];
        while let Some(pipe) = &mut self.pipe {
            if *budget == 0 {
                return Ok(true);
            }
            let room = chunk.len().min(*budget);
            match pipe.io().read(&mut chunk[..room]) {
                Ok(n @ 1..) => {
                    *budget -= n;
                    self.take(&chunk[..n], values)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
        Ok(false)
    }

    fn take(&mut self, bytes: &[u8], values: &mut Vec<Value>) -> Result<(), JsonStreamError> {
        self.decoder.handle_bytes(bytes)?;
        while let Some(value) = self.decoder.poll_value()? {
            values.push(value);
        }
        Ok(())
    }
}
