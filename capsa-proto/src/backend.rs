//! What a hypervisor has to answer to be a backend.
//!
//! A backend is a table of facts and a few pure functions: what it can do, what to look for on the
//! host, whether what was found is enough, and how a checked specification becomes a
//! [`LaunchPlan`]. It opens nothing and starts nothing, so all of them are compiled and tested
//! everywhere, and a new one is one file of data.

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
use crate::host::{Arch, HostFacts, Reason};
use crate::plan::{LaunchPlan, Message, Note, RunDirPlan};
use crate::spec::VmSpec;

/// A hypervisor as data.
pub trait HypervisorBackend: Send + Sync + fmt::Debug {
    /// Its name: `qemu`, `cloud-hypervisor`, `vfkit`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> &BackendCapabilities;

    /// Which programs to look for on a host of this architecture and what to ask them. With a
    /// specification, only what that machine needs is looked for; without one, everything.
    fn probe(&self, arch: Arch, spec: Option<&VmSpec>) -> ProbePlan;

    /// Whether it can be used here, with every reason against it.
    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability;

    /// The first layer of the kernel command line.
    fn kernel_cmdline_defaults(&self, spec: &VmSpec, host: &HostFacts) -> KernelCmdline;

    /// Where the first disk appears in the guest.
    fn default_root_device(&self) -> &str;

    /// Everything that speaks against virtio-fs shares with what was found here, where the
    /// capability table has them.
    fn virtio_fs_blockers(&self, host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
        let _ = (host, found);
        Vec::new()
    }

    /// What this backend refuses beyond its capability table, given what was found.
    fn validate(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation>;

    /// The exact programs, arguments and messages. Never fails: whatever could not be planned was
    /// refused by the check.
    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan;

    /// What a reply to `message` means.
    fn reply(&self, message: &Message, reply: &ControlReply) -> ReplyOutcome {
        let _ = message;
        reply.outcome()
    }

    /// What a line on the hypervisor's standard error means, if anything.
    fn stderr_line(&self, line: &str) -> Option<GuestEvent> {
        let _ = line;
        None
    }

    /// What an object on the event pipe means, if anything.
    fn pipe_event(&self, event: &Value) -> Option<GuestEvent> {
        let _ = event;
        None
    }

    /// What an event of the control channel means, if anything.
    fn event(&self, event: &QmpMessage) -> Option<GuestEvent> {
        let _ = event;
        None
    }
}

/// What to look for on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbePlan {
    /// The probes.
    pub probes: Vec<Probe>,
}

/// One question to one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The key of the answer in the [`ProbeReport`].
    pub key: &'static str,
    /// What people call the program, when they name one to use: `qemu`, `virtiofsd`. Several
    /// probes may go to one program.
    pub program: &'static str,
    /// An environment variable that names the program outright.
    pub env: &'static str,
    /// Names to look for in `PATH`, or absolute paths, in order.
    pub candidates: Vec<String>,
    /// The arguments that make it answer and exit.
    pub args: Vec<&'static str>,
}

/// The answers, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    results: BTreeMap<&'static str, ProbeResult>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// No candidate exists.
    NotFound {
        /// The names and paths that were tried.
        tried: Vec<String>,
    },
    /// It exists and did not answer: it failed, hung, or is not a program.
    Failed {
        /// Where it is.
        program: String,
        /// What happened.
        reason: String,
    },
    /// It answered.
    Output {
        /// Where it is.
        program: String,
        /// What it printed, standard output before standard error.
        output: String,
    },
}

impl ProbeReport {
    /// Adds an answer.
    pub fn insert(&mut self, key: &'static str, answer: ProbeResult) {
        self.results.insert(key, answer);
    }

    /// The answer to a question; `None` when it was not asked.
    pub fn get(&self, key: &str) -> Option<&ProbeResult> {
        self.results.get(key)
    }

