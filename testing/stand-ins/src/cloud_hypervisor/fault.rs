//! The faults of the stand-in for cloud-hypervisor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BrokenReply;

/// A request of the API that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChvCall {
    /// `vm.create`
    Create,
    /// `vm.boot`
    Boot,
    /// `vm.power-button`
    PowerButton,
    /// `vmm.shutdown`
    Quit,
}

impl ChvCall {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "vm.create",
            Self::Boot => "vm.boot",
            Self::PowerButton => "vm.power-button",
            Self::Quit => "vmm.shutdown",
        }
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChvFault {
    /// The API socket comes late.
    SocketAfter(Duration),
    /// The API socket never comes.
    NoSocket,
    /// The answer to a call breaks.
    BreaksReply(BrokenReply, ChvCall),
    /// The call fails, with a chain of causes.
    Rejects(ChvCall),
    /// It is answered with success, and nothing is done.
    Ignores(ChvCall),
    /// The process says something on standard error and ends with this status, before the answer.
    Exits(ChvCall, u8),
    /// SIGTERM does nothing.
    IgnoresSigterm,
    /// The event monitor begins with something that is no JSON.
    EventGarbage,
    /// The event monitor begins with an object that never ends.
    EventEndless,
    /// The event monitor says half an object and falls silent.
    EventHalf,
    /// When the guest ends, the process ends with this status, and no event says so.
    EndsSilently(u8),
    /// When the guest ends, a virtual CPU has failed, as only standard error says: all else is as after
    /// a power-off.
    CpuFails,
    /// As [`ChvFault::CpuFails`], and the process stays, with a guest that does nothing.
    CpuFailsAndStays,
    /// Unknown fields of `vm.create` are accepted, as the real one does.
    Lenient,
}

impl ChvFault {
    /// The text on standard error of a process that [dies](Self::Exits).
    pub const STDERR_LINE: &str = "thread 'vmm' panicked: as ordered";
    /// The innermost cause of a [rejection](Self::Rejects).
    pub const CAUSE: &str = "as ordered";
    /// What a virtual CPU's failure is called on standard error.
    pub const CPU_FAILED: &str = "cloud-hypervisor: <vcpu0> ERROR:vmm/src/cpu.rs:1487 -- \
                                  VCPU generated error: VcpuRun(as ordered)";

    /// What it makes of the answer to the call with this name in the API.
    pub(super) fn broken_reply(self, name: &str) -> Option<BrokenReply> {
        match self {
            Self::BreaksReply(broken, call) if call.name() == name => Some(broken),
            _ => None,
        }
    }
}
