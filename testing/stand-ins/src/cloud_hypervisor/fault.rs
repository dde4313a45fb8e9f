//! The faults of the stand-in for cloud-hypervisor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BrokenReply;

/// A request of the API that can have a fault.
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
    /// The name of the request in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "vm.create",
            Self::Boot => "vm.boot",
            Self::PowerButton => "vm.power-button",
            Self::Quit => "vmm.shutdown",
        }
    }
}

/// A fault of the stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChvFault {
    /// The API is served after this time.
    SocketAfter(Duration),
    /// The API is never served.
    NoSocket,
    /// The reply to a request is broken.
    BreaksReply(BrokenReply, ChvCall),
    /// The request fails with a chain of causes; the innermost is [`Self::CAUSE`].
    Rejects(ChvCall),
    /// The reply is success, but the request is not carried out.
    Ignores(ChvCall),
    /// The process writes [`Self::STDERR_LINE`] and exits with this code, before it replies.
    Exits(ChvCall, u8),
    /// SIGTERM has no effect.
    IgnoresSigterm,
    /// The event monitor begins with text that is not JSON.
    EventGarbage,
    /// The event monitor begins with an object that never ends.
    EventEndless,
    /// The event monitor writes half an object and closes.
    EventHalf,
    /// When the guest powers off, the process exits with this code, without an event.
    EndsSilently(u8),
    /// When the guest powers off, standard error reports a failed vCPU. Everything else is as after a
    /// power-off.
    CpuFails,
    /// As [`ChvFault::CpuFails`], but the process keeps running, with a guest that does nothing.
    CpuFailsAndStays,
    /// Unknown fields of `vm.create` are accepted, as the real one does.
    Lenient,
}

impl ChvFault {
    /// The text on standard error before [`Self::Exits`].
    pub const STDERR_LINE: &str = "thread 'vmm' panicked: injected fault";
    /// The innermost cause of the error of [`Self::Rejects`].
    pub const CAUSE: &str = "injected fault";
    /// The line on standard error of a failed vCPU, as v53 writes it.
    pub const CPU_FAILED: &str = "cloud-hypervisor: <vcpu0> ERROR:vmm/src/cpu.rs:1487 -- \
                                  VCPU generated error: VcpuRun(injected fault)";

    /// The broken reply to the request with this name, if the fault is for it.
    pub(super) fn broken_reply(self, name: &str) -> Option<BrokenReply> {
        match self {
            Self::BreaksReply(broken, call) if call.name() == name => Some(broken),
            _ => None,
        }
    }
}
