//! A launch plan: the exact programs, arguments and messages that run one machine.
//!
//! A backend turns a checked specification into this; the lifecycle machine walks through it; the
//! driver carries it out. It holds nothing that could not be printed, so `--dry-run` prints it whole.
//! What it deliberately lacks is any decision left open: by now everything is decided.

mod vsock;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::path::HostPath;
use crate::qcow2::Overlay;
use crate::spec::{ConsoleMode, RebootPolicy};

pub use vsock::{GUEST_CID, NamedPort, VsockPlan, VsockRoute};

/// Everything needed to run one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaunchPlan {
    /// The backend that made it.
    pub backend: &'static str,
    /// The machine's private directory, which holds its sockets.
    pub run_dir: HostPath,
    /// Helpers in the order they start, then, last, the hypervisor.
    pub processes: Vec<ProcessPlan>,
    /// How to talk to the hypervisor.
    pub control: ControlPlan,
    /// A named pipe, made before the hypervisor starts, on which it tells what happens as one JSON
    /// object after another; `None` where the control channel carries events, or nothing does.
    pub event_pipe: Option<HostPath>,
    /// Throw-away images, made before the hypervisor starts.
    pub overlays: Vec<OverlayPlan>,
    /// Where the guest's console is.
    pub console: ConsolePlan,
    /// Where the guest's vsock ports are, where the machine has such a device.
    pub vsock: Option<VsockPlan>,
    /// Messages sent in order once the control channel is up. After the last, the guest runs.
    pub boot: Vec<Message>,
    /// How the guest is asked to power off.
    pub power_button: Option<Message>,
    /// How the machine's power is cut in an orderly way.
    pub quit: StopAction,
    /// What the hypervisor does when its guest falls: at a panic, and at a reset.
    pub crash_reporting: CrashReporting,
    /// Resets as close as this are one: a firmware may reset once more to find itself as it was.
    #[serde(serialize_with = "seconds")]
    pub reset_debounce: Duration,
    /// The whole kernel command line.
    pub cmdline: String,
    /// What a reboot does.
    pub on_reboot: RebootPolicy,
    /// The machine is stopped when it has run this long.
    #[serde(serialize_with = "seconds_if_any")]
    pub time_limit: Option<Duration>,
    /// What the user should know: slow emulation, rounding, what a guest must do by itself.
    pub notes: Vec<Note>,
}

impl LaunchPlan {
    /// The hypervisor's place in [`LaunchPlan::processes`].
    ///
    /// # Panics
    ///
    /// When the plan has no process: a backend that plans none is broken.
    pub fn hypervisor(&self) -> ProcessId {
        ProcessId(self.processes.len().checked_sub(1).expect("a plan has a hypervisor"))
    }

    /// The process with this id.
    pub fn process(&self, id: ProcessId) -> &ProcessPlan {
        &self.processes[id.0]
    }
}

/// Which process of a plan: an index into [`LaunchPlan::processes`].
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
    /// What people call it: `qemu`, `virtiofsd for /workspace`.
    pub name: String,
    /// The program: a path, or a bare name where nothing was found (in a dry run).
    pub program: String,
    /// Its arguments, without the program itself.
    pub args: Vec<String>,
    /// When it counts as up.
    pub ready: Readiness,
    /// It ends by itself when the hypervisor does. One that would go on is told to end then.
    pub ends_with_hypervisor: bool,
}

/// When a process counts as up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// When this socket exists. It is not connected to: the one connection it takes is another's.
    SocketExists(HostPath),
    /// When the control channel and the console are connected and, where the protocol has one, the
    /// greeting has come.
    ControlConnected,
}

/// How to talk to the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlPlan {
    /// What is spoken.
    pub protocol: Protocol,
    /// The unix socket it is spoken on.
    pub socket: HostPath,
}

/// A control protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// QMP: one connection, JSON lines, a greeting first, events in between.
    Qmp,
    /// HTTP/1.1, one exchange per connection.
    Http,
}

