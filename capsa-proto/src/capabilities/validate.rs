//! Validates a VM spec in one pass and collects every violation.

mod agent;
mod disks;
mod kernel_image;
mod network;
mod shares;
mod supported;

pub use network::{options_beside_policy, policy_rules};

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{PlannedShare, ValidatedAgent, ValidatedSpec, Violation, ViolationKind as Kind};
use crate::backend::{HypervisorBackend, ProbeReport};
use crate::cmdline::{CmdlineArg, CmdlineError, KernelCmdline, MAX_LEN};
use crate::host::{FileFacts, HostFacts};
use crate::path::HostPath;
use crate::plan::{AGENT_PATH, Note};
use crate::spec::{AgentMode, ConsoleMode, Disk, VmSpec};
use shares::{chosen, mount_extra};

pub(super) use shares::in_mount_order;

/// No Linux kernel boots with this many MiB of memory or fewer. (The tests' bare-metal guests need 32.)
const TOO_LITTLE_MEMORY_MB: u32 = 15;

const MIB: u64 = 1 << 20;

/// Validates `spec` against a backend's capabilities, as [`BackendCapabilities::validate`] does, and
/// against the host facts.
///
/// [`BackendCapabilities::validate`]: super::BackendCapabilities::validate
///
/// # Errors
///
/// All violations, in the order of the fields. Never empty.
pub fn validate(
    spec: VmSpec,
    backend: &dyn HypervisorBackend,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<ValidatedSpec, Vec<Violation>> {
    let name = backend.name();
    let unsupported = backend.capabilities().validate(&spec).err().unwrap_or_default();
    let out = unsupported.into_iter().map(|violation| violation.on(name)).collect();
    let mut validation = Validation { spec: &spec, backend, host, found, out, notes: Vec::new() };
    validation.boot_files();
    validation.disks();
    validation.resources();
    let shares = validation.shares();
    validation.virtio_console();
    validation.out.extend(network::violations(&spec, host));
    validation.vsock_ports();
    validation.disk_errors();
    let agent = validation.agent();
    let cmdline = validation.cmdline(&shares, agent.is_some());
    validation.run_dir();
    let Validation { mut out, notes, .. } = validation;
    out.sort_by_key(|violation| field_order(&violation.field));
    out.extend(backend.validate(&spec, host, found));
    if out.is_empty() {
        Ok(ValidatedSpec { cmdline, shares, agent, notes, spec })
    } else {
        Err(out)
    }
}

/// The place of a field in the order of the fields. Those not listed come last.
fn field_order(field: &str) -> usize {
    let order = [
        "kernel",
        "initrd",
        "disks",
        "cpus",
        "memory",
        "timeout",
        "shares",
        "network",
        "allow_private",
        "allow_host_ports",
        "forwards",
        "services",
        "network_pcap",
        "vsock",
        "vsock_ports",
    ];
    let name = field.split(['[', '.']).next().unwrap_or_default();
    order.iter().position(|other| *other == name).unwrap_or(order.len())
}

struct Validation<'a> {
    spec: &'a VmSpec,
    backend: &'a dyn HypervisorBackend,
    host: &'a HostFacts,
    found: &'a ProbeReport,
    out: Vec<Violation>,
    notes: Vec<Note>,
}

