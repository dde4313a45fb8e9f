//! [`ResponseDecoder`]: a state machine with one state for each part of a response. Each step reads one
//! line or one run of body bytes.

use alloc::vec::Vec;

use super::HttpError;
use super::head::{Framing, StatusLine, parse_chunk_size, parse_status_line, split_header};
use crate::codec::{MAX_HTTP_CHUNK_LINE, MAX_HTTP_HEAD};

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status, 200 to 599; interim responses are skipped.
    pub status: u16,
    /// The body, with the chunks concatenated. Empty if there is none.
    pub body: Vec<u8>,
}

/// Decodes one response from any number of reads.
///
/// Keeps at most the body limit plus `MAX_HTTP_HEAD` bytes. Bytes after the response are
/// ignored: a connection serves one request.
#[derive(Debug)]
pub struct ResponseDecoder {
    state: ResponseState,
    /// The received part of the current line.
    line: Vec<u8>,
    /// Bytes of finished head lines, interim responses and trailers included.
    head_bytes: usize,
    status_line: StatusLine,
    framing: Framing,
    body: Vec<u8>,
    max_body: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseState {
    StatusLine,
    Header,
    Body { left: usize },
    ChunkSize,
    ChunkData { left: usize },
    ChunkEnd,
    Trailer,
    UntilEof,
    Done,
    Taken,
    Failed(HttpError),
}

impl ResponseDecoder {
    /// A decoder that rejects a body of more than `max_body` bytes.
    pub fn new(max_body: usize) -> Self {
        Self {
            state: ResponseState::StatusLine,
            line: Vec::new(),
            head_bytes: 0,
            status_line: StatusLine { status: 0, chunks_allowed: false },
            framing: Framing::default(),
            body: Vec::new(),
            max_body,
        }
    }

    /// Takes received bytes.
    ///
    /// # Errors
    ///
    /// When they are not part of a valid response, or exceed a limit. The error is final.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<(), HttpError> {
        while !bytes.is_empty() {
            bytes = match self.step(bytes) {
                Ok(rest) => rest,
                Err(error) => return Err(self.fail(error)),
            };
        }
        self.error()
    }

    /// Takes the end of the stream. It completes a response whose body has no length.
    ///
    /// # Errors
    ///
    /// [`HttpError::UnexpectedEof`] when the response is not complete, or the earlier error.
    pub(crate) fn handle_eof(&mut self) -> Result<(), HttpError> {
        match self.state {
            ResponseState::Failed(error) => Err(error),
            ResponseState::Done | ResponseState::Taken => Ok(()),
            ResponseState::UntilEof => {
                self.state = ResponseState::Done;
                Ok(())
            }
            _ => Err(self.fail(HttpError::UnexpectedEof)),
        }
    }

    /// Returns the response once, when it is complete.
    pub fn poll_response(&mut self) -> Option<Response> {
        if self.state != ResponseState::Done {
            return None;
        }
        self.state = ResponseState::Taken;
        Some(Response { status: self.status_line.status, body: core::mem::take(&mut self.body) })
    }

    fn error(&self) -> Result<(), HttpError> {
        match self.state {
            ResponseState::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, error: HttpError) -> HttpError {
        self.state = ResponseState::Failed(error);
        self.line = Vec::new();
        self.body = Vec::new();
        error
    }

    /// Consumes at least one byte and returns the rest.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], HttpError> {
        match self.state {
            ResponseState::Failed(error) => Err(error),
            ResponseState::Done | ResponseState::Taken => Ok(&[]),
            ResponseState::UntilEof => {
                self.extend_body(bytes)?;
                Ok(&[])
            }
            ResponseState::Body { left } | ResponseState::ChunkData { left } => {
                let (part, rest) = bytes.split_at(left.min(bytes.len()));
                self.extend_body(part)?;
                let left = left - part.len();
                self.state = match self.state {
                    ResponseState::Body { .. } if left == 0 => ResponseState::Done,
                    ResponseState::Body { .. } => ResponseState::Body { left },
                    _ if left == 0 => ResponseState::ChunkEnd,
                    _ => ResponseState::ChunkData { left },
                };
                Ok(rest)
            }
            ResponseState::StatusLine
            | ResponseState::Header
            | ResponseState::Trailer
            | ResponseState::ChunkSize
            | ResponseState::ChunkEnd => self.step_line(bytes),
        }
    }

