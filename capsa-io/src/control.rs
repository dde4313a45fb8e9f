//! The control channel: messages out, replies and events in, over QMP or HTTP.
//!
//! QMP is one connection for the machine's life; HTTP is one connection an exchange, one at a time.
//! What a reply *means* is the backend's business.

use std::collections::VecDeque;
use std::io;

use capsa_proto::backend::Reply;
use capsa_proto::codec::http::{Method, Request, ResponseDecoder};
use capsa_proto::codec::qmp::{self, QmpDecoder, QmpMessage};
use capsa_proto::codec::{MAX_HTTP_BODY, MAX_QMP_LINE};
use capsa_proto::plan::{Body, ControlPlan, Message, Protocol};

use crate::stream::{Got, Stream};
use crate::sys::{Poll, Source};

/// What came over the control channel.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The channel is up.
    Up,
    /// The answer to a message.
    Reply(Message, Reply),
    /// An event.
    Event(QmpMessage),
    /// The channel broke and nothing more will come.
    Lost,
}

/// Bytes read in one `on_ready` of a machine, at most.
pub(crate) const READ_BUDGET: usize = 64 * 1024;

/// A control channel, connected or not yet.
#[derive(Debug)]
pub(crate) struct Control {
    plan: ControlPlan,
    key: usize,
    link: Option<Link>,
    decoder: QmpDecoder,
    next_id: u64,
    /// QMP: sent and unanswered. HTTP: the first is being exchanged, the rest wait.
    pending: VecDeque<(u64, Message)>,
    up: bool,
}

#[derive(Debug)]
struct Link {
    stream: Source<Stream>,
    outgoing: VecDeque<u8>,
    response: Option<ResponseDecoder>,
}

impl Control {
    pub(crate) fn new(plan: ControlPlan, key: usize) -> Self {
        Self {
            plan,
            key,
            link: None,
            decoder: QmpDecoder::new(),
            next_id: 0,
            pending: VecDeque::new(),
            up: false,
        }
    }

    /// Tries to connect. `Ok(true)` when the channel is up, as far as that is known by connecting:
    /// a QMP channel is up when its greeting has come.
    pub(crate) fn try_connect(&mut self, poll: &Poll) -> io::Result<bool> {
        if self.up || self.link.is_some() {
            return Ok(self.up);
        }
        let stream = Stream::connect(self.plan.socket.as_str())?;
        if self.plan.protocol == Protocol::Http {
            // It listens; each exchange has a connection of its own.
            self.up = true;
            return Ok(true);
        }
        self.link = Some(Link::new(stream, poll, self.key, None)?);
        Ok(false)
    }

    pub(crate) fn send(&mut self, message: Message, poll: &Poll) -> Option<Heard> {
        let id = self.next_id;
        self.next_id += 1;
        match (&message.body, &mut self.link) {
            (Body::Qmp { execute, arguments }, Some(link)) => {
                let bytes = qmp::encode_command(id, execute, arguments.as_ref());
                link.outgoing.extend(&bytes);
                self.pending.push_back((id, message));
                self.flush()
            }
            (Body::Qmp { .. }, None) => {
                let broken = Reply::Broken("it closed its control channel".into());
                Some(Heard::Reply(message, broken))
            }
            (Body::Http { .. }, _) => {
                self.pending.push_back((id, message));
                self.next_exchange(poll)
            }
        }
    }

    /// Moves bytes both ways, `budget` of them at most coming in, and says what came. `true` when
    /// there may be more.
    pub(crate) fn on_ready(
        &mut self,
        poll: &Poll,
        budget: &mut usize,
        heard: &mut Vec<Heard>,
    ) -> bool {
        heard.extend(self.flush());
        let mut chunk = [0; 8192];
        while let Some(link) = &mut self.link {
            if *budget == 0 {
                return true;
            }
            let room = chunk.len().min(*budget);
            let got = link.stream.io().read(&mut chunk[..room]);
            match got {
                Got::NothingYet => return false,
                Got::Bytes(n) => {
                    *budget -= n;
                    self.take_bytes(&chunk[..n], heard);
                }
                Got::Closed => self.take_eof(heard),
            }
            heard.extend(self.next_exchange(poll));
        }
        false
    }

