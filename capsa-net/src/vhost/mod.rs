//! The back end of a vhost-user network card: messages, virtqueues and frame headers, without I/O.
//!
//! A hypervisor (the front end) connects to a socket, passes the files of the guest's memory and the
//! event descriptors of two rings, and the guest's driver then exchanges frames with this back end through
//! its own memory. [`VhostDevice`] is one connection of a front end.
//!
//! The memory is never mapped: every access is a positioned read or write of its file
//! ([`MemoryFiles`]). A process with the file can shrink it at any time, and a shrunk mapping raises
//! SIGBUS, while a read returns an error. Both the front end and the guest are hostile: what they write is
//! read once, checked, and then used.
//!
//! | module | contents |
//! | --- | --- |
//! | `message` | the messages of a front end, and their replies |
//! | `memory` | the regions of the guest's memory |
//! | `virtqueue` | a split virtqueue, seen from the device |
//! | `device` | [`VhostDevice`]: a connection, and its two rings |
//!
//! Sources: "Vhost-user Protocol" of QEMU 10, and "Virtual I/O Device (VIRTIO) Version 1.3". All numbers are
//! little-endian: the protocol uses the byte order of the host, and every supported host has this one.

mod device;
mod memory;
mod message;
mod virtqueue;

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod model;
#[cfg(test)]
mod tests;

pub use device::{FeatureBits, FrameSent, MessageEffect, VhostDevice, VhostError};
pub use memory::{MemoryFault, MemoryFiles, MemoryRegion};
pub use message::{HEADER_LEN, MAX_DESCRIPTORS, MAX_PAYLOAD, MessageHeader, ProtocolError};
pub use virtqueue::RingError;
