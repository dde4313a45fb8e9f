//! [`AgentPlan`]: how the guest agent gets into the guest, and how the host reaches it.
//!
//! The agent is a program in an archive behind the user's initrd: the kernel unpacks both. The kernel starts
//! it as its first program (`rdinit=`), and it executes the guest's own init. The user's file does not
//! change: Capsa writes a combined one before it starts the hypervisor.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::{RunDirPlan, VsockPlan, VsockRoute};
use crate::agent::protocol::{NONCE_LEN, VSOCK_PORT};
use crate::capabilities::ValidatedAgent;
use crate::codec::cpio::{CpioWriter, separator_len};
use crate::path::HostPath;
use crate::spec::VmSpec;

/// The directory of the archive, without a leading slash.
const DIRECTORY: &str = "capsa-agent";

/// The path of the agent in the guest's initial root.
pub const AGENT_PATH: &str = "/capsa-agent/agent";

/// The agent of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentPlan {
    /// How the host reaches it, the preferred way first.
    pub transports: Vec<AgentTransport>,
    /// The vsock device, if [`AgentTransport::Vsock`] is among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockPlan>,
    /// The initrd with the agent's archive behind it.
    pub initrd: AgentInitrd,
}

/// The initrd of a VM with the agent, which is written before the hypervisor starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentInitrd {
    /// The path by which the hypervisor opens it, in the run directory.
    pub at: HostPath,
    /// The user's initrd, its first part.
    pub over: HostPath,
    /// The guest's own init, if the user set `rdinit=`; default: `/init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The agent.
    #[serde(skip)]
    pub program: AgentProgram,
}

/// A way in which the host reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentTransport {
    /// The vsock port [`VSOCK_PORT`] of the guest.
    Vsock,
    /// The virtio-serial port [`SERIAL_NAME`](crate::agent::protocol::SERIAL_NAME).
    VirtioSerial,
    /// The second serial port of a PC.
    SerialPort,
}

impl AgentTransport {
    /// All transports, the preferred first.
    pub const ALL: [Self; 3] = [Self::Vsock, Self::VirtioSerial, Self::SerialPort];

    /// Whether nearly every kernel has its driver. [`AgentMode::Auto`](crate::spec::AgentMode) relies on such a
    /// transport, because a VM that worked without the agent works with it as well.
    pub(crate) const fn is_common(self) -> bool {
        match self {
            Self::Vsock => false,
            Self::VirtioSerial | Self::SerialPort => true,
        }
    }

    /// Whether it needs a slot of the bus, beside the devices that the VM has anyway.
    pub(crate) const fn needs_slot(self, spec: &VmSpec) -> bool {
        match self {
            Self::Vsock => !spec.vsock,
            Self::VirtioSerial => !spec.virtio_console,
            Self::SerialPort => false,
        }
    }
}

impl fmt::Display for AgentTransport {
    /// `vsock`, `virtio-serial`, `second serial port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vsock => "vsock",
            Self::VirtioSerial => "virtio-serial",
            Self::SerialPort => "second serial port",
        })
    }
}

/// The program that runs in a guest as its agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AgentProgram(pub &'static [u8]);

impl fmt::Debug for AgentProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentProgram({} bytes)", self.0.len())
    }
}

impl AgentPlan {
    /// The agent of a VM with this run directory, whose initrd is at [`initrd_path`].
    pub fn new(agent: &ValidatedAgent, at: &RunDirPlan) -> Self {
        Self {
            transports: agent.transports.to_vec(),
            vsock: None,
            initrd: AgentInitrd {
                at: initrd_path(at),
                over: agent.initrd.clone(),
                init: agent.init.clone(),
                program: agent.program,
            },
        }
    }

    /// The same with this vsock device.
    #[must_use]
    pub fn with_vsock(self, vsock: VsockPlan) -> Self {
        Self { vsock: Some(vsock), ..self }
    }

    /// Whether the host reaches it by this transport.
    pub fn has(&self, transport: AgentTransport) -> bool {
        self.transports.contains(&transport)
    }

    /// How to connect to the agent by vsock.
    pub fn vsock_route(&self) -> Option<VsockRoute<'_>> {
        self.vsock.as_ref()?.to_guest(VSOCK_PORT)
    }
}

/// The path of the initrd with the agent in a run directory.
pub fn initrd_path(at: &RunDirPlan) -> HostPath {
    at.path().join("initrd")
}

impl AgentInitrd {
    /// What follows an initrd of this length: zero bytes and the archive, with a nonce that is new for each
    /// VM.
    pub fn tail(&self, over_len: u64, nonce: &[u8; NONCE_LEN]) -> Vec<u8> {
        let mut archive = CpioWriter::new();
        archive.directory(DIRECTORY, 0o700);
        let file = |name: &str| [DIRECTORY, "/", name].concat();
        archive.file(&file("nonce"), 0o600, nonce);
        if let Some(init) = &self.init {
            archive.file(&file("rdinit"), 0o600, init.as_bytes());
        }
        archive.file(&file("agent"), 0o755, self.program.0);
        let mut tail = alloc::vec![0; separator_len(over_len) as usize];
        tail.extend_from_slice(&archive.finish());
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initrd(init: Option<&str>) -> AgentInitrd {
        AgentInitrd {
            at: HostPath::new("/r/initrd").unwrap(),
            over: HostPath::new("/i").unwrap(),
            init: init.map(Into::into),
            program: AgentProgram(b"\x7fELF program"),
        }
    }

    fn contains(tail: &[u8], text: &[u8]) -> bool {
        tail.windows(text.len()).any(|window| window == text)
    }

    #[test]
    fn tail_has_program_nonce_and_init() {
        let tail = initrd(Some("/sbin/init")).tail(5, &[b'n'; NONCE_LEN]);
        assert_eq!(&tail[..13], b"\0\0\0\0\0\0\x00070701");
        for text in [&b"capsa-agent/agent\0"[..], b"\x7fELF program", &[b'n'; NONCE_LEN]] {
            assert!(contains(&tail, text), "{text:?}");
        }
        assert!(contains(&tail, b"capsa-agent/rdinit\0") && contains(&tail, b"/sbin/init"));
        let tail = initrd(None).tail(8, &[0; NONCE_LEN]);
        assert_eq!(&tail[..10], b"\0\0\0\x00070701");
        assert!(!contains(&tail, b"rdinit"));
    }
}
