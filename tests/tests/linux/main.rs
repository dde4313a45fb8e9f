//! The guests of the tests under the real QEMU: the nano guest, Linux with busybox, and Debian.

mod guest;
mod logins;
mod nano;
mod network;
mod qemu;
mod sessions;
mod soak;
mod virtio_console;