    fn step_line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], HttpError> {
        let newline = memchr::memchr(b'\n', bytes);
        let (part, rest) = bytes.split_at(newline.map_or(bytes.len(), |i| i + 1));
        let (max, too_long, malformed) = match self.state {
            ResponseState::ChunkSize => {
                (MAX_HTTP_CHUNK_LINE, HttpError::BadChunk, HttpError::BadChunk)
            }
            ResponseState::ChunkEnd => (2, HttpError::BadChunk, HttpError::BadChunk),
            _ => {
                let too_long = HttpError::HeadTooLong { max: MAX_HTTP_HEAD };
                (MAX_HTTP_HEAD - self.head_bytes, too_long, HttpError::BadHeader)
            }
        };
        if self.line.len() + part.len() > max {
            return Err(too_long);
        }
        self.line.extend_from_slice(part);
        if newline.is_some() {
            let line = core::mem::take(&mut self.line);
            self.on_line(line.strip_suffix(b"\r\n").ok_or(malformed)?)?;
        }
        Ok(rest)
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), HttpError> {
        if matches!(
            self.state,
            ResponseState::StatusLine | ResponseState::Header | ResponseState::Trailer
        ) {
            self.head_bytes += line.len() + 2;
        }
        match self.state {
            ResponseState::StatusLine => {
                self.status_line = parse_status_line(line)?;
                self.framing = Framing::default();
                self.state = ResponseState::Header;
            }
            ResponseState::Header if line.is_empty() => self.state = self.after_head()?,
            ResponseState::Header => self.framing.add_header(line)?,
            ResponseState::ChunkSize => {
                self.state = match self.checked_length(parse_chunk_size(line)?)? {
                    0 => ResponseState::Trailer,
                    left => ResponseState::ChunkData { left },
                };
            }
            ResponseState::ChunkEnd if line.is_empty() => self.state = ResponseState::ChunkSize,
            ResponseState::ChunkEnd => return Err(HttpError::BadChunk),
            ResponseState::Trailer if line.is_empty() => self.state = ResponseState::Done,
            ResponseState::Trailer => {
                split_header(line)?;
            }
            ResponseState::Body { .. }
            | ResponseState::ChunkData { .. }
            | ResponseState::UntilEof
            | ResponseState::Done
            | ResponseState::Taken
            | ResponseState::Failed(_) => unreachable!("these states do not read lines"),
        }
        Ok(())
    }

    /// How the body is delimited: RFC 9112, section 6.3.
    fn after_head(&self) -> Result<ResponseState, HttpError> {
        let Framing { content_length, chunked } = self.framing;
        if chunked && content_length.is_some() {
            return Err(HttpError::ConflictingLength);
        }
        if chunked && !self.status_line.chunks_allowed {
            return Err(HttpError::BadTransferEncoding);
        }
        Ok(match (self.status_line.status, content_length) {
            (101, _) => return Err(HttpError::UnexpectedUpgrade),
            (100..200, _) => ResponseState::StatusLine,
            (204 | 304, _) => ResponseState::Done,
            _ if chunked => ResponseState::ChunkSize,
            (_, None) => ResponseState::UntilEof,
            (_, Some(length)) => match self.checked_length(length)? {
                0 => ResponseState::Done,
                left => ResponseState::Body { left },
            },
        })
    }

    /// Rejects an announced length before any byte of the body is read.
    fn checked_length(&self, length: u64) -> Result<usize, HttpError> {
        let room = self.max_body - self.body.len();
        match usize::try_from(length) {
            Ok(length) if length <= room => Ok(length),
            _ => Err(HttpError::BodyTooLong { max: self.max_body }),
        }
    }

    fn extend_body(&mut self, part: &[u8]) -> Result<(), HttpError> {
        if part.len() > self.max_body - self.body.len() {
            return Err(HttpError::BodyTooLong { max: self.max_body });
        }
        self.body.extend_from_slice(part);
        Ok(())
    }
}