/// A throw-away image: what a guest writes in place of an image that is not to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayPlan {
    /// An empty qcow2 image over another, in a file without a name that the hypervisor inherits.
    Qcow2 {
        /// The path by which the hypervisor finds it.
        at: HostPath,
        /// What it is.
        #[serde(flatten)]
        overlay: Overlay,
    },
    /// A clone of an image, in the run directory and gone with it. It shares what is on the disk with
    /// that image until one of them is written, so it is made at once, whatever its size, where both
    /// are in one file system that can do so.
    Clone {
        /// Where it is.
        at: HostPath,
        /// The image that is cloned.
        of: HostPath,
    },
}

impl OverlayPlan {
    /// The path by which the hypervisor finds it.
    pub const fn at(&self) -> &HostPath {
        match self {
            Self::Qcow2 { at, .. } | Self::Clone { at, .. } => at,
        }
    }

    /// The image that is not written.
    pub const fn of(&self) -> &HostPath {
        match self {
            Self::Qcow2 { overlay, .. } => &overlay.over,
            Self::Clone { of, .. } => of,
        }
    }
}

/// Where the guest's console is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsolePlan {
    /// There is none.
    None,
    /// A unix socket that the hypervisor listens on, connected to before the guest runs.
    Socket {
        /// The socket.
        socket: HostPath,
        /// Whether the user reads it or the program's own terminal does.
        mode: ConsoleMode,
    },
    /// A pty of ours, raw, given to the hypervisor as its standard input and output.
    Pty {
        /// Whether the user reads it or the program's own terminal does.
        mode: ConsoleMode,
    },
}

impl ConsolePlan {
    /// The console's mode; disabled where there is none.
    pub fn mode(&self) -> ConsoleMode {
        match self {
            Self::None => ConsoleMode::Disabled,
            Self::Socket { mode, .. } | Self::Pty { mode } => *mode,
        }
    }
}

/// A message to the hypervisor's control channel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// What it is for, in a few words: `start the guest`.
    pub purpose: &'static str,
    /// What is sent.
    #[serde(flatten)]
    pub body: Body,
}

/// What a [`Message`] sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// A step of the stop ladder: a word over the control channel, or a signal.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StopAction {
    /// A control message.
    Control(Message),
    /// A signal to the hypervisor.
    Signal(Signal),
}

/// What a hypervisor does when its guest falls: at a panic, and at a reset.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashReporting {
    /// It tells, and stays until it is told to quit.
    Event,
    /// It tells and, where that ends the machine, leaves by itself. It is not told to quit then, for it
    /// is on its way.
    EventThenExit,
    /// It does not tell. What the guest's kernel says last on its console
    /// ([`CrashDetector`](crate::console::CrashDetector)) is believed instead.
    ConsoleOnly {
        /// How the power is cut then, before the guest gets far in its next life.
        power_off: Message,
    },
}

/// A signal to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

/// Something the user should know about a plan that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// How much it matters.
    pub level: NoteLevel,
    /// The text, a lower-case sentence fragment.
    pub text: String,
}

impl Note {
    /// A note that changes what the user may expect.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { level: NoteLevel::Warning, text: text.into() }
    }

    /// A note that explains a choice.
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

/// How much a [`Note`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteLevel {
    /// Explains a choice that was made.
    Info,
    /// Something is not as one would wish: slow, or left to the guest.
    Warning,
}

/// The longest name this crate's backends give to a socket in a run directory, in bytes.
///
/// Checked against the host's limit for socket paths before anything is spawned.
pub const LONGEST_SOCKET_NAME: usize = "vsock_4294967295".len();

/// The run directory of a machine, as a backend sees it: a place for sockets.
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

    /// The path of a socket in it.
    ///
    /// # Panics
    ///
    /// When `name` is longer than [`LONGEST_SOCKET_NAME`]: names are ours.
    pub fn socket(&self, name: &str) -> HostPath {
        assert!(name.len() <= LONGEST_SOCKET_NAME, "socket name {name} is too long");
        self.path.join(name)
    }
}

fn seconds<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(span.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn seconds_if_any<S: serde::Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => seconds(span, to),
        None => to.serialize_none(),
    }
}
