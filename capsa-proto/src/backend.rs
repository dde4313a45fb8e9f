//! The interface of a hypervisor backend.
//!
//! A backend is data and pure functions: its capabilities, the probes of its programs, its
//! availability given their results, and the translation of a validated spec into a [`LaunchPlan`]. It
//! opens no file and starts no process, so every backend is compiled and tested on every host.
//!
//! To add a backend, implement [`HypervisorBackend`] in a crate of its own, and add it to the list in
//! `capsa/src/backend/choice.rs`.

mod disk_error;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::capabilities::{BackendCapabilities, ValidatedSpec, Violation};
use crate::cmdline::KernelCmdline;
use crate::codec::qmp::QmpMessage;
use crate::host::{Arch, HostFacts, Os, Reason};
use crate::plan::{AgentTransport, LONGEST_SOCKET_NAME, LaunchPlan, Message, Note, RunDirPlan};
use crate::spec::{Disk, VmSpec};

pub use disk_error::{DiskError, DiskErrors, DiskOperation, disk_error};

/// A hypervisor that can run VMs.
///
/// The methods are called in this order: [`probe`](Self::probe), then
/// [`availability`](Self::availability), [`validate`](Self::validate) and [`plan`](Self::plan) with the
/// probe report, and while the VM runs [`reply`](Self::reply), [`event`](Self::event),
/// [`pipe_event`](Self::pipe_event) and [`stderr_line`](Self::stderr_line).
pub trait HypervisorBackend: Send + Sync + fmt::Debug {
    /// The backend's name: `qemu`, `cloud-hypervisor`, `vfkit`.
    fn name(&self) -> &'static str;

    /// What the backend supports, on any host.
    fn capabilities(&self) -> &BackendCapabilities;

    /// The programs to find on a host of this architecture, and the arguments that make each print its
    /// version and features. With a spec only the programs that it needs; without one, all of them.
    fn probe(&self, arch: Arch, spec: Option<&VmSpec>) -> ProbePlan;

    /// Whether the backend can be used on this host: blockers, missing features, warnings.
    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability;

    /// Whether the backend exists for this OS. If not, no installation makes it usable.
    fn supports_os(&self, os: Os) -> bool {
        let _ = os;
        true
    }

    /// The default kernel command line, which the user's arguments extend or override.
    fn kernel_cmdline_defaults(&self, spec: &VmSpec, host: &HostFacts) -> KernelCmdline;

    /// The device path of the first disk in the guest.
    fn default_root_device(&self) -> &str;

    /// How this backend connects the guest agent, the preferred way first; empty if it cannot.
    fn agent_transports(&self, arch: Arch) -> &'static [AgentTransport] {
        let _ = arch;
        &[]
    }

    /// The blockers of virtio-fs shares on this host, for a backend whose capabilities include them.
    fn virtio_fs_blockers(&self, host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
        let _ = (host, found);
        Vec::new()
    }

    /// The violations that do not follow from the capabilities, e.g. those that depend on the version
    /// found. [`capabilities::validate`](crate::capabilities::validate) calls this.
    fn validate(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation>;

    /// The length in bytes of the longest name among the sockets in the run directory that a program
    /// reaches by their path; 0 if there is none. [`capabilities::validate`](crate::capabilities::validate)
    /// compares the length of their paths with the host's limit.
    fn longest_socket_name(&self, spec: &VmSpec) -> usize {
        let _ = spec;
        LONGEST_SOCKET_NAME
    }

    /// The launch plan of a validated spec. Never fails: anything that cannot be planned is a violation.
    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan;

    /// Interprets the reply to `message`.
    fn reply(&self, message: &Message, reply: &ControlReply) -> ReplyOutcome {
        let _ = message;
        reply.outcome()
    }

    /// Interprets a line of the hypervisor's standard error. `None` if it reports no guest event.
    fn stderr_line(&self, line: &str) -> Option<GuestEvent> {
        let _ = line;
        None
    }

    /// Interprets a JSON object from the event pipe. `None` if it reports no guest event.
    fn pipe_event(&self, event: &Value) -> Option<GuestEvent> {
        let _ = event;
        None
    }

    /// Interprets an event of the control channel. `None` if it reports no guest event.
    fn event(&self, event: &QmpMessage) -> Option<GuestEvent> {
        let _ = event;
        None
    }

    /// Interprets an event of the control channel. `None` if it reports no error of one of `disks`.
    fn disk_error(&self, event: &QmpMessage, disks: &[Disk]) -> Option<DiskError> {
        let _ = (event, disks);
        None
    }
}

