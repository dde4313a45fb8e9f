//! The handshake of a connection to a guest's vsock port: one line in each direction.
//!
//! ```text
//! host:  "CONNECT" SP port LF
//! guest: "OK" SP number LF        the bytes of the guest follow
//! ```
//!
//! If no program listens in the guest, the connection closes without an answer. The answer must be read
//! byte by byte, because the bytes after its LF belong to the caller of the connection.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Maximum bytes of the answer without its line end: `OK` and a 32-bit number.
pub(crate) const MAX_VSOCK_LINE: usize = "OK 4294967295".len();

/// The line that requests a connection to `port` of the guest.
pub fn connect_request(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// Parses the answer to [`connect_request`].
#[derive(Debug, Clone, Default)]
pub struct ConnectAnswer {
    line: Vec<u8>,
}

/// The answer was not `OK` and a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the vsock device answered {0:?} instead of OK")]
pub struct NotOk(String);

impl ConnectAnswer {
    /// Takes the next byte. Returns `true` if it is the last byte of the answer.
    ///
    /// # Errors
    ///
    /// When the line is malformed, at its first invalid byte.
    pub fn handle_byte(&mut self, byte: u8) -> Result<bool, NotOk> {
        let wrong = |line: &[u8]| NotOk(String::from_utf8_lossy(line).to_string());
        if byte != b'\n' {
            self.line.push(byte);
            let n = self.line.len() - 1;
            let fits = match n {
                0..3 => byte == b"OK "[n],
                _ => byte.is_ascii_digit() && self.line.len() <= MAX_VSOCK_LINE,
            };
            return if fits { Ok(false) } else { Err(wrong(&self.line)) };
        }
        if self.line.len() > 3 { Ok(true) } else { Err(wrong(&self.line)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes an answer takes from `text`.
    fn read(text: &str) -> Result<Option<usize>, NotOk> {
        let mut answer = ConnectAnswer::default();
        for (n, byte) in text.bytes().enumerate() {
            if answer.handle_byte(byte)? {
                return Ok(Some(n + 1));
            }
        }
        Ok(None)
    }

    #[test]
    fn connect_answer_ends_at_line_end() {
        assert_eq!(read("OK 1073741824\nhello\n"), Ok(Some(14)));
        assert_eq!(read("OK 5"), Ok(None));
        assert_eq!(read(""), Ok(None));
    }

    #[test]
    fn connect_answer_malformed_is_rejected() {
        for text in ["NO", "OK\n", "OK \n", "\n", "OK 12a", "OK 42949672950", "HTTP/1.1"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn connect_request_is_one_line() {
        assert_eq!(connect_request(u32::MAX), "CONNECT 4294967295\n");
    }
}
