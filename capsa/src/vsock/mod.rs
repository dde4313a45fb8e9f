//! vsock: streams between host and guest that need no network.
//!
//! A port is a number; it accepts any number of connections. The guest's context id is 3, the
//! host's is 2. A program in the guest listens or connects with a socket of the family `AF_VSOCK`.
//!
//! | task | items |
//! | --- | --- |
//! | add the device | [`LinuxVmBuilder::vsock`](crate::LinuxVmBuilder::vsock), [`LinuxVmBuilder::vsock_port`](crate::LinuxVmBuilder::vsock_port), [`VsockDirection`] |
//! | connect to the guest | [`VmHandle::vsock_connect`](crate::VmHandle::vsock_connect), [`VsockStream`] |
//! | accept connections from the guest | [`VmHandle::vsock_listen`](crate::VmHandle::vsock_listen), [`VsockListener`] |
//! | do either in an event loop | [`embed::Vm::vsock_connect`](crate::embed::Vm::vsock_connect), [`embed::Vm::vsock_listen`](crate::embed::Vm::vsock_listen) |

#[cfg(feature = "async")]
pub(crate) mod stream;

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use stream::{VsockListener, VsockStream};

pub use capsa_proto::spec::VsockDirection;
