//! The control protocols: HTTP/1.1 for cloud-hypervisor and vfkit, QMP for QEMU.
//!
//! Encoders give the bytes to send, decoders take the bytes that came. None of them knows a socket,
//! a hypervisor, or what a message means.
//!
//! | module | what it speaks |
//! | --- | --- |
//! | [`http`] | one request, one response, then the connection is done |
//! | [`qmp`] | JSON objects, one a line, both ways |
//! | [`json_stream`] | JSON objects one after another with nothing between, one way |
//! | [`vsock`] | one line each way before a connection is the guest's |
//! | [`asciicast`] | no protocol but a file: a console session as it went |
//!
//! The peer is a program that runs untrusted code, so every decoder expects the worst: what it keeps
//! is bounded by the constants here, each call does work in proportion to its input, and
//! how the bytes were cut into reads makes no difference. The first error is final: a decoder that
//! failed gives the same error for good, and the connection is to be closed.
//!
//! The one rule for a caller: after every `handle_bytes`, poll until nothing comes.

pub mod asciicast;
mod backlog;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod json_stream;
pub mod qmp;
pub mod vsock;

/// Bytes of an HTTP response that are not its body: status line, headers, trailers, and those of
/// all interim responses before it.
pub const MAX_HTTP_HEAD: usize = 16 * 1024;

/// A limit for the body of an HTTP response that fits every answer we ask for.
pub const MAX_HTTP_BODY: usize = 1024 * 1024;

/// Bytes of one line that introduces a chunk, extensions included.
pub const MAX_HTTP_CHUNK_LINE: usize = 256;

/// Bytes of one QMP line, its end not counted.
pub const MAX_QMP_LINE: usize = 1024 * 1024;

/// Bytes of one object of a JSON stream.
pub const MAX_JSON_OBJECT: usize = 256 * 1024;

/// How deep the objects and arrays of a JSON stream may nest.
pub const MAX_JSON_DEPTH: usize = 64;

/// Bytes that may wait in a decoder to be polled. More is an error: the driver is not polling.
pub const MAX_BACKLOG: usize = 4 * 1024 * 1024;
