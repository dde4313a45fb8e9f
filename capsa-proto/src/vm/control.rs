//! [`ControlClient`]: messages to a VMM, and its replies and events, over QMP or HTTP.
//!
//! QMP uses one connection for the life of the VM. HTTP uses one connection for each exchange, one
//! exchange at a time. What a reply *means* is decided by the backend.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};

use crate::backend::ControlReply;
use crate::codec::MAX_HTTP_BODY;
use crate::codec::http::{HttpError, Method, Request, ResponseDecoder};
use crate::codec::qmp::{self, QmpDecoder, QmpError, QmpMessage};
use crate::plan::{Body, Message, Protocol};

/// What arrived on the control channel.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlEvent {
    /// The VMM has greeted: messages can be sent.
    Up,
    /// The reply to a message.
    Reply(Message, ControlReply),
    /// An event that the VMM sent unasked.
    Event(QmpMessage),
    /// The channel is broken, and unanswered messages stay unanswered.
    Lost(Option<QmpError>),
}

/// The client of one VMM's control channel.
///
/// # Driving
///
/// 1. While the VMM starts, try to connect until it works, and call
///    `handle_connected`. The channel is usable once
///    `is_up` is true; QMP needs a greeting for that.
/// 2. `send` messages. While
///    `wants_connection` is true, connect again.
/// 3. Write from `outgoing` to the stream, and remove what it took.
/// 4. Hand in what was read, or `handle_eof`, and close the stream when
///    `is_connected` is no longer true.
/// 5. Take events from [`poll_event`](ControlClient::poll_event) until `None`.
#[derive(Debug)]
pub struct ControlClient {
    protocol: Protocol,
    link: Link,
    outgoing: VecDeque<u8>,
    next_id: u64,
    /// QMP: sent and not answered. HTTP: the first is being exchanged, the others wait.
    pending: VecDeque<(u64, Message)>,
    up: bool,
    events: VecDeque<ControlEvent>,
}

/// The connection, as the client sees it.
#[derive(Debug)]
enum Link {
    Closed,
    Qmp(QmpDecoder),
    Http(ResponseDecoder),
}

