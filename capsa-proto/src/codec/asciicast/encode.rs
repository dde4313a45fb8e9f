//! [`Encoder`]: encodes events as lines.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::time::Duration;

use serde_json::Value;

use super::{CastHeader, RecordedEnd};
use crate::text::partial_character_len;

/// Maximum bytes of output or input in one event; longer data becomes several events. Even with
/// maximal escaping an event is shorter than `MAX_LINE`.
pub const MAX_TEXT: usize = 32 * 1024;

/// Encodes the lines of a recording.
///
/// ```
/// use capsa_proto::codec::asciicast::{Encoder, CastHeader};
/// use core::time::Duration;
///
/// let mut encoder = Encoder::new();
/// let mut file = encoder.header(&CastHeader::default());
/// file += &encoder.output(Duration::from_millis(1500), b"caf\xc3"); // split within a character
/// file += &encoder.output(Duration::from_secs(2), b"\xa9\r\n");
/// file += &encoder.finish();
/// assert_eq!(
///     file,
///     "{\"version\":2,\"width\":80,\"height\":24}\n\
///      [1.500000,\"o\",\"caf\"]\n\
///      [2.000000,\"o\",\"é\\r\\n\"]\n"
/// );
/// ```
#[derive(Debug, Default)]
pub struct Encoder {
    /// The incomplete character at the end of the output, and of the input.
    partial: [Vec<u8>; 2],
    last: Duration,
}

#[derive(Clone, Copy)]
enum CastStream {
    Output,
    Input,
}

impl Encoder {
    /// An encoder at the beginning of a recording.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first line.
    pub fn header(&self, header: &CastHeader) -> String {
        // Not with `serde_json`: some programs recognise the format by its first key.
        let mut line =
            format!("{{\"version\":2,\"width\":{},\"height\":{}", header.width, header.height);
        // Writing to a `String` does not fail.
        if let Some(timestamp) = header.timestamp {
            _ = write!(line, ",\"timestamp\":{timestamp}");
        }
        if let Some(title) = &header.title {
            _ = write!(line, ",\"title\":{}", Value::from(title.as_str()));
        }
        line.push_str("}\n");
        line
    }

    /// Output of the guest. The result is empty if `bytes` is only the start of a character.
    pub fn output(&mut self, at: Duration, bytes: &[u8]) -> String {
        self.stream(CastStream::Output, at, bytes)
    }

    /// Input.
    pub fn input(&mut self, at: Duration, bytes: &[u8]) -> String {
        self.stream(CastStream::Input, at, bytes)
    }

    /// A line of input that is not recorded.
    pub fn secret(&mut self, at: Duration) -> String {
        self.line(at, "secret", "")
    }

    /// The power button was pressed.
    pub fn power_button(&mut self, at: Duration) -> String {
        self.line(at, "button", "")
    }

    /// The VM ended.
    pub fn end(&mut self, at: Duration, end: RecordedEnd) -> String {
        self.line(at, "end", end.name())
    }

    /// A comment, which players may show.
    pub fn marker(&mut self, at: Duration, text: &str) -> String {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.line(at, "m", &text[..end])
    }

    /// The rest at the end of the recording: characters that stayed incomplete.
    pub fn finish(&mut self) -> String {
        let [output, input] = core::mem::take(&mut self.partial);
        let mut lines = self.whole(CastStream::Output, self.last, &output);
        lines += &self.whole(CastStream::Input, self.last, &input);
        lines
    }

    fn stream(&mut self, stream: CastStream, at: Duration, bytes: &[u8]) -> String {
        let mut all = core::mem::take(&mut self.partial[stream as usize]);
        all.extend_from_slice(bytes);
        let whole = all.len() - partial_character_len(&all);
        self.partial[stream as usize] = all.split_off(whole);
        self.whole(stream, at, &all)
    }

    fn whole(&mut self, stream: CastStream, at: Duration, mut bytes: &[u8]) -> String {
        let mut lines = String::new();
        while !bytes.is_empty() {
            let mut end = bytes.len().min(MAX_TEXT);
            if end < bytes.len() {
                end -= partial_character_len(&bytes[..end]);
            }
            let (piece, rest) = bytes.split_at(end);
            bytes = rest;
            let text = String::from_utf8_lossy(piece);
            if core::str::from_utf8(piece).is_err() {
                let mut hex = String::with_capacity(2 * piece.len());
                for byte in piece {
                    // Writing to a `String` does not fail.
                    _ = write!(hex, "{byte:02x}");
                }
                lines += &self.line(at, "bytes", &hex);
            }
            let code = match stream {
                CastStream::Output => "o",
                CastStream::Input => "i",
            };
            lines += &self.line(at, code, &text);
        }
        lines
    }

    /// Encodes one line. Players require times that never decrease.
    fn line(&mut self, at: Duration, code: &str, data: &str) -> String {
        self.last = self.last.max(at);
        let (seconds, micros) = (self.last.as_secs(), self.last.subsec_micros());
        format!("[{seconds}.{micros:06},\"{code}\",{}]\n", Value::from(data))
    }
}
