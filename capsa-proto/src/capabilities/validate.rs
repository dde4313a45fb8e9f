//! The check: one pass over the specification, every problem collected.

mod disks;
mod shares;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{PlannedShare, ValidatedSpec, Violation, ViolationKind as Kind};
use crate::backend::{HypervisorBackend, ProbeReport};
use crate::cmdline::{CmdlineArg, CmdlineError, KernelCmdline, MAX_LEN};
use crate::host::{Arch, FileFacts, HostFacts};
use crate::path::HostPath;
use crate::plan::{LONGEST_SOCKET_NAME, Note};
use crate::spec::{ConsoleMode, NetworkMode, RebootPolicy, VmSpec};
use shares::{chosen, mount_command, mount_extra};

/// MiB of memory in which no Linux boots: its own code takes more. (Bare programs, as tests boot them,
/// do with 32.)
const TOO_LITTLE_MEMORY_MB: u32 = 15;

const MIB: u64 = 1 << 20;

/// Checks `spec` against a backend and a host.
///
/// # Errors
///
/// Every problem there is, in the order of the fields. Never empty.
pub fn validate(
    spec: VmSpec,
    backend: &dyn HypervisorBackend,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<ValidatedSpec, Vec<Violation>> {
    let mut validation =
        Validation { spec: &spec, backend, host, found, out: Vec::new(), notes: Vec::new() };
    validation.boot_files();
    validation.disks();
    validation.resources();
    let shares = validation.shares();
    validation.modes();
    let cmdline = validation.cmdline(&shares);
    validation.run_dir();
    let Validation { mut out, notes, .. } = validation;
    out.extend(backend.validate(&spec, host, found));
    if out.is_empty() { Ok(ValidatedSpec { cmdline, shares, notes, spec }) } else { Err(out) }
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
            && !is_kernel(self.host.arch, &head)
        {
            self.reject(
                "kernel",
                Kind::WrongFormat,
                format!("{} is not a kernel that can be booted directly", spec.kernel),
                kernel_remedy(self.host.arch, &head),
            );
        }
        let methods = &self.backend.capabilities().boot_methods;
        match &spec.initrd {
            Some(initrd) => {
                self.regular_file("initrd", initrd);
            }
            None if !methods.linux_direct_without_initrd => {
                self.unsupported("initrd", "this backend needs an initrd", "give one");
            }
            None => {}
        }
    }

    /// Refuses what is not a readable, non-empty file, and returns its first bytes.
    fn regular_file(&mut self, field: &str, path: &HostPath) -> Option<Vec<u8>> {
        match self.host.file(path) {
            FileFacts::File { size: 0, .. } => {
                self.reject(
                    field,
                    Kind::Empty,
                    format!("{path} is empty"),
                    "check how it was made",
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
                    "name the file in it",
                );
                None
            }
            FileFacts::Special => {
                self.reject(
                    field,
                    Kind::WrongType,
                    format!("{path} is neither a file nor a block device"),
                    "name a file",
                );
                None
            }
        }
    }

    fn resources(&mut self) {
        let capabilities = self.backend.capabilities();
        let (max_cpus, max_memory) = (capabilities.max_cpus, capabilities.max_memory_mb);
        let resources = &self.spec.resources;
        if resources.cpus == 0 {
            self.reject("cpus", Kind::OutOfRange, "a machine needs a CPU", "give 1 or more");
        } else if let Some(max) = max_cpus
            && resources.cpus > max
        {
            let reason = format!("{} CPUs are more than the {max} it can have", resources.cpus);
            self.unsupported("cpus", reason, format!("give {max} or fewer"));
        }
        if resources.memory_mb == 0 {
            self.reject(
                "memory",
                Kind::OutOfRange,
                "a machine needs memory",
                "give 128 MiB or more",
            );
        } else if resources.memory_mb <= TOO_LITTLE_MEMORY_MB {
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!("no Linux boots in {} MiB", resources.memory_mb),
                "give 128 MiB or more",
            );
        } else if self.boot_files_mb() >= u64::from(resources.memory_mb) {
            let loaded = self.boot_files_mb();
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!(
                    "{} MiB do not hold the {loaded} MiB of the kernel and initrd",
                    resources.memory_mb
                ),
                format!("give {} MiB or more", loaded + 128),
            );
        } else if u64::from(resources.memory_mb) > self.host.memory_mb {
            self.reject(
                "memory",
                Kind::OutOfRange,
                format!(
                    "{} MiB are more than the {} MiB this host has",
                    resources.memory_mb, self.host.memory_mb
                ),
                "give less",
            );
        } else if let Some(max) = max_memory
            && resources.memory_mb > max
        {
            let reason = format!("{} MiB are more than the {max} it can have", resources.memory_mb);
            self.unsupported("memory", reason, format!("give {max} or less"));
        }
        if self.spec.time_limit.is_some_and(|limit| limit.is_zero()) {
            self.reject(
                "timeout",
                Kind::OutOfRange,
                "a machine with no time cannot run",
                "give a duration above zero, or none",
            );
        }
    }

    /// MiB of what is put into the memory before the guest runs. Of an ELF file only parts are.
    fn boot_files_mb(&self) -> u64 {
        let loaded = |path: &HostPath| match self.host.file(path) {
            FileFacts::File { size, head, .. } if !head.starts_with(ELF) => *size,
            _ => 0,
        };
        let initrd = self.spec.initrd.as_ref().map_or(0, loaded);
        loaded(&self.spec.kernel).saturating_add(initrd) / MIB
    }

    fn modes(&mut self) {
        let capabilities = self.backend.capabilities();
        let modes = capabilities.network_modes.clone();
        let (end, restart) = (capabilities.reboot_end, capabilities.reboot_restart);
        let vsock = capabilities.vsock;
        match self.spec.network {
            NetworkMode::None if !modes.none => {
                self.unsupported("network", "it cannot leave the network out", "ask for nat");
            }
            NetworkMode::Nat if !modes.nat => self.unsupported(
                "network",
                "NAT is not supported",
                "ask for no network, or use the qemu backend",
            ),
            _ => {}
        }
        if self.spec.vsock && !vsock {
            let remedy = "leave it out, or use the cloud-hypervisor or qemu backend";
            self.unsupported("vsock", "vsock is not supported", remedy);
        }
        for (n, port) in self.spec.vsock_ports.iter().enumerate() {
            let field = format!("vsock_ports[{n}]");
            if port.port == u32::MAX {
                let reason = "this number stands for any port, and none has it";
                self.reject(&field, Kind::OutOfRange, reason, "give one below it");
            }
            if self.spec.vsock_ports[..n].contains(port) {
                let reason = format!("port {} is named twice for one direction", port.port);
                self.reject(&field, Kind::Duplicate, reason, "name it once");
            }
        }
        match self.spec.on_reboot {
            RebootPolicy::End if !end => self.unsupported(
                "on_reboot",
                "it does not tell of a reboot, so one might go unseen",
                "leave it out, which ends the machine at a panic and where the console tells of a \
                 reboot, or use the qemu backend",
            ),
            RebootPolicy::Restart if !restart => {
                self.unsupported("on_reboot", "a reboot ends the machine", "start a new one");
            }
            _ => {}
        }
    }

    fn cmdline(&mut self, shares: &[PlannedShare]) -> String {
        let user = &self.spec.cmdline;
        let mut whole = KernelCmdline::new();
        if let Some(text) = user.override_text() {
            whole.override_with(text);
            if user.iter().next().is_some() || !user.init_args().is_empty() {
                self.reject(
                    "cmdline",
                    Kind::Duplicate,
                    "arguments are added to a kernel command line that is overridden",
                    "put them into the override, or leave it out",
                );
            }
            for share in shares {
                let mount = mount_command(share);
                self.notes.push(Note::warning(format!(
                    "{}; the kernel command line is overridden, so the guest has to run: {mount}",
                    chosen(share)
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
            for share in shares {
                whole.append(CmdlineArg::kv("systemd.mount-extra", mount_extra(share)));
                let mount = mount_command(share);
                self.notes.push(Note::info(format!(
                    "{}; a guest with systemd 254 or later mounts it by itself, others run: {mount}",
                    chosen(share)
                )));
            }
            // The user's own mounts come beside ours, not in their place.
            let (mounts, rest) = split_mounts(user);
            whole.merge(&rest);
            for mount in mounts {
                whole.append(mount);
            }
        }
        whole.build_checked(MAX_LEN).unwrap_or_else(|error| {
            let (kind, remedy) = match error {
                CmdlineError::TooLong { .. } => {
                    (Kind::TooLong, "shorten it: the kernel would cut it silently")
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
        let length = self.host.run_dir.as_str().len() + 1 + LONGEST_SOCKET_NAME;
        if length > self.host.socket_path_max {
            self.reject(
                "run_dir",
                Kind::TooLong,
                format!(
                    "a socket in {} would have a path of {length} bytes, and {} are the most a \
                     unix socket can have",
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

/// What to give in the place of something that is no kernel for this architecture.
fn kernel_remedy(arch: Arch, head: &[u8]) -> &'static str {
    match arch {
        Arch::X86_64 => "give a bzImage (usually called vmlinuz) or an ELF vmlinux",
        _ if head.get(0x202..0x206) == Some(b"HdrS") => "it is one for x86-64: give an arm64 Image",
        _ if head.starts_with(b"\x1f\x8b") => "unpack it: zcat vmlinuz > Image",
        _ if head.starts_with(b"MZ\0\0zimg") => {
            "it is packed for EFI (zboot): unpack it, with unzboot for one, or build the target Image"
        }
        _ => "give an uncompressed arm64 Image",
    }
}

/// How an ELF file begins.
const ELF: &[u8] = b"\x7fELF";

/// bzImage (`HdrS` at 0x202) or ELF on x86-64, `ARM\x64` at 0x38 on arm64.
fn is_kernel(arch: Arch, head: &[u8]) -> bool {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    match arch {
        Arch::X86_64 => at(0x202, b"HdrS") || at(0, ELF),
        Arch::Aarch64 => at(0x38, b"ARM\x64"),
        Arch::Other => true,
    }
}
