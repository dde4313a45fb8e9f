//! QMP, QEMU's control protocol: JSON objects, one per line, in both directions.
//!
//! QEMU sends a greeting, the client sends `qmp_capabilities`. Then each command gets one return or error
//! with its id, and events may arrive at any time. This module encodes and decodes messages; it does not
//! decide which command to send.
//!
//! [`encode_command`] returns the bytes to send. For the received bytes:
//!
//! 1. Pass every read to [`handle_bytes`](QmpDecoder::handle_bytes).
//! 2. Call [`poll_message`](QmpDecoder::poll_message) until it returns `None`. Each call decodes
//!    one line, so the caller controls the work per call.
//!
//! ```
//! use capsa_proto::codec::qmp::{QmpDecoder, QmpMessage, encode_command};
//! use serde_json::json;
//!
//! assert_eq!(encode_command(7, "stop", None), b"{\"execute\":\"stop\",\"id\":7}\n");
//!
//! let mut decoder = QmpDecoder::new();
//! decoder.handle_bytes(b"{\"return\": {}, \"id\": 7}\r\n{\"event\"")?;
//! let answer = QmpMessage::Return { id: Some(7), value: json!({}) };
//! assert_eq!(decoder.poll_message()?, Some(answer));
//! assert_eq!(decoder.poll_message()?, None);
//! # Ok::<(), capsa_proto::codec::qmp::QmpError>(())
//! ```

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Value};

use super::backlog::Backlog;
use super::{MAX_BACKLOG, MAX_QMP_LINE};

#[cfg(test)]
mod tests;

/// A message from QEMU.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum QmpMessage {
    /// The first message on a connection.
    Greeting {
        /// QEMU's version: major, minor, micro.
        version: (u64, u64, u64),
    },
    /// A command succeeded.
    Return {
        /// The id of the command, if it had one.
        id: Option<u64>,
        /// The returned value, often `{}`.
        value: Value,
    },
    /// A command failed.
    Error {
        /// The id of the command; `None` if QEMU could not parse the command.
        id: Option<u64>,
        /// The error class, mostly `GenericError`.
        class: String,
        /// The description in English.
        desc: String,
    },
    /// An event.
    Event {
        /// The name, e.g. `SHUTDOWN`.
        name: String,
        /// The data; `Null` if there is none.
        data: Value,
        /// Microseconds since 1970 on the host's clock; `None` if QEMU has no time.
        at_micros: Option<u64>,
    },
    /// Another object. A newer QEMU may send new kinds of messages.
    Other(Value),
}

/// Why the messages cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// A line is longer than `MAX_QMP_LINE`.
    #[error("QMP: line longer than {max} bytes")]
    LineTooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// More than `MAX_BACKLOG` bytes were not polled.
    #[error("QMP: more than {max} bytes waiting to be polled")]
    BacklogFull {
        /// Bytes allowed.
        max: usize,
    },
    /// A line is not UTF-8.
    #[error("QMP: line is not UTF-8, byte {at}")]
    NotUtf8 {
        /// Offset of the first bad byte in the line.
        at: usize,
    },
    /// A line is not a JSON object, or nests more than 127 deep.
    #[error("QMP: line is not a JSON object")]
    NotAnObject,
    /// A greeting, return, error or event lacks a member or has one of the wrong type.
    #[error("QMP: malformed {what}")]
    Malformed {
        /// The malformed part.
        what: &'static str,
    },
}

/// Encodes a command as one line, including its end.
///
/// ```
/// # use capsa_proto::codec::qmp::encode_command;
/// let arguments = serde_json::json!({"id": "net0"});
/// let line = encode_command(2, "device_del", Some(&arguments));
/// assert_eq!(line, b"{\"arguments\":{\"id\":\"net0\"},\"execute\":\"device_del\",\"id\":2}\n");
/// ```
pub fn encode_command(id: u64, execute: &str, arguments: Option<&Value>) -> Vec<u8> {
    let mut command = Map::new();
    command.insert("execute".to_string(), execute.into());
    command.insert("id".to_string(), id.into());
    if let Some(arguments) = arguments {
        command.insert("arguments".to_string(), arguments.clone());
    }
    let mut line = serde_json::to_vec(&command).expect("a JSON value can always be written");
    line.push(b'\n');
    line
}

/// Decodes QMP lines from any number of reads.
///
/// Lines end in LF or CRLF, empty ones are skipped. Keeps at most `MAX_BACKLOG` bytes.
#[derive(Debug)]
pub struct QmpDecoder {
    backlog: Backlog,
    /// Bytes at the start of the backlog that are known to hold no line end.
    searched: usize,
    max_line: usize,
    failed: Option<QmpError>,
}

