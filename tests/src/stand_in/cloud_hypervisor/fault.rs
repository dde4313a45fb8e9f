//! What the stand-in breaks on demand.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::super::http::Broken;

/// A request of the API that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `vm.create`
    Create,
    /// `vm.boot`
    Boot,
    /// `vm.power-button`
    PowerButton,
    /// `vmm.shutdown`
    Quit,
}

impl Call {
    const ALL: [Self; 4] = [Self::Create, Self::Boot, Self::PowerButton, Self::Quit];

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The API socket comes late.
    SocketAfter(Duration),
    /// The API socket never comes.
    NoSocket,
    /// Half of the answer to a call, and the end of the connection.
    HalfAReply(Call),
    /// A call is carried out, and never answered.
    NoReply(Call),
    /// The connection closes instead of an answer.
    NoReplyButTheEnd(Call),
    /// An answer that is no HTTP.
    Garbage(Call),
    /// The call fails, with a chain of causes.
    Refuses(Call),
    /// It is answered with success, and nothing is done.
    Ignores(Call),
    /// The process says something on standard error and ends with this status, before the answer.
    Dies(Call, u8),
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
    /// As [`Fault::CpuFails`], and the process stays, with a guest that does nothing.
    CpuFailsAndStays,
    /// Unknown fields of `vm.create` are accepted, as the real one does.
    Lenient,
}

impl Fault {
    /// The text on standard error of a process that [dies](Self::Dies).
    pub const LAST_WORDS: &str = "thread 'vmm' panicked: as ordered";
    /// The innermost cause of a [refusal](Self::Refuses).
    pub const CAUSE: &str = "as ordered";
    /// What a virtual CPU's failure is called on standard error.
    pub const CPU_FAILED: &str = "cloud-hypervisor: <vcpu0> ERROR:vmm/src/cpu.rs:1487 -- \
                                  VCPU generated error: VcpuRun(as ordered)";

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

    /// Whether it is about the call with this name in the API.
    pub(super) fn is_about(self, name: &str) -> bool {
        self.call().is_some_and(|call| call.name() == name)
    }

    /// What it makes of an answer.
    pub(super) fn broken(self) -> Option<Broken> {
        match self {
            Self::HalfAReply(_) => Some(Broken::Half),
            Self::NoReply(_) => Some(Broken::Silence),
            Self::NoReplyButTheEnd(_) => Some(Broken::End),
            Self::Garbage(_) => Some(Broken::Garbage),
            _ => None,
        }
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
            Self::IgnoresSigterm => "ignores-sigterm",
            Self::EventGarbage => "event-garbage",
            Self::EventEndless => "event-endless",
            Self::EventHalf => "event-half",
            Self::EndsSilently(_) => "ends-silently",
            Self::CpuFails => "cpu-fails",
            Self::CpuFailsAndStays => "cpu-fails-and-stays",
            Self::Lenient => "lenient",
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
            Self::SocketAfter(time) => write!(f, " {}", time.as_millis()),
            Self::Dies(_, status) | Self::EndsSilently(status) => write!(f, " {status}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let call = words.get(1).and_then(|name| Call::ALL.into_iter().find(|c| c.name() == *name));
        let call = call.unwrap_or(Call::Create);
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
            Self::IgnoresSigterm,
            Self::EventGarbage,
            Self::EventEndless,
            Self::EventHalf,
            Self::EndsSilently(status),
            Self::CpuFails,
            Self::CpuFailsAndStays,
            Self::Lenient,
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
            Fault::NoReply(Call::Quit),
            Fault::Dies(Call::Boot, 3),
            Fault::EndsSilently(0),
            Fault::Lenient,
        ] {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        for line in ["", "dies", "dies vm.boot", "dies vm.boot 300", "refuses vm.info", "nothing"] {
            assert!(line.parse::<Fault>().is_err(), "{line}");
        }
    }
}