impl Validation<'_> {
    fn reject(
        &mut self,
        field: impl Into<String>,
        kind: Kind,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.out.push(Violation::new(field, kind, reason, remedy));
    }

    fn unsupported(&mut self, field: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        let violation = Violation::new(field, Kind::Unsupported, reason, remedy);
        self.out.push(violation.on(self.backend.name()));
    }

    fn boot_files(&mut self) {
        let spec = self.spec;
        if let Some(head) = self.regular_file("kernel", &spec.kernel)
            && let Some((what, remedy)) = kernel_image::refusal(self.host.arch, &head)
        {
            let reason = format!("{} {what}", spec.kernel);
            self.reject("kernel", Kind::WrongFormat, reason, remedy);
        }
        if let Some(initrd) = &spec.initrd {
            self.regular_file("initrd", initrd);
        }
    }

    /// Returns the first bytes of a readable, non-empty file; anything else is a violation.
    fn regular_file(&mut self, field: &str, path: &HostPath) -> Option<Vec<u8>> {
        match self.host.file(path) {
            FileFacts::File { size: 0, .. } => {
                self.reject(
                    field,
                    Kind::Empty,
                    format!("{path} is empty"),
                    "check how the file was created",
                );
                None
            }
            FileFacts::File { head, .. } => Some(head.clone()),
            FileFacts::Missing => {
                self.reject(
                    field,
                    Kind::Missing,
                    format!("{path} does not exist"),
                    "check the path",
                );
                None
            }
            FileFacts::Unreadable(why) => {
                self.reject(
                    field,
                    Kind::NoAccess,
                    format!("{path} cannot be read: {why}"),
                    "make it readable for this user",
                );
                None
            }
            FileFacts::Directory { .. } => {
                self.reject(
                    field,
                    Kind::WrongType,
                    format!("{path} is a directory"),
                    "give the path of a file",
                );
                None
            }
            FileFacts::Special => {
                self.reject(
                    field,
                    Kind::WrongType,
                    format!("{path} is neither a file nor a block device"),
                    "give the path of a regular file or block device",
                );
                None
            }
        }
    }

    fn resources(&mut self) {
        let resources = &self.spec.resources;
        if resources.cpus == 0 {
            self.reject(
                "cpus",
                Kind::OutOfRange,
                "invalid number 0: expected 1 or more",
                "set cpus to 1 or more",
            );
        }
        if resources.memory_mb == 0 {
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!("invalid size 0: expected {} MiB or more", TOO_LITTLE_MEMORY_MB + 1),
                "set memory to 128 MiB or more",
            );
        } else if resources.memory_mb <= TOO_LITTLE_MEMORY_MB {
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!("{} MiB of memory is too little to boot Linux", resources.memory_mb),
                "set memory to 128 MiB or more",
            );
        } else if self.boot_files_mb() >= u64::from(resources.memory_mb) {
            let loaded = self.boot_files_mb();
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!(
                    "{} MiB of memory cannot hold this kernel and initrd, which need {loaded} MiB before the \
                     first program runs",
                    resources.memory_mb
                ),
                format!("set memory to {} MiB or more", loaded + 128),
            );
        } else if u64::from(resources.memory_mb) > self.host.memory_mb {
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!(
                    "{} MiB exceed the host's memory of {} MiB",
                    resources.memory_mb, self.host.memory_mb
                ),
                "set memory to less than the host has",
            );
        }
        if self.spec.time_limit.is_some_and(|limit| limit.is_zero()) {
            self.reject(
                "timeout",
                Kind::OutOfRange,
                "invalid time 0: expected more than 0",
                "set a duration above zero, or no time limit",
            );
        }
    }

    /// MiB of guest memory that the kernel and the initrd need before the first program runs. An ELF kernel
    /// counts as 0, because only parts of the file are loaded.
    fn boot_files_mb(&self) -> u64 {
        let loaded = |path: &HostPath| match self.host.file(path) {
            FileFacts::File { size, head, .. } if !kernel_image::is_loaded_in_parts(head) => {
                kernel_image::size_at_start(head).max(*size)
            }
            _ => 0,
        };
        let initrd = self.spec.initrd.as_ref().map_or(0, loaded);
        loaded(&self.spec.kernel).saturating_add(initrd) / MIB
    }

    fn virtio_console(&mut self) {
        if self.spec.virtio_console && self.spec.console == ConsoleMode::Disabled {
            self.reject(
                "virtio_console",
                Kind::Malformed,
                "the VM has no console",
                "enable the console, or remove virtio_console",
            );
        }
    }

    fn vsock_ports(&mut self) {
        for (n, port) in self.spec.vsock_ports.iter().enumerate() {
            let field = format!("vsock_ports[{n}]");
            if port.port == u32::MAX {
                let reason = "VMADDR_PORT_ANY (4294967295) is not a valid port";
                self.reject(&field, Kind::OutOfRange, reason, "use a port from 0 to 4294967294");
            }
            if self.spec.vsock_ports[..n].contains(port) {
                let reason = format!("port {} is listed twice for the same direction", port.port);
                self.reject(&field, Kind::Duplicate, reason, "list it once");
            }
        }
    }

    fn disk_errors(&mut self) {
        let is_written = |disk: &Disk| !disk.read_only;
        if !self.backend.capabilities().disk_errors && self.spec.disks.iter().any(is_written) {
            self.notes.push(Note::info(format!(
                "{} reports no disk errors: if the host's file system is full, only the guest gets an I/O \
                 error",
                self.backend.name()
            )));
        }
    }

    /// The agent, if the VM has one.
    fn agent(&mut self) -> Option<ValidatedAgent> {
        let is_required = match self.spec.agent {
            AgentMode::Off => return None,
            AgentMode::Auto => false,
            AgentMode::Required => true,
        };
        match agent::agent(self.spec, self.backend, self.host) {
            Ok(agent) if is_required || agent.transports.iter().any(|way| way.is_common()) => {
                return Some(agent);
            }
            Ok(_) => self.notes.push(Note::info(format!(
                "the guest has no agent: {} reaches it by vsock only, for which many guests lack a driver \
                 until they have booted; require the agent if this one has it",
                self.backend.name()
            ))),
            Err(None) => {}
            Err(Some(reason)) if is_required => {
                let what = format!("the guest cannot have the agent: {}", reason.what);
                self.unsupported("agent", what, format!("{}, or turn it off", reason.remedy));
            }
            Err(Some(reason)) => {
                self.notes.push(Note::info(format!("the guest has no agent: {reason}")));
            }
        }
        None
    }

    fn cmdline(&mut self, shares: &[PlannedShare], has_agent: bool) -> String {
        let user = &self.spec.cmdline;
        let mut whole = KernelCmdline::new();
        if let Some(text) = user.override_text() {
            whole.override_with(text);
            if user.iter().next().is_some() || !user.init_args().is_empty() {
                self.reject(
                    "cmdline",
                    Kind::Duplicate,
                    "arguments cannot be added to an overridden kernel command line",
                    "add them to the override, or remove the override",
                );
            }
            for share in in_mount_order(shares) {
                let mount = share.mount_command();
                self.notes.push(Note::warning(format!(
                    "{}; the kernel command line is overridden, so the guest must mount it: {mount}",
                    chosen(&share)
                )));
            }
        } else {
            let mut defaults = self.backend.kernel_cmdline_defaults(self.spec, self.host);
            if self.spec.console == ConsoleMode::Disabled {
                defaults.remove("console");
            }
            whole.merge(&defaults);
            if !self.spec.disks.is_empty() {
                whole.root(self.backend.default_root_device());
            }
            for share in in_mount_order(shares) {
                whole.append(CmdlineArg::kv("systemd.mount-extra", mount_extra(&share)));
                let mount = share.mount_command();
                self.notes.push(Note::info(format!(
                    "{}; systemd 254 or later in the guest mounts it; other guests must run: {mount}",
                    chosen(&share)
                )));
            }
            // The user's own mounts are added to the generated ones; they do not replace them.
            let (mounts, rest) = split_mounts(user);
            whole.merge(&rest);
            for mount in mounts {
                whole.append(mount);
            }
        }
        if has_agent {
            // The kernel forgets the arguments for init that precede `rdinit=` (`rdinit_setup` in
            // `init/main.c`), so it is the first.
            whole.remove("rdinit");
            let mut first = KernelCmdline::new();
            first.arg(CmdlineArg::kv("rdinit", AGENT_PATH)).merge(&whole);
            whole = first;
        }
        whole.build_checked(MAX_LEN).unwrap_or_else(|error| {
            let (kind, remedy) = match error {
                CmdlineError::TooLong { .. } => {
                    (Kind::TooLong, "shorten it: the kernel would truncate it silently")
                }
                _ => (
                    Kind::Malformed,
                    "pass arguments one by one, without control characters or quotes",
                ),
            };
            self.reject("cmdline", kind, error.to_string(), remedy);
            String::new()
        })
    }

    fn run_dir(&mut self) {
        let longest_name = self.backend.longest_socket_name(self.spec);
        let length = self.host.run_dir.as_str().len() + 1 + longest_name;
        if longest_name > 0 && length > self.host.socket_path_max {
            self.reject(
                "run_dir",
                Kind::TooLong,
                format!(
                    "socket paths in {} would be {length} bytes long; the limit for unix sockets is {} \
                     bytes",
                    self.host.run_dir, self.host.socket_path_max
                ),
                "set CAPSA_RUN_DIR to a shorter directory, such as /tmp/capsa",
            );
        }
    }
}

fn split_mounts(user: &KernelCmdline) -> (Vec<CmdlineArg>, KernelCmdline) {
    let mounts = user.get_all("systemd.mount-extra");
    let mounts = mounts.map(|value| CmdlineArg::kv("systemd.mount-extra", value)).collect();
    let mut rest = user.clone();
    while rest.remove("systemd.mount-extra").is_some() {}
    (mounts, rest)
}
