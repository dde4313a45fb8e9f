//! JSON objects one after another, with nothing or only white space between them.
//!
//! cloud-hypervisor's event monitor writes its events like this, pretty-printed over several lines
//! and without a separator, so neither lines nor a length say where one ends. The decoder counts
//! brackets outside of strings to find the end, and leaves the judgement to `serde_json`.
//!
//! 1. Give every read to [`handle_bytes`](JsonStream::handle_bytes).
//! 2. Call [`poll_value`](JsonStream::poll_value) until it says `None`; each call decodes one object.
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

/// Why the stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonStreamError {
    /// Something other than an object stands where one should begin.
    #[error("JSON stream: byte {found:#04x} where an object should begin")]
    NotAnObject {
        /// The byte that stands there.
        found: u8,
    },
    /// What looked like an object is not one.
    #[error("JSON stream: malformed object, line {line} column {column}")]
    Malformed {
        /// Line in the object, from 1.
        line: usize,
        /// Column in that line, from 1.
        column: usize,
    },
    /// An object is longer than [`MAX_JSON_OBJECT`].
    #[error("JSON stream: object longer than {max} bytes")]
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// An object nests deeper than [`MAX_JSON_DEPTH`].
    #[error("JSON stream: object nested deeper than {max}")]
    TooDeep {
        /// Levels allowed.
        max: usize,
    },
    /// More than [`MAX_BACKLOG`] bytes were handed in and not polled.
    #[error("JSON stream: more than {max} bytes waiting to be polled")]
    BacklogFull {
        /// Bytes allowed.
        max: usize,
    },
}

/// Decodes objects out of however many reads. Looks at each byte once, keeps at most
/// [`MAX_BACKLOG`] of them.
#[derive(Debug)]
pub struct JsonStream {
    backlog: Backlog,
    scan: Scan,
    max_object: usize,
    failed: Option<JsonStreamError>,
}

/// Where the search for the end of the current object stands.
#[derive(Debug, Default)]
struct Scan {
    /// Bytes of the object that were looked at.
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

    /// Takes bytes that came, any number of them, to be decoded when polled.
    ///
    /// # Errors
    ///
    /// [`JsonStreamError::BacklogFull`] when nobody polls, or the earlier error.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), JsonStreamError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.backlog.push(bytes) => Ok(()),
            None => Err(self.fail(JsonStreamError::BacklogFull { max: MAX_BACKLOG })),
        }
    }

    /// Decodes the next object; `None` when no complete one is there.
    ///
    /// # Errors
    ///
    /// When what comes next is no JSON object or passes a limit; the same error from then on. The
    /// objects before it were given out.
    pub fn poll_value(&mut self) -> Result<Option<Value>, JsonStreamError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.decode().map_err(|error| self.fail(error)),
        }
    }

    /// Whether the stream could end here: no object has begun and not ended.
    ///
    /// Meaningful after polling until `None`.
    pub fn is_between_objects(&self) -> bool {
        self.failed.is_none() && self.scan.seen == 0
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
    /// Looks at the bytes of `object` not seen yet; `true` when the last one seen ends it.
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
                    // Whether it is the matching kind of bracket is for serde_json to say.
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
    fn objects_need_no_separator() {
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
    fn what_is_no_object_is_refused_behind_the_good_ones() {
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
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
        assert_eq!(decode(nested(MAX_JSON_DEPTH).as_bytes()).1, None);
        let too_deep = JsonStreamError::TooDeep { max: MAX_JSON_DEPTH };
        assert_eq!(decode(nested(MAX_JSON_DEPTH + 1).as_bytes()).1, Some(too_deep));
        assert_eq!(decode("{\"a\":".repeat(100_000).as_bytes()).1, Some(too_deep));
    }

    #[test]
    fn object_of_exactly_the_maximum_is_taken() {
        let object = |len: usize| -> String { format!("{{\"a\":\"{}\"}}", "x".repeat(len - 8)) };
        assert_eq!(decode(object(MAX_JSON_OBJECT).as_bytes()).0.len(), 1);
        let too_long = Some(JsonStreamError::TooLong { max: MAX_JSON_OBJECT });
        assert_eq!(decode(object(MAX_JSON_OBJECT + 1).as_bytes()), (vec![], too_long));
        let blanks = " ".repeat(MAX_JSON_OBJECT + 1);
        assert_eq!(decode(blanks.as_bytes()), (vec![], None), "blanks are no part of an object");
    }

    #[test]
    fn the_end_of_a_stream_can_be_told_from_a_cut() {
        let mut stream = JsonStream::new();
        stream.handle_bytes(b"{} ").unwrap();
        while stream.poll_value().unwrap().is_some() {}
        assert!(stream.is_between_objects());
        stream.handle_bytes(b"{").unwrap();
        assert_eq!(stream.poll_value(), Ok(None));
        assert!(!stream.is_between_objects());
    }
}
