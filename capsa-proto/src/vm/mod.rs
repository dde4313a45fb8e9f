//! The parts of a running VM beside its lifecycle: its control channel and its events.
//!
//! | item | what it is |
//! | --- | --- |
//! | [`ControlClient`] | messages to the VMM, its replies and events, over QMP or HTTP |
//! | [`VmEvent`] | what happened to the VM, in the words that its owner sees |
//! | [`EventQueue`] | the events that the owner has not taken yet |
//!
//! The state machines of a VM put their events into one queue, so an event keeps one name from the
//! place where it is noticed to the owner's event loop.

mod control;
mod event;

pub use control::{ControlClient, ControlEvent};
pub use event::{EventQueue, VmEvent};
