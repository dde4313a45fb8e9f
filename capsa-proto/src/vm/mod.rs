//! A running VM: the state machine that contains all others, and its parts beside the lifecycle and
//! the console.
//!
//! | item | what it is |
//! | --- | --- |
//! | [`VmCore`] | the whole VM: lifecycle, console, control channel, events |
//! | [`ControlClient`] | messages to the hypervisor, its replies and events, over QMP or HTTP |
//! | [`VmEvent`] | what happened to the VM, as its owner sees it |
//! | `simulate` | the whole VM in a simulated world: a fuzz body, and the simulation |
//! | [`EventQueue`] | the events that the owner has not taken yet |

mod control;
mod event;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod simulate;
mod stderr;
mod vm_core;

pub use control::{ControlClient, ControlEvent};
pub use event::{EventQueue, VmEvent};
pub use vm_core::{Channel, LogRecord, Output, VmCore};
