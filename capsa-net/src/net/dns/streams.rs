//! Connections to the name server over TCP.
//!
//! A query has its length before it. Queries are read while the connection has room for answers, so a
//! client that does not read is not read, and its bytes wait in the window of its connection.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::ReplyTo;
use crate::flow_table::{FlowAddresses, FlowId};
use crate::net::{Net, Transport};
use crate::tcp::Connection;
use crate::wire::dns;
use crate::wire::tcp::TcpHeader;

/// Connections over TCP, at most.
pub(super) const STREAMS: usize = 32;
/// Queries of one connection that wait for an answer, at most; further ones are not read.
pub(super) const STREAM_QUERIES: usize = 16;
/// Answers that wait for one connection, in bytes: beyond it no query is read.
pub(super) const STREAM_OUTPUT: usize = 64 << 10;
/// The longest query over TCP.
pub(super) const STREAM_MESSAGE: usize = 4 << 10;
/// A connection without a query ends after this time.
pub(super) const STREAM_IDLE: Duration = Duration::from_secs(30);
/// The time that a guest has to end a connection that the server has ended.
pub(super) const STREAM_END: Duration = Duration::from_secs(10);

/// A connection to the server.
#[derive(Debug)]
pub(super) struct DnsStream {
    pub(super) output: Vec<u8>,
    /// Queries without an answer.
    pub(super) waiting: usize,
    /// The server has ended the connection.
    pub(super) is_ended: bool,
    /// The last query, or the end.
    active_at: Instant,
}

impl DnsStream {
    pub(super) fn ends_at(&self) -> Option<Instant> {
        let limit = if self.is_ended { STREAM_END } else { STREAM_IDLE };
        (self.waiting == 0).then(|| self.active_at + limit)
    }
}

impl Net {
    /// A connection to the server: it is open at once.
    pub(in crate::net) fn name_server_connection(
        &mut self,
        addresses: FlowAddresses,
        syn: &TcpHeader,
        sequence: u32,
        now: Instant,
    ) {
        let connection = Connection::from_guest(syn, sequence, self.link_mss(&addresses), now);
        let inserted = match self.name_server.streams.len() < STREAMS {
            true => self.insert(addresses, Transport::Tcp(Box::new(connection))),
            false => None,
        };
        let Some(flow) = inserted else {
            self.counters.refused_full += 1;
            return self.refuse(&addresses, syn, 0);
        };
        let stream = DnsStream { output: Vec::new(), waiting: 0, is_ended: false, active_at: now };
        self.name_server.streams.insert(flow, stream);
        self.handle_connected(flow, now);
    }

    /// Moves the bytes of a connection to the server: answers that fit, then queries, while both are
    /// possible.
    pub(in crate::net) fn move_stream(&mut self, flow: FlowId, now: Instant) {
        loop {
            self.write_stream(flow, now);
            let Some(message) = self.read_stream(flow, now) else { break };
            self.query(&message, ReplyTo::Stream(flow), now);
        }
        // The guest has sent all its queries, and has every answer.
        if let Some(stream) = self.name_server.streams.get_mut(&flow)
            && stream.waiting == 0
            && stream.output.is_empty()
            && self.is_received(flow)
        {
            self.end_stream(flow, now);
        }
    }

    /// The next query of a connection.
    fn read_stream(&mut self, flow: FlowId, now: Instant) -> Option<Vec<u8>> {
        let stream = self.name_server.streams.get_mut(&flow)?;
        let is_busy = stream.waiting >= STREAM_QUERIES || stream.output.len() >= STREAM_OUTPUT;
        if is_busy || stream.is_ended {
            return None;
        }
        let is_received = self.is_received(flow);
        let mut bytes = self.waiting(flow).flatten().copied();
        let len = match [bytes.next(), bytes.next()] {
            [Some(high), Some(low)] => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        let message: Vec<u8> = bytes.take(len).collect();
        let waiting: usize = self.waiting(flow).map(<[u8]>::len).sum();
        if (2..).contains(&waiting) && !(dns::HEADER_LEN..=STREAM_MESSAGE).contains(&len) {
            self.counters.malformed += 1;
            self.abort_stream(flow);
            return None;
        }
        if waiting < 2 || message.len() < len {
            // The guest sends no more: a part of a query has no end.
            if is_received && waiting > 0 {
                self.drained(flow, waiting, now);
            }
            return None;
        }
        if let Some(stream) = self.name_server.streams.get_mut(&flow) {
            stream.active_at = now;
        }
        self.drained(flow, 2 + len, now);
        Some(message)
    }

    /// Hands answers to the connection, as far as it has space for them.
    pub(super) fn write_stream(&mut self, flow: FlowId, now: Instant) {
        let Some(stream) = self.name_server.streams.get_mut(&flow) else { return };
        let mut output = core::mem::take(&mut stream.output);
        let mut written = 0;
        while written < output.len() {
            let mut count = 0;
            for space in self.spaces(flow, output.len() - written) {
                let from = written + count;
                space.copy_from_slice(&output[from..from + space.len()]);
                count += space.len();
            }
            if count == 0 {
                break;
            }
            self.filled(flow, count, now);
            written += count;
        }
        output.drain(..written);
        if let Some(stream) = self.name_server.streams.get_mut(&flow) {
            stream.output = output;
        }
    }

    /// Whether the guest has sent the end of its stream.
    fn is_received(&self, flow: FlowId) -> bool {
        matches!(self.flows.get(flow), Some((_, state)) if state.is_received())
    }

    /// Sends the end of the stream to the guest.
    pub(super) fn end_stream(&mut self, flow: FlowId, now: Instant) {
        if let Some(stream) = self.name_server.streams.get_mut(&flow)
            && !stream.is_ended
        {
            (stream.is_ended, stream.active_at) = (true, now);
            self.handle_eof(flow);
        }
    }

    pub(super) fn abort_stream(&mut self, flow: FlowId) {
        self.name_server.streams.remove(&flow);
        self.handle_socket_error(flow);
    }
}
