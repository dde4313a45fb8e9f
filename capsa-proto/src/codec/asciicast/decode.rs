//! [`Decoder`]: decodes events from chunks of a file.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::Value;

use super::{CastEvent, CastEventKind, CastHeader, MAX_LINE, RecordedEnd};
use crate::codec::MAX_BACKLOG;
use crate::codec::backlog::Backlog;

/// Why a recording cannot be decoded. Line numbers start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AsciicastError {
    /// The first line is not the header of an asciicast v2 file.
    #[error("asciicast: invalid version 2 header in line 1: {why}")]
    Header {
        /// The reason.
        why: &'static str,
    },
    /// A line is not a valid event.
    #[error("asciicast: invalid event in line {line}: {why}")]
    Event {
        /// The number of the line.
        line: usize,
        /// The reason.
        why: &'static str,
    },
    /// A line is longer than `MAX_LINE`.
    #[error("asciicast: line {line} is longer than {max} bytes")]
    TooLong {
        /// The number of the line.
        line: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// More than `MAX_BACKLOG` bytes were not polled.
    #[error("asciicast: more than {max} bytes waiting to be polled")]
    BacklogFull {
        /// Bytes allowed.
        max: usize,
    },
    /// The file ends before its header, or before an event that was announced.
    #[error("asciicast: the file ends in line {line}")]
    Cut {
        /// The number of the line.
        line: usize,
    },
}

