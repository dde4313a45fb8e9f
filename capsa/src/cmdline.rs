//! The kernel command line: arguments, and the errors of text that is not a command line.
//!
//! [`LinuxVmBuilder::cmdline_arg`](crate::LinuxVmBuilder::cmdline_arg) adds an argument to a VM.
//! [`KernelCmdline`] parses, changes and builds a whole command line, with the kernel's rules for
//! quotes.

pub use capsa_proto::cmdline::{CmdlineArg, CmdlineError, KernelCmdline};
