//! Frames: a header of 12 bytes and a payload of at most 64 KiB.
//!
//! ```text
//! 0        4      5          8     12
//! | length | kind | 0, 0, 0  | id  | payload … |     length and id: little-endian
//! ```
//!
//! A sync mark is 16 fixed bytes and a session number of 8 bytes. It begins with a length that no frame can
//! have, so that a decoder recognises it where a frame would begin.

use alloc::vec::Vec;
use core::fmt;

/// The length of a frame's header in bytes.
pub const HEADER_LEN: usize = 12;

/// The longest payload of a frame in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The first bytes of a sync mark. Its first four are a length beyond [`MAX_PAYLOAD`].
const SYNC_MAGIC: [u8; 16] = *b"\xca\x95\xa0\xffcapsa-agent\n";

/// The length of a sync mark in bytes.
pub const SYNC_LEN: usize = SYNC_MAGIC.len() + 8;

/// A frame in the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The kind of the message.
    pub kind: u8,
    /// The operation; 0 if the message belongs to none.
    pub id: u32,
    /// The content.
    pub payload: &'a [u8],
}

/// What a decoder found next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A sync mark with this session number.
    Sync(u64),
    /// A frame.
    Frame(Frame<'a>),
}

/// The bytes are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The length is beyond [`MAX_PAYLOAD`].
    TooLong(u32),
    /// The three bytes after the kind are not zero.
    Reserved,
    /// A mark begins as a sync mark and continues otherwise.
    BadSync,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => {
                write!(f, "a frame of {length} bytes: at most {MAX_PAYLOAD} are allowed")
            }
            Self::Reserved => f.write_str("reserved bytes of a frame's header are not zero"),
            Self::BadSync => f.write_str("an incomplete sync mark"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Appends a frame.
///
/// # Panics
///
/// If the payload is longer than [`MAX_PAYLOAD`], which is a bug of the caller.
pub fn put_frame(kind: u8, id: u32, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= MAX_PAYLOAD, "a payload of {} bytes", payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends a sync mark.
pub fn put_sync(session: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&SYNC_MAGIC);
    out.extend_from_slice(&session.to_le_bytes());
}

/// Splits a stream of bytes into frames and sync marks.
///
/// It discards everything before the first sync mark. After an error, every later call returns it, until
/// [`FrameDecoder::resync`].
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Where the next frame begins in the buffer.
    at: usize,
    is_synced: bool,
    error: Option<FrameError>,
}