    /// Where the program is, whether or not it answered. `None` when it was not found.
    pub fn found(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            ProbeResult::Output { program, .. } | ProbeResult::Failed { program, .. } => {
                Some(program.clone())
            }
            ProbeResult::NotFound { .. } => None,
        }
    }

    /// The program that was found, or `fallback` where none was (in a dry run on a foreign host).
    pub fn program(&self, key: &str, fallback: &str) -> String {
        self.found(key).unwrap_or_else(|| fallback.to_string())
    }

    /// What speaks against the program that people call `name`: it is missing, does not work, does
    /// not say its version, or is older than `min`; `older` says what is wrong with that. `None`
    /// when nothing does, and when it was not asked.
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
            ProbeResult::Failed { program, reason } => {
                Some(format!("{program} does not work: {reason}"))
            }
            ProbeResult::Output { program, output } => match Version::find(output) {
                None => Some(format!("{program} did not say its version")),
                Some(version) if version < min => {
                    Some(format!("{program} is version {version}, older than {min}: {older}"))
                }
                Some(_) => None,
            },
        }
    }

    /// What it printed.
    pub fn output(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(ProbeResult::Output { output, .. }) => Some(output),
            _ => None,
        }
    }

    /// The version in what it printed.
    pub fn version(&self, key: &str) -> Option<Version> {
        Version::find(self.output(key)?)
    }
}

/// A program's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch; 0 where the program prints none.
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
    /// use capsa_proto::backend::Version;
    ///
    /// let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)";
    /// assert_eq!(Version::find(text), Some(Version::new(10, 0, 2)));
    /// assert_eq!(Version::find("cloud-hypervisor v53.0"), Some(Version::new(53, 0, 0)));
    /// ```
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || "(),".contains(c)).find_map(|word| {
            let word = word.strip_prefix('v').unwrap_or(word);
            // The release and the build of a distribution are no part of it.
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

/// Whether a backend can be used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Availability {
    /// Its version, where the program answered.
    pub version: Option<Version>,
    /// Where the program is.
    pub program: Option<String>,
    /// Every reason against it; it is usable when there is none.
    pub blockers: Vec<Reason>,
    /// What it can do by its table and cannot with what was found here. Only a machine that asks for
    /// one of these is refused.
    pub missing_features: Vec<MissingFeature>,
    /// What is not as one would wish although it can be used.
    pub warnings: Vec<Note>,
}

/// A feature that a backend has in principle, and not on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingFeature {
    /// What cannot be had.
    pub feature: Feature,
    /// What is missing, and what to install.
    #[serde(flatten)]
    pub reason: Reason,
}

impl MissingFeature {
    /// One lack for each reason against a feature.
    pub fn of(
        feature: Feature,
        reasons: impl IntoIterator<Item = Reason>,
    ) -> impl Iterator<Item = Self> {
        reasons.into_iter().map(move |reason| Self { feature, reason })
    }
}

/// A feature that depends on what is installed beside a hypervisor, or was built into it.
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
    /// Sockets between host and guest.
    Vsock,
}

impl Availability {
    /// Nothing speaks against it.
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
    /// What it means where a backend has no opinion: errors refuse, the rest is done.
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

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// It was done.
    Done,
    /// Not yet: send the message again.
    Retry,
    /// It was refused; the hypervisor's words.
    Rejected(String),
    /// There was no answer, and will be none: the hypervisor may be leaving. What was seen.
    Lost(String),
}

/// What the hypervisor says about its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset: a reboot, or a panic that reboots.
    Reset,
    /// The guest told a panic device that it panicked.
    Panicked,
    /// Somebody who is not Capsa told the hypervisor to quit.
    ExternalQuit,
    /// The hypervisor cannot go on with a virtual CPU: the guest is dead, whether or not its process
    /// is, and whatever events follow.
    CpuFailed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_print_them() {
        for (text, want) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2, 22)),
            ("virtiofsd 1.14.0", (1, 14, 0)),
            ("vfkit version: v0.6.4", (0, 6, 4)),
            ("cloud-hypervisor v53.0.0-dirty", (53, 0, 0)),
            ("virtiofsd backend 1.10.1", (1, 10, 1)),
            ("vfkit version: v0.6.1-3-gdeadbee", (0, 6, 1)),
            ("0.6.10+dirty", (0, 6, 10)),
            // Neither a time nor a date is one.
            ("2026-08-01 12:00:00 starting\nvfkit version: v0.5", (0, 5, 0)),
        ] {
            assert_eq!(Version::find(text), Some(Version::new(want.0, want.1, want.2)), "{text}");
        }
        assert_eq!(Version::find("no number at all"), None);
    }
}
