//! A stream of JSON objects with nothing or only white space between them.
//!
//! cloud-hypervisor's event monitor writes its events like this, pretty-printed over several lines and
//! without a separator, so neither lines nor a length delimit them. The decoder counts brackets outside
//! of strings to find the end of an object; `serde_json` validates the object.
//!
//! 1. Pass every read to [`handle_bytes`](JsonStream::handle_bytes).
//! 2. Call [`poll_value`](JsonStream::poll_value) until it returns `None`; each call decodes one object.
//!
//! ```
//! use capsa_proto::codec::json_stream::JsonStream;
//! use serde_json::json;
//!
//! let mut stream = JsonStream::new();
//! stream.handle_bytes(b"{\n  \"event\": \"booting\"\n}{\n  \"event\": \"boo")?;
//! assert_eq!(stream.poll_value()?, Some(json!({"event": "booting"})));
//! assert_eq!(stream.poll_value()?, None);
//! stream.handle_bytes(b"ted\"\n}")?;
//! assert_eq!(stream.poll_value()?, Some(json!({"event": "booted"})));
//! # Ok::<(), capsa_proto::codec::json_stream::JsonStreamError>(())
//! ```

use serde_json::Value;

use super::backlog::Backlog;
use super::{MAX_BACKLOG, MAX_JSON_DEPTH, MAX_JSON_OBJECT};

/// Why a stream cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonStreamError {
    /// The text between objects is not white space.
    #[error("JSON stream: byte {found:#04x} where an object should start")]
    NotAnObject {
        /// The byte.
        found: u8,
    },
    /// An object is not valid JSON.
    #[error("JSON stream: malformed object, line {line} column {column}")]
    Malformed {
        /// Line in the object, from 1.
        line: usize,
        /// Column in that line, from 1.
        column: usize,
    },
    /// An object is longer than `MAX_JSON_OBJECT`.
    #[error("JSON stream: object longer than {max} bytes")]
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// An object nests deeper than `MAX_JSON_DEPTH`.
    #[error("JSON stream: object nested deeper than {max}")]
    TooDeep {
        /// Levels allowed.
        max: usize,
    },
    /// More than `MAX_BACKLOG` bytes were not polled.
    #[error("JSON stream: more than {max} bytes waiting to be polled")]
    BacklogFull {
        /// Bytes allowed.
        max: usize,
    },
}

/// Decodes JSON objects from any number of reads. Reads each byte once and keeps at most
/// `MAX_BACKLOG` bytes.
#[derive(Debug)]
pub struct JsonStream {
    backlog: Backlog,
    scan: Scan,
    max_object: usize,
    failed: Option<JsonStreamError>,
}

/// The state of the search for the end of the current object.
#[derive(Debug, Default)]
struct Scan {
    /// The bytes of the object that were read.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonStream {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::with_max_object(MAX_JSON_OBJECT)
    }

    pub(super) fn with_max_object(max_object: usize) -> Self {
        Self { backlog: Backlog::default(), scan: Scan::default(), max_object, failed: None }
    }

    /// Takes received bytes, which are decoded when polled.
    ///
    /// # Errors
    ///
    /// [`JsonStreamError::BacklogFull`] when the driver does not poll, or the earlier error.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), JsonStreamError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.backlog.push(bytes) => Ok(()),
            None => Err(self.fail(JsonStreamError::BacklogFull { max: MAX_BACKLOG })),
        }
    }

    /// Decodes the next object; `None` if there is no complete object.
    ///
    /// # Errors
    ///
    /// When the next object is invalid or exceeds a limit. The error is final; the objects before it were
    /// returned.
    pub fn poll_value(&mut self) -> Result<Option<Value>, JsonStreamError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.decode().map_err(|error| self.fail(error)),
        }
    }

    fn decode(&mut self) -> Result<Option<Value>, JsonStreamError> {
        if self.scan.seen == 0 {
            let pending = self.backlog.pending();
            let blanks = pending.iter().take_while(|b| b" \t\r\n".contains(b)).count();
            match pending.get(blanks) {
                Some(b'{') | None => self.backlog.consume(blanks),
                Some(&found) => return Err(JsonStreamError::NotAnObject { found }),
            }
        }
        let pending = self.backlog.pending();
        let window = &pending[..pending.len().min(self.max_object)];
        let ended = self.scan.advance(window)?;
        if !ended {
            if pending.len() > self.max_object {
                return Err(JsonStreamError::TooLong { max: self.max_object });
            }
            return Ok(None);
        }
        let object = serde_json::from_slice(&pending[..self.scan.seen]).map_err(|error| {
            JsonStreamError::Malformed { line: error.line(), column: error.column() }
        })?;
        self.backlog.consume(self.scan.seen);
        self.scan = Scan::default();
        Ok(Some(object))
    }

    fn fail(&mut self, error: JsonStreamError) -> JsonStreamError {
        self.backlog.clear();
        *self.failed.insert(error)
    }
}

