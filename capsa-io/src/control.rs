//! The control client: sends messages, receives replies and events, over QMP or HTTP.
//!
//! QMP uses one connection for the lifetime of the VM; HTTP uses one connection per exchange, one
//! at a time. The backend interprets the replies.

use std::collections::VecDeque;
use std::io;

use capsa_proto::backend::ControlReply;
use capsa_proto::codec::http::{Method, Request, ResponseDecoder};
use capsa_proto::codec::qmp::{self, QmpDecoder, QmpMessage};
use capsa_proto::codec::{MAX_HTTP_BODY, MAX_QMP_LINE};
use capsa_proto::plan::{Body, ControlPlan, Message, Protocol};

use crate::stream::{ByteStream, ReadResult};
use crate::sys::{Poll, PollSource};

/// An event of the control channel.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// The channel is up.
    Up,
    /// The reply to a message.
    Reply(Message, ControlReply),
    /// An event of the hypervisor.
    Event(QmpMessage),
    /// The channel is broken; no more events will come.
    Lost,
}

/// The largest number of bytes read in one `on_ready` call of a VM.
pub(crate) const READ_BUDGET: usize = 64 * 1024;

/// A control client, connected or not yet connected.
#[derive(Debug)]
pub(crate) struct ControlClient {
    plan: ControlPlan,
    key: usize,
    connection: Option<Connection>,
    decoder: QmpDecoder,
    next_id: u64,
    /// QMP: messages without a reply. HTTP: the first message is being exchanged, the others wait.
    pending: VecDeque<(u64, Message)>,
    up: bool,
}

#[derive(Debug)]
struct Connection {
    stream: PollSource<ByteStream>,
    outgoing: VecDeque<u8>,
    response: Option<ResponseDecoder>,
}

impl ControlClient {
    pub(crate) fn new(plan: ControlPlan, key: usize) -> Self {
        Self {
            plan,
            key,
            connection: None,
            decoder: QmpDecoder::new(),
            next_id: 0,
            pending: VecDeque::new(),
            up: false,
        }
    }

    /// Tries to connect. Returns `true` when the channel is up. A QMP channel is up only when its
    /// greeting has arrived.
    pub(crate) fn try_connect(&mut self, poll: &Poll) -> io::Result<bool> {
        if self.up || self.connection.is_some() {
            return Ok(self.up);
        }
        let stream = ByteStream::connect(self.plan.socket.as_str())?;
        if self.plan.protocol == Protocol::Http {
            // The server listens; each exchange opens its own connection.
            self.up = true;
            return Ok(true);
        }
        self.connection = Some(Connection::new(stream, poll, self.key, None)?);
        Ok(false)
    }

    pub(crate) fn send(&mut self, message: Message, poll: &Poll) -> Option<ControlEvent> {
        let id = self.next_id;
        self.next_id += 1;
        match (&message.body, &mut self.connection) {
            (Body::Qmp { execute, arguments }, Some(connection)) => {
                let bytes = qmp::encode_command(id, execute, arguments.as_ref());
                connection.outgoing.extend(&bytes);
                self.pending.push_back((id, message));
                self.flush()
            }
            (Body::Qmp { .. }, None) => {
                let broken = ControlReply::Broken("the control channel is closed".into());
                Some(ControlEvent::Reply(message, broken))
            }
            (Body::Http { .. }, _) => {
                self.pending.push_back((id, message));
                self.next_exchange(poll)
            }
        }
    }

    /// Moves bytes in both directions, reading at most `budget` bytes, and adds the events to
    /// `events`. Returns `true` when there may be more.
    pub(crate) fn on_ready(
        &mut self,
        poll: &Poll,
        budget: &mut usize,
        events: &mut Vec<ControlEvent>,
    ) -> bool {
        events.extend(self.flush());
        let mut chunk = [0; 8192];
        while let Some(connection) = &mut self.connection {
            if *budget == 0 {
                return true;
            }
            let room = chunk.len().min(*budget);
            let read = connection.stream.io().read(&mut chunk[..room]);
            match read {
                ReadResult::NothingYet => return false,
                ReadResult::Bytes(n) => {
                    *budget -= n;
                    self.take_bytes(&chunk[..n], events);
                }
                ReadResult::Closed => self.take_eof(events),
            }
            events.extend(self.next_exchange(poll));
        }
        false
    }

    fn take_bytes(&mut self, bytes: &[u8], events: &mut Vec<ControlEvent>) {
        let Some(connection) = &mut self.connection else { return };
        let Some(response) = &mut connection.response else {
            self.take_qmp(bytes, events);
            return;
        };
        let reply = match response.handle_bytes(bytes) {
            Err(error) => ControlReply::Broken(error.to_string()),
            Ok(()) => match response.poll_response() {
                None => return,
                Some(response) => ControlReply::Http {
                    status: response.status,
                    body: String::from_utf8_lossy(&response.body).into_owned(),
                },
            },
        };
        self.finish_exchange(reply, events);
    }

