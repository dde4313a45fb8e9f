//! [`SimHypervisor`]: the hypervisor's end of the control channel, the event pipe and standard error.
//!
//! It decodes commands and encodes replies and events; the schedule decides when, and whether.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::json;

use super::setup::{EVENT_LINE, EventRoute, NOT_YET};
use crate::backend::{ControlReply, GuestEvent};
use crate::plan::{Body, Message, Protocol};
use crate::sim::{QmpCommand, QmpServer, event_name};

/// A stream between a process and the driver.
#[derive(Debug, Default)]
pub(super) struct SimLink {
    /// The driver holds its end.
    pub(super) open: bool,
    /// What the driver has not read yet.
    pub(super) inbound: VecDeque<u8>,
    /// The other end is closed: the end follows the bytes.
    pub(super) ended: bool,
    written: u64,
    read: u64,
    /// What the bytes mean up to this offset.
    marks: VecDeque<(u64, Mark)>,
}

/// The meaning of bytes on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A guest event.
    Guest(GuestEvent),
    /// The oldest of [`SimHypervisor::replies`].
    Reply,
    /// The power button was refused.
    ButtonRefused,
    /// The link is unusable from here on.
    Garbage,
}

impl SimLink {
    pub(super) fn opened() -> Self {
        Self { open: true, ..Self::default() }
    }

    /// The process writes these bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.open && !self.ended {
            self.inbound.extend(bytes);
            self.written += bytes.len() as u64;
        }
    }

    /// Gives what was written last this meaning.
    pub(super) fn mark(&mut self, mark: Mark) {
        if self.open && !self.ended {
            self.marks.push_back((self.written, mark));
        }
    }

    /// The driver reads `n` bytes. Returns them, and the meaning of those that are complete.
    pub(super) fn read(&mut self, n: usize) -> (Vec<u8>, Vec<Mark>) {
        let bytes: Vec<u8> = self.inbound.drain(..n).collect();
        self.read += n as u64;
        let mut marks = Vec::new();
        while let Some((_, mark)) = self.marks.pop_front_if(|(end, _)| *end <= self.read) {
            marks.push(mark);
            if mark == Mark::Garbage {
                self.marks.clear();
            }
        }
        (bytes, marks)
    }

    /// The driver closes its end.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }
}

/// What the hypervisor replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SentReply {
    Accepted,
    Refused(String),
    Status(u16),
}

impl SentReply {
    /// Whether the client received this reply.
    pub(super) fn is(&self, reply: &ControlReply) -> bool {
        match (self, reply) {
            (Self::Accepted, ControlReply::Qmp) => true,
            (Self::Refused(sent), ControlReply::QmpError { desc, .. }) => sent == desc,
            (Self::Status(sent), ControlReply::Http { status, .. }) => sent == status,
            _ => false,
        }
    }
}

/// How a reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Accept,
    Refuse,
    /// QMP: without the id. HTTP: with a status that means the same.
    RefuseWithoutId,
    NotYet,
}

/// The hypervisor's end of its channels.
#[derive(Debug)]
pub(super) struct SimHypervisor {
    protocol: Protocol,
    pub(super) route: EventRoute,
    qmp: QmpServer,
    request: Vec<u8>,
    /// The commands that were received and not answered.
    pub(super) commands: VecDeque<QmpCommand>,
    /// The replies that were sent and not read yet.
    pub(super) replies: VecDeque<(String, SentReply)>,
    /// A command was dropped: a reply without an id would belong to it.
    pub(super) has_dropped: bool,
    /// How often a connection is refused before the sockets exist.
    pub(super) refusals_left: usize,
    answers: u64,
}

impl SimHypervisor {
    pub(super) fn new(protocol: Protocol, route: EventRoute) -> Self {
        Self {
            protocol,
            route,
            qmp: QmpServer::new(),
            request: Vec::new(),
            commands: VecDeque::new(),
            replies: VecDeque::new(),
            has_dropped: false,
            refusals_left: 0,
            answers: 0,
        }
    }

    /// The driver connects to the control channel.
    pub(super) fn accept_connection(&mut self, control: &mut SimLink) {
        *control = SimLink::opened();
        self.forget_connection();
        if self.protocol == Protocol::Qmp {
            self.qmp = QmpServer::new();
            control.write(&self.qmp.take_outgoing());
        }
    }

    /// The connection is gone, and the commands on it.
    pub(super) fn forget_connection(&mut self) {
        self.request.clear();
        self.commands.clear();
        self.replies.clear();
        self.has_dropped = false;
    }

