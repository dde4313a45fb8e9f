//! Moves bytes between a VM's control client and its socket. What they mean is decided in
//! [`ControlClient`].

use std::io;

use capsa_proto::plan::{ControlPlan, Message};
use capsa_proto::vm::{ControlClient, ControlEvent};

use crate::stream::{ByteStream, ReadResult};
use crate::sys::{Poll, PollSource};

/// The largest number of bytes read in one `on_ready` call.
pub(crate) const READ_BUDGET: usize = 64 * 1024;

/// A control channel, connected or not.
#[derive(Debug)]
pub(crate) struct ControlChannel {
    plan: ControlPlan,
    key: usize,
    client: ControlClient,
    stream: Option<PollSource<ByteStream>>,
}

impl ControlChannel {
    pub(crate) fn new(plan: ControlPlan, key: usize) -> Self {
        let client = ControlClient::new(plan.protocol);
        Self { plan, key, client, stream: None }
    }

    /// Tries to connect. Returns whether the VMM takes messages.
    pub(crate) fn try_connect(&mut self, poll: &Poll) -> io::Result<bool> {
        if !self.client.is_up() && self.stream.is_none() {
            self.connect(poll)?;
        }
        Ok(self.client.is_up())
    }

    /// Sends a message. Replies and failures come as events.
    pub(crate) fn send(&mut self, message: Message, poll: &Poll) {
        self.client.send(message);
        self.sync(poll);
    }

    /// The next event; `None` when there is none.
    pub(crate) fn poll_event(&mut self) -> Option<ControlEvent> {
        self.client.poll_event()
    }

    /// Moves bytes both ways, reading at most `budget` bytes. `true` when there may be more.
    pub(crate) fn on_ready(&mut self, poll: &Poll, budget: &mut usize) -> bool {
        self.sync(poll);
        let mut chunk = [0; 8192];
        while let Some(stream) = &mut self.stream {
            if *budget == 0 {
                return true;
            }
            let room = chunk.len().min(*budget);
            match stream.io().read(&mut chunk[..room]) {
                ReadResult::NothingYet => return false,
                ReadResult::Bytes(n) => {
                    *budget -= n;
                    self.client.handle_bytes(&chunk[..n]);
                }
                ReadResult::Closed => self.client.handle_eof(),
            }
            self.sync(poll);
        }
        false
    }

    fn connect(&mut self, poll: &Poll) -> io::Result<()> {
        let stream = ByteStream::connect(self.plan.socket.as_str())?;
        let stream = poll.add(stream, self.key)?;
        self.stream = self.client.handle_connected().then_some(stream);
        Ok(())
    }

    /// Connects where an exchange waits for it, and writes what the client sends.
    fn sync(&mut self, poll: &Poll) {
        if !self.client.is_connected() {
            self.stream = None;
        }
        while self.client.wants_connection() {
            if let Err(error) = self.connect(poll) {
                self.client.handle_connect_failed(error.to_string());
            }
        }
        let Some(stream) = &mut self.stream else { return };
        let outgoing = self.client.outgoing();
        stream.io().write_from(outgoing);
        let is_waiting = !outgoing.is_empty();
        if stream.set_interest(true, is_waiting).is_err() {
            self.stream = None;
            self.client.handle_lost();
        }
    }
}