impl ControlClient {
    /// A client that is not connected.
    pub const fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            link: Link::Closed,
            outgoing: VecDeque::new(),
            next_id: 0,
            pending: VecDeque::new(),
            up: false,
            events: VecDeque::new(),
        }
    }

    /// Sends a message, now or when those before it are answered. Without a connection for QMP the
    /// reply is [`ControlReply::Broken`].
    pub(crate) fn send(&mut self, message: Message) {
        let id = self.next_id;
        self.next_id += 1;
        match (&message.body, &self.link) {
            (Body::Qmp { execute, arguments }, Link::Qmp(_)) => {
                self.outgoing.extend(&qmp::encode_command(id, execute, arguments.as_ref()));
                self.pending.push_back((id, message));
            }
            (Body::Qmp { .. }, _) => {
                let broken = ControlReply::Broken("it closed its control channel".into());
                self.events.push_back(ControlEvent::Reply(message, broken));
            }
            (Body::Http { .. }, _) => self.pending.push_back((id, message)),
        }
    }

    /// Whether an HTTP exchange waits for a connection.
    pub(crate) fn wants_connection(&self) -> bool {
        matches!(self.link, Link::Closed)
            && self.pending.front().is_some_and(|(_, m)| matches!(m.body, Body::Http { .. }))
    }

    /// A connection was made. `false` when no exchange needs it and the driver should close it: with
    /// HTTP the first one only shows that the VMM listens.
    pub(crate) fn handle_connected(&mut self) -> bool {
        if self.protocol == Protocol::Qmp {
            self.link = Link::Qmp(QmpDecoder::new());
            return true;
        }
        self.up = true;
        let Some(request) = self.pending.front().and_then(|(_, message)| request(message)) else {
            return false;
        };
        self.outgoing = request.encode().into();
        self.link = Link::Http(ResponseDecoder::new(MAX_HTTP_BODY));
        true
    }

    /// The connection for an HTTP exchange could not be made.
    pub(crate) fn handle_connect_failed(&mut self, why: String) {
        self.answer(ControlReply::Broken(why));
    }

    /// Whether a connection is in use.
    pub(crate) const fn is_connected(&self) -> bool {
        !matches!(self.link, Link::Closed)
    }

    /// Whether the VMM takes messages, as far as is known.
    pub(crate) const fn is_up(&self) -> bool {
        self.up
    }

    /// The bytes that wait to be written to the stream. The driver removes from the front what the
    /// stream took, or all where the stream has failed: its end is seen by reading.
    pub(crate) fn outgoing(&mut self) -> &mut VecDeque<u8> {
        &mut self.outgoing
    }

    /// Takes bytes that were read from the stream.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        match &mut self.link {
            Link::Closed => {}
            Link::Qmp(decoder) => {
                if let Err(error) = decoder.handle_bytes(bytes) {
                    return self.lose(Some(error));
                }
                while let Link::Qmp(decoder) = &mut self.link {
                    match decoder.poll_message() {
                        Ok(Some(message)) => self.take_message(message),
                        Ok(None) => return,
                        Err(error) => self.lose(Some(error)),
                    }
                }
            }
            Link::Http(response) => {
                let outcome = response.handle_bytes(bytes);
                self.poll_http(outcome);
            }
        }
    }

    /// The stream has ended.
    pub(crate) fn handle_eof(&mut self) {
        match &mut self.link {
            Link::Closed => {}
            Link::Qmp(_) => self.lose(None),
            Link::Http(response) => {
                let outcome = response.handle_eof();
                self.poll_http(outcome);
            }
        }
    }

    /// The stream cannot be used any more, for a reason on this side.
    pub(crate) fn handle_lost(&mut self) {
        self.lose(None);
    }

    /// What arrived, oldest first.
    pub fn poll_event(&mut self) -> Option<ControlEvent> {
        self.events.pop_front()
    }

    fn take_message(&mut self, message: QmpMessage) {
        let (id, reply) = match message {
            QmpMessage::Greeting { .. } => {
                self.up = true;
                self.events.push_back(ControlEvent::Up);
                return;
            }
            QmpMessage::Return { id, .. } => (id, ControlReply::Qmp),
            QmpMessage::Error { id, class, desc } => (id, ControlReply::QmpError { class, desc }),
            event => {
                self.events.push_back(ControlEvent::Event(event));
                return;
            }
        };
        // A reply without an id belongs to the oldest message: QMP answers in order.
        let place = match id {
            Some(id) => self.pending.iter().position(|(pending, _)| *pending == id),
            None => Some(0),
        };
        if let Some((_, message)) = place.and_then(|place| self.pending.remove(place)) {
            self.events.push_back(ControlEvent::Reply(message, reply));
        }
    }

    /// Looks for a whole response. At the end of the stream the decoder has one or an error.
    fn poll_http(&mut self, outcome: Result<(), HttpError>) {
        let Link::Http(decoder) = &mut self.link else { return };
        let reply = match (outcome, decoder.poll_response()) {
            (Err(error), _) => ControlReply::Broken(error.to_string()),
            (Ok(()), None) => return,
            (Ok(()), Some(response)) => ControlReply::Http {
                status: response.status,
                body: String::from_utf8_lossy(&response.body).into_owned(),
            },
        };
        self.answer(reply);
    }

    /// Ends the HTTP exchange. The next one gets a connection of its own.
    fn answer(&mut self, reply: ControlReply) {
        self.link = Link::Closed;
        self.outgoing.clear();
        if let Some((_, message)) = self.pending.pop_front() {
            self.events.push_back(ControlEvent::Reply(message, reply));
        }
    }

    fn lose(&mut self, error: Option<QmpError>) {
        self.link = Link::Closed;
        self.outgoing.clear();
        self.pending.clear();
        self.events.push_back(ControlEvent::Lost(error));
    }
}