impl QmpDecoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Self {
        Self::with_max_line(MAX_QMP_LINE)
    }

    pub(super) fn with_max_line(max_line: usize) -> Self {
        Self { backlog: Backlog::default(), searched: 0, max_line, failed: None }
    }

    /// Takes received bytes, which are decoded when polled.
    ///
    /// # Errors
    ///
    /// [`QmpError::BacklogFull`] when the driver does not poll, or the earlier error.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.backlog.push(bytes) => Ok(()),
            None => Err(self.fail(QmpError::BacklogFull { max: MAX_BACKLOG })),
        }
    }

    /// Decodes the next line; `None` if there is no complete line.
    ///
    /// # Errors
    ///
    /// When the line is too long or is not a QMP message. The error is final; the messages before it were
    /// returned.
    pub fn poll_message(&mut self) -> Result<Option<QmpMessage>, QmpError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.decode_line().map_err(|error| self.fail(error)),
        }
    }

    fn decode_line(&mut self) -> Result<Option<QmpMessage>, QmpError> {
        loop {
            let pending = self.backlog.pending();
            let newline = memchr::memchr(b'\n', &pending[self.searched..]);
            let end = newline.map_or(pending.len(), |i| self.searched + i);
            if end > self.max_line {
                return Err(QmpError::LineTooLong { max: self.max_line });
            }
            if newline.is_none() {
                self.searched = end;
                return Ok(None);
            }
            let line = pending[..end].trim_ascii();
            let message = if line.is_empty() { None } else { Some(parse_line(line)?) };
            self.backlog.consume(end + 1);
            self.searched = 0;
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    fn fail(&mut self, error: QmpError) -> QmpError {
        self.backlog.clear();
        *self.failed.insert(error)
    }
}

impl Default for QmpDecoder {
    fn default() -> Self {
        Self::new()
    }
}

fn parse_line(line: &[u8]) -> Result<QmpMessage, QmpError> {
    let text = core::str::from_utf8(line)
        .map_err(|error| QmpError::NotUtf8 { at: error.valid_up_to() })?;
    let mut object: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| QmpError::NotAnObject)?;
    let kinds = ["QMP", "return", "error", "event"];
    let mut present = kinds.into_iter().filter(|kind| object.contains_key(*kind));
    let (kind, second) = (present.next(), present.next());
    if second.is_some() {
        return Err(malformed("message: it has two types"));
    }
    let Some((kind, body)) = kind.and_then(|kind| Some((kind, object.remove(kind)?))) else {
        return Ok(QmpMessage::Other(Value::Object(object)));
    };
    match kind {
        "QMP" => parse_greeting(&body),
        "return" => Ok(QmpMessage::Return { id: parse_id(&object)?, value: body }),
        "error" => parse_error(&object, &body),
        _ => parse_event(object, body),
    }
}

fn parse_greeting(body: &Value) -> Result<QmpMessage, QmpError> {
    let part = |name| {
        body["version"]["qemu"][name].as_u64().ok_or_else(|| malformed("version in the greeting"))
    };
    Ok(QmpMessage::Greeting { version: (part("major")?, part("minor")?, part("micro")?) })
}

fn parse_error(object: &Map<String, Value>, body: &Value) -> Result<QmpMessage, QmpError> {
    let text = |name| {
        body[name].as_str().map(ToString::to_string).ok_or_else(|| malformed("error of a command"))
    };
    Ok(QmpMessage::Error { id: parse_id(object)?, class: text("class")?, desc: text("desc")? })
}

fn parse_event(mut object: Map<String, Value>, body: Value) -> Result<QmpMessage, QmpError> {
    let Value::String(name) = body else { return Err(malformed("name of an event")) };
    let at_micros = object.get("timestamp").and_then(|time| {
        // Both are -1 where the host's clock could not be read (qapi/qmp-event.c).
        let seconds = time["seconds"].as_u64()?.checked_mul(1_000_000)?;
        seconds.checked_add(time["microseconds"].as_u64()?)
    });
    let data = object.remove("data").unwrap_or_default();
    Ok(QmpMessage::Event { name, data, at_micros })
}

/// The ids of our commands are numbers, so another id is an error.
fn parse_id(object: &Map<String, Value>) -> Result<Option<u64>, QmpError> {
    match object.get("id") {
        None => Ok(None),
        Some(id) => id.as_u64().map(Some).ok_or_else(|| malformed("id")),
    }
}

fn malformed(what: &'static str) -> QmpError {
    QmpError::Malformed { what }
}
