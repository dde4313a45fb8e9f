//! Single lines of a response head, without their CRLF. RFC 9112, sections 4 and 5.

use super::HttpError;

/// A parsed status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StatusLine {
    pub(super) status: u16,
    /// Whether the version is HTTP/1.1; otherwise it is HTTP/1.0.
    pub(super) chunks_allowed: bool,
}

/// How the headers so far delimit the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Framing {
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
}

/// `"HTTP/1." ("0" / "1") SP 3DIGIT [ SP reason ]`; micro-http, in cloud-hypervisor, sends the
/// blank and no reason.
pub(super) fn parse_status_line(line: &[u8]) -> Result<StatusLine, HttpError> {
    let parse = || {
        let rest = line.strip_prefix(b"HTTP/1.")?;
        let (&minor, rest) = rest.split_first()?;
        let (digits, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
        let status = decimal(digits)?;
        let well_formed = matches!(minor, b'0' | b'1')
            && (100..600).contains(&status)
            && (reason.is_empty() || reason[0] == b' ')
            && reason.iter().all(|&b| is_text(b));
        let status = u16::try_from(status).ok()?;
        well_formed.then_some(StatusLine { status, chunks_allowed: minor == b'1' })
    };
    parse().ok_or(HttpError::BadStatusLine)
}

impl Framing {
    /// Validates a header line, and stores it if it delimits the body.
    pub(super) fn add_header(&mut self, line: &[u8]) -> Result<(), HttpError> {
        let (name, value) = split_header(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = decimal(value).ok_or(HttpError::BadContentLength)?;
            if self.content_length.replace(length).is_some() {
                return Err(HttpError::BadContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::BadTransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }
}

/// Splits `name ":" OWS value OWS`.
pub(super) fn split_header(line: &[u8]) -> Result<(&[u8], &[u8]), HttpError> {
    let colon = memchr::memchr(b':', line).ok_or(HttpError::BadHeader)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) || !value.iter().all(|&b| is_text(b)) {
        return Err(HttpError::BadHeader);
    }
    Ok((name, value.trim_ascii()))
}

/// Parses the size line of a chunk and skips extensions: `1*HEXDIG *( ";" extension )`.
pub(super) fn parse_chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let end = memchr::memchr(b';', line).unwrap_or(line.len());
    let (size, extension) = line.split_at(end);
    let size = size.trim_ascii_end();
    if size.is_empty() || size.len() > 16 || !extension.iter().all(|&b| is_text(b)) {
        return Err(HttpError::BadChunk);
    }
    size.iter().try_fold(0u64, |sum, &b| {
        let digit = char::from(b).to_digit(16).ok_or(HttpError::BadChunk)?;
        Ok(sum << 4 | u64::from(digit))
    })
}

/// Parses up to 18 digits and nothing else, so it cannot overflow.
fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = matches!(digits.len(), 1..=18) && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| digits.iter().fold(0, |sum, &b| sum * 10 + u64::from(b - b'0')))
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
