//! The control protocols: HTTP/1.1 for cloud-hypervisor and vfkit, QMP for QEMU; and file formats.
//!
//! Encoders produce the bytes to send, decoders parse the bytes that were received. They do no I/O, and
//! know neither hypervisors nor the meaning of a message.
//!
//! | module | format |
//! | --- | --- |
//! | [`http`] | one request and one response per connection |
//! | [`qmp`] | JSON objects, one per line, in both directions |
//! | [`json_stream`] | JSON objects without a separator, in one direction |
//! | [`vsock`] | one line in each direction, before the bytes of the guest |
//! | [`cpio`] | an archive of files, which the kernel unpacks as an initramfs; only written |
//! | `asciicast` | a file format: a recorded console session |
//!
//! The peer runs untrusted code, so every decoder accepts hostile input: the constants here bound its
//! memory, the work of a call is proportional to its input, and the result does not depend on how the
//! bytes were split into reads. The first error is final: a failed decoder returns the same error
//! again, and the connection must be closed.
//!
//! The rule for a caller: after every `handle_bytes`, poll until the result is `None`.

#[cfg(feature = "recording")]
#[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
pub mod asciicast;
mod backlog;
pub mod cpio;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod json_stream;
pub mod qmp;
pub mod vsock;

/// Maximum bytes of an HTTP response without its body: status line, headers and trailers, including
/// all interim responses before it.
pub(crate) const MAX_HTTP_HEAD: usize = 16 * 1024;

/// A maximum for the body of an HTTP response that fits every response that Capsa requests.
pub(crate) const MAX_HTTP_BODY: usize = 1024 * 1024;

/// Maximum bytes of a chunk-size line, including extensions.
pub(crate) const MAX_HTTP_CHUNK_LINE: usize = 256;

/// Maximum bytes of one QMP line, without its end.
pub(crate) const MAX_QMP_LINE: usize = 1024 * 1024;

/// Maximum bytes of one object of a JSON stream.
pub(crate) const MAX_JSON_OBJECT: usize = 256 * 1024;

/// Maximum nesting depth of objects and arrays in a JSON stream.
pub(crate) const MAX_JSON_DEPTH: usize = 64;

/// Maximum bytes in a decoder that were not polled. More is an error: the driver does not poll.
pub(crate) const MAX_BACKLOG: usize = 4 * 1024 * 1024;
