//! The faults of the stand-in for vfkit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BrokenReply;

/// A request that can go wrong.
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

    /// What a body calls it. Nothing calls `State` so.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stop => "Stop",
            Self::HardStop => "HardStop",
        }
    }

    /// The change of state that a body asks for.
    pub(super) fn change(name: &str) -> Option<Self> {
        Self::ALL[1..].iter().copied().find(|call| call.name() == name)
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VfkitFault {
    /// The REST service comes late.
    SocketAfter(Duration),
    /// The REST service never comes.
    NoSocket,
    /// The answer to a call breaks.
    BreaksReply(BrokenReply, VfkitCall),
    /// The call fails, with a reason.
    Rejects(VfkitCall),
    /// It is answered with success, and nothing is done.
    Ignores(VfkitCall),
    /// The process says something on standard error and ends with this status, before the answer.
    Exits(VfkitCall, u8),
    /// The same, before there is a REST service.
    ExitsAtStart(u8),
    /// The machine starts and never runs, and nothing watches over that.
    NeverRuns,
    /// The machine starts and never runs, and after this time that ends the process.
    StartTimesOut(Duration),
    /// Its state is `Error` instead of `Running`, and the process stays.
    Error,
    /// SIGTERM does nothing.
    IgnoresSigterm,
    /// The machine stops, and the process stays: as when the wait that SIGTERM began takes the news
    /// that another waits for.
    OutlivesVm,
    /// When the guest powers off, the state is `Error` for a moment, and ends the process.
    EndsInError,
}

impl VfkitFault {
    /// The text on standard error of a process that [dies](Self::Exits).
    pub const STDERR_LINE: &str = "fatal error: as ordered";
    /// The reason of a [rejection](Self::Rejects).
    pub const CAUSE: &str = "as ordered";

    /// What it makes of the answer to a call.
    pub(super) fn broken_reply(self, call: VfkitCall) -> Option<BrokenReply> {
        match self {
            Self::BreaksReply(broken, at) if at == call => Some(broken),
            _ => None,
        }
    }
}