/// The programs to probe on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbePlan {
    /// The probes.
    pub probes: Vec<Probe>,
}

/// One run of one program, to learn its version and features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The key of the result in the [`ProbeReport`].
    pub key: &'static str,
    /// The name by which users set the path of the program: `qemu`, `virtiofsd`. Several probes may run
    /// one program.
    pub program: &'static str,
    /// An environment variable that sets the path of the program.
    pub env: &'static str,
    /// Names to look for in `PATH`, or absolute paths, in order.
    pub candidates: Vec<String>,
    /// The arguments: the program prints its output and exits.
    pub args: Vec<&'static str>,
}

/// The results of all probes, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    results: BTreeMap<&'static str, ProbeResult>,
}

/// The result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// No candidate exists.
    NotFound {
        /// The names and paths that were tried.
        tried: Vec<String>,
    },
    /// The program was found but failed, hung, or is not executable.
    Failed {
        /// Its path.
        program: String,
        /// How it failed.
        reason: String,
        /// What to do, where the cause is this host and not the program.
        remedy: Option<&'static str>,
    },
    /// The program ran and printed this.
    Output {
        /// Its path.
        program: String,
        /// Its standard output, followed by its standard error.
        output: String,
    },
}

impl ProbeReport {
    /// Adds a result.
    pub fn insert(&mut self, key: &'static str, result: ProbeResult) {
        self.results.insert(key, result);
    }

    /// The result of a probe; `None` if it was not run.
    pub fn get(&self, key: &str) -> Option<&ProbeResult> {
        self.results.get(key)
    }

    /// The path of the program, whether or not it ran. `None` if it was not found.
    pub fn found(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            ProbeResult::Output { program, .. } | ProbeResult::Failed { program, .. } => {
                Some(program.clone())
            }
            ProbeResult::NotFound { .. } => None,
        }
    }

    /// The path of the program, or `fallback` if it was not found (in a dry run for another host).
    pub fn program(&self, key: &str, fallback: &str) -> String {
        self.found(key).unwrap_or_else(|| fallback.to_string())
    }

    /// Why the program `name` cannot be used: it was not found, failed, printed no version, or is older
    /// than `min`; `older` is the reason for that minimum. `None` if it can be used or was not probed.
    pub fn version_blocker(
        &self,
        key: &str,
        name: &str,
        min: Version,
        older: &str,
    ) -> Option<String> {
        match self.get(key)? {
            ProbeResult::NotFound { tried } => {
                Some(format!("{name} was not found (tried {})", tried.join(", ")))
            }
            ProbeResult::Failed { program, reason, .. } => {
                Some(format!("{program} does not work: {reason}"))
            }
            ProbeResult::Output { program, output } => match Version::find(output) {
                None => Some(format!("{program} did not print a version")),
                Some(version) if version < min => Some(format!(
                    "{program} version {version} is too old: expected {min} or later ({older})"
                )),
                Some(_) => None,
            },
        }
    }

    /// What to do about a [blocker](Self::version_blocker) that a limit of this host causes; otherwise
    /// `install`.
    pub fn version_remedy(&self, key: &str, install: String) -> String {
        match self.get(key) {
            Some(ProbeResult::Failed { remedy: Some(remedy), .. }) => (*remedy).into(),
            _ => install,
        }
    }

    /// The output of the probe.
    pub fn output(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(ProbeResult::Output { output, .. }) => Some(output),
            _ => None,
        }
    }

    /// The first version number in the output.
    pub fn version(&self, key: &str) -> Option<Version> {
        Version::find(self.output(key)?)
    }

    /// The availability of a backend with the program of this probe and with these blockers.
    pub fn availability(&self, key: &str, blockers: Vec<Reason>) -> Availability {
        let (version, program) = (self.version(key), self.found(key));
        let (missing_features, warnings) = (Vec::new(), Vec::new());
        Availability { version, program, blockers, missing_features, warnings }
    }
}

/// A program's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch; 0 if the program prints none.
    pub patch: u32,
}

