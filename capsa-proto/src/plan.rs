//! A launch plan: the exact programs, arguments and control messages of one VM.
//!
//! A backend turns a validated spec into a launch plan; the lifecycle decides when each part runs, and
//! `capsa-io` carries it out. A plan leaves no decision open and is plain data, so `--dry-run`
//! prints all of it.

mod agent;
mod descriptors;
mod network;
mod vsock;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::capabilities::PlannedShare;
use crate::path::HostPath;
use crate::qcow2::Overlay;
use crate::spec::{ConsoleMode, Disk, RebootPolicy};
use crate::text::shell_word;

pub use agent::{AGENT_PATH, AgentInitrd, AgentPlan, AgentProgram, AgentTransport, initrd_path};
pub use descriptors::{DescriptorKind, DescriptorPlan, add_descriptor};
pub use network::{CarrierPlan, MacAddress, NetworkLink, NetworkPlan};
pub use vsock::{GUEST_CID, NamedPort, VsockPlan, VsockRoute};

/// Everything that is needed to run one VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaunchPlan {
    /// The backend that created the plan.
    pub backend: &'static str,
    /// The run directory, which contains the sockets.
    pub run_dir: HostPath,
    /// The helpers in the order of their start, and last the hypervisor.
    pub processes: Vec<ProcessPlan>,
    /// The control channel of the hypervisor.
    pub control: ControlPlan,
    /// The overlays of ephemeral disks, created before the hypervisor starts.
    pub overlays: Vec<OverlayPlan>,
    /// The disks, for errors that name one. The arguments or messages have them too.
    #[serde(skip)]
    pub disks: Vec<Disk>,
    /// How the guest's console is connected.
    pub console: ConsolePlan,
    /// The shares, in the order in which the guest mounts them.
    pub shares: Vec<PlannedShare>,
    /// A FIFO to which the hypervisor writes the output of the serial port, if the console is a virtio
    /// console beside it. Capsa creates it before the hypervisor starts.
    pub serial_port: Option<HostPath>,
    /// The guest's network; `None` if the VM has no network card, or one that the hypervisor serves.
    pub network: Option<NetworkPlan>,
    /// How the guest's vsock ports are connected; `None` if the VM has no vsock device.
    pub vsock: Option<VsockPlan>,
    /// The guest agent; `None` if the VM has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentPlan>,
    /// The messages to send in order once the control channel is connected. After the last one the
    /// guest runs.
    pub boot: Vec<Message>,
    /// The message that presses the power button; `None` if the hypervisor has none.
    pub power_button: Option<Message>,
    /// The message that pauses the guest.
    pub pause: Message,
    /// The message that resumes it.
    pub resume: Message,
    /// How to make the hypervisor quit.
    pub quit: StopAction,
    /// How the hypervisor reports guest crashes.
    pub crash_reporting: CrashReporting,
    /// Resets within this time of each other count as one, because a firmware may reset once more.
    #[serde(serialize_with = "seconds")]
    pub reset_debounce: Duration,
    /// The whole kernel command line.
    pub cmdline: String,
    /// What a guest reboot does.
    pub on_reboot: RebootPolicy,
    /// How long the VM may run; `None`: without limit.
    #[serde(serialize_with = "seconds_if_any")]
    pub time_limit: Option<Duration>,
    /// Warnings and notes: slow emulation, rounded values, mounts that the guest must make.
    pub notes: Vec<Note>,
}

impl LaunchPlan {
    /// The hypervisor in [`LaunchPlan::processes`].
    ///
    /// # Panics
    ///
    /// If the plan has no process, which is a bug of the backend.
    pub fn hypervisor(&self) -> ProcessId {
        ProcessId(self.processes.len().checked_sub(1).expect("a plan has a hypervisor"))
    }

    /// Whether the readiness of a process is checked again and again. If not, it follows from an event,
    /// such as a greeting on an inherited connection.
    pub(crate) fn is_polled(&self, id: ProcessId) -> bool {
        match self.process(id).ready {
            Readiness::Immediate => false,
            Readiness::SocketExists(_) => true,
            Readiness::ControlConnected => {
                matches!(self.control.endpoint, ControlEndpoint::Socket(_))
            }
        }
    }