    fn take_bytes(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) {
        let Some(link) = &mut self.link else { return };
        let Some(response) = &mut link.response else {
            self.take_qmp(bytes, heard);
            return;
        };
        let reply = match response.handle_bytes(bytes) {
            Err(error) => Reply::Broken(error.to_string()),
            Ok(()) => match response.poll_response() {
                None => return,
                Some(response) => Reply::Http {
                    status: response.status,
                    body: String::from_utf8_lossy(&response.body).into_owned(),
                },
            },
        };
        self.answer_http(reply, heard);
    }

    fn take_qmp(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) {
        debug_assert!(bytes.len() <= MAX_QMP_LINE);
        let mut failed = self.decoder.handle_bytes(bytes).err();
        while failed.is_none() {
            match self.decoder.poll_message() {
                Ok(Some(message)) => heard.extend(self.take_message(message)),
                Ok(None) => return,
                Err(error) => failed = Some(error),
            }
        }
        tracing::warn!("control channel: {}", failed.map(|e| e.to_string()).unwrap_or_default());
        self.lose(heard);
    }

    fn take_message(&mut self, message: QmpMessage) -> Option<Heard> {
        let (id, reply) = match message {
            QmpMessage::Greeting { version } => {
                tracing::debug!(?version, "control channel is up");
                self.up = true;
                return Some(Heard::Up);
            }
            QmpMessage::Return { id, .. } => (id, Reply::Qmp),
            QmpMessage::Error { id, class, desc } => (id, Reply::QmpError { class, desc }),
            event => return Some(Heard::Event(event)),
        };
        // Without an id it is the answer to the oldest: answers come in order.
        let place = match id {
            Some(id) => self.pending.iter().position(|(pending, _)| *pending == id)?,
            None => 0,
        };
        let (_, message) = self.pending.remove(place)?;
        tracing::debug!(message = message.purpose, ?reply, "control reply");
        Some(Heard::Reply(message, reply))
    }

    fn take_eof(&mut self, heard: &mut Vec<Heard>) {
        let Some(link) = &mut self.link else { return };
        match &mut link.response {
            None => self.lose(heard),
            Some(response) => {
                let reply = match response.handle_eof() {
                    Err(error) => Reply::Broken(error.to_string()),
                    Ok(()) => match response.poll_response() {
                        Some(response) => Reply::Http {
                            status: response.status,
                            body: String::from_utf8_lossy(&response.body).into_owned(),
                        },
                        None => Reply::Broken("the connection closed before a response".into()),
                    },
                };
                self.answer_http(reply, heard);
            }
        }
    }

    fn answer_http(&mut self, reply: Reply, heard: &mut Vec<Heard>) {
        self.link = None;
        if let Some((_, message)) = self.pending.pop_front() {
            tracing::debug!(message = message.purpose, ?reply, "control reply");
            heard.push(Heard::Reply(message, reply));
        }
    }

    /// A QMP channel that broke answers nothing any more; who waits learns it from `Lost`.
    fn lose(&mut self, heard: &mut Vec<Heard>) {
        self.link = None;
        self.pending.clear();
        heard.push(Heard::Lost);
    }

    fn next_exchange(&mut self, poll: &Poll) -> Option<Heard> {
        if self.link.is_some() {
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
        let link = Stream::connect(self.plan.socket.as_str()).and_then(|stream| {
            Link::new(stream, poll, self.key, Some(ResponseDecoder::new(MAX_HTTP_BODY)))
        });
        match link {
            Ok(mut link) => {
                link.outgoing = request.encode().into();
                self.link = Some(link);
                self.flush()
            }
            Err(error) => {
                let (_, message) = self.pending.pop_front()?;
                Some(Heard::Reply(message, Reply::Broken(error.to_string())))
            }
        }
    }

    fn flush(&mut self) -> Option<Heard> {
        let link = self.link.as_mut()?;
        link.stream.io().write_from(&mut link.outgoing);
        let writable = !link.outgoing.is_empty();
        if link.stream.set_interest(true, writable).is_err() {
            self.link = None;
            return Some(Heard::Lost);
        }
        None
    }
}

impl Link {
    fn new(
        stream: Stream,
        poll: &Poll,
        key: usize,
        response: Option<ResponseDecoder>,
    ) -> io::Result<Self> {
        Ok(Self { stream: poll.add(stream, key)?, outgoing: VecDeque::new(), response })
    }
}
