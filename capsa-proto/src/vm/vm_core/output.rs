//! What a [`VmCore`](super::VmCore) asks of its driver: channels and outputs.

use alloc::string::String;

use serde_json::Value;

use crate::backend::{ControlReply, DiskError};
use crate::codec::qmp::{QmpError, QmpMessage};
use crate::lifecycle::{Exit, Input, VmStatus};
use crate::plan::{AgentTransport, Message, ProcessId, Signal};

/// A stream of bytes between the VM's processes and the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The control socket of the hypervisor, both ways.
    Control,
    /// The guest's console, both ways.
    Console,
    /// The event pipe of the hypervisor.
    Events,
    /// The output of the serial port beside a virtio console.
    SerialPort,
    /// The standard error of a process.
    Stderr(ProcessId),
    /// A transport of the guest's agent, both ways.
    Agent(AgentTransport),
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Launch this process, and call [`VmCore::handle_connected`](super::VmCore::handle_connected) for each channel whose other end it
    /// inherits. If that fails, call [`VmCore::handle_launch_failed`](super::VmCore::handle_launch_failed) before the next
    /// [`VmCore::poll_output`](super::VmCore::poll_output).
    Launch(ProcessId),
    /// Check whether the socket of this process exists, and if it does, call
    /// [`VmCore::handle_ready`](super::VmCore::handle_ready).
    CheckSocket(ProcessId),
    /// Connect this channel, whose endpoint is a socket, and call [`VmCore::handle_connected`](super::VmCore::handle_connected) or
    /// [`VmCore::handle_connect_failed`](super::VmCore::handle_connect_failed).
    Connect(Channel),
    /// Send a signal to the group of this process.
    Signal(ProcessId, Signal),
    /// Write this to the log.
    Log(LogRecord),
    /// The VM has ended: read what [`VmCore::drain_limit`](super::VmCore::drain_limit) allows from the console, close all channels,
    /// call [`VmCore::handle_released`](super::VmCore::handle_released), and remove the VM's files. The last output.
    Release,
}

/// What happened, for the log of the driver.
#[derive(Debug, Clone, PartialEq)]
pub enum LogRecord {
    /// An input of the lifecycle.
    Input(Input),
    /// A control message was sent.
    Sent(Message),
    /// A control message was answered.
    Replied(Message, ControlReply),
    /// The hypervisor sent an event on the control channel.
    ControlEvent(QmpMessage),
    /// The hypervisor wrote an event to the event pipe.
    PipeEvent(Value),
    /// The control channel is up.
    ControlUp,
    /// The control channel is broken.
    ControlLost(Option<QmpError>),
    /// A process exited; its name.
    Exited(String, Exit),
    /// The status changed.
    Status(VmStatus),
    /// The host failed to read or write a disk's image.
    DiskError(DiskError),
}