    /// The command that mounts, in the guest, the shares that are not mounted yet; `None` if the VM has
    /// none. It is one command of a POSIX shell, needs root, and fails with the status of the first mount
    /// that fails.
    pub fn mount_shares_command(&self) -> Option<String> {
        // Only builtins of the shell, `mkdir` and `mount`. A guest without /proc mounts again.
        let mounts = self.shares.iter().map(|share| {
            let at = share.guest.trim_end_matches('/');
            format!(
                "while read -r tag at rest; do [ \"$tag $at\" = {line} ] && break; done \
                 2>/dev/null </proc/mounts || {{ mkdir -p {at} && {mount}; }} || exit",
                line = shell_word(&format!("{} {at}", share.tag)),
                at = shell_word(at),
                mount = share.mount_command()
            )
        });
        let mounts: Vec<_> = mounts.collect();
        (!mounts.is_empty()).then(|| format!("( {} )", mounts.join("; ")))
    }

    /// The process with this id.
    pub fn process(&self, id: ProcessId) -> &ProcessPlan {
        &self.processes[id.0]
    }
}

/// A process of a plan: an index into [`LaunchPlan::processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ProcessId(pub usize);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessPlan {
    /// The name for messages: `qemu`, `virtiofsd for /workspace`.
    pub name: String,
    /// The path of the program, or its bare name if it was not found (in a dry run).
    pub program: String,
    /// The arguments, without the program itself.
    pub args: Vec<String>,
    /// The descriptors that the process inherits in addition to its standard streams.
    pub descriptors: Vec<DescriptorPlan>,
    /// When the process is ready.
    pub ready: Readiness,
    /// The process exits by itself after the hypervisor. If `false`, it is sent SIGTERM then.
    pub ends_with_hypervisor: bool,
}

/// When a process is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// As soon as it is launched: others connect to a socket that it inherits.
    Immediate,
    /// When this socket exists. Capsa does not connect to it, because a helper accepts only one
    /// connection, that of the hypervisor.
    SocketExists(HostPath),
    /// When the control channel is connected and, if the protocol has a greeting, it has arrived.
    ControlConnected,
}

/// The control channel of the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlPlan {
    /// The protocol.
    pub protocol: Protocol,
    /// How it is connected.
    pub endpoint: ControlEndpoint,
}

/// How Capsa connects to a control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlEndpoint {
    /// The hypervisor inherits the other end of the connection: [`DescriptorKind::Control`].
    SocketPair,
    /// A Unix socket. The hypervisor inherits it ([`DescriptorKind::Listener`]), or it creates it, and
    /// then Capsa polls until it listens.
    Socket(HostPath),
}

/// A control protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// QMP: one connection with JSON lines, beginning with a greeting; events come between replies.
    Qmp,
    /// HTTP/1.1, one exchange per connection.
    Http,
}

/// The overlay of an ephemeral disk: it receives the guest's writes, so that the image stays unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayPlan {
    /// An empty qcow2 image with a backing file, in an unnamed file that the hypervisor inherits.
    Qcow2 {
        /// The path by which the hypervisor opens it.
        at: HostPath,
        /// Its content.
        #[serde(flatten)]
        overlay: Overlay,
    },
    /// A copy-on-write clone of an image, in the run directory, which is removed after the VM. If both
    /// are on one file system that supports clones, creating it takes no time and no space, however
    /// large the image is.
    Clone {
        /// The path of the clone.
        at: HostPath,
        /// The image.
        of: HostPath,
    },
}

impl OverlayPlan {
    /// The path by which the hypervisor opens it.
    pub const fn at(&self) -> &HostPath {
        match self {
            Self::Qcow2 { at, .. } | Self::Clone { at, .. } => at,
        }
    }

    /// The image that stays unchanged.
    pub const fn of(&self) -> &HostPath {
        match self {
            Self::Qcow2 { overlay, .. } => &overlay.over,
            Self::Clone { of, .. } => of,
        }
    }
}

/// How the guest's console is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsolePlan {
    /// The VM has no console.
    None,
    /// A pair of connected sockets; the hypervisor inherits one of them: [`DescriptorKind::Console`].
    SocketPair {
        /// The console mode.
        mode: ConsoleMode,
    },
    /// A raw pty that Capsa creates: the hypervisor's standard input and output.
    Pty {
        /// The console mode.
        mode: ConsoleMode,
    },
}

