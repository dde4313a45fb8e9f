//! What the stand-in breaks on demand.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::super::http::Broken;

/// A request that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
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

impl Call {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The REST service comes late.
    SocketAfter(Duration),
    /// The REST service never comes.
    NoSocket,
    /// Half of the answer to a call, and the end of the connection.
    HalfAReply(Call),
    /// A call is carried out, and never answered.
    NoReply(Call),
    /// The connection closes instead of an answer.
    NoReplyButTheEnd(Call),
    /// An answer that is no HTTP.
    Garbage(Call),
    /// The call fails, with a reason.
    Refuses(Call),
    /// It is answered with success, and nothing is done.
    Ignores(Call),
    /// The process says something on standard error and ends with this status, before the answer.
    Dies(Call, u8),
    /// The same, before there is a REST service.
    DiesAtStart(u8),
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
    OutlivesItsMachine,
    /// When the guest powers off, the state is `Error` for a moment, and ends the process.
    EndsInError,
}

impl Fault {
    /// The text on standard error of a process that [dies](Self::Dies).
    pub const LAST_WORDS: &str = "fatal error: as ordered";
    /// The reason of a [refusal](Self::Refuses).
    pub const CAUSE: &str = "as ordered";

    fn call(self) -> Option<Call> {
        match self {
            Self::HalfAReply(call)
            | Self::NoReply(call)
            | Self::NoReplyButTheEnd(call)
            | Self::Garbage(call)
            | Self::Refuses(call)
            | Self::Ignores(call)
            | Self::Dies(call, _) => Some(call),
            _ => None,
        }
    }

    /// What it makes of the answer to a call.
    pub(super) fn broken(self, call: Call) -> Option<Broken> {
        let broken = match self {
            Self::HalfAReply(_) => Broken::Half,
            Self::NoReply(_) => Broken::Silence,
            Self::NoReplyButTheEnd(_) => Broken::End,
            Self::Garbage(_) => Broken::Garbage,
            _ => return None,
        };
        (self.call() == Some(call)).then_some(broken)
    }

    fn word(self) -> &'static str {
        match self {
            Self::SocketAfter(_) => "socket-after-ms",
            Self::NoSocket => "no-socket",
            Self::HalfAReply(_) => "half-a-reply",
            Self::NoReply(_) => "no-reply",
            Self::NoReplyButTheEnd(_) => "no-reply-but-the-end",
            Self::Garbage(_) => "garbage",
            Self::Refuses(_) => "refuses",
            Self::Ignores(_) => "ignores",
            Self::Dies(..) => "dies",
            Self::DiesAtStart(_) => "dies-at-start",
            Self::NeverRuns => "never-runs",
            Self::StartTimesOut(_) => "start-times-out-ms",
            Self::Error => "error",
            Self::IgnoresSigterm => "ignores-sigterm",
            Self::OutlivesItsMachine => "outlives-its-machine",
            Self::EndsInError => "ends-in-error",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        if let Some(call) = self.call() {
            write!(f, " {}", call.name())?;
        }
        match self {
            Self::SocketAfter(time) | Self::StartTimesOut(time) => {
                write!(f, " {}", time.as_millis())
            }
            Self::Dies(_, status) | Self::DiesAtStart(status) => write!(f, " {status}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let call = words.get(1).and_then(|name| Call::ALL.into_iter().find(|c| c.name() == *name));
        let call = call.unwrap_or(Call::State);
        let number = words.last().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let status = u8::try_from(number).unwrap_or_default();
        let every = [
            Self::SocketAfter(Duration::from_millis(number)),
            Self::NoSocket,
            Self::HalfAReply(call),
            Self::NoReply(call),
            Self::NoReplyButTheEnd(call),
            Self::Garbage(call),
            Self::Refuses(call),
            Self::Ignores(call),
            Self::Dies(call, status),
            Self::DiesAtStart(status),
            Self::NeverRuns,
            Self::StartTimesOut(Duration::from_millis(number)),
            Self::Error,
            Self::IgnoresSigterm,
            Self::OutlivesItsMachine,
            Self::EndsInError,
        ];
        // What it reads must be what it would write, or a word was wrong.
        let said = every.into_iter().find(|fault| fault.to_string() == line);
        said.ok_or_else(|| format!("no such fault: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_read_as_it_was_written() {
        for fault in [
            Fault::SocketAfter(Duration::from_millis(300)),
            Fault::NoReply(Call::HardStop),
            Fault::Dies(Call::Stop, 3),
            Fault::DiesAtStart(1),
            Fault::OutlivesItsMachine,
        ] {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        for line in ["", "dies", "dies Stop", "dies Stop 300", "refuses Nothing", "nothing"] {
            assert!(line.parse::<Fault>().is_err(), "{line}");
        }
    }
}
