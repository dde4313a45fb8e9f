//! Everything Capsa does to the world: processes, sockets, ptys, polling, the clock, directories.
//!
//! The deciding is done in `capsa-proto`; this crate carries it out. It knows no hypervisor by name:
//! what to start and what to say comes in a [`LaunchPlan`](capsa_proto::plan::LaunchPlan), and what
//! an answer means, a [`HypervisorBackend`](capsa_proto::backend::HypervisorBackend) says.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`supervisor`] | runs one machine: one descriptor, one deadline, one call |
//! | [`console`] | the console's bytes, readers and conversations |
//! | [`random`] | numbers that differ from each other |
//! | [`reactor`] | waits for many machines at once |
//! | [`run_dir`] | the private directory of a machine, and the sweep |
//! | [`mod@facts`] | looks at the host for the checks |
//! | [`input_log`] | what is typed into a console, for those who record it |
//! | [`vsock`] | connections to the guest's ports and from it |
//! | [`probe`] | asks programs for their versions |
//! | `watchdog` | kills what this program started when this program dies |
//! | [`ephemeral`] | throw-away disks: nameless files |
//! | `process`, `control`, `event_pipe`, `stream`, `clock` | a child, the control channel, events, a byte stream, the time |
//! | `sys` | the system calls, and the only `unsafe` |
//!
//! No signal handler is installed here and no child is reaped that was not started here.

mod clock;
pub mod console;
mod control;
pub mod ephemeral;
mod event_pipe;
pub mod facts;
pub mod input_log;
pub mod probe;
mod process;
pub mod random;
pub mod reactor;
pub mod run_dir;
mod stream;
pub mod supervisor;
mod sys;
pub mod vsock;
mod watchdog;
