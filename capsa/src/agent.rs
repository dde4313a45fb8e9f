//! The guest agent: commands in the guest, without its console and without a network.
//!
//! With [`LinuxVmBuilder::agent`](crate::LinuxVmBuilder::agent), Capsa adds a small program to a copy of the
//! guest's initrd. It starts before the guest's own init, which runs unchanged, and goes on beside it. The
//! guest needs no other preparation than a kernel with the drivers of a transport: virtio-serial or a serial
//! port (QEMU), vsock (cloud-hypervisor, vfkit).

pub use capsa_proto::spec::AgentMode;
