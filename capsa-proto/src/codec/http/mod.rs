//! An HTTP/1.1 client codec: one request and one response per connection.
//!
//! [`Request::encode`] returns the bytes to send. [`ResponseDecoder`] parses the response:
//!
//! 1. Pass every read to [`handle_bytes`](ResponseDecoder::handle_bytes), the end of the stream to
//!    `handle_eof`.
//! 2. After each, call [`poll_response`](ResponseDecoder::poll_response). When it returns a response,
//!    close the connection. (cloud-hypervisor keeps it open, so do not wait for the end of the
//!    stream.)
//!
//! The decoder is strict where leniency enables request smuggling (RFC 9112, sections 2.2, 5.1, 6.1 and
//! 6.3): lines end in CRLF, no blank before a colon, no folded headers, one length only. Redirects,
//! compression, connection reuse and `HEAD` are unsupported.
//!
//! ```
//! use capsa_proto::codec::http::{Method, Request, ResponseDecoder};
//!
//! let request = Request::new(Method::Get, "/api/v1/vmm.ping");
//! assert!(request.encode().starts_with(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n"));
//!
//! let mut decoder = ResponseDecoder::new(4096);
//! decoder.handle_bytes(b"HTTP/1.1 200 \r\nContent-Le")?;
//! assert!(decoder.poll_response().is_none());
//! decoder.handle_bytes(b"ngth: 2\r\n\r\n{}")?;
//! let response = decoder.poll_response().expect("complete");
//! assert_eq!((response.status, response.body.as_slice()), (200, &b"{}"[..]));
//! # Ok::<(), capsa_proto::codec::http::HttpError>(())
//! ```

mod head;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use request::{Method, Request};
pub use response::{Response, ResponseDecoder};

/// Why a response was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The first line is not a status line: `HTTP/1.0` or `HTTP/1.1`, a status from 100 to 599, a reason.
    #[error("HTTP response: malformed status line")]
    BadStatusLine,
    /// A header or trailer is malformed, or a line ends in something other than CRLF.
    #[error("HTTP response: malformed header")]
    BadHeader,
    /// `Content-Length` is not one plain number, or occurs twice.
    #[error("HTTP response: malformed or repeated Content-Length")]
    BadContentLength,
    /// `Transfer-Encoding` is something other than one `chunked`, or comes with HTTP/1.0.
    #[error("HTTP response: unsupported Transfer-Encoding")]
    BadTransferEncoding,
    /// There are both `Content-Length` and `Transfer-Encoding`, so the body is ambiguous.
    #[error("HTTP response: both Content-Length and Transfer-Encoding")]
    ConflictingLength,
    /// A chunk is malformed.
    #[error("HTTP response: malformed chunk")]
    BadChunk,
    /// Status 101: the peer switches to another protocol.
    #[error("HTTP response: unexpected switch of protocols")]
    UnexpectedUpgrade,
    /// Status line and headers exceed `MAX_HTTP_HEAD`.
    #[error("HTTP response: headers longer than {max} bytes")]
    HeadTooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The body, or its announced length, exceeds the decoder's limit.
    #[error("HTTP response: body longer than {max} bytes")]
    BodyTooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The stream ended before the response was complete.
    #[error("HTTP response: connection closed before the response was complete")]
    UnexpectedEof,
}