impl Default for JsonStream {
    fn default() -> Self {
        Self::new()
    }
}

impl Scan {
    /// Reads the unread bytes of `object`. Returns `true` if the last byte read ends it.
    fn advance(&mut self, object: &[u8]) -> Result<bool, JsonStreamError> {
        for &byte in &object[self.seen..] {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' if self.depth == MAX_JSON_DEPTH => {
                    return Err(JsonStreamError::TooDeep { max: MAX_JSON_DEPTH });
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    // `serde_json` checks that the kinds of brackets match.
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;
    use alloc::{format, vec};

    use serde_json::json;

    use super::*;
    use crate::codec::fuzz;

    fn decode(bytes: &[u8]) -> (Vec<Value>, Option<JsonStreamError>) {
        fuzz::json_stream(bytes);
        let mut stream = JsonStream::new();
        stream.handle_bytes(bytes).unwrap();
        let mut values = Vec::new();
        loop {
            match stream.poll_value() {
                Ok(Some(value)) => values.push(value),
                Ok(None) => return (values, None),
                Err(error) => {
                    assert_eq!(stream.poll_value(), Err(error), "sticky");
                    assert_eq!(stream.handle_bytes(b"{}"), Err(error), "sticky");
                    return (values, Some(error));
                }
            }
        }
    }

    #[test]
    fn json_stream_objects_need_no_separator() {
        for (bytes, values) in [
            ("", vec![]),
            (" \r\n\t", vec![]),
            ("{}{}", vec![json!({}), json!({})]),
            (
                "{\n \"a\": [1, {\"b\": null}]\n}\n\n{\"c\":1}",
                vec![json!({"a": [1, {"b": null}]}), json!({"c": 1})],
            ),
            (r#"{"a":"}{\"]\\"}{"b":"\\\""}"#, vec![json!({"a": "}{\"]\\"}), json!({"b": "\\\""})]),
            (r#"{"a":1}{"b"#, vec![json!({"a": 1})]),
        ] {
            assert_eq!(decode(bytes.as_bytes()), (values, None), "{bytes:?}");
        }
    }

    #[test]
    fn json_stream_invalid_object_fails_after_valid() {
        use JsonStreamError::*;
        for (bytes, error) in [
            (&b"{},{}"[..], NotAnObject { found: b',' }),
            (b"{}[]", NotAnObject { found: b'[' }),
            (b"{}\0", NotAnObject { found: 0 }),
            (b"{}{]", Malformed { line: 1, column: 2 }),
            (b"{}{\"a\":\n 1 2}", Malformed { line: 2, column: 4 }),
            (b"{}{\"\xff\":1}", Malformed { line: 1, column: 3 }),
        ] {
            let (values, found) = decode(bytes);
            assert_eq!((values.len(), found), (1, Some(error)), "{bytes:?}");
        }
    }

    #[test]
    fn json_stream_depth_is_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
        assert_eq!(decode(nested(MAX_JSON_DEPTH).as_bytes()).1, None);
        let too_deep = JsonStreamError::TooDeep { max: MAX_JSON_DEPTH };
        assert_eq!(decode(nested(MAX_JSON_DEPTH + 1).as_bytes()).1, Some(too_deep));
        assert_eq!(decode("{\"a\":".repeat(100_000).as_bytes()).1, Some(too_deep));
    }

    #[test]
    fn json_stream_object_of_maximum_size_is_accepted() {
        let object = |len: usize| -> String { format!("{{\"a\":\"{}\"}}", "x".repeat(len - 8)) };
        assert_eq!(decode(object(MAX_JSON_OBJECT).as_bytes()).0.len(), 1);
        let too_long = Some(JsonStreamError::TooLong { max: MAX_JSON_OBJECT });
        assert_eq!(decode(object(MAX_JSON_OBJECT + 1).as_bytes()), (vec![], too_long));
        let blanks = " ".repeat(MAX_JSON_OBJECT + 1);
        assert_eq!(decode(blanks.as_bytes()), (vec![], None), "blanks are not part of an object");
    }
}
