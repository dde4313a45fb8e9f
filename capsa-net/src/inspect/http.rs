//! The host of an HTTP/1 request (RFC 9112).
//!
//! A request is refused that servers could read in different ways: with an empty line before it, a bare
//! line feed, a folded header, two `Host` headers, an absolute target. `CONNECT` is refused: it asks for a
//! tunnel to another host.

use alloc::string::String;

use capsa_proto::policy::VerdictReason;

use super::Unreadable;

const NOT_HTTP: Unreadable = Unreadable::Refused(VerdictReason::NotHttp);
const BAD_HOST: Unreadable = Unreadable::Refused(VerdictReason::HttpHost);

/// Bytes of a method at most.
const METHOD_MAX: usize = 32;

/// The host of the request that these bytes begin with, without the port.
pub(super) fn host(bytes: &[u8], port: u16) -> Result<String, Unreadable> {
    let mut lines = RequestLines { bytes, at: 0 };
    request_line(&mut lines)?;
    let mut host = None;
    loop {
        let line = lines.next_line(&is_header_byte)?;
        if line.is_empty() {
            return host.ok_or(BAD_HOST);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(NOT_HTTP)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        // A space here is a folded line, or a name that some servers cut.
        if name.is_empty() || !name.iter().all(is_token_byte) {
            return Err(NOT_HTTP);
        }
        if name.eq_ignore_ascii_case(b"host") && host.replace(host_of(value, port)?).is_some() {
            return Err(BAD_HOST);
        }
    }
}

/// `METHOD /target HTTP/1.1`.
fn request_line(lines: &mut RequestLines<'_>) -> Result<(), Unreadable> {
    // What cannot become a request is refused before the line is complete.
    let start = &lines.bytes[..lines.bytes.len().min(METHOD_MAX + 1)];
    let method = match start.iter().position(|byte| *byte == b' ') {
        Some(end) => &start[..end],
        None if start.len() > METHOD_MAX => return Err(NOT_HTTP),
        None => start,
    };
    if !method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-' || *byte == b'_')
        || (method.is_empty() && !start.is_empty())
    {
        return Err(NOT_HTTP);
    }
    let line = lines.next_line(&|byte| byte.is_ascii_graphic() || *byte == b' ')?;
    let mut words = line.split(|byte| *byte == b' ');
    let words = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(b"HTTP/1.1" | b"HTTP/1.0"), None) = words else {
        return Err(NOT_HTTP);
    };
    let is_origin = target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS");
    if is_origin && method != b"CONNECT" { Ok(()) } else { Err(BAD_HOST) }
}

/// The host of a header's value, whose port must be that of the connection.
fn host_of(value: &[u8], port: u16) -> Result<String, Unreadable> {
    let value = core::str::from_utf8(value).map_err(|_| BAD_HOST)?;
    let value = value.trim_matches([' ', '\t']);
    let (host, stated_port) = match value.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (value, None),
    };
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_host = !host.is_empty() && host.bytes().all(is_letter) && !host.ends_with('.');
    let is_port = stated_port.is_none_or(|stated| {
        stated.bytes().all(|byte| byte.is_ascii_digit()) && stated.parse() == Ok(port)
    });
    if is_host && is_port { Ok(host.into()) } else { Err(BAD_HOST) }
}

fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn is_header_byte(byte: &u8) -> bool {
    byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | 0x80..)
}

/// Lines that end with a carriage return and a line feed.
struct RequestLines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> RequestLines<'a> {
    /// The next line, without its end. Every byte of it must be valid, also of a line that is not complete.
    fn next_line(&mut self, is_valid: &dyn Fn(&u8) -> bool) -> Result<&'a [u8], Unreadable> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| !is_valid(byte)).unwrap_or(rest.len());
        match rest[len..] {
            [] => Err(Unreadable::Incomplete { needed: self.bytes.len() + 1 }),
            [b'\r'] => Err(Unreadable::Incomplete { needed: self.bytes.len() + 1 }),
            [b'\r', b'\n', ..] => {
                self.at += len + 2;
                Ok(&rest[..len])
            }
            _ => Err(NOT_HTTP),
        }
    }
}