    /// Takes bytes of the client.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) {
        match self.protocol {
            Protocol::Qmp => {
                self.qmp.handle_bytes(bytes);
                self.commands.extend(core::iter::from_fn(|| self.qmp.poll_command()));
            }
            Protocol::Http => {
                self.request.extend_from_slice(bytes);
                self.commands.extend(parse_request(&self.request));
                if !self.commands.is_empty() {
                    self.request.clear();
                }
            }
        }
    }

    /// Answers the command at this place in the queue. Returns its name.
    pub(super) fn answer(&mut self, control: &mut SimLink, place: usize, manner: Manner) -> String {
        let without_id = manner == Manner::RefuseWithoutId;
        let manner = if without_id && self.has_dropped { Manner::Refuse } else { manner };
        let place = if without_id { 0 } else { place };
        let Some(command) = self.commands.remove(place) else { return String::new() };
        self.answers += 1;
        let refusal = match manner {
            Manner::NotYet => NOT_YET.to_string(),
            _ => format!("refusal {}", self.answers),
        };
        let reply = match (self.protocol, manner) {
            (Protocol::Qmp, Manner::Accept) => {
                self.qmp.accept(&command);
                SentReply::Accepted
            }
            (Protocol::Qmp, Manner::RefuseWithoutId) => {
                let error = json!({"error": {"class": "GenericError", "desc": refusal}});
                control.write(format!("{error}\r\n").as_bytes());
                SentReply::Refused(refusal)
            }
            (Protocol::Qmp, Manner::Refuse | Manner::NotYet) => {
                self.qmp.reject(&command, &refusal);
                SentReply::Refused(refusal)
            }
            (Protocol::Http, manner) => {
                let status = match manner {
                    Manner::Accept if self.answers.is_multiple_of(2) => 204,
                    Manner::Accept => 200,
                    Manner::Refuse => 400,
                    Manner::RefuseWithoutId => 500,
                    Manner::NotYet => 503,
                };
                control.write(&response(status, &refusal));
                SentReply::Status(status)
            }
        };
        control.write(&self.qmp_outgoing());
        if control.open && !control.ended {
            self.replies.push_back((command.execute.clone(), reply));
            control.mark(Mark::Reply);
        }
        command.execute
    }

    /// Sends a reply to a command that the client did not send.
    pub(super) fn answer_nothing(&self, control: &mut SimLink) {
        if self.protocol == Protocol::Qmp {
            control.write(b"{\"return\": {}, \"id\": 987654321}\r\n{\"timestamp\": 1}\r\n");
        }
    }

    /// Reports an event of the guest on its route.
    pub(super) fn send_event(
        &mut self,
        control: &mut SimLink,
        events: &mut SimLink,
        stderr: &mut SimLink,
        event: GuestEvent,
    ) {
        let name = event_name(event);
        let link = match self.route {
            EventRoute::Control => {
                self.qmp.send_event(name);
                control.write(&self.qmp_outgoing());
                control
            }
            EventRoute::Pipe => {
                events.write(format!("{{\n  \"event\": \"{name}\"\n}}").as_bytes());
                events
            }
            EventRoute::Stderr => {
                stderr.write(format!("\n{EVENT_LINE}{name}\n").as_bytes());
                stderr
            }
        };
        link.mark(Mark::Guest(event));
    }

    fn qmp_outgoing(&mut self) -> Vec<u8> {
        match self.protocol {
            // The greeting of an unused server is not sent.
            Protocol::Http => Vec::new(),
            Protocol::Qmp => self.qmp.take_outgoing(),
        }
    }
}

/// The name by which a message arrives at the hypervisor.
pub(super) fn name(message: &Message) -> &'static str {
    match &message.body {
        Body::Qmp { execute, .. } => execute,
        Body::Http { path, .. } => path,
    }
}

/// Reads `METHOD PATH HTTP/1.1`, headers and the body of `Content-Length`.
fn parse_request(bytes: &[u8]) -> Option<QmpCommand> {
    let head_end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = core::str::from_utf8(&bytes[..head_end]).ok()?;
    let path = head.split(' ').nth(1)?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    (bytes.len() >= head_end + 4 + length)
        .then(|| QmpCommand { execute: path.into(), id: json!(null) })
}

fn response(status: u16, body: &str) -> Vec<u8> {
    let text = match status {
        204 => "HTTP/1.1 204 \r\nServer: Sim\r\n\r\n".into(),
        500 => format!(
            "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
        _ => format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
    };
    text.into_bytes()
}