    fn take_qmp(&mut self, bytes: &[u8], events: &mut Vec<ControlEvent>) {
        debug_assert!(bytes.len() <= MAX_QMP_LINE);
        let mut failed = self.decoder.handle_bytes(bytes).err();
        while failed.is_none() {
            match self.decoder.poll_message() {
                Ok(Some(message)) => events.extend(self.take_message(message)),
                Ok(None) => return,
                Err(error) => failed = Some(error),
            }
        }
        tracing::warn!("control channel: {}", failed.map(|e| e.to_string()).unwrap_or_default());
        self.disconnect(events);
    }

    fn take_message(&mut self, message: QmpMessage) -> Option<ControlEvent> {
        let (id, reply) = match message {
            QmpMessage::Greeting { version } => {
                tracing::debug!(?version, "control channel is up");
                self.up = true;
                return Some(ControlEvent::Up);
            }
            QmpMessage::Return { id, .. } => (id, ControlReply::Qmp),
            QmpMessage::Error { id, class, desc } => (id, ControlReply::QmpError { class, desc }),
            event => return Some(ControlEvent::Event(event)),
        };
        // A reply without an id belongs to the oldest message: replies come in order.
        let place = match id {
            Some(id) => self.pending.iter().position(|(pending, _)| *pending == id)?,
            None => 0,
        };
        let (_, message) = self.pending.remove(place)?;
        tracing::debug!(message = message.purpose, ?reply, "control reply");
        Some(ControlEvent::Reply(message, reply))
    }

    fn take_eof(&mut self, events: &mut Vec<ControlEvent>) {
        let Some(connection) = &mut self.connection else { return };
        match &mut connection.response {
            None => self.disconnect(events),
            Some(response) => {
                let reply = match response.handle_eof() {
                    Err(error) => ControlReply::Broken(error.to_string()),
                    Ok(()) => match response.poll_response() {
                        Some(response) => ControlReply::Http {
                            status: response.status,
                            body: String::from_utf8_lossy(&response.body).into_owned(),
                        },
                        None => {
                            ControlReply::Broken("the connection closed before a response".into())
                        }
                    },
                };
                self.finish_exchange(reply, events);
            }
        }
    }

    fn finish_exchange(&mut self, reply: ControlReply, events: &mut Vec<ControlEvent>) {
        self.connection = None;
        if let Some((_, message)) = self.pending.pop_front() {
            tracing::debug!(message = message.purpose, ?reply, "control reply");
            events.push(ControlEvent::Reply(message, reply));
        }
    }

    /// A broken QMP channel has no more replies; pending messages are reported by `Lost`.
    fn disconnect(&mut self, events: &mut Vec<ControlEvent>) {
        self.connection = None;
        self.pending.clear();
        events.push(ControlEvent::Lost);
    }

    fn next_exchange(&mut self, poll: &Poll) -> Option<ControlEvent> {
        if self.connection.is_some() {
            return None;
        }
        let (_, message) = self.pending.front()?;
        let Body::Http { method, path, body } = &message.body else { return None };
        let method = match *method {
            "GET" => Method::Get,
            "POST" => Method::Post,
            _ => Method::Put,
        };
        let mut request = Request::new(method, path);
        if let Some(body) = body {
            request = request.with_json(body);
        }
        let connection = ByteStream::connect(self.plan.socket.as_str()).and_then(|stream| {
            Connection::new(stream, poll, self.key, Some(ResponseDecoder::new(MAX_HTTP_BODY)))
        });
        match connection {
            Ok(mut connection) => {
                connection.outgoing = request.encode().into();
                self.connection = Some(connection);
                self.flush()
            }
            Err(error) => {
                let (_, message) = self.pending.pop_front()?;
                Some(ControlEvent::Reply(message, ControlReply::Broken(error.to_string())))
            }
        }
    }

    fn flush(&mut self) -> Option<ControlEvent> {
        let connection = self.connection.as_mut()?;
        connection.stream.io().write_from(&mut connection.outgoing);
        let writable = !connection.outgoing.is_empty();
        if connection.stream.set_interest(true, writable).is_err() {
            self.connection = None;
            return Some(ControlEvent::Lost);
        }
        None
    }
}

impl Connection {
    fn new(
        stream: ByteStream,
        poll: &Poll,
        key: usize,
        response: Option<ResponseDecoder>,
    ) -> io::Result<Self> {
        Ok(Self { stream: poll.add(stream, key)?, outgoing: VecDeque::new(), response })
    }
}
