//! One transport of the agent: its connection, its decoder and what waits to be written to it.

use alloc::collections::VecDeque;

use crate::agent::protocol::{FrameDecoder, VSOCK_PORT, put_sync};
use crate::codec::vsock::{ConnectAnswer, connect_request};
use crate::plan::AgentTransport;
use crate::time::Instant;

/// A transport.
#[derive(Debug)]
pub(super) struct AgentLink {
    pub(super) transport: AgentTransport,
    /// A vsock connection begins with a handshake.
    has_handshake: bool,
    pub(super) state: AgentConnection,
    pub(super) decoder: FrameDecoder,
    pub(super) outgoing: VecDeque<u8>,
    /// The mark of the current session has arrived.
    pub(super) is_marked: bool,
}

/// The connection of a transport.
#[derive(Debug)]
pub(super) enum AgentConnection {
    Closed,
    /// The driver was asked to connect.
    Connecting,
    /// The vsock device has not confirmed the connection, which was made at this time.
    Handshake(ConnectAnswer, Instant),
    Open,
}

impl AgentLink {
    pub(super) fn new(transport: AgentTransport, has_handshake: bool) -> Self {
        Self {
            transport,
            has_handshake,
            state: AgentConnection::Closed,
            decoder: FrameDecoder::new(),
            outgoing: VecDeque::new(),
            is_marked: false,
        }
    }

    pub(super) fn handle_connected(&mut self, now: Instant) {
        *self = Self::new(self.transport, self.has_handshake);
        self.state = match self.transport {
            AgentTransport::Vsock if self.has_handshake => {
                self.outgoing.extend(connect_request(VSOCK_PORT).as_bytes());
                AgentConnection::Handshake(ConnectAnswer::default(), now)
            }
            _ => AgentConnection::Open,
        };
    }

    pub(super) const fn is_connected(&self) -> bool {
        matches!(self.state, AgentConnection::Handshake(..) | AgentConnection::Open)
    }

    pub(super) fn close(&mut self) {
        *self = Self::new(self.transport, self.has_handshake);
    }

    /// Takes the answer of the vsock device from `bytes`. Returns the rest.
    pub(super) fn take_handshake<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let AgentConnection::Handshake(answer, _) = &mut self.state else { return bytes };
        for (n, byte) in bytes.iter().enumerate() {
            match answer.handle_byte(*byte) {
                Ok(false) => {}
                Ok(true) => {
                    self.state = AgentConnection::Open;
                    return &bytes[n + 1..];
                }
                Err(_) => {
                    self.close();
                    break;
                }
            }
        }
        &[]
    }

    /// Sends a sync mark, unless earlier bytes have not been taken.
    pub(super) fn mark(&mut self, session: u64) {
        if matches!(self.state, AgentConnection::Open) && self.outgoing.is_empty() {
            let mut mark = alloc::vec::Vec::new();
            put_sync(session, &mut mark);
            self.outgoing.extend(mark);
        }
    }

    /// Discards what the agent sent. A new vsock connection is made; on the other transports, the frames
    /// that wait are written, because the agent may have received the begin of one.
    pub(super) fn reset(&mut self) {
        match self.transport {
            AgentTransport::Vsock => self.close(),
            AgentTransport::VirtioSerial | AgentTransport::SerialPort => {
                self.is_marked = false;
                self.decoder.resync();
            }
        }
    }
}
