//! The faults of the stand-in for vfkit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BrokenReply;

/// A request that can have a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VfkitCall {
    /// `GET /vm/state`
    State,
    /// `POST /vm/state` with `Pause`
    Pause,
    /// `POST /vm/state` with `Resume`
    Resume,
    /// `POST /vm/state` with `Stop`
    Stop,
    /// `POST /vm/state` with `HardStop`
    HardStop,
}

impl VfkitCall {
    const ALL: [Self; 5] = [Self::State, Self::Pause, Self::Resume, Self::Stop, Self::HardStop];

    /// The name of the state in the request's body. `State` has no body; its name is for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stop => "Stop",
            Self::HardStop => "HardStop",
        }
    }

    /// The change of state with this name in a request's body.
    pub(super) fn change(name: &str) -> Option<Self> {
        Self::ALL[1..].iter().copied().find(|call| call.name() == name)
    }
}

/// A fault of the stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VfkitFault {
    /// The socket of the REST service appears after this time.
    SocketAfter(Duration),
    /// The socket of the REST service never appears.
    NoSocket,
    /// The reply to a request is broken.
    BreaksReply(BrokenReply, VfkitCall),
    /// The request fails with the reason [`Self::CAUSE`].
    Rejects(VfkitCall),
    /// The reply is success, but the request is not carried out.
    Ignores(VfkitCall),
    /// The process writes [`Self::STDERR_LINE`] and exits with this code, before it replies.
    Exits(VfkitCall, u8),
    /// As [`Self::Exits`], before the REST service starts.
    ExitsAtStart(u8),
    /// The state stays `Starting`, without a time limit.
    NeverRuns,
    /// The state stays `Starting`, and the process exits after this time.
    StartTimesOut(Duration),
    /// The state is `Error` instead of `Running`, and the process keeps running.
    Error,
    /// SIGTERM has no effect.
    IgnoresSigterm,
    /// The VM stops, but the process keeps running. In the real one this can happen when the wait after a
    /// SIGTERM consumes the notification for which another wait is pending.
    OutlivesVm,
    /// When the guest powers off, the state becomes `Error`, and the process exits with a failure.
    EndsInError,
}

impl VfkitFault {
    /// The text on standard error before [`Self::Exits`].
    pub const STDERR_LINE: &str = "fatal error: injected fault";
    /// The reason in the error of [`Self::Rejects`].
    pub const CAUSE: &str = "injected fault";

    /// The broken reply to this request, if the fault is for it.
    pub(super) fn broken_reply(self, call: VfkitCall) -> Option<BrokenReply> {
        match self {
            Self::BreaksReply(broken, at) if at == call => Some(broken),
            _ => None,
        }
    }
}