impl FrameDecoder {
    /// A decoder that waits for a sync mark.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), at: 0, is_synced: false, error: None }
    }

    /// Takes bytes. The caller takes all frames before it passes more, so that the buffer holds at most one
    /// incomplete frame and what one call passes.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.buffer.drain(..self.at);
            self.at = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Discards everything up to the next sync mark, also an error.
    pub fn resync(&mut self) {
        self.is_synced = false;
        self.error = None;
    }

    /// The next sync mark or frame; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// When the bytes are neither.
    pub fn poll(&mut self) -> Result<Option<FrameEvent<'_>>, FrameError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if !self.is_synced && !self.find_sync() {
            return Ok(None);
        }
        let start = self.at;
        let Some((head, _)) = self.buffer[start..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        if *head == SYNC_MAGIC[..4] {
            return self.take_sync();
        }
        let length = u32::from_le_bytes(*head);
        if length as usize > MAX_PAYLOAD {
            return self.fail(FrameError::TooLong(length));
        }
        let end = start + HEADER_LEN + length as usize;
        let Some(header) = self.buffer[start..].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [_, _, _, _, kind, reserved @ .., a, b, c, d] = *header;
        if reserved != [0; 3] {
            return self.fail(FrameError::Reserved);
        }
        let Some(payload) = self.buffer.get(start + HEADER_LEN..end) else { return Ok(None) };
        self.at = end;
        let id = u32::from_le_bytes([a, b, c, d]);
        Ok(Some(FrameEvent::Frame(Frame { kind, id, payload })))
    }

    /// Discards what cannot be the begin of a sync mark; whether a whole magic is there.
    fn find_sync(&mut self) -> bool {
        let bytes = &self.buffer[self.at..];
        let found = (0..bytes.len()).find(|&n| {
            let rest = &bytes[n..];
            let common = rest.len().min(SYNC_MAGIC.len());
            rest[..common] == SYNC_MAGIC[..common]
        });
        self.at += found.unwrap_or(bytes.len());
        self.is_synced = self.buffer.len() - self.at >= SYNC_MAGIC.len();
        self.is_synced
    }

    fn take_sync(&mut self) -> Result<Option<FrameEvent<'_>>, FrameError> {
        let rest = &self.buffer[self.at..];
        let common = rest.len().min(SYNC_MAGIC.len());
        if rest[..common] != SYNC_MAGIC[..common] {
            return self.fail(FrameError::BadSync);
        }
        let Some(session) = rest[common..].first_chunk() else { return Ok(None) };
        let session = u64::from_le_bytes(*session);
        self.at += SYNC_LEN;
        Ok(Some(FrameEvent::Sync(session)))
    }

    fn fail(&mut self, error: FrameError) -> Result<Option<FrameEvent<'_>>, FrameError> {
        self.error = Some(error);
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a decoder finds when the bytes come in chunks of this length, as text.
    fn decoded(bytes: &[u8], chunk: usize) -> Vec<alloc::string::String> {
        let mut decoder = FrameDecoder::new();
        let mut found = Vec::new();
        for bytes in bytes.chunks(chunk) {
            decoder.handle_bytes(bytes);
            loop {
                match decoder.poll() {
                    Ok(Some(received)) => found.push(alloc::format!("{received:?}")),
                    Ok(None) => break,
                    Err(error) => {
                        found.push(alloc::format!("{error:?}"));
                        return found;
                    }
                }
            }
        }
        found
    }

    #[test]
    fn frames_do_not_depend_on_chunks() {
        let mut bytes = b"boot \xca\x95\xa0\xffcapsa-agen noise".to_vec();
        put_sync(7, &mut bytes);
        put_frame(1, 2, b"abc", &mut bytes);
        put_sync(8, &mut bytes);
        put_frame(3, u32::MAX, b"", &mut bytes);
        let expected = [
            "Sync(7)",
            "Frame(Frame { kind: 1, id: 2, payload: [97, 98, 99] })",
            "Sync(8)",
            "Frame(Frame { kind: 3, id: 4294967295, payload: [] })",
        ];
        for chunk in 1..bytes.len() {
            assert_eq!(decoded(&bytes, chunk), expected, "in chunks of {chunk}");
        }
    }

    #[test]
    fn frame_without_sync_is_discarded() {
        let mut bytes = Vec::new();
        put_frame(1, 2, &[0xca; 300], &mut bytes);
        assert_eq!(decoded(&bytes, 7), [""; 0]);
    }

    #[test]
    fn invalid_frame_is_error_until_resync() {
        for (bytes, error) in [
            (&b"\x01\x00\x01\x00"[..], FrameError::TooLong(65537)),
            (b"\0\0\0\0\x01\0\x01\0\0\0\0\0", FrameError::Reserved),
            (b"\xca\x95\xa0\xffcapsa-agens", FrameError::BadSync),
        ] {
            let mut decoder = FrameDecoder::new();
            let mut all = Vec::new();
            put_sync(1, &mut all);
            all.extend_from_slice(bytes);
            decoder.handle_bytes(&all);
            assert_eq!(decoder.poll(), Ok(Some(FrameEvent::Sync(1))));
            assert_eq!(decoder.poll(), Err(error));
            decoder.handle_bytes(b"more");
            assert_eq!(decoder.poll(), Err(error));
            decoder.resync();
            let mut again = Vec::new();
            put_sync(2, &mut again);
            decoder.handle_bytes(&again);
            assert_eq!(decoder.poll(), Ok(Some(FrameEvent::Sync(2))));
        }
    }
}