/// Decodes a recording of Capsa or of another program.
///
/// 1. Pass every chunk to [`handle_bytes`](Self::handle_bytes).
/// 2. Call [`poll_event`](Self::poll_event) until it returns `None`.
/// 3. At the end of the file, call [`handle_eof`](Self::handle_eof), and repeat step 2.
///
/// ```
/// use capsa_proto::codec::asciicast::{Decoder, CastEventKind};
///
/// let mut decoder = Decoder::new();
/// decoder.handle_bytes(b"{\"version\": 2, \"width\": 80, \"height\": 24}\n[0.5, \"o\", \"hi")?;
/// assert_eq!(decoder.poll_event()?, None);
/// decoder.handle_bytes(b"\"]\n")?;
/// let event = decoder.poll_event()?.unwrap();
/// assert_eq!((event.at.as_millis(), event.kind), (500, CastEventKind::Output(b"hi".to_vec())));
/// assert_eq!(decoder.header().unwrap().width, 80);
/// # Ok::<(), capsa_proto::codec::asciicast::AsciicastError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    backlog: Backlog,
    /// The bytes of the current line that were read.
    seen: usize,
    /// The number of the current line.
    line: usize,
    max_line: usize,
    header: Option<CastHeader>,
    /// The bytes that were announced for the next event.
    bytes: Option<Vec<u8>>,
    last: Duration,
    at_eof: bool,
    failed: Option<AsciicastError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a file.
    pub fn new() -> Self {
        Self::with_max_line(MAX_LINE)
    }

    pub(in crate::codec) fn with_max_line(max_line: usize) -> Self {
        Self {
            backlog: Backlog::default(),
            seen: 0,
            line: 1,
            max_line,
            header: None,
            bytes: None,
            last: Duration::ZERO,
            at_eof: false,
            failed: None,
        }
    }

    /// Takes a chunk of the file.
    ///
    /// # Errors
    ///
    /// [`AsciicastError::BacklogFull`] when the driver does not poll, or the earlier error.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), AsciicastError> {
        self.check()?;
        if self.backlog.push(bytes) {
            return Ok(());
        }
        Err(self.fail(AsciicastError::BacklogFull { max: MAX_BACKLOG }))
    }

    /// Takes the end of the file. The last line needs no newline.
    ///
    /// # Errors
    ///
    /// The earlier error.
    pub fn handle_eof(&mut self) -> Result<(), AsciicastError> {
        self.check()?;
        self.at_eof = true;
        Ok(())
    }

    /// Decodes the next event. Events of unknown types are skipped, as players do.
    ///
    /// # Errors
    ///
    /// When the file is malformed. The error is final.
    pub fn poll_event(&mut self) -> Result<Option<CastEvent>, AsciicastError> {
        self.check()?;
        while let Some(line) = self.next_line()? {
            let parsed = match (&self.header, line.iter().all(u8::is_ascii_whitespace)) {
                (None, _) => parse_header(&line).map(|header| {
                    self.header = Some(header);
                    None
                }),
                (Some(_), true) => Ok(None),
                (Some(_), false) => self.parse_event(&line),
            };
            match parsed {
                Ok(None) => self.line += 1,
                Ok(event) => {
                    self.line += 1;
                    return Ok(event);
                }
                Err(why) if self.header.is_none() => {
                    return Err(self.fail(AsciicastError::Header { why }));
                }
                Err(why) => {
                    return Err(self.fail(AsciicastError::Event { line: self.line, why }));
                }
            }
        }
        if self.at_eof && (self.header.is_none() || self.bytes.is_some()) {
            return Err(self.fail(AsciicastError::Cut { line: self.line }));
        }
        Ok(None)
    }

    /// The header, once it was decoded.
    pub fn header(&self) -> Option<&CastHeader> {
        self.header.as_ref()
    }

    fn check(&self) -> Result<(), AsciicastError> {
        self.failed.map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: AsciicastError) -> AsciicastError {
        self.failed = Some(error);
        self.backlog.clear();
        error
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, AsciicastError> {
        let pending = self.backlog.pending();
        let end = memchr::memchr(b'\n', &pending[self.seen..]).map(|at| self.seen + at);
        let len = end.unwrap_or(pending.len());
        if len > self.max_line {
            let (line, max) = (self.line, self.max_line);
            return Err(self.fail(AsciicastError::TooLong { line, max }));
        }
        match end {
            None if self.at_eof && len > 0 => {
                let line = pending.to_vec();
                self.backlog.consume(len);
                self.seen = 0;
                Ok(Some(line))
            }
            None => {
                self.seen = len;
                Ok(None)
            }
            Some(end) => {
                let line = pending[..end].to_vec();
                self.backlog.consume(end + 1);
                self.seen = 0;
                Ok(Some(line))
            }
        }
    }

    fn parse_event(&mut self, line: &[u8]) -> Result<Option<CastEvent>, &'static str> {
        let value: Value = serde_json::from_slice(line).map_err(|_| "not JSON")?;
        let Some([at, code, data]) = value.as_array().map(Vec::as_slice) else {
            return Err("not an array of three values");
        };
        let at = at.as_f64().ok_or("the time is not a number")?;
        let at = Duration::try_from_secs_f64(at).map_err(|_| "the time is out of range")?;
        let code = code.as_str().ok_or("the code is not a string")?;
        let data = data.as_str().ok_or("the data is not a string")?;
        self.last = self.last.max(at);
        let kind = match code {
            "o" => CastEventKind::Output(self.take_bytes(data)?),
            "i" => CastEventKind::Input(self.take_bytes(data)?),
            "m" => CastEventKind::Marker(String::from(data)),
            "secret" => CastEventKind::Secret,
            "button" => CastEventKind::PowerButton,
            "end" => CastEventKind::End(RecordedEnd::named(data).ok_or("unknown end")?),
            "bytes" => {
                self.bytes = Some(from_hex(data).ok_or("the data is not hexadecimal")?);
                return Ok(None);
            }
            _ => return Ok(None),
        };
        Ok(Some(CastEvent { at: self.last, kind }))
    }

    /// The bytes of an event: those that were announced, or else its text.
    fn take_bytes(&mut self, text: &str) -> Result<Vec<u8>, &'static str> {
        match self.bytes.take() {
            None => Ok(text.as_bytes().to_vec()),
            Some(bytes) if String::from_utf8_lossy(&bytes) == text => Ok(bytes),
            Some(_) => Err("the data differs from the bytes event before it"),
        }
    }
}

fn parse_header(line: &[u8]) -> Result<CastHeader, &'static str> {
    let value: Value = serde_json::from_slice(line).map_err(|_| "not JSON")?;
    if value.get("version").and_then(Value::as_u64) != Some(2) {
        return Err("the version is not 2");
    }
    let size = |key| value.get(key).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    let (Some(width), Some(height)) = (size("width"), size("height")) else {
        return Err("no width and height");
    };
    let timestamp = value.get("timestamp").and_then(Value::as_u64);
    let title = value.get("title").and_then(Value::as_str).map(String::from);
    Ok(CastHeader { width, height, timestamp, title })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
