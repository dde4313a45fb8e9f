//! Commands in the guest through its agent: separate outputs, input, exit status, signals, a terminal.
//!
//! ```no_run
//! use capsa::{Capsa, LinuxBootConfig};
//! use capsa::agent::AgentMode;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
//! let vm = Capsa::vm(config).agent(AgentMode::Required).build().await?;
//! vm.start().await?;
//! // Waits until the guest has booted.
//! let output = vm.exec(["uname", "-a"]).output().await?;
//! assert!(output.status.success());
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! The names follow `std::process`. A command runs as root in the guest's final root, with its own process
//! group, without a shell. Any number of commands run at once, and each of their streams has its own
//! back-pressure. Dropping a [`Child`], or the future of [`Command::output`], kills the process group.

mod child;
mod command;
mod files;
mod status;
#[cfg(feature = "tokio")]
mod tokio;

pub use child::{Child, ChildOutput, ChildStdin};
pub use command::{Command, ExecOutput, ExecStdio};
pub use status::ExitStatus;