impl ConsolePlan {
    /// The console's mode; disabled if the VM has no console.
    pub fn mode(&self) -> ConsoleMode {
        match self {
            Self::None => ConsoleMode::Disabled,
            Self::SocketPair { mode } | Self::Pty { mode } => *mode,
        }
    }
}

/// A control message to the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The purpose, as a verb phrase for messages: `start the guest`.
    pub purpose: &'static str,
    /// The command or request.
    #[serde(flatten)]
    pub body: Body,
}

/// The content of a [`Message`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// A QMP command.
    Qmp {
        /// The command.
        execute: &'static str,
        /// Its arguments.
        #[serde(skip_serializing_if = "Option::is_none")]
        arguments: Option<Value>,
    },
    /// An HTTP request.
    Http {
        /// `GET` or `PUT` or `POST`.
        method: &'static str,
        /// The path, with a leading slash.
        path: &'static str,
        /// A JSON body.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<Value>,
    },
}

impl Message {
    /// A QMP command without arguments.
    pub const fn qmp(purpose: &'static str, execute: &'static str) -> Self {
        Self { purpose, body: Body::Qmp { execute, arguments: None } }
    }

    /// An HTTP request.
    pub const fn http(
        purpose: &'static str,
        method: &'static str,
        path: &'static str,
        body: Option<Value>,
    ) -> Self {
        Self { purpose, body: Body::Http { method, path, body } }
    }
}

/// How to make the hypervisor quit: with a control message, or with a signal.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StopAction {
    /// A control message.
    Control(Message),
    /// A signal to the hypervisor.
    Signal(Signal),
}

/// How a hypervisor reports a guest crash (a panic or a reset), and what it does then.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashReporting {
    /// The hypervisor sends an event and keeps running until the quit command.
    Event,
    /// The hypervisor sends an event and, if the crash ends the VM, exits by itself. It is sent no quit
    /// command then.
    EventThenExit,
    /// The hypervisor sends no event. Capsa relies on the last console output of the guest's kernel
    /// instead; see [`ConsoleCrash`](crate::console::ConsoleCrash).
    ConsoleOnly {
        /// Powers the VM off at once, before the guest boots again.
        power_off: Message,
    },
}

/// A signal to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

/// A warning or note about an accepted plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Note {
    /// The level.
    pub level: NoteLevel,
    /// The text: a lower-case sentence fragment.
    pub text: String,
}

impl Note {
    /// A warning: the VM may behave differently from what the user expects.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { level: NoteLevel::Warning, text: text.into() }
    }

    /// A note: explains a choice.
    pub fn info(text: impl Into<String>) -> Self {
        Self { level: NoteLevel::Info, text: text.into() }
    }
}

impl fmt::Display for Note {
    /// `warning: the text`, `note: the text`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            NoteLevel::Info => "note",
            NoteLevel::Warning => "warning",
        };
        write!(f, "{level}: {}", self.text)
    }
}

/// The level of a [`Note`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteLevel {
    /// Explains a choice.
    Info,
    /// A disadvantage: slow, or something that the guest must do.
    Warning,
}

/// The longest name of a socket in a run directory, in bytes.
pub const LONGEST_SOCKET_NAME: usize = "vsock_4294967295".len();

/// The run directory of a VM, as a backend uses it: a directory for sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirPlan {
    path: HostPath,
}

impl RunDirPlan {
    /// The directory at `path`. It need not exist yet.
    pub const fn new(path: HostPath) -> Self {
        Self { path }
    }

    /// The directory.
    pub const fn path(&self) -> &HostPath {
        &self.path
    }

    /// The path of a socket in the directory.
    ///
    /// # Panics
    ///
    /// If `name` is longer than [`LONGEST_SOCKET_NAME`], which is a bug: users do not choose names.
    pub fn socket(&self, name: &str) -> HostPath {
        assert!(name.len() <= LONGEST_SOCKET_NAME, "socket name {name} is too long");
        self.path.join(name)
    }
}

fn seconds<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(span.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "serde requires this signature")]
fn seconds_if_any<S: serde::Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => seconds(span, to),
        None => to.serialize_none(),
    }
}