impl Version {
    /// A version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The first `N.N` or `N.N.N` in `text`, with or without a leading `v`.
    ///
    /// ```
    /// # use capsa_proto::backend::Version;
    /// let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)";
    /// assert_eq!(Version::find(text), Some(Version::new(10, 0, 2)));
    /// assert_eq!(Version::find("cloud-hypervisor v53.0"), Some(Version::new(53, 0, 0)));
    /// ```
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || "(),".contains(c)).find_map(|word| {
            let word = word.strip_prefix('v').unwrap_or(word);
            // The suffix of a distribution is not part of the version.
            let (number, _) = word.split_once(['-', '+', '~', ':']).unwrap_or((word, ""));
            let mut parts = number.split('.');
            let major = parts.next()?.parse().ok()?;
            let minor = parts.next()?.parse().ok()?;
            let patch = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
            Some(Self { major, minor, patch })
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Whether a backend can be used on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Availability {
    /// The version of the hypervisor, if its probe succeeded.
    pub version: Option<Version>,
    /// The path of the program, if it was found.
    pub program: Option<String>,
    /// The reasons why the backend cannot be used; it is usable if there are none.
    pub blockers: Vec<Reason>,
    /// Supported features that are unavailable on this host. A spec that uses one is rejected.
    pub missing_features: Vec<MissingFeature>,
    /// Warnings and notes; the backend can be used all the same.
    pub warnings: Vec<Note>,
}

/// A feature that the backend supports but that is unavailable on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MissingFeature {
    /// The feature.
    pub feature: Feature,
    /// What is missing, and the remedy.
    #[serde(flatten)]
    pub reason: Reason,
}

impl MissingFeature {
    /// One value for each reason why the feature is unavailable.
    pub fn of(
        feature: Feature,
        reasons: impl IntoIterator<Item = Reason>,
    ) -> impl Iterator<Item = Self> {
        reasons.into_iter().map(move |reason| Self { feature, reason })
    }
}

/// A feature that depends on helper programs or on build options of the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Feature {
    /// virtio-fs shares.
    VirtioFs,
    /// virtio-9p shares.
    #[serde(rename = "virtio-9p")]
    Virtio9p,
    /// NAT.
    Nat,
    /// vsock: sockets between host and guest.
    Vsock,
    /// A virtio console.
    VirtioConsole,
}

impl Availability {
    /// There are no blockers.
    pub fn is_usable(&self) -> bool {
        self.blockers.is_empty()
    }
}

/// A reply on the control channel.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ControlReply {
    /// A QMP return.
    Qmp,
    /// A QMP error.
    QmpError {
        /// QEMU's error class.
        class: String,
        /// Its description.
        desc: String,
    },
    /// An HTTP response.
    Http {
        /// The status code.
        status: u16,
        /// The body, as text.
        body: String,
    },
    /// The connection ended, or the reply could not be understood.
    Broken(String),
}

impl ControlReply {
    /// The default interpretation: an error is [`ReplyOutcome::Rejected`], everything else is done.
    pub fn outcome(&self) -> ReplyOutcome {
        match self {
            Self::Qmp => ReplyOutcome::Done,
            Self::QmpError { desc, .. } => ReplyOutcome::Rejected(desc.clone()),
            Self::Http { status: 200..=299, .. } => ReplyOutcome::Done,
            Self::Http { status, body } => {
                ReplyOutcome::Rejected(format!("status {status}: {body}"))
            }
            Self::Broken(reason) => ReplyOutcome::Lost(reason.clone()),
        }
    }
}

/// The meaning of a control reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// The command was executed.
    Done,
    /// Not ready yet: send the message again after a delay.
    Retry,
    /// The command was rejected; the error text of the hypervisor.
    Rejected(String),
    /// There is no reply and there will be none: the hypervisor may be exiting. The cause.
    Lost(String),
}

/// An event of the guest, as the hypervisor reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset: a reboot, or a panic that reboots.
    Reset,
    /// The guest reported a panic through a panic device (pvpanic).
    Panicked,
    /// Another process made the hypervisor quit.
    ExternalQuit,
    /// The hypervisor paused the guest.
    Paused,
    /// The hypervisor resumed the guest.
    Resumed,
    /// A vCPU failed. The guest is dead, even if the process stays or other events follow.
    CpuFailed,
    /// The guest's driver has opened the virtio console.
    ConsoleOpened,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_find_parses_program_output() {
        for (text, want) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2, 22)),
            ("virtiofsd 1.14.0", (1, 14, 0)),
            ("vfkit version: v0.6.4", (0, 6, 4)),
            ("cloud-hypervisor v53.0.0-dirty", (53, 0, 0)),
            ("virtiofsd backend 1.10.1", (1, 10, 1)),
            ("vfkit version: v0.6.1-3-gdeadbee", (0, 6, 1)),
            ("0.6.10+dirty", (0, 6, 10)),
            // Neither a time nor a date is a version.
            ("2026-08-01 12:00:00 starting\nvfkit version: v0.5", (0, 5, 0)),
        ] {
            assert_eq!(Version::find(text), Some(Version::new(want.0, want.1, want.2)), "{text}");
        }
        assert_eq!(Version::find("no number at all"), None);
    }
}