/// The HTTP request that carries a message.
fn request(message: &Message) -> Option<Request> {
    let Body::Http { method, path, body } = &message.body else { return None };
    let method = match *method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        _ => Method::Put,
    };
    let request = Request::new(method, path);
    Some(match body {
        Some(body) => request.with_json(body),
        None => request,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const STOP: Message = Message::qmp("stop", "quit");
    const PING: Message = Message::http("ping", "GET", "/ping", None);

    fn events(client: &mut ControlClient) -> Vec<ControlEvent> {
        core::iter::from_fn(|| client.poll_event()).collect()
    }

    fn sent(client: &mut ControlClient) -> String {
        let all: Vec<u8> = client.outgoing().drain(..).collect();
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn qmp_greeting_cut_anywhere_brings_it_up() {
        let greeting = b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":9,\"minor\":0,\"micro\":0}},\"capabilities\":[]}}\r\n";
        for cut in 0..greeting.len() {
            let mut client = ControlClient::new(Protocol::Qmp);
            assert!(client.handle_connected());
            client.handle_bytes(&greeting[..cut]);
            assert!(!client.is_up(), "{cut}");
            client.handle_bytes(&greeting[cut..]);
            assert!(client.is_up());
            assert_eq!(events(&mut client), [ControlEvent::Up]);
        }
    }

    #[test]
    fn qmp_replies_find_their_message() {
        let mut client = ControlClient::new(Protocol::Qmp);
        client.handle_connected();
        for message in [STOP, Message::qmp("go", "cont"), Message::qmp("ask", "powerdown")] {
            client.send(message);
        }
        assert_eq!(sent(&mut client).lines().count(), 3);
        client.handle_bytes(
            b"{\"return\":{},\"id\":1}\n{\"error\":{\"class\":\"C\",\"desc\":\"d\"}}\n",
        );
        client.handle_bytes(b"{\"return\":{},\"id\":1}\n{\"return\":{},\"id\":2}\n");
        let replies: Vec<_> = events(&mut client)
            .into_iter()
            .map(|event| match event {
                ControlEvent::Reply(message, reply) => (message.purpose, reply),
                other => panic!("{other:?}"),
            })
            .collect();
        let error = ControlReply::QmpError { class: "C".into(), desc: "d".into() };
        assert_eq!(
            replies,
            [("go", ControlReply::Qmp), ("stop", error), ("ask", ControlReply::Qmp)]
        );
    }

    #[test]
    fn qmp_nonsense_loses_the_channel_for_good() {
        let mut client = ControlClient::new(Protocol::Qmp);
        client.handle_connected();
        client.send(STOP);
        client.handle_bytes(b"nonsense\n");
        assert!(matches!(events(&mut client)[..], [ControlEvent::Lost(Some(_))]));
        assert!(!client.is_connected());
        assert_eq!(sent(&mut client), "");
        client.send(STOP);
        assert!(matches!(
            events(&mut client)[..],
            [ControlEvent::Reply(_, ControlReply::Broken(_))]
        ));
    }

    #[test]
    fn http_exchanges_one_at_a_time() {
        let mut client = ControlClient::new(Protocol::Http);
        assert!(!client.handle_connected(), "it listens");
        assert!(client.is_up() && !client.wants_connection());
        client.send(PING);
        client.send(PING);
        for _ in 0..2 {
            assert!(client.wants_connection());
            assert!(client.handle_connected());
            assert!(!client.wants_connection(), "one exchange at a time");
            assert!(sent(&mut client).starts_with("GET /ping HTTP/1.1\r\n"));
            client.handle_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{");
            assert_eq!(events(&mut client), []);
            client.handle_bytes(b"}");
            let reply = ControlReply::Http { status: 200, body: "{}".into() };
            assert_eq!(events(&mut client), [ControlEvent::Reply(PING, reply)]);
            assert!(!client.is_connected());
        }
        assert!(!client.wants_connection());
    }

    #[test]
    fn http_failures_answer_the_message() {
        let broken = |client: &mut ControlClient| match &events(client)[..] {
            [ControlEvent::Reply(_, ControlReply::Broken(why))] => why.clone(),
            other => panic!("{other:?}"),
        };
        let mut client = ControlClient::new(Protocol::Http);
        client.send(PING);
        client.handle_connect_failed("refused".into());
        assert_eq!(broken(&mut client), "refused");
        client.send(PING);
        client.handle_connected();
        client.handle_eof();
        assert!(broken(&mut client).contains("connection closed before the response"));
        client.send(PING);
        client.handle_connected();
        client.handle_bytes(b"SMTP\r\n\r\n");
        assert_ne!(broken(&mut client), "");
        assert!(!client.is_connected() && !client.wants_connection());
    }
}
