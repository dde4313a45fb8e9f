//! The server name of a TLS handshake (RFC 8446, RFC 6066).
//!
//! The handshake may be spread over several records. A handshake is refused that a lenient reader could
//! read in two ways: with two server names, or with a name that is none of a host.

use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::policy::VerdictReason;

use super::{HELD_MAX, Unreadable};

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
/// The header of a handshake message.
const MESSAGE_HEADER: usize = 4;
/// The largest content of a record.
const RECORD_MAX: usize = 1 << 14;
/// Records of a handshake at most: clients use one or two.
const RECORDS: usize = 8;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

const NOT_TLS: Unreadable = Unreadable::Refused(VerdictReason::NotTls);
const NO_NAME: Unreadable = Unreadable::Refused(VerdictReason::NoServerName);
const BAD_NAME: Unreadable = Unreadable::Refused(VerdictReason::ServerName);

/// The server name of the handshake that these bytes begin with.
pub(super) fn server_name(bytes: &[u8]) -> Result<String, Unreadable> {
    let mut message = Vec::new();
    let mut at = 0;
    for _ in 0..RECORDS {
        let record = bytes.get(at..).unwrap_or_default();
        // What is wrong is refused as soon as it is seen.
        if record.first().is_some_and(|kind| *kind != HANDSHAKE)
            || record.get(1).is_some_and(|major| *major != 3)
        {
            return Err(NOT_TLS);
        }
        let Some(header) = record.first_chunk::<RECORD_HEADER>() else {
            return Err(Unreadable::Incomplete { needed: at + RECORD_HEADER });
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > RECORD_MAX {
            return Err(NOT_TLS);
        }
        let end = at + RECORD_HEADER + len;
        let content = &record[RECORD_HEADER..record.len().min(RECORD_HEADER + len)];
        message.extend_from_slice(content);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(NOT_TLS);
        }
        let mut wanted = MESSAGE_HEADER;
        if let Some([_, a, b, c]) = message.first_chunk::<MESSAGE_HEADER>() {
            wanted += u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if wanted > HELD_MAX {
                return Err(Unreadable::Refused(VerdictReason::Incomplete));
            }
            if let Some(hello) = message.get(MESSAGE_HEADER..wanted) {
                return name_of_hello(hello);
            }
        }
        if bytes.len() < end {
            // The handshake may end before its record does.
            let needed = bytes.len() + wanted - message.len();
            return Err(Unreadable::Incomplete { needed: needed.min(end) });
        }
        at = end;
    }
    Err(NOT_TLS)
}

/// The name in a whole ClientHello.
fn name_of_hello(hello: &[u8]) -> Result<String, Unreadable> {
    let mut fields = Fields(hello);
    // Version and random.
    fields.take(2 + 32)?;
    fields.vector8()?;
    fields.vector16()?;
    fields.vector8()?;
    if fields.0.is_empty() {
        // A handshake of TLS 1.0 may have no extensions.
        return Err(NO_NAME);
    }
    let mut extensions = Fields(fields.vector16()?);
    if !fields.0.is_empty() {
        return Err(NOT_TLS);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        if kind == SERVER_NAME && name.replace(host_name(content)?).is_some() {
            return Err(BAD_NAME);
        }
    }
    name.ok_or(NO_NAME)
}

/// The one name of the extension.
fn host_name(extension: &[u8]) -> Result<String, Unreadable> {
    let mut fields = Fields(extension);
    let mut list = Fields(fields.vector16()?);
    let kind = list.take(1)?[0];
    let name = list.vector16()?;
    let is_one = fields.0.is_empty() && list.0.is_empty();
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let is_name = !name.is_empty() && name.iter().all(is_letter) && !name.ends_with(b".");
    match core::str::from_utf8(name) {
        Ok(name) if kind == HOST_NAME && is_one && is_name => Ok(name.into()),
        _ => Err(BAD_NAME),
    }
}

/// What is left of a structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(NOT_TLS)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, Unreadable> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector with a length of one byte.
    fn vector8(&mut self) -> Result<&'a [u8], Unreadable> {
        let len = self.take(1)?[0];
        self.take(len.into())
    }

    /// A vector with a length of two bytes.
    fn vector16(&mut self) -> Result<&'a [u8], Unreadable> {
        let len = self.number16()?;
        self.take(len.into())
    }
}
